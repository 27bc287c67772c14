"""Ctrl-C at random moments, and at every place in turn."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from codegen_fast.evaluation.verdicts import Program, judge
from codegen_fast.execution import Executor
from codegen_fast.execution.isolation import best_isolation
from codegen_fast.execution.worker import SandboxRefused
from codegen_fast.session import Session
from reliability.places import interrupted_at, places_of

from .subject import LONG, Subject, load_demo

_SHORT = {"max_new_tokens": 4, "eos_token_id": None}
_END_SECONDS = 30.0  # for a thread that was told to end, and its sandbox
_TRIES = 4  # for each that is to be heard: a call may be done before its Ctrl-C falls


def ctrl_c(subject: Subject, times: int) -> str:
    """Ctrl-C at a random moment of generating (greedily, samples, beams, drafts, in a session), streaming, scoring and
    loading, until so many were heard."""
    chance, heard, tries = random.Random(2), 0, 0
    with subject.model.session(max_tokens=600) as session:
        kinds = _kinds(subject, session)
        took = {name: _seconds(kind) for name, kind in kinds.items()}
        while heard < times and tries < _TRIES * times:
            name = chance.choice(list(kinds))
            heard += _interrupted(kinds[name], chance.uniform(0, 1.1 * took[name]))
            tries += 1
            subject.require_returned(session, interrupted=True)
            if tries % 20 == 0:
                subject.require_usable(session)
        subject.require_usable(session)
    assert heard == times, f"only {heard} of {tries} were heard before a call was done; expected {times}"
    return f"KeyboardInterrupt {heard} times, in {tries} tries; the other calls were done before the moment that was drawn"


def everywhere(subject: Subject, times: int) -> str:
    """Ctrl-C at so many places of each kind of call, of all those where Python looks for signals, one run for each: loading,
    generating greedily and in a session, streaming, streaming by asyncio, running programs in a sandbox (where there is
    one)."""
    chance, found, known = random.Random(4), Counter(), 0
    with subject.model.session(max_tokens=600) as session:
        for name, call in _short_kinds(subject, session).items():
            call()  # the first makes what later ones find
            threads = threading.active_count()
            places = places_of(call)
            known += len(places)
            for place in chance.sample(places, min(times, len(places))):
                outcome = interrupted_at(call, place)
                assert outcome != "lost", f"{name}, {place}: Ctrl-C was not heard"
                found[outcome] += 1
                _require_ended(threads, f"{name}, {place}")
                subject.require_returned(session, interrupted=True)
            subject.require_usable(session)
    return (f"KeyboardInterrupt at {found['heard']} of {known} places; {found['not reached']} calls took a way without their "
            "place")


def _require_ended(threads: int, where: str) -> None:
    end = time.monotonic() + _END_SECONDS
    while threading.active_count() > threads:
        assert time.monotonic() < end, f"{where}: a thread was left behind"
        time.sleep(0.001)


def _short_kinds(subject: Subject, session: Session) -> dict[str, Callable[[], Any]]:
    model, ids = subject.model, subject.ids

    async def listen() -> None:
        async for _ in model.astream([ids], **_SHORT):
            pass

    def programs() -> None:
        with Executor(workers=1) as executor:
            for _ in judge([("one", Program("humaneval", "pass", 3.0))], executor):
                pass

    kinds = {
        "load": load_demo,
        "greedy": lambda: model.generate([ids], **_SHORT),
        "session": lambda: session.generate([ids[:20]], do_sample=True, seed=1, **_SHORT),
        "stream": lambda: _stream(subject, _SHORT),
        "astream": lambda: asyncio.run(listen()),
    }
    with suppress(SandboxRefused):
        best_isolation()
        kinds["programs"] = programs
    return kinds


def _kinds(subject: Subject, session: Session) -> dict[str, Callable[[], Any]]:
    model, ids = subject.model, subject.ids

    return {
        "greedy": lambda: model.generate([ids], **LONG),
        "samples": lambda: model.generate([ids, ids[5:]], do_sample=True, seed=1, num_return_sequences=3, **LONG),
        "beams": lambda: model.generate([ids], num_beams=3, max_new_tokens=16),
        "drafts": lambda: model.generate([ids * 3], prompt_lookup_num_tokens=8, **LONG),
        "session": lambda: session.generate([ids[:20]], do_sample=True, seed=1, **LONG),
        "stream": lambda: _stream(subject, LONG),
        "score": lambda: model.score(ids, [ids[:9], ids[3:]]),
        "load": load_demo,
    }


def _stream(subject: Subject, knobs: dict[str, Any]) -> None:
    with closing(subject.model.stream([subject.ids], **knobs)) as pieces:
        for _ in pieces:
            pass


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _interrupted(call: Callable[[], Any], seconds: float) -> bool:
    """Calls with Ctrl-C after so long, as a signal; whether it was heard before the end. None comes after it."""
    done = False
    try:
        with ctrl_c_after(seconds):
            call()
            done = True
    except KeyboardInterrupt:
        return not done
    return False


@contextmanager
def ctrl_c_after(seconds: float) -> Iterator[None]:
    """KeyboardInterrupt in the block, after so long; none once the block is over."""
    alarm = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds + 1e-6)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also where Ctrl-C came in the line above
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGINT, before)
