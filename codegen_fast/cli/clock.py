"""The clock of a generation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from ..generation.call import Generation
from ..generation.stopping import Emitted


class TimedGeneration:
    """A Generation whose `events` are counted and timed; what is done between two of them, writing above all, is not.

    Afterwards: new_tokens, one count a row, its eos token included; first_tokens that came with the prompt, after
    first_seconds; the others came in decode_steps that took decode_seconds.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.new_tokens = [0] * len(generation.rows)
        self.first_tokens = 0
        self.first_seconds = 0.0
        self.decode_seconds = 0.0
        self.decode_steps = 0  # those that only begin rows, which had to wait, read no weights and don't count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generation, name)

    def events(self) -> Iterator[Emitted]:
        with closing(self._generation.events()) as events:
            while True:
                begin = time.perf_counter()
                emitted = next(events, None)
                seconds = time.perf_counter() - begin
                if emitted is None:
                    return
                self._note(emitted, seconds)
                yield emitted

    def _note(self, emitted: Emitted, seconds: float) -> None:
        if self.first_tokens == 0:
            self.first_tokens = len(emitted.rows)
            self.first_seconds = seconds
        else:
            self.decode_seconds += seconds
            self.decode_steps += any(self.new_tokens[row] > 0 for row in emitted.rows)
        for row in emitted.rows:
            self.new_tokens[row] += 1
