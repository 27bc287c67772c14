"""Seeds, and the next token of every row of a batch (floor 5)."""

from __future__ import annotations

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


def _as_signed(seed: int) -> int:
    """The int64 with the same 64 bits."""
    seed &= _MASK
    return seed - (1 << 64) if seed >> 63 else seed


class Sampler:
    """Temperature, top_k, top_p and seeds of the rows of a batch; see ``sample`` in csrc/ops.h.

    Args:
        temperature: 0 takes the largest logit.
        top_k: 0 keeps all. top_p: 1 keeps all.
        seeds: one a row, the seed of its prompt. sample_indices: one a row, which sample of that prompt it is.
    """

    def __init__(
        self,
        temperature: float,
        top_k: int,
        top_p: float,
        seeds: list[int],
        sample_indices: list[int],
        device: torch.device | str = "cpu",
    ) -> None:
        rows = len(seeds)
        self._knobs = (float(temperature), int(top_k), float(top_p))
        self._seeds = torch.tensor([_as_signed(s) for s in seeds], dtype=torch.int64, device=device)
        self._indices = torch.tensor(sample_indices, dtype=torch.int32, device=device)
        self._position = torch.zeros(rows, dtype=torch.int32, device=device)
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)
        self._bind()

    def _bind(self) -> None:
        temperature, top_k, top_p = self._knobs
        rows = len(self._seeds)
        self._out = torch.empty(rows, dtype=torch.int64, device=self._seeds.device)
        self._params = ops.SamplingParams(
            torch.full((rows,), temperature, dtype=torch.float32, device=self._seeds.device),
            torch.full((rows,), top_k, dtype=torch.int32, device=self._seeds.device),
            torch.full((rows,), top_p, dtype=torch.float32, device=self._seeds.device),
            self._seeds,
            self._indices,
            self._position,
        )

    def sample(self, logits: torch.Tensor, positions: torch.Tensor | list[int]) -> torch.Tensor:
        """(B,) int64 tokens for logits (B, V) float32; positions (B,) int32 are those the new tokens will have.

        The result is overwritten by the next call. Raises ValueError if a row of logits holds NaN or nothing finite.
        """
        self._position.copy_(torch.as_tensor(positions, dtype=torch.int32, device=self._position.device))
        need = ops.sample_workspace(*logits.shape)
        if self._workspace.numel() < need:
            self._workspace = torch.empty(need, dtype=torch.uint8, device=logits.device)
        ops.sample(self._out, logits, self._params, self._workspace)
        if int(self._out.min()) < 0:
            row = int(self._out.argmin())
            raise ValueError(
                f"logits: row {row} holds NaN or no finite value, so no token can be chosen; the weights or the type "
                "they were converted to overflow (try dtype=torch.float32 or torch.bfloat16)"
            )
        return self._out

    def keep(self, rows: list[int]) -> None:
        """The other rows leave the batch."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._seeds.device)
        self._seeds, self._indices = self._seeds[index], self._indices[index]
        self._position = self._position[index]
        self._bind()
