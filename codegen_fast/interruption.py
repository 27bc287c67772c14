"""Ctrl-C between steps and not in the middle of one."""
from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C in the block is heard at its end, so that what the block changes together stays together.

    For caches that outlive a call, whose pages an interruption between two lines could otherwise lose, and for locks that
    others wait for. Only the main thread hears signals; in others this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[int] = []  # without the frames: they would keep what they hold, and this list, in a circle
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(came[0], sys._getframe())
