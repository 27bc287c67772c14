"""Ctrl-C at random moments."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from codegen_fast.session import Session

from .subject import LONG, Subject, load_demo


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


def _kinds(subject: Subject, session: Session) -> dict[str, Callable[[], Any]]:
    model, ids = subject.model, subject.ids

    def stream() -> None:
        with closing(model.stream([ids], **LONG)) as pieces:
            for _ in pieces:
                pass

    return {
        "greedy": lambda: model.generate([ids], **LONG),
        "samples": lambda: model.generate([ids, ids[5:]], do_sample=True, seed=1, num_return_sequences=3, **LONG),
        "beams": lambda: model.generate([ids], num_beams=3, max_new_tokens=16),
        "drafts": lambda: model.generate([ids * 3], prompt_lookup_num_tokens=8, **LONG),
        "session": lambda: session.generate([ids[:20]], do_sample=True, seed=1, **LONG),
        "stream": stream,
        "score": lambda: model.score(ids, [ids[:9], ids[3:]]),
        "load": load_demo,
    }


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
