"""Ctrl-C at every place of a call where Python looks for signals, one run of the call for each.

The handler of a signal runs where a function begins, where a call has returned and where a loop turns. At a random moment
such a place is met as seldom as it is short: what breaks in one of ten thousand tries needs as many to be found. A trace
function raises the signal at a chosen one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import queue
import signal
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import tqdm

import codegen_fast

_HERE = __file__  # who calls
_ASYNCIO = str(Path(asyncio.__file__).parent)
# What our code shares with other threads is changed in these.
_OURS = str(Path(codegen_fast.__file__).parent)
_SHARED = (queue.__file__, threading.__file__, contextlib.__file__, str(Path(futures.__file__).parent),
           str(Path(tqdm.__file__).parent))  # fmt: skip


class Place(NamedTuple):
    code: CodeType
    offset: int  # of the instruction before which the handler runs; -1: the function begins

    def __repr__(self) -> str:
        lines = [line for start, end, line in self.code.co_lines() if start <= self.offset < end]
        line = lines[0] if lines and lines[0] else self.code.co_firstlineno
        return f"{Path(self.code.co_filename).name}:{line}, {self.code.co_name}"


def places_of(call: Callable[[], Any]) -> list[Place]:
    """The places that a call comes by, in the order in which it first does: in this package, and in what it calls of the
    standard library's threads and of tqdm."""
    found: dict[Place, None] = {}
    _traced(call, lambda place: found.setdefault(place))
    return list(found)


def interrupted_at(call: Callable[[], Any], place: Place) -> str:
    """Ctrl-C when the call first comes by the place: "heard" where KeyboardInterrupt came out of it, "lost" where it ended
    as if nothing had happened, "not reached" where it went another way. What else it raises is raised."""
    reached = False

    def at(here: Place) -> None:
        nonlocal reached
        if here == place and not reached:
            reached = True
            signal.raise_signal(signal.SIGINT)

    try:
        _traced(call, at)
    except KeyboardInterrupt:
        return "heard"
    return "lost" if reached else "not reached"


def _traced(call: Callable[[], Any], at: Callable[[Place], Any]) -> None:
    names: dict[CodeType, dict[int, str]] = {}

    def entered(frame: FrameType, event: str, _: Any) -> Any:
        code, called = frame.f_code, False
        if not _is_ours(frame):
            return None
        instructions = names.get(code) or names.setdefault(code, {i.offset: i.opname for i in dis.get_instructions(code)})

        def stepped(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal called
            if event == "exception":
                called = False  # where a call has raised no signals are looked for
            elif event == "opcode":
                name = instructions.get(frame.f_lasti, "")
                if called or name in ("JUMP_BACKWARD", "JUMP_ABSOLUTE"):
                    at(Place(code, frame.f_lasti))
                called = name.startswith("CALL")
            return stepped

        frame.f_trace = stepped  # from 3.13 on what follows counts for a frame that has one
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        at(Place(code, -1))
        return stepped

    sys._getframe().f_trace_opcodes = True  # from 3.12 on settrace looks for a frame with it
    sys.settrace(entered)
    try:
        call()
    finally:
        sys.settrace(None)


def _is_ours(frame: FrameType) -> bool:
    """Of this package, or of what it calls. Not where asyncio begins and ends, which is not ours to mend, and not in a
    __del__: Python drops what is raised there."""
    if not frame.f_code.co_filename.startswith((_OURS, *_SHARED)):
        return False
    callers = [frame]
    while callers[-1].f_back is not None:
        callers.append(callers[-1].f_back)
    if any(caller.f_code.co_name == "__del__" for caller in callers):
        return False
    nearest = next(caller for caller in callers if caller.f_code.co_filename.startswith((_OURS, _ASYNCIO, _HERE)))
    return nearest.f_code.co_filename.startswith(_OURS)
