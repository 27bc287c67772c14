"""The token ids of all rows in columns, as transformers' callbacks expect them: prompts padded on the left."""
from __future__ import annotations

import torch
from torch import Tensor


class Columns:
    """Ids (rows, columns): the prompts' columns, then one more column a step. A row that has ended is padded."""

    def __init__(self, prompts: Tensor, steps: int, pad: int, device: torch.device):
        rows, self._columns = prompts.shape
        self._ids = torch.full((rows, self._columns + steps), pad, dtype=torch.long, device="cpu")
        self._ids[:, :self._columns] = prompts
        self._counts = [0] * rows
        self._device = device

    def append(self, rows: list[int], tokens: list[int]) -> None:
        """tokens[i] is the next one of rows[i]."""
        for row, token in zip(rows, tokens):
            self._ids[row, self._columns + self._counts[row]] = token
            self._counts[row] += 1

    def ids(self) -> Tensor:
        """(rows, columns so far) on the model's device; the caller may keep it."""
        return self._ids[:, :self._columns + max(self._counts)].clone().to(self._device)
