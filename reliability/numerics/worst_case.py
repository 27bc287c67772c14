"""The worst that an int8 or int4 product can meet, over the longest row there is: 16B's W_out, 6144 + 24576 columns.

Two bounds, both derived. Against the reference that quantises in the same way: codes are equal, so what is left are
float32 additions, one a group, and a few roundings; the bound is their number times U times the sum of magnitudes, which
holds for any signs. Against the unquantised product in float64: a group's error of a weight is at most half a step in
every column (its scale has the least squared error of those tried, and the widest of them clips nothing), of
activations too, and a product of vectors is at most that of their lengths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bench  # noqa: F401 (tests/ is on the path now)
import bounds
import calls
import quantised
import reference
import torch
from devices import CPUS, Device
from torch import Tensor

KINDS = ("int8", "int8-g32", "int4", "int4-g64", "int4-g128")
SEGMENTS = (6144, 24576)  # 16B: attention's width and fc_out's
ROWS = 33  # a whole panel of lanes and one row more
TOKENS = (1, 3, 14)  # a step, a few, and more than any kernel takes together

# Rows whose sums are no float32: (columns, size of the weights, of the activations).
_BEYOND = ((4096, 2e38, 1e-10), (4096, 1e-10, 2e38), (4096, 1e-10, -2e38))
_ZEROED = 2.0**-121  # a group whose largest magnitude is below has codes 0: 127 / it is no float32


@dataclass
class Case:
    """What is multiplied: w (rows, columns) and x (tokens, columns)."""

    name: str
    w: Tensor
    x: Tensor


def cases(columns: int, rows: int = ROWS, tokens: int = TOKENS[-1]) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(7)

    def normal(n: int) -> Tensor:
        return torch.randn(n, columns, generator=generator)

    def with_outliers(values: Tensor, every: int, size: float) -> Tensor:
        """One large value in every so many columns, in another place in each row."""
        values = 1e-3 * values
        for row in values:
            at = torch.arange(0, columns, every)
            row[at + torch.randint(0, every, at.shape, generator=generator)] = size
        return values

    signs = torch.sign(normal(1))
    alternating = torch.ones(columns)
    alternating[1::2] = -1
    yield Case("all codes 127, all products positive", signs.repeat(rows, 1), signs.repeat(tokens, 1))
    yield Case("all codes 127, all products negative", signs.repeat(rows, 1), -signs.repeat(tokens, 1))
    yield Case("signs alternate", alternating.repeat(rows, 1), torch.ones(tokens, columns) * alternating)
    yield Case("all columns the same", torch.ones(rows, columns), torch.full((tokens, columns), -0.17))
    yield Case("one outlier a row", with_outliers(normal(rows), columns, 1e3), with_outliers(normal(tokens), columns, 1e3))
    yield Case("one outlier in 32 columns", with_outliers(normal(rows), 32, 30.0), with_outliers(normal(tokens), 32, 30.0))
    yield Case("one outlier in 64 columns, of either sign", with_outliers(normal(rows), 64, -30.0),
               with_outliers(normal(tokens), 64, 30.0))
    w, x = normal(rows), normal(tokens)
    w[::3], x[::2] = 0, 0
    w[:, 64:128], x[:, 96:256] = 0, 0
    yield Case("rows and groups of zeros", w, x)
    steps = torch.randint(-127, 127, (1, columns), generator=generator) + 0.5
    steps[:, ::32] = 127
    yield Case("all codes halfway between two", (steps / 127).repeat(rows, 1), (steps / 127).repeat(tokens, 1))
    # In pairs that cancel: a kernel of int8 in groups needs every row's sum as a float32 (see beyond_float32).
    pairs = normal(rows)[:, : columns // 2].clamp(-3, 3) * 1e38
    yield Case("weights near 1e38", torch.stack([pairs, -pairs], 2).flatten(1), normal(tokens) * 1e-4)
    yield Case("activations near 1e34", normal(rows) * 1e-2, normal(tokens).clamp(-3, 3) * 3e33)
    yield Case("weights near 1e-38", normal(rows) * 1e-38, normal(tokens))
    yield Case("activations near 1e-38", normal(rows), normal(tokens) * 1e-38)


def _weights(w: Tensor, kind: str) -> Tensor:
    """One segment as the kind holds it. A group is its own row for the reference: all of them at once."""
    group = {**quantised.INT4_GROUPS, "int8-g32": quantised.INT8_GROUP}.get(kind)
    return reference.rounded(w if group is None else w.reshape(-1, group), kind).reshape(w.shape)


def _half_steps(kind: str) -> tuple[float, int | None]:
    """Half a step in units of a group's largest magnitude, and the weights' group (None: the segment)."""
    if kind == "int8":
        return 0.5 / 127, None
    if kind == "int8-g32":
        return 0.5 / 127.5 * (1 + 2.0**-7), quantised.INT8_GROUP
    return 0.5 * 18 / 128 * (1 + 2.0**-7), quantised.INT4_GROUPS[kind]


def _lengths(error: Tensor) -> Tensor:
    """(n, columns / 32) Euclidean lengths, over 32 columns, which every group is a multiple of."""
    return error.reshape(len(error), -1, 32).double().square().sum(2).sqrt()


def _group_errors(values: Tensor, half_step: float, group: int | None) -> Tensor:
    """(n, columns / 32): the length that a quantisation's error of 32 columns has at most. An error that is spread over
    a larger group may lie in any 32 columns of it."""
    group = group or values.shape[1]
    parts = values.reshape(len(values), -1, group).double()
    largest = parts.abs().amax(2)
    length = math.sqrt(group) * half_step * (1 + 4 * bounds.U) * largest
    length = torch.where(largest < _ZEROED, parts.square().sum(2).sqrt(), length)
    return length.repeat_interleave(group // 32, 1)


def expected(case: Case, kind: str, segments: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(product of the quantised, bound on a kernel; product of the floats, bound on the quantised), each
    (tokens, rows) float64."""
    exact = case.x.double() @ case.w.double().T
    y, sizes, quantisation = torch.zeros_like(exact), torch.zeros_like(exact), torch.zeros_like(exact)
    codes_sum = torch.zeros(len(case.x), 1, dtype=torch.float64)
    groups = 0
    for w, x in zip(case.w.split(segments, 1), case.x.split(segments, 1), strict=True):
        half_step, weight_group = _half_steps(kind)
        if kind == "int8-g32":
            codes, scales, offset = quantised.quantize_with_offsets(x, (x.shape[1],))
            group, offset = quantised.INT8_GROUP, offset.double()
        else:
            codes, scales = quantised.quantize_activations(x, (x.shape[1],), 64)
            group, offset = 64, torch.zeros(len(x), 1, dtype=torch.float64)
        xq, wq = quantised.multiplied_out(codes, scales, group, torch.float64), _weights(w, kind)
        y += (xq + offset) @ wq.T
        sizes += (xq.abs() + offset.abs()) @ wq.abs().T
        codes_sum += codes.double().abs().sum(1, keepdim=True)
        groups += x.shape[1] // min(group, weight_group or group)
        # A scale of int8 in groups has 5 bits: it is up to 17 / 16 of what the largest value needs.
        x_error = _group_errors(x.double() - offset, 0.5 / 127 * (17 / 16 if kind == "int8-g32" else 1), group)
        # Subtracting the offset rounds, to U of the larger of the two.
        x_error = x_error + math.sqrt(32) * bounds.U * (_lengths(x) + offset.abs())
        quantisation += _lengths(x) @ _group_errors(w, half_step, weight_group).T + x_error @ _lengths(wq).T
    # Sums of groups, the offsets' share, and the epilogue. What is subnormal rounds to 2^-150, the product of two scales
    # before it is multiplied by a group's sum of codes.
    rounding = (groups + 8) * (bounds.U * sizes + 2.0**-149) + 2.0**-149 * codes_sum * (127 if "8" in kind[:4] else 8)
    return y, rounding, exact, quantisation + rounding


