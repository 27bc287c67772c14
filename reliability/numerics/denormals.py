"""Numbers too small for a full mantissa, in weights, activations and the cache, whatever the caller's thread does with them.

torch.set_flush_denormal(True) tells the processor to take them for zero. The ops set the standard mode while they run
(csrc/cpu/float_environment.h), so a result has the same bits either way, and the caller's mode is as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bench  # noqa: F401 (tests/ is on the path now)
import bounds
import calls
import checkpoints
import reference
import torch
from devices import CPUS, Device
from torch import Tensor

import codegen_fast
from codegen_fast import ops

# How much slower an op may be on denormal numbers than on others. Microcode that handles them would show as 50 and more.
SLOWER = 8.0
_TIMED = (1024, 1024, 4)  # columns, rows and tokens of the products whose time is taken
_SMALLEST = 2.0**-149  # float32's step where it is denormal


@contextmanager
def flushed(on: bool) -> Iterator[None]:
    torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def same_bits(call: Callable[[], Tensor], what: str) -> Tensor:
    """The call's result, in both modes of the caller's thread."""
    with flushed(False):
        kept = call()
    with flushed(True):
        dropped = call()
        mode = float(torch.tensor(1e-39) * 1.0)
    assert torch.equal(kept.view(torch.int32), dropped.view(torch.int32)), f"{what}: other bits where denormals are flushed"
    assert mode == 0.0, f"{what}: the caller's mode was changed"
    return kept


def products(device: Device) -> int:
    """W_out with denormal weights, activations and results in every float type; how many results were compared.

    The bound is that of ordinary numbers (bounds.py, with magnitudes for signs of any kind) and the step of denormal
    numbers for each addition.
    """
    generator = torch.Generator().manual_seed(1)
    compared = 0
    columns, rows, tokens = (64, 512), 35, 5
    for kind, weight, activation in (("float32", 1e-39, 1.0), ("float32", 1.0, 1e-40), ("float32", 1e-20, 1e-20),
                                     ("bfloat16", 1e-39, 1.0), ("bfloat16", 1e-20, 1e-20), ("float16", 2e-7, 1e-33),
                                     ("float16", 1e-6, 1.0), ("float16", 1.0, 1e-41)):  # fmt: skip
        w = reference.rounded(torch.randn(rows, sum(columns), generator=generator) * weight, kind, torch.float32)
        act = torch.randn(tokens, sum(columns), generator=generator) * activation
        x, bias = torch.randn(2, tokens, rows, generator=generator) * weight * activation
        y = x.double() + bias[0].double() + act.double() @ w.double().T
        sizes = x.double().abs() + bias[0].double().abs() + act.double().abs() @ w.double().abs().T
        bound = (sum(columns) + 4) * (bounds.U * sizes + _SMALLEST)
        packed = calls.pack(device, (w.split(columns, 1),), kind)
        got = same_bits(lambda: calls.output_product(device, x, act, packed, bias[0], "decode"), kind)
        bounds.assert_within(got, y, bound, f"{device.name}: {kind}, weights {weight:g}, activations {activation:g}")
        compared += got.numel()
    return compared


def cached(device: Device) -> int:
    """Attention over denormal keys and values; they get into the pages through the product that makes them."""
    heads, width, length = 4, 16, 40
    d = heads * width
    compared = 0
    generator = torch.Generator().manual_seed(2)
    norm = (torch.ones(d), torch.zeros(d), 1e-5)
    table = reference.rotary_table(length, 8, torch.float32)
    x = torch.randn(length, d, generator=generator)
    for dtype, size in ((torch.float32, 1e-41), (torch.float16, 1e-6), (torch.bfloat16, 1e-40)):
        sizes = ((d, 1.0), (d, size), (d, size), (8, 1.0))  # of q, k, v and fc_in
        sections = [torch.randn(n, d, generator=generator) * scale / 8 for n, scale in sizes]
        made = reference.input_product(x, norm, tuple(sections), torch.zeros(8), table, heads, torch.arange(length))
        packed = calls.pack(device, [(part,) for part in sections], "float32")

        def call() -> Tensor:
            pool = calls.Pool(dtype, d, seed=3, tokens=(length,), device=device)
            sequences = pool.sequences([(0, length)])
            q, _ = calls.input_product(device, x, norm, packed, torch.zeros(8), table, heads, pool, sequences, "prefill")
            return calls.attention(device, q, heads, pool, sequences, "prefill")

        got = same_bits(call, f"a cache of {dtype}")
        v = made.v.to(dtype).double()
        expected = reference.attention([made.q], [made.k.to(dtype).double()], [v])[0].flatten(1)
        # A value may fall to either side where it is rounded to the cache's type; sums as in products().
        step = {torch.float32: _SMALLEST, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}[dtype]
        bound = 2 * step + (length + 20) * (bounds.U * v.abs().amax() + _SMALLEST) + bounds.ROUNDING[dtype] * v.abs().amax()
        bounds.assert_within(got, expected, bound.expand_as(expected), f"{device.name}: a cache of {dtype}")
        compared += got.numel()
    return compared


def model() -> None:
    """A whole model whose norms make denormal activations: the same tokens in both modes, transformers' in float32."""
    made = checkpoints.make_model(n_embd=128, n_head=8, rotary_dim=16, n_layer=2, vocab_size=199, seed=5)
    with torch.no_grad():
        made.transformer.h[0].ln_1.weight.mul_(1e-40)
        made.transformer.h[0].ln_1.bias.mul_(1e-41)
        made.transformer.h[1].mlp.fc_in.weight.mul_(1e-39)
    ids = torch.arange(3, 35)[None]
    fast = codegen_fast.accelerate(made)
    got = same_bits(lambda: fast(ids).logits, "a model")
    with torch.no_grad():
        wanted = made(ids).logits
    error = float((got - wanted).norm() / wanted.norm())
    assert error <= 2e-5, f"a model with denormal activations is {error:.1e} from transformers"


