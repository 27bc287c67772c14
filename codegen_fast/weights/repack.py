"""A packed weight in another type or on another device, and what tells one stored order of elements from another."""

from __future__ import annotations

import hashlib
from typing import Iterator

import torch

from .. import ops

# Bytes of a tensor that are read, converted or written at a time: progress and Ctrl-C get their turn between chunks.
CHUNK_BYTES = 4 << 20

# Weights that show an order: two sections and two segments, none of them whole panels, groups or quads.
_SECTIONS, _SEGMENTS = (45, 70), (150, 77)


def packed_rows(packed: ops.PackedWeight) -> Iterator[tuple[dict[str, int], int]]:
    """(place, n) that cover the weight in chunks of n rows; place is section=, row= and segment= of the ops."""
    for segment, columns in enumerate(packed.segments):
        step = max(1, CHUNK_BYTES // (4 * columns))
        for section, count in enumerate(packed.sections):
            for row in range(0, count, step):
                yield {"section": section, "row": row, "segment": segment}, min(step, count - row)


def repack(packed: ops.PackedWeight, kind: str, device: torch.device) -> ops.PackedWeight:
    """A copy of that kind on that device: codes of the same kind bit for bit, other values rounded or quantised.

    ValueError for a value that the new kind cannot hold.
    """
    new = ops.new_packed_weight(kind, packed.sections, packed.segments, device)
    status = ops.new_pack_status(device)
    for place, n in packed_rows(packed):
        if kind == packed.kind and kind not in ops.FLOAT_KINDS:
            values, scales = ops.unpack_quantized(packed, n, **place)
            ops.pack_quantized(new, values.to(device), scales.to(device), **place)
        else:
            ops.pack(new, ops.unpack(packed, n, torch.float32, **place).to(device), status, **place)
    bad, overflowed = status.tolist()
    if bad or overflowed:
        raise ValueError(f"{bad + overflowed} values of a weight in {packed.kind} are NaN, infinite or beyond the range of "
                         f"{kind}; bfloat16 and float32 hold larger ones")
    return new


def packed_layout(kind: str) -> str:
    """A name of the order in which this build's CPU kernels store a weight of this kind: a hash of a small one.

    It changes with the order and with nothing else; every instruction set has the same.
    """
    weight = ops.new_packed_weight(kind, _SECTIONS, _SEGMENTS)
    for segment, columns in enumerate(_SEGMENTS):
        for section, rows in enumerate(_SECTIONS):
            place = {"section": section, "segment": segment}
            codes = (_scattered(rows, columns) % 15 - 7).to(torch.int8)
            if kind in ops.FLOAT_KINDS:
                ops.pack(weight, codes.float(), ops.new_pack_status(), **place)
                continue
            group = ops.GROUPS.get(kind)
            groups = 1 if group is None else -(-columns // group)
            # Powers of two: sums of such products are exact, in whatever order a compiler has them added.
            scales = torch.exp2((_scattered(rows, groups) % 9 - 4).float())
            ops.pack_quantized(weight, codes, scales.view(-1) if group is None else scales, **place)
    digest = hashlib.sha256(weight.data.numpy())
    if weight.scales is not None:
        digest.update(weight.scales.numpy())
    return digest.hexdigest()[:12]


def _scattered(rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) int64 of which neighbours differ, the same with every version of torch."""
    return (torch.arange(rows * columns) * 2654435761 % 2**32 >> 13).view(rows, columns)
