"""Bytes and lines, whatever they mean."""

from __future__ import annotations

from random import Random

_MOST_BYTES = 1 << 20
_MOST_GROWING = 10_000  # bytes of what is still made longer: a thousand times a thousand times is a machine's memory
_NUMBERS = [(value & (2**(8 * width) - 1)).to_bytes(width, order) for width in (1, 2, 4, 8) for order in ("little", "big")
            for value in (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16, 2**31, 2**31 - 1, 2**32 - 1, 2**62, 2**63, -(2**63))]


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """A few changes of any kind: flipped bits, numbers written over, pieces cut, doubled, moved, or the end lost."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64, 1000)), len(changed) - at)
        match rng.randrange(8):
            case 0 if length:
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if length:
                changed[at] = rng.randrange(256)
            case 2:
                number = rng.choice(_NUMBERS)
                changed[at:at + len(number)] = number
            case 3:
                del changed[at:at + length]
            case 4 if len(changed) < _MOST_BYTES:
                changed[at:at] = changed[at:at + length] * rng.choice((1, 2, 50))
            case 5:
                changed[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
            case 6:
                source = rng.randrange(len(changed) + 1)
                changed[at:at + length] = changed[source:source + length]
            case 7:
                del changed[at:]
    return bytes(changed)


def mutate_lines(rng: Random, data: bytes) -> bytes:
    """Lines lost, doubled, swapped, joined, very long, or with other characters in them."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines) + 1), lines[at])
            case 2:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = b" ".join(lines[at:at + 3])
            case 4 if len(lines[at]) < _MOST_GROWING:
                lines[at] *= rng.choice((2, 1000))
            case 5:
                lines.insert(at, rng.choice((b"", b" ", b"\x00", b"\xff\xfe", b"a", b"a b c", b"#version: 9", b"\xed\xa0\x80",
                                             "\u2028 \u00a0".encode(), b"\r", b"x" * 100_000)))
            case 6:
                lines[at] = mutate_bytes(rng, lines[at])
    return b"\n".join(lines)