def slowdown(device: Device, repeats: int) -> dict[str, float]:
    """kind -> time of a product on denormal numbers over that on others, the best of interleaved calls on one thread: a busy
    machine adds to any of them."""
    ops.set_num_threads(1)
    columns, rows, tokens = _TIMED
    generator = torch.Generator().manual_seed(3)
    w, x = torch.randn(rows, columns, generator=generator), torch.randn(tokens, columns, generator=generator)
    ratios = {}
    for kind, weight, activation in (("float32", 1e-39, 1.0), ("float16", 2e-7, 1e-34), ("bfloat16", 1e-39, 1.0),
                                     ("int8", 1e-36, 1e-3), ("int8-g32", 1e-36, 1e-3), ("int4", 1e-36, 1e-3),
                                     ("activations", 1.0, 1e-40)):  # fmt: skip
        of = "float32" if kind == "activations" else kind
        jobs = []
        for factor, act in ((1.0, 1.0), (weight, activation)):
            packed = ops.new_packed_weight(of, (rows,), (columns,))
            ops.pack(packed, w * factor, ops.new_pack_status())
            out, zero, workspace = torch.zeros(tokens, rows), torch.zeros(rows), torch.empty(
                ops.output_product_workspace(tokens, packed), dtype=torch.uint8)  # fmt: skip
            jobs.append((out, x * act, packed, zero, True, workspace))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for job, taken in zip(jobs, times):
                job[0].zero_()
                begin = time.perf_counter()
                ops.output_product(*job)
                taken.append(time.perf_counter() - begin)
        ratios[kind] = min(times[1]) / min(times[0])
    return ratios


def measure(devices: tuple[Device, ...] = CPUS, repeats: int = 200) -> dict[str, Any]:
    """AssertionError where a result is outside its bound, differs with the caller's mode, or takes SLOWER times as long.

    repeats: of a timed product; 0 leaves the times out.
    """
    compared = 0
    slow: dict[str, dict[str, float]] = {}
    model()
    for device in devices:
        with device.running():
            compared += products(device) + cached(device)
            if repeats:
                slow[device.name] = slowdown(device, repeats)
    for name, ratios in slow.items():
        for kind, ratio in ratios.items():
            assert ratio <= SLOWER, f"{name}, {kind}: {ratio:.1f} times as slow on denormal numbers, at most {SLOWER}"
    return {"compared": compared, "devices": [device.name for device in devices], "slower": slow, "allowed": SLOWER,
            "timed": list(_TIMED)}


def lines(found: dict[str, Any]) -> str:
    kinds = list(next(iter(found["slower"].values())))
    rows = [f"| | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, ratios in found["slower"].items():
        rows.append(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios.values()) + " |")
    columns, products, tokens = found["timed"]
    return f"""\
**Denormal numbers** (`denormals.py`) in weights, activations, and keys and values of the cache: {found['compared']:,} results within
the bounds of ordinary numbers plus the step of denormal ones, with the same bits whether the caller's thread flushes
them to zero or not, and its mode as it was afterwards. A product's time on them over that on ordinary numbers ({products} × {columns},
{tokens} rows, one thread; at most {found['allowed']:g} is allowed; other processors may pay more, where denormal numbers are
handled by microcode):

{chr(10).join(rows)}
"""
