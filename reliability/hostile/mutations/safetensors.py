"""safetensors files by their parts: the header's length, the header, the values."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from . import documents
from .documents import Pairs
from .plain import mutate_bytes

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "U64", "C64",
           "f32", "", "Z9", 3)
_OFFSETS = (0, 1, -1, 4, 8, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**25)
# The last ones have a product that wraps around 64 bits.
_SHAPES = ([], [0], [1], [-1], [2**24, 2**12], [2**31, 2**31], [2**32, 2**32], [2**62, 4, 4], [2**63, 2], [0, 2**63], [1] * 70)


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    root = [documents.parse(data[8:8 + length])]
    values = data[8 + length:]
    match rng.randrange(8):
        case 0:
            documents.mutate_document(rng, root)
        case 1 | 2 | 3:
            for _ in range(rng.choice((1, 1, 2, 5))):
                _mutate_entry(rng, root[0], len(values))
        case 4:
            values = rng.choice((values[:-1], values[:rng.randrange(len(values))], b"", values + b"x", values * 2,
                                 mutate_bytes(rng, values), b"\xff" * len(values), b"\x00" * len(values)))
        case 5:
            length_bytes = rng.choice((0, 1, length - 1, length + 1, len(data), 2**27, 10**8 + 1, 2**63, 2**64 - 1)
                                      ).to_bytes(8, "little")
            return length_bytes + data[8:]
        case 6:
            root[0].append(root[0][rng.randrange(len(root[0]))])  # a name that stands there twice
        case 7:
            return mutate_bytes(rng, data)
    header = documents.write(root[0])
    header += rng.choice((b"", b" " * (-len(header) % 8), b"\x00", b"\n{}"))
    return len(header).to_bytes(8, "little") + header + values


def _mutate_entry(rng: Random, header: Pairs, num_bytes: int) -> None:
    at = rng.randrange(len(header))
    name, entry = header[at]
    if not isinstance(entry, Pairs):
        return
    fields: dict[str, Any] = dict(entry)
    offsets = fields.get("data_offsets")
    match rng.randrange(7):
        case 0:
            fields["dtype"] = rng.choice(_DTYPES)
        case 1:
            fields["shape"] = rng.choice(_SHAPES)
        case 2 if isinstance(offsets, list):
            fields["data_offsets"] = [rng.choice((*_OFFSETS, *offsets, num_bytes)) for _ in range(rng.choice((2, 2, 2, 1, 3)))]
        case 3:
            other = header[rng.randrange(len(header))][1]  # two tensors in one place
            fields["data_offsets"] = dict(other).get("data_offsets", []) if isinstance(other, Pairs) else []
        case 4 if isinstance(fields.get("shape"), list):
            fields["shape"] = rng.choice((fields["shape"][::-1], [*fields["shape"], 1], fields["shape"][1:], [math.inf]))
        case 5:
            name = rng.choice((name + "x", "", "__metadata__", "\x00", "a" * 10_000, "../outside/secret.txt"))
        case 6:
            fields.pop(rng.choice(tuple(fields)), None)
    header[at] = (name, Pairs(fields.items()))
