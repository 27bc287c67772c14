"""How far a run is: a bar with tokens a second and the time that is left, on a terminal."""

from __future__ import annotations

import time

from ..progress import ProgressBar
from .figures import rate


class Bar:
    """One bar at a time, on standard error; nothing where that is no terminal."""

    def begin(self, what: str, total: int, done: int) -> None:
        self._bar = ProgressBar(desc=what, total=total, initial=done, unit="", disable=None, mininterval=0.5,
                                smoothing=0.1)
        self._since, self._tokens = time.perf_counter(), 0

    def advance(self, tokens: int) -> None:
        """One more is done, which took so many tokens."""
        self._tokens += tokens
        if self._tokens:
            speed = self._tokens / (time.perf_counter() - self._since)
            self._bar.set_postfix(f"{rate(speed)} tokens/s")
        self._bar.update()

    def end(self) -> None:
        self._bar.close()
