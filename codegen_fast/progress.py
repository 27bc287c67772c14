"""A progress bar that Ctrl-C leaves in order, whenever it comes."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from .interruption import uninterrupted


class ProgressBar:
    """A bar of tqdm's, with its arguments. An interruption while tqdm draws one leaves the lock held that all bars of the
    process share: those of other threads then wait for ever."""

    def __init__(self, **named: Any) -> None:
        with uninterrupted():
            self._bar = tqdm(**named)

    def update(self, n: float = 1) -> None:
        if not self._bar.disable:
            with uninterrupted():
                self._bar.update(n)

    def set_postfix(self, text: str) -> None:
        """Drawn with the next update."""
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        with uninterrupted():
            self._bar.close()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_bar"):  # Ctrl-C may come before that, and before a `with` block is reached
            self.close()