def measure(segments: tuple[int, ...] = SEGMENTS, kinds: tuple[str, ...] = KINDS, devices: tuple[Device, ...] = CPUS,
            rows: int = ROWS, tokens: tuple[int, ...] = TOKENS, most_cases: int | None = None) -> dict[str, Any]:
    """Runs every case (or the first most_cases) on every instruction set; AssertionError where one is outside a bound.

    rows of the result: the largest error as a share of either bound, and of the product of the vectors' lengths.
    """
    found = []
    beyond_float32(devices)
    for case in itertools.islice(cases(sum(segments), rows, tokens[-1]), most_cases):
        for kind in kinds:
            y, rounding, exact, bound = expected(case, kind, segments)
            lengths = (case.x.double().norm(dim=1)[:, None] * case.w.double().norm(dim=1)).clamp_min(1e-300)
            codes_share = float_share = relative = 0.0
            for device in devices:
                with device.running():
                    packed = calls.pack(device, (case.w.split(segments, 1),), kind)
                    zero = torch.zeros(rows)
                    for n in tokens:
                        got = calls.output_product(device, torch.zeros(n, rows), case.x[:n], packed, zero, "decode")
                        bounds.assert_within(got, y[:n], rounding[:n], f"{device.name}, {kind}, {case.name}: codes")
                        bounds.assert_within(got, exact[:n], bound[:n], f"{device.name}, {kind}, {case.name}: floats")
                        codes_share = max(codes_share, _share(got, y[:n], rounding[:n]))
                        float_share = max(float_share, _share(got, exact[:n], bound[:n]))
                        relative = max(relative, float(((got.double() - exact[:n]).abs() / lengths[:n]).max()))
            found.append({"case": case.name, "kind": kind, "of_the_codes_bound": codes_share,
                          "of_the_floats_bound": float_share, "of_the_lengths": relative})
    return {"columns": sum(segments), "rows": rows, "tokens": list(tokens), "devices": [d.name for d in devices],
            "rows_of_cases": found, "int4_half_step": _half_steps("int4")[0], "zeroed": _ZEROED,
            "beyond": [list(of) for of in _BEYOND]}


