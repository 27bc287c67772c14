"""Seeds, and how the next token of a row is chosen (floor 5)."""

from __future__ import annotations

from dataclasses import dataclass

_MASK = (1 << 64) - 1


def mix_seed(seed: int, index: int) -> int:
    """The seed of prompt ``index`` when one ``seed`` was given for all: unsigned 64 bits, mix_seed(s, 0) = s.

    ``seed`` xor MurmurHash3's 64-bit finaliser of ``index`` (Appleby), which maps 0 to 0 and spreads every bit.
    """
    h = index & _MASK
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & _MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return (seed & _MASK) ^ (h ^ h >> 33)


def as_signed(seed: int) -> int:
    """The int64 with the same 64 bits."""
    seed &= _MASK
    return seed - (1 << 64) if seed >> 63 else seed


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and where rows end; see ``sample`` and ``advance`` in csrc/ops.h."""

    temperature: float  # 0 takes the largest logit
    top_k: int  # 0 keeps all; at most 2^31 - 1
    top_p: float  # 1 keeps all
    eos: tuple[int, ...]  # a row ends with any of these
