"""A thread beside the caller's that Ctrl-C leaves in order, whenever it comes.

Not concurrent.futures: its locks are taken and given back by Python functions, and a KeyboardInterrupt between two of their
lines leaves one held for ever. One of some six hundred loads that were interrupted hung so, or raised RuntimeError. What is
shared here are SimpleQueues: C all through, with a `put` that may even interrupt another.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from .interruption import uninterrupted

# What a call returned, or what it raised.
Outcome = tuple[Any, BaseException | None]
_Calls = SimpleQueue[tuple[Callable[[], Any], Callable[[Outcome], None]] | None]

# Changed by these threads alone, each its own entry.
_serving: dict[threading.Thread, _Calls] = {}


class SideThread:
    """Does the calls it is given one after another, until the end of the `with` block, which waits for those given.

    Who doesn't wait calls `end`. Raises RuntimeError where the system gives no more threads.
    """

    def __init__(self, name: str) -> None:
        self._calls: _Calls = SimpleQueue()
        # A daemon: one that is stuck (in a file system that doesn't answer) must not keep a process that was told twice to
        # end; _end_all waits for the others.
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name=name, daemon=True)
        with uninterrupted():  # start() waits by a lock that is no C
            self._thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Has it called. What comes back, called once, waits and returns the result or raises the error."""
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.deliver(outcomes.put, function, *arguments)
        return partial(_await, outcomes)

    def deliver(self, take: Callable[[Outcome], None], function: Callable[..., Any], *arguments: Any) -> None:
        """Has it called, and then `take` with the outcome, in the side thread; `take` must not raise."""
        self._calls.put((partial(function, *arguments), take))

    def end(self) -> None:
        """It ends after the calls it was given, without being waited for."""
        self._calls.put(None)

    def __enter__(self) -> SideThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join()

    def __del__(self) -> None:
        if hasattr(self, "_calls"):  # else Ctrl-C came before
            self.end()  # where the `with` block was not reached


def _await(outcomes: SimpleQueue[Outcome]) -> Any:
    value, error = outcomes.get()
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # which holds this frame


def _serve(calls: _Calls) -> None:
    _serving[threading.current_thread()] = calls
    try:
        while _served_one(calls):
            pass
    finally:
        del _serving[threading.current_thread()]


def _served_one(calls: _Calls) -> bool:
    """A function, so that nothing of a call is held while the next is waited for."""
    call = calls.get()
    if call is None:
        return False
    function, take = call
    try:
        outcome = function(), None
    except BaseException as error:  # noqa: BLE001 (the caller gets it)
        outcome = None, error
    take(outcome)
    return True


@atexit.register
def _end_all() -> None:
    """A thread that comes back from a kernel into an interpreter that has ended would abort the process."""
    for thread, calls in list(_serving.items()):
        calls.put(None)
        thread.join()
