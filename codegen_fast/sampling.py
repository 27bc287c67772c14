"""Seeds, and how the next token of a row is chosen (floor 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import ops

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


def choosing_workspace(rows: int, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Scratch for ``edit_logits``, ``filter_logits`` and ``sample``, one after another, on so many rows."""
    nbytes = max(
        ops.sample_workspace(rows, vocab_size, device.type), ops.edit_logits_workspace(rows, vocab_size, device.type)
    )
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and where rows end; see ``sample`` and ``advance`` in csrc/ops.h."""

    temperature: float  # 0 takes the largest logit
    top_k: int  # 0 keeps all; at most 2^31 - 1
    top_p: float  # 1 keeps all
    eos: tuple[int, ...]  # a row ends with any of these
    min_p: float = 0.0  # 0 keeps all
    typical_p: float = 1.0  # 1 keeps all
    epsilon_cutoff: float = 0.0  # 0 keeps all
    eta_cutoff: float = 0.0  # 0 keeps all

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of the filters after top_p that drop something; greedy decoding needs none."""
        neutral = {"min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
        return tuple(name for name, value in neutral.items() if self.temperature and getattr(self, name) != value)
