"""Ctrl-C at every place of a call where Python looks for signals, one run of the call for each.

The handler of a signal runs where a function begins, where a call has returned and where a loop turns. At a random moment
such a place is met as seldom as it is short: what breaks in one of four thousand tries needs as many to be found. A trace
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

_HERE = __file__
_OURS = str(Path(codegen_fast.__file__).parent)
_ASYNCIO = str(Path(asyncio.__file__).parent)
# Where our code changes what it shares with other threads.
_SHARED = (queue.__file__, threading.__file__, contextlib.__file__, str(Path(futures.__file__).parent),
           str(Path(tqdm.__file__).parent))  # fmt: skip


class Place(NamedTuple):
    """A place on one way there. Loops come by the same one again and again: the first time counts."""

    code: CodeType
    offset: int  # of the instruction before which the handler runs; -1: the function begins
    callers: tuple[tuple[CodeType, int], ...]  # of the same files, each with its instruction, from the nearest on

    def __repr__(self) -> str:
        places = [(self.code, self.offset), *self.callers]
        return " < ".join(f"{Path(code.co_filename).name}:{_line(code, offset)} {code.co_name}" for code, offset in places)


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

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands ignore Ctrl-C
    try:
        _traced(call, at)
    except KeyboardInterrupt:
        return "heard"
    finally:
        signal.signal(signal.SIGINT, before)
    return "lost" if reached else "not reached"


def _traced(call: Callable[[], Any], at: Callable[[Place], Any]) -> None:
    instructions: dict[CodeType, _Instructions] = {}

    def entered(frame: FrameType, event: str, _: Any) -> Any:
        code, called = frame.f_code, False
        callers = _callers(frame)
        if callers is None:
            return None
        calls, turns = instructions.get(code) or instructions.setdefault(code, _Instructions.of(code))

        def stepped(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal called
            if event == "exception":
                called = False  # where a call has raised no signals are looked for
            elif event == "opcode":
                if called or frame.f_lasti in turns:
                    at(Place(code, frame.f_lasti, callers))
                called = frame.f_lasti in calls
            return stepped

        frame.f_trace = stepped  # from 3.13 on what follows counts for a frame that has one
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        at(Place(code, -1, callers))
        return stepped

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # from 3.12 on settrace looks for a frame with it
    sys.settrace(entered)
    try:
        call()
    finally:
        sys.settrace(before)


class _Instructions(NamedTuple):
    """Offsets of a function's calls, and of its jumps backwards that look for signals."""

    calls: frozenset[int]
    turns: frozenset[int]

    @classmethod
    def of(cls, code: CodeType) -> _Instructions:
        calls, turns = set(), set()
        for each in dis.get_instructions(code):
            if each.opname.startswith("CALL"):
                calls.add(each.offset)
            elif "JUMP" in each.opname and "NO_INTERRUPT" not in each.opname and each.argval <= each.offset:
                turns.add(each.offset)
        return cls(frozenset(calls), frozenset(turns))


def _callers(frame: FrameType) -> tuple[tuple[CodeType, int], ...] | None:
    """Who called it, of this package and what is shared; None where the frame is neither of the package nor of what that
    calls. Where asyncio begins and ends is not ours to mend, and in a __del__ Python drops what is raised."""
    if not _is_in(frame, _OURS, *_SHARED):
        return None
    frames = [frame]
    while (caller := frames[-1].f_back) is not None and not _is_in(caller, _HERE):
        frames.append(caller)
    nearest = next((caller for caller in frames if _is_in(caller, _OURS, _ASYNCIO)), None)
    if nearest is None or _is_in(nearest, _ASYNCIO) or any(caller.f_code.co_name == "__del__" for caller in frames):
        return None
    return tuple((caller.f_code, caller.f_lasti) for caller in frames[1:] if _is_in(caller, _OURS, *_SHARED))


def _is_in(frame: FrameType, *paths: str) -> bool:
    return frame.f_code.co_filename.startswith(paths)


def _line(code: CodeType, offset: int) -> int:
    lines = (line for start, end, line in code.co_lines() if start <= offset < end and line)
    return next(lines, code.co_firstlineno)