def beyond_float32(devices: tuple[Device, ...]) -> None:
    """int8 in groups adds up a row's weights, and the extremes of a row of activations: where a float32 does not hold
    the sum, the result is no number, and not a wrong one."""
    for columns, w_size, x_size in _BEYOND:
        w, x = torch.full((ROWS, columns), w_size), torch.full((1, columns), x_size)
        for device in devices:
            with device.running():
                packed = calls.pack(device, ((w,),), "int8-g32")
                got = calls.output_product(device, torch.zeros(1, ROWS), x, packed, torch.zeros(ROWS), "decode")
                assert not got.isfinite().any(), f"{device.name}: {got[0, 0].item()} from sums beyond float32"


def _share(got: Tensor, wanted: Tensor, bound: Tensor) -> float:
    return float(((got.double() - wanted).abs() / bound.clamp_min(1e-300)).max())


def lines(found: dict[str, Any]) -> str:
    kinds = list(dict.fromkeys(row["kind"] for row in found["rows_of_cases"]))
    table = {(row["case"], row["kind"]): row for row in found["rows_of_cases"]}
    rows = [f"| | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name in dict.fromkeys(row["case"] for row in found["rows_of_cases"]):
        rows.append(f"| {name} | " + " | ".join(f"{table[name, kind]['of_the_lengths']:.1e}" for kind in kinds) + " |")
    codes = max(row["of_the_codes_bound"] for row in found["rows_of_cases"])
    floats = max(row["of_the_floats_bound"] for row in found["rows_of_cases"])
    beyond = ", ".join(f"{columns:,} of {w:g} × {x:g}" for columns, w, x in found["beyond"])
    return f"""\
**The worst case of int8 and int4** (`worst_case.py`). Rows of {found['columns']:,} columns, the longest there are (16B's W_out),
{found['rows']} of them, {", ".join(map(str, found['tokens']))} tokens, on {", ".join(found['devices'])}. The largest error, as a share of
the product of the two vectors' lengths:

{chr(10).join(rows)}

Against the reference that quantises in the same way a result reached {codes:.0%} of what float32 additions may err (the codes
are the same: no accumulator saturates, and 64 columns of ±127 are exact), and against the unquantised product in float64
{floats:.0%} of what half a step of every weight and activation may make. Both bounds are asserted for every element. int4's
half step is {found['int4_half_step']:.1%} of a group's largest weight, which is what its column shows. What lies below
2^{math.log2(found['zeroed']):.0f} in all of a group counts as zero. int8 in groups (g32) adds up a row's weights, and the
extremes of a row's activations: where a float32 cannot hold the sum, the result is NaN or infinite, which a generation
refuses by name, and no wrong number (tried: columns of weights × activations, {beyond}).
"""
