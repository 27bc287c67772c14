"""From tokens, as they come, to text on the terminal, and the clock of it."""

from __future__ import annotations

import time
from typing import Callable

import torch


class PieceDecoder:
    """Text of a sequence, token by token: the pieces put together are the decoded sequence.

    A piece never ends inside a character: the bytes of one may be spread over several tokens, and until the last is
    there, decoding shows U+FFFD.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._pending: list[int] = []  # tokens since the last piece that ended with a whole character
        self._shown = 0  # characters of their text that were given out

    def push(self, token: int) -> str:
        """The text that `token` completes, "" where its bytes end inside a character."""
        self._pending.append(token)
        text = self._decode(self._pending)
        # An unfinished character is one U+FFFD, the last. What was meant as U+FFFD comes with the next piece.
        if text.endswith("\ufffd"):
            piece = text[self._shown:-1]
            self._shown = len(text) - 1
            return piece
        return self._take(text)

    def finish(self) -> str:
        """What is left at the sequence's end."""
        return self._take(self._decode(self._pending))

    def _take(self, text: str) -> str:
        piece = text[self._shown:]
        self._pending, self._shown = [], 0
        return piece


class TextStreamer:
    """A streamer for `generate` with one prompt: gives `write` the prompt and its completion, or completions.

    One sample is written as it comes. Of several, each is written when it is done, whole, below a line with its number;
    those that an interruption cuts short are not. A sample is done at an eos token or after `limit` new tokens.

    Afterwards: prompt_tokens; new_tokens (one count a sample, its eos token included); first_seconds until the first
    token, decode_seconds for the others. Both are the model's time: what writing takes is left out.
    """

    def __init__(self, write: Callable[[str], None], prompt: str, samples: int, limit: int,
                 eos_token_ids: tuple[int, ...], decode: Callable[[list[int]], str]) -> None:
        self._write = write
        self._prompt = prompt
        self._limit = limit
        self._eos = frozenset(eos_token_ids)
        self._decoders = [PieceDecoder(decode) for _ in range(samples)]
        self._texts = [""] * samples
        self._running = list(range(samples))
        self.prompt_tokens = 0
        self.new_tokens = [0] * samples
        self.first_seconds = 0.0
        self.decode_seconds = 0.0
        self._resumed = 0.0  # when the last put returned to the model

    def put(self, ids: torch.Tensor) -> None:
        """The prompt (samples, n), then each step's tokens (samples,)."""
        elapsed = time.perf_counter() - self._resumed
        if self.prompt_tokens == 0:
            self.prompt_tokens = ids.shape[1]
            if len(self._texts) == 1:
                self._write(self._prompt)
        else:
            if self.first_seconds == 0.0:
                self.first_seconds = elapsed
            else:
                self.decode_seconds += elapsed
            self._put_step(ids.tolist())
        self._resumed = time.perf_counter()

    def end(self) -> None:
        """No more tokens. Samples still run only where something interrupted them."""
        if len(self._texts) == 1 and self._running:
            self._finish(0)
        self._running = []

    def _put_step(self, tokens: list[int]) -> None:
        for row in list(self._running):
            self.new_tokens[row] += 1
            ended = tokens[row] in self._eos
            if not ended:
                self._add(row, self._decoders[row].push(tokens[row]))
            if ended or self.new_tokens[row] == self._limit:
                self._running.remove(row)
                self._finish(row)

    def _add(self, row: int, piece: str) -> None:
        self._texts[row] += piece
        if len(self._texts) == 1 and piece:
            self._write(piece)

    def _finish(self, row: int) -> None:
        self._add(row, self._decoders[row].finish())
        text = self._prompt + self._texts[row]
        newline = "" if text.endswith("\n") else "\n"
        samples = len(self._texts)
        self._write(newline if samples == 1 else f"=== sample {row + 1} of {samples} ===\n{text}{newline}")
