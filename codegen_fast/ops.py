"""The ops of the decoder for torch tensors: the only importer of ``codegen_fast._C`` (floor 4).

``csrc/ops.h`` is the contract: formulas, shapes, dtypes, aliasing, numerics. The functions here are the binding's
own, plus the few that allocate. Every op writes into tensors that the caller made; wrong names, shapes, dtypes,
strides and devices raise ValueError or TypeError that name the argument, what was expected and what was given.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

try:
    from . import _C
except ImportError as error:
    if (Path(__file__).parents[1] / "setup.py").exists():
        raise ImportError(
            "this is codegen_fast's source folder, which hides the installed package and has no compiled part: start "
            "Python in another folder, or run 'pip install -e .' to work in this one"
        ) from error
    raise ImportError(
        f"codegen_fast's compiled part could not be loaded ({error}); install the package again with 'pip install .'"
    ) from error

if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(f"codegen_fast needs torch 2.10 or newer (DLPack C exchange API), found torch {torch.__version__}")
_C.bind_torch(torch.Tensor, torch.nn.Parameter, torch.Tensor.__dlpack_c_exchange_api__)
# torch's threads do not survive a fork, and a child whose torch is told of several waits for them for ever (beams did).
# The kernels' own pool is made anew there, with as many threads as torch has.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
_C.cpu_isa()  # a wrong CODEGEN_FAST_ISA is an error now and not in the middle of a load

PackedWeight = _C.PackedWeight
Norm = _C.Norm
Batch = _C.Batch
SamplingParams = _C.SamplingParams
LogitsRules = _C.LogitsRules
HostRing = _C.HostRing
Graph = _C.Graph
TextStops = _C.TextStops

quantize_activations = _C.quantize_activations
embed = _C.embed
layer_norm = _C.layer_norm
input_product = _C.input_product
attention = _C.attention
output_product = _C.output_product
lm_head = _C.lm_head
sample = _C.sample
filter_logits = _C.filter_logits
edit_logits = _C.edit_logits
advance = _C.advance
copy_pages = _C.copy_pages

# Sizes that do not follow from a weight take device="cpu" or "cuda", the type of a torch.device.
kv_page_size = _C.kv_page_size
activation_group = _C.activation_group
activation_padding = _C.activation_padding
input_product_workspace = _C.input_product_workspace
attention_workspace = _C.attention_workspace
output_product_workspace = _C.output_product_workspace
lm_head_workspace = _C.lm_head_workspace
sample_workspace = _C.sample_workspace
edit_logits_workspace = _C.edit_logits_workspace

build_info = _C.build_info
cuda_devices = _C.cuda_devices
why_unusable = _C.why_unusable
cpu_isa = _C.cpu_isa
num_threads = _C.num_threads
philox_uniform = _C.philox_uniform

FLOAT_KINDS = ("float32", "float16", "bfloat16")
INT4_GROUPS = {"int4": 32, "int4-g64": 64, "int4-g128": 128}  # columns that share a scale
INT8_GROUPS = {"int8-g32": 32}
GROUPS = {**INT8_GROUPS, **INT4_GROUPS}  # kinds whose scales are bfloat16 numbers among the codes; "int8" has one a row
WEIGHT_KINDS = (*FLOAT_KINDS, "int8", *GROUPS)
_HUGE_PAGE = 2 << 20  # bytes: a weight on such pages streams a tenth faster, because fewer addresses are translated
_HAS_PRIVATE_MAPPINGS = hasattr(mmap, "MAP_PRIVATE")  # not on Windows
_ALIGNMENT = 64  # bytes: a cache line, so that no vector load of a panel straddles two


def backend(device: torch.device | str) -> str:
    """Whose kernels run for tensors on the device: "cpu" or "cuda". ValueError where there are none."""
    return _C.backend_name(torch.device(device).type)


def activation_dtype(model_dtype: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The type of what passes between ops: float32 on the CPU, the model's own on CUDA."""
    return model_dtype if backend(device) == "cuda" else torch.float32


