"""A progress bar that Ctrl-C leaves in order, whenever it comes."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from .interruption import uninterrupted


class ProgressBar(tqdm):
    """All bars of a process share tqdm's lock. An interruption while one is drawn leaves it held: bars of other threads then
    wait for ever, and tqdm's monitor too, for which the process waits when it ends."""

    def __new__(cls, *arguments: Any, **named: Any) -> ProgressBar:
        with uninterrupted():
            return super().__new__(cls, *arguments, **named)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        with uninterrupted():
            super().__init__(*arguments, **named)

    def update(self, n: float = 1) -> bool | None:
        with uninterrupted():
            return super().update(n)

    def close(self) -> None:
        with uninterrupted():
            super().close()
