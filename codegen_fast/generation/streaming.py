"""Tokens for a caller's streamer while they come."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TokenStream:
    """Hands tokens to a caller's streamer (anything with put and end), or to nobody.

    put gets what transformers gives: the prompts (rows, n), then the tokens (rows,) of each step, on the CPU, with
    finished rows padded. `fail` ends the stream after an error elsewhere, also when the call is refused before anything
    was put, so that a consumer in another thread does not wait for ever; a streamer that raised itself is left alone.
    """

    def __init__(self, streamer: Any):
        if streamer is not None and not (callable(getattr(streamer, "put", None))
                                         and callable(getattr(streamer, "end", None))):
            raise TypeError(f"streamer must have the methods put(tokens) and end(), got {type(streamer).__name__}")
        self._streamer = streamer
        self._running = streamer is not None

    @property
    def is_heard(self) -> bool:
        return self._streamer is not None

    def put(self, tokens: Tensor) -> None:
        if self._streamer is not None:
            self._running = False  # until it returns
            self._streamer.put(tokens)
            self._running = True

    def put_step(self, rows: list[int], tokens: list[int], num_rows: int, pad: int) -> None:
        """tokens[i] is the next one of row rows[i]; the other rows are padded. A row may come several times."""
        if self._streamer is None:
            return
        step: dict[int, int] = {}
        for row, token in zip(rows, tokens):
            if row in step:
                self._put_tokens(step, num_rows, pad)
                step = {}
            step[row] = token
        self._put_tokens(step, num_rows, pad)

    def _put_tokens(self, step: dict[int, int], num_rows: int, pad: int) -> None:
        tokens = torch.full((num_rows,), pad, dtype=torch.long, device="cpu")
        tokens[list(step)] = torch.tensor(list(step.values()), dtype=torch.long, device="cpu")
        self.put(tokens)

    def end(self) -> None:
        if self._streamer is not None:
            self._running = False
            self._streamer.end()

    def fail(self) -> None:
        if self._running:
            self.end()