def new_graph(on: torch.Tensor) -> Graph:
    """An empty graph for the device of this tensor: of CUDA, or on a CPU a list of calls."""
    return _C.new_graph(on)


@contextmanager
def recorded(graph: Graph) -> Iterator[None]:
    """Ops that this thread calls in the block are not run but recorded, for ``graph.replay()``.

    Their operands must outlive the graph.
    """
    graph.begin()
    try:
        yield
    except BaseException:
        graph.abandon()
        raise
    graph.end()


def new_host_ring(num_slots: int, rows: int, device: torch.device) -> HostRing:
    """Slots in which ``advance`` tells the host the tokens of a step, in memory that the device can write."""
    return HostRing(torch.zeros(num_slots, 1 + rows, dtype=torch.int64, pin_memory=device.type == "cuda", device="cpu"))


def _aligned_bytes(n: int, device: torch.device) -> torch.Tensor:
    """(n,) uint8, not yet touched, whose first element lies on a cache line; on a CPU on a huge page, if it fills one."""
    if _is_mapped(n, device):
        return _mapped_bytes(n)
    storage = torch.empty(n + _ALIGNMENT - 1, dtype=torch.uint8, device=device)
    offset = -storage.data_ptr() % _ALIGNMENT
    return storage[offset : offset + n]


def _is_mapped(n: int, device: torch.device) -> bool:
    """Whether so many bytes get a mapping of their own, of zeros."""
    return device.type == "cpu" and n >= _HUGE_PAGE and _HAS_PRIVATE_MAPPINGS


