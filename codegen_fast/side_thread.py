"""A thread beside the caller's that Ctrl-C leaves in order, whenever it comes.

Not concurrent.futures: its locks are taken and given back by Python functions, and a KeyboardInterrupt between two of their
lines leaves one held for ever. Of some sixteen hundred loads under Ctrl-C two hung so, and one raised RuntimeError. The two
threads share SimpleQueues instead: they are C all through, and a `put` may even interrupt another.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from .interruption import uninterrupted

# What a call returned, or what it raised.
Outcome = tuple[Any, BaseException | None]

_PATIENCE_SECONDS = 2.0


class SideThread:
    """Does calls one after another. At its end a `with` block waits for all calls that it was given; without one, `end` has
    the thread end and waits for nothing.

    Raises RuntimeError where the system gives no more threads.
    """

    def __init__(self, name: str) -> None:
        self._work = work = _Work()
        # A daemon: a process that was told twice to end does not wait for one that is stuck, in a file system that no longer
        # answers. _end_all waits for the others.
        self._thread = threading.Thread(target=_serve, args=(work,), name=name, daemon=True)
        with uninterrupted():  # start() waits by a lock of Python functions
            _working.add(work)
            try:
                self._thread.start()
            except BaseException:
                _working.discard(work)
                raise
        work.patience = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Has it called. What comes back, called once, waits and returns the result or raises the error."""
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.deliver(outcomes.put, function, *arguments)
        return partial(_await, outcomes)

    def deliver(self, take: Callable[[Outcome], None], function: Callable[..., Any], *arguments: Any) -> None:
        """Has it called, and then `take` with the outcome, in the side thread; `take` must not raise."""
        self._work.calls.put((partial(function, *arguments), take))

    def end(self) -> None:
        self._work.calls.put(None)

    def __enter__(self) -> SideThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._work.patience = _PATIENCE_SECONDS  # if Ctrl-C ends the wait below
        self._work.ended.get()
        self._thread.join()

    def __del__(self) -> None:
        if hasattr(self, "_work"):  # Ctrl-C may come before that, and before a `with` block is reached
            self.end()


class _Work:
    """What a side thread knows: not its SideThread, which may be dropped."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Callable[[], Any], Callable[[Outcome], None]] | None] = SimpleQueue()
        self.ended: SimpleQueue[None] = SimpleQueue()  # one item, after the last call
        # Seconds for which the end of the process waits for it (None: until it ends). One whose start or end was interrupted
        # may be stuck.
        self.patience: float | None = _PATIENCE_SECONDS


_working: set[_Work] = set()


def _serve(work: _Work) -> None:
    try:
        while _served_one(work):
            pass
    finally:
        _working.discard(work)
        work.ended.put(None)


def _served_one(work: _Work) -> bool:
    """A function, so that nothing of a call is held while the next is waited for."""
    call = work.calls.get()
    if call is None:
        return False
    function, take = call
    try:
        outcome = function(), None
    except BaseException as error:  # noqa: BLE001 (the caller gets it)
        outcome = None, error
    try:
        take(outcome)
    finally:
        del call, function, take, outcome  # an error's traceback holds this frame
    return True


def _await(outcomes: SimpleQueue[Outcome]) -> Any:
    value, error = outcomes.get()
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # its traceback holds this frame


@atexit.register
def _end_all() -> None:
    """A thread that comes back from a kernel into an interpreter that has ended aborts the process."""
    for work in list(_working):
        work.calls.put(None)
        with suppress(Empty):
            work.ended.get(timeout=work.patience)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_working.clear)  # threads stay with the parent
