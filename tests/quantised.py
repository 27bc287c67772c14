"""The reference's quantisations: codes and scales exactly as the contract (csrc/ops.h) says, in its float32 arithmetic.

Written from the contract, slow and obvious, never from a kernel; part of ``reference``, which multiplies with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as List

import torch
from torch import Tensor

INT8_GROUP = 32
INT4_GROUPS = {"int4": 32, "int4-g64": 64, "int4-g128": 128}


def quantize_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (rows, cols) int8 and scales (rows,) float32 of one segment's weights: symmetric, per row.

    scale = amax / 127; code = round_half_even(w * (127 / amax)); both in float32. A row of zeros has scale 0, and
    codes are 0 where 127 / amax is no float32 (amax 0, or below 2^-121).
    """
    w = w.to(torch.float32)
    amax = w.abs().amax(dim=1)
    inverse = torch.tensor(127.0) / amax
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)
    codes = torch.round(w * inverse[:, None]).to(torch.int8)  # torch.round rounds halves to even
    return codes, amax / torch.tensor(127.0)


def quantize_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (rows, cols) int8 in [-127, 127] and scales (rows, groups) float32 of one segment's weights.

    A row's groups of INT8_GROUP columns (the last may be shorter) have a scale each, a bfloat16 value: of the 8
    consecutive ones from the smallest that is not below amax * (1 / 127.5), the first whose squared error is least.
    """
    codes, scales = [], []
    for part in w.to(torch.float32).split(INT8_GROUP, dim=1):
        amax = part.abs().amax(dim=1, keepdim=True)
        first = (amax * (torch.tensor(1.0) / 127.5)).view(torch.int32) + 0xFFFF >> 16 << 16
        tried = [(first + (step << 16)).view(torch.float32) for step in range(8)]
        of_part, scale = with_best_scale(part, tried, amax, -127, 127)
        codes.append(of_part)
        scales.append(scale)
    return torch.cat(codes, dim=1), torch.cat(scales, dim=1)


def with_best_scale(part: Tensor, tried: List[Tensor], largest: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Codes int8 in [low, high] and the scale (rows, 1), of those tried the first whose squared error is least.

    largest (rows, 1): a row's value of largest magnitude. Every operation is rounded to float32, and squares are added
    column by column.
    """
    least = best = best_scale = None
    for scale in tried:
        inverse = 1 / scale
        inverse = torch.where(inverse.isfinite(), inverse, 0.0)
        y = part * inverse
        q = torch.round(y).clamp(low, high)
        error = torch.zeros(len(part))
        for squares in ((y - q) * (y - q)).unbind(1):
            error = error + squares
        ratio = (scale / largest)[:, 0]
        error = ratio * ratio * error
        if least is None:
            least, best, best_scale = error, q, scale
            continue
        better = error < least  # never where the largest is 0: the error is NaN
        least = torch.where(better, error, least)
        best = torch.where(better[:, None], q, best)
        best_scale = torch.where(better[:, None], scale, best_scale)
    return best.to(torch.int8), best_scale


def multiplied_out(codes: Tensor, scales: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """(rows, cols) codes times the scales (rows, groups) of their groups of columns."""
    return codes.to(dtype) * scales.to(dtype).repeat_interleave(group, 1)[:, : codes.shape[1]]


def quantize_int4(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes (rows, cols) int8 in [-8, 7] and scales (rows, groups) float32 of one segment's weights.

    A row's groups of ``group`` columns (the last may be shorter) have a scale each, a bfloat16 value: of 16 around the
    one that takes the value m of largest magnitude (the first of equals) to -8, the first whose squared error is least.
    """
    codes, scales = [], []
    for part in w.to(torch.float32).split(group, dim=1):
        largest = part.gather(1, first_of_largest(part.abs())[:, None])  # (rows, 1)
        tried = [(largest * (-(18 - 0.5 * step) / 128)).to(torch.bfloat16).float() for step in range(16)]
        of_part, scale = with_best_scale(part, tried, largest, -8, 7)
        codes.append(of_part)
        scales.append(scale)
    return torch.cat(codes, dim=1), torch.cat(scales, dim=1)


def first_of_largest(values: Tensor) -> Tensor:
    """(rows,) the first column of each row's largest value."""
    columns = torch.arange(values.shape[1])
    return torch.where(values == values.amax(1, keepdim=True), columns, values.shape[1]).amin(1)


def dequantized_int4(w: Tensor, group: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return multiplied_out(*quantize_int4(w, group), group, dtype)


def quantize_activations(
    x: Tensor, segments: tuple[int, ...], group: int | None = 64, padding: int = 4
) -> tuple[Tensor, Tensor]:
    """Codes (n, segments rounded up to ``padding``) int8 and scales (n, groups) float32 of x (n, sum of segments).

    Each segment is cut into groups of ``group`` columns, the last of which may be shorter (None: one group); the
    arithmetic of a group is that of a weight's row.
    """
    codes, scales = [], []
    for segment in x.to(torch.float32).split(list(segments), dim=1):
        for part in segment.split(group or segment.shape[1], dim=1):
            part_codes, part_scale = quantize_rows(part)
            codes.append(part_codes)
            scales.append(part_scale[:, None])
        codes.append(torch.zeros(x.shape[0], -segment.shape[1] % padding, dtype=torch.int8))
    return torch.cat(codes, dim=1), torch.cat(scales, dim=1)


def quantize_with_offsets(x: Tensor, segments: tuple[int, ...], padding: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales as quantize_activations() in groups of INT8_GROUP, of x less its segments' offsets (n, segments).

    An offset lies halfway between the groups' mean largest and mean smallest values, in float32. Scales have 5 bits of
    mantissa. What is not finite makes all scales of its segment, and its offset, NaN.
    """
    codes, scales, offsets = [], [], []
    for segment in x.to(torch.float32).split(list(segments), dim=1):
        parts = segment.split(INT8_GROUP, dim=1)
        lows = highs = torch.zeros(len(x))
        for part in parts:
            lows, highs = lows + part.amin(1), highs + part.amax(1)
        offset = (highs + lows) * (torch.tensor(0.5) / len(parts))
        offset = torch.where(segment.isfinite().all(1), offset, math.nan)
        part_codes, part_scales = [], []
        for part in (segment - offset[:, None]).split(INT8_GROUP, dim=1):
            amax = part.abs().amax(1, keepdim=True)
            scale = in_five_bits(amax / torch.tensor(127.0))
            inverse = 1 / scale
            inverse = torch.where(inverse.isfinite() & amax.isfinite(), inverse, 0.0)
            part_codes.append(torch.where(inverse == 0, 0, torch.round(part * inverse)).to(torch.int8))
            part_scales.append(scale)
        part_codes.append(torch.zeros(len(x), -segment.shape[1] % padding, dtype=torch.int8))
        part_codes, part_scales = torch.cat(part_codes, dim=1), torch.cat(part_scales, dim=1)
        codes.append(torch.where(offset.isnan()[:, None], 0, part_codes))
        scales.append(torch.where(offset.isnan()[:, None], math.nan, part_scales))
        offsets.append(offset[:, None])
    return torch.cat(codes, dim=1), torch.cat(scales, dim=1), torch.cat(offsets, dim=1)


def in_five_bits(scale: Tensor) -> Tensor:
    """float32 numbers, at least 0, rounded up to 5 bits of mantissa, the leading one counted."""
    return (scale.view(torch.int32) + 0x7FFFF >> 19 << 19).view(torch.float32)