def _mapped_bytes(n: int) -> torch.Tensor:
    """(n,) uint8, zeros, in a mapping of its own from a huge page's first byte on.

    Not the allocator's: what it once gave for these it would give for small things later, with the system still asked for
    huge pages there, and a process that generates for hours would grow.
    """
    try:
        mapping = mmap.mmap(-1, n + _HUGE_PAGE - 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{n} bytes could not be mapped: {error}") from error
    storage = torch.frombuffer(mapping, dtype=torch.uint8)
    offset = -storage.data_ptr() % _HUGE_PAGE
    data = storage[offset : offset + n]
    _C.prefer_huge_pages(data)
    return data


def new_pages(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised (n_layer, num_pages, page_size, 2 * n_embd) for keys and values.

    On a CPU the system gives memory as it is first written, in huge pages where they fit: every head of a page of the
    cache would else stand behind an address translation of its own, and attention reads it half as fast.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    return _aligned_bytes(nbytes, device).view(dtype).view(shape)


def new_packed_weight(
    kind: str,
    sections: tuple[int, ...],
    segments: tuple[int, ...],
    device: torch.device | str = "cpu",
    *,
    clear: bool = True,
) -> PackedWeight:
    """An empty (zero) weight of sum(sections) rows and sum(segments) columns, in the backend's stored layout.

    clear=False leaves its bytes as they come, for one that is about to be filled whole.
    """
    device = torch.device(device)
    nbytes = _C.packed_weight_bytes(kind, sections, segments, device.type)
    data = _aligned_bytes(nbytes, device)
    count = _C.packed_weight_scales(kind, sections, segments, device.type)
    scales = torch.zeros(count, dtype=torch.float32, device=device) if count else None
    weight = PackedWeight(kind, sections, segments, data, scales)
    if clear and not _is_mapped(nbytes, device):
        _C.clear_packed(weight)
    return weight


def packed_weight_sizes(
    kind: str, sections: tuple[int, ...], segments: tuple[int, ...], device: torch.device | str = "cpu"
) -> tuple[int, int]:
    """Elements of the ``data`` (uint8) and ``scales`` (float32, 0: none) that ``new_packed_weight`` would make."""
    where = torch.device(device).type
    return (_C.packed_weight_bytes(kind, sections, segments, where),
            _C.packed_weight_scales(kind, sections, segments, where))  # fmt: skip


def packed_weight_nbytes(
    kind: str, sections: tuple[int, ...], segments: tuple[int, ...], device: torch.device | str = "cpu"
) -> int:
    """Bytes that ``new_packed_weight`` would take (values and scales)."""
    values, scales = packed_weight_sizes(kind, sections, segments, device)
    return values + 4 * scales


def new_pack_status(device: torch.device | str = "cpu") -> torch.Tensor:
    """(2,) int32 zeros: values that were NaN or infinite, and values too large for a narrower type."""
    return torch.zeros(2, dtype=torch.int32, device=device)


def pack(
    weight: PackedWeight,
    source: torch.Tensor,
    status: torch.Tensor,
    *,
    section: int = 0,
    row: int = 0,
    segment: int = 0,
) -> None:
    """Rows ``row`` ... of (section, segment) <- source (n, segments[segment]) float32, float16 or bfloat16.

    Converts or quantises on the way; ``status`` counts what could not be stored as it was.
    """
    _C.pack(weight, section, row, segment, source, status)


def pack_quantized(
    weight: PackedWeight,
    source: torch.Tensor,
    scales: torch.Tensor,
    *,
    section: int = 0,
    row: int = 0,
    segment: int = 0,
) -> None:
    """Rows of an int8 or int4 weight <- source and scales, as ``unpack_quantized`` gave them."""
    _C.pack_quantized(weight, section, row, segment, source, scales)


def _columns(weight: PackedWeight, segment: int) -> int:
    if not 0 <= segment < len(weight.segments):
        raise ValueError(f"segment: expected 0 to {len(weight.segments) - 1}, got {segment}")
    return weight.segments[segment]


def unpack(
    weight: PackedWeight, n: int, dtype: torch.dtype, *, section: int = 0, row: int = 0, segment: int = 0
) -> torch.Tensor:
    """(n, segments[segment]) rows of a weight, dequantised, as float32, float16 or bfloat16."""
    out = torch.empty(n, _columns(weight, segment), dtype=dtype, device=weight.data.device)
    _C.unpack(out, out.new_empty(0, dtype=torch.float32), weight, section, row, segment)
    return out


def unpack_quantized(
    weight: PackedWeight, n: int, *, section: int = 0, row: int = 0, segment: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of an int8 or int4 weight as they are stored: (n, columns) int8 and float32 scales.

    "int8": scales (n,). In groups: scales (n, groups of columns), each of them a bfloat16 value. int4: values from -8
    to 7.
    """
    columns = _columns(weight, segment)
    out = torch.empty(n, columns, dtype=torch.int8, device=weight.data.device)
    group = GROUPS.get(weight.kind)
    scales = torch.empty((n,) if group is None else (n, -(-columns // group)), dtype=torch.float32,
                         device=weight.data.device)
    _C.unpack(out, scales, weight, section, row, segment)
    return out, scales


def cpu_isas() -> list[str]:
    """The instruction sets of this build that this machine executes, best first."""
    return _C.build_info()["cpu_isas"]


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Runs the CPU ops of the block on one instruction set: for tests and benchmarks (process-wide)."""
    before = _C.cpu_isa()
    _C.force_isa(name)
    try:
        yield
    finally:
        _C.force_isa(before)


@contextmanager
def dry_run() -> Iterator[None]:
    """Ops of the block convert their arguments and return: to measure what Python and the binding cost (process-wide)."""
    _C.set_dry_run(True)
    try:
        yield
    finally:
        _C.set_dry_run(False)


@contextmanager
def timed() -> Iterator[Callable[[], dict[str, float]]]:
    """Adds up how long every op of the block runs, replayed ones too: the block gets a function that tells the seconds by
    op so far (process-wide). For ops of the CPU: on a GPU they run for longer than their calls."""
    _C.set_timed(True)
    try:
        yield _C.op_seconds
    finally:
        _C.set_timed(False)


def set_num_threads(n: int) -> None:
    """Threads that the CPU ops use. The decoder sets it to ``torch.get_num_threads()`` at every call."""
    _C.set_num_threads(n)


def read_bandwidth(nbytes: int = 1 << 30, seconds: float = 1.0) -> float:
    """Bytes a second that this machine's threads read from memory: the best pass over a buffer of ``nbytes``."""
    return _C.read_bandwidth(nbytes, seconds)
