"""The devices that the same tests run on: every instruction set of the CPU, CUDA in the emulator, and a GPU.

A test asks for them with ``per_device``; what differs from device to device (types, arithmetic, what may be looked at)
it asks the Device for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import cases
import fences
import pytest
import torch
from quantised import INT4_GROUPS, INT8_GROUP
from reference import Arithmetic

from codegen_fast import ops


@dataclass(frozen=True)
class Types:
    """The types of a call: of activations, and of weights (a kind of ``ops.WEIGHT_KINDS``)."""

    act: torch.dtype
    kind: str

    def __str__(self) -> str:
        return self.kind if self.act == torch.float32 else f"{label(self.act)}-{self.kind}"


@dataclass(frozen=True)
class Device:
    """Where a test runs.

    name     cpu-portable, cpu-avx2, ..., cuda-emulated or cuda
    backend  "cpu" or "cuda": the namespace whose ops run, and whose rules hold
    memory   torch's device of the tensors; the emulator takes CPU tensors for a GPU's
    """

    name: str
    backend: str
    memory: torch.device

    @property
    def emulated(self) -> bool:
        """A thread of a GPU costs a microsecond here: tests take fewer rows of large weights, and fewer cases."""
        return self.name == "cuda-emulated"

    @property
    def store(self) -> Device:
        """One that stands for all devices that read each other's packed weights and pages: a key for caches."""
        return CPU if self.backend == "cpu" else self

    @property
    def acts(self) -> tuple[torch.dtype, ...]:
        """The types that activations may have."""
        return (torch.float32,) if self.backend == "cpu" else (torch.float16, torch.bfloat16)

    @property
    def act(self) -> torch.dtype:
        """The one of ``acts`` that a test takes that does not need all."""
        return self.acts[0]

    @property
    def types(self) -> tuple[Types, ...]:
        """Every pair that the backend takes: on CUDA weights have the activations' type or are int8."""
        if self.backend == "cpu":
            return tuple(Types(torch.float32, kind) for kind in cases.WEIGHT_KINDS)
        own = tuple(Types(act, label(act)) for act in self.acts)
        return own + tuple(Types(act, "int8") for act in self.acts)

    @property
    def every_type(self) -> tuple[Types, ...]:
        """``types``, and int4 in larger groups."""
        more = cases.INT4_KINDS[1:] if self.backend == "cpu" else ()
        return self.types + tuple(Types(torch.float32, kind) for kind in more)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of weights that the backend packs."""
        return tuple(dict.fromkeys(types.kind for types in self.types))

    def cache_dtypes(self, act: torch.dtype) -> tuple[torch.dtype, ...]:
        """What the cache may hold beside activations of this type."""
        return (torch.float32, torch.float16, torch.bfloat16) if self.backend == "cpu" else (act,)

    def arithmetic(self, types: Types, phase: str) -> Arithmetic:
        """How a product is computed (INT8, INT4 and act in csrc/ops.h)."""
        if self.backend == "cpu":
            if types.kind in INT4_GROUPS:
                return Arithmetic("w4a8", weight_group=INT4_GROUPS[types.kind])
            if types.kind == "int8-g32":
                return Arithmetic("grouped", group=INT8_GROUP)
            return Arithmetic("w8a8" if types.kind == "int8" else "exact")
        modes = {"prefill": "w8a8", "decode": "w8a16"}
        return Arithmetic(modes[phase] if types.kind == "int8" else "exact", group=None, act=types.act)

    def rows(self, dims: cases.Dims, rows: int) -> int:
        """How many of a map's rows a test computes."""
        return min(dims.test_rows(rows), 40) if self.emulated and dims.n_embd > 512 else dims.test_rows(rows)

    def variations(self) -> list[Callable]:
        """Surroundings (context managers) that must change no bit: threads; multiprocessors, and the order of warps;
        where activations lie."""
        if self.backend == "cpu":
            return [functools.partial(threads, 1), functools.partial(threads, 2), fences.aligned]
        if self.emulated:
            return [functools.partial(emulated, 11, 3), functools.partial(emulated, 12, 60), fences.aligned]
        return [nullcontext, fences.aligned]

    @contextmanager
    def running(self) -> Iterator[None]:
        """The ops of the block run here. The reference runs on one thread of torch's: its waiting threads would take
        the cores of a busy machine."""
        torch.set_num_threads(1)
        if self.emulated:
            with emulated():
                yield
        elif self.backend == "cuda":
            yield
        else:
            with threads(2), ops.forced_isa(self.name.removeprefix("cpu-")):
                yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = ops.num_threads()
    ops.set_num_threads(number)
    try:
        yield
    finally:
        ops.set_num_threads(before)


def emulated(seed: int = 1, multiprocessors: int = 5):
    """The emulator's context manager; built when a test first needs it."""
    import emulator

    return emulator.emulated(seed=seed, multiprocessors=multiprocessors)


def why_no_gpu() -> str | None:
    """Why the kernels cannot run on a GPU here, or None where they can."""
    if not ops.build_info()["cuda"].startswith("on "):
        return "no GPU: built without CUDA"
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    found, why = ops.cuda_devices()
    return None if found else f"no GPU: {why}"


CPUS = tuple(Device(f"cpu-{isa}", "cpu", torch.device("cpu")) for isa in ops.cpu_isas())
CPU = CPUS[0]  # the instruction set that is used unless another is forced
EMULATED = Device("cuda-emulated", "cuda", torch.device("cpu"))
GPU = Device("cuda", "cuda", torch.device("cuda"))
CUDA = (EMULATED, GPU)
DEVICES = (*CPUS, *CUDA)


@pytest.fixture
def device(request):
    """Runs a test on the device that ``per_device`` chose."""
    with request.param.running():
        yield request.param


def label(value) -> str:
    """A parameter in a test's id."""
    if isinstance(value, tuple) and not all(isinstance(part, int) for part in value):
        return "-".join(map(label, value))
    return getattr(value, "name", None) or str(value).removeprefix("torch.").replace(", ", ",").replace(" ", "_")


def per_device(devices=DEVICES, where: Callable[..., bool] = lambda *values: True, entered: bool = True, **axes):
    """Parametrises a test over devices and, for each, over all combinations of the axes.

    An axis is a sequence of values, or a function of the device (such as a property of it) that gives one. where: of
    (device, *values), whether the combination is wanted. entered: the test runs on the device, or else enters
    ``device.running()`` itself. Where there is no GPU a single skipped test says why.
    """
    params = []
    for dev in devices:
        if dev is GPU and (why := why_no_gpu()):
            params.append(pytest.param(dev, *[None] * len(axes), id=dev.name, marks=pytest.mark.skip(reason=why)))
            continue
        choices = [axis.fget(dev) if isinstance(axis, property) else axis(dev) if callable(axis) else axis
                   for axis in axes.values()]  # fmt: skip
        for values in itertools.product(*choices):
            if where(dev, *values):
                params.append(pytest.param(dev, *values, id="-".join(map(label, (dev, *values)))))
    return pytest.mark.parametrize(("device", *axes), params, indirect=["device"] if entered else False)
