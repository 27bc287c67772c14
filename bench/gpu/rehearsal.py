"""Benchmarks without a GPU: every call runs once on the emulator of the tests, so that nothing breaks on a GPU for a
silly reason. What comes out is marked as rehearsed and counts as nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cases

TINY = cases.Dims("tiny", 2, 4, 16, 8, 128, 150, 96)
LONGEST = 20  # tokens and keys


@contextmanager
def on_the_emulator(rehearse: bool) -> Iterator[None]:
    """In the block, ops take CPU tensors for a GPU's if this is a rehearsal."""
    if not rehearse:
        yield
        return
    from emulator import emulated

    with emulated(multiprocessors=2):
        yield
