"""The campaign: every target in turn, until the time is over, in a process that is replaced when it dies."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .verdicts import READ, REFUSED
from .worker import Died, Worker

_BATCH = 20           # cases asked for at once
_CASES_A_PROCESS = 20_000
_KEPT_DETAIL = 300    # characters
_FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+(?=[\w.+-]+\.\w)")  # before a file's name: they differ by machine and run


@dataclass
class Tally:
    """What came of a target's cases. failures: by what is wrong, how often, and the first case of each."""

    target: str
    cases: int = 0
    read: int = 0
    refused: int = 0
    died: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak_bytes: int = 0
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, number: int, outcome: dict[str, Any]) -> None:
        self.cases += 1
        self.slowest = max(self.slowest, outcome["seconds"])
        self.peak_bytes = max(self.peak_bytes, outcome["peak"])
        if outcome["kind"] == READ:
            self.read += 1
        elif outcome["kind"] == REFUSED:
            self.refused += 1
        else:
            self.fail(number, outcome["kind"], outcome["detail"], outcome.get("input"))

    def fail(self, number: int, kind: str, detail: str, data: str | None = None) -> None:
        """data: the input, where no number would make it again."""
        kind, detail = (_FOLDERS.sub("", text) for text in (kind, detail))
        if kind not in self.failures:
            tqdm.write(f"{self.target}, case {number}: {kind}; {detail}", file=sys.stderr)
        first = {"times": 0, "case": number, "detail": detail[:_KEPT_DETAIL]} | ({} if data is None else {"input": data})
        self.failures.setdefault(kind, first)["times"] += 1


def run_campaign(root: Path, targets: Sequence[str], *, seconds: float, seed: int, rounds: int) -> list[Tally]:
    """Cases of each target, in `rounds` turns of equal length. root: as cases.lay_out left it."""
    tallies = {name: Tally(name) for name in targets}
    worker, done = Worker(root, seed), 0
    try:
        with tqdm(total=round(seconds), desc="hostile files", unit="s", mininterval=1) as bar:
            for turn in range(rounds):
                for place, name in enumerate(targets):
                    tally = tallies[name]
                    begin = time.monotonic()
                    until = begin + seconds / rounds / len(targets)
                    while time.monotonic() < until:
                        if done >= _CASES_A_PROCESS:
                            worker.close()
                            worker, done = Worker(root, seed), 0
                        done += _BATCH
                        worker = _run_batch(worker, root, seed, tally)
                    tally.seconds += time.monotonic() - begin
                    bar.n = round(seconds * (turn * len(targets) + place + 1) / (rounds * len(targets)))
                    bar.set_postfix_str(f"{sum(each.cases for each in tallies.values()):,} inputs, "
                                        f"{sum(len(each.failures) for each in tallies.values())} failures")
    finally:
        worker.close()
    return list(tallies.values())


def run_again(root: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What comes now of the inputs that failed in the campaign of an earlier record, by their numbers; those grown by
    coverage are guided.run_again's.

    Inputs are made anew: the comparison holds as long as seeds and mutations are those of the record's commit.
    """
    told = []
    worker = Worker(root, found["seed"])
    for tally in found["targets"]:
        for kind, first in tally["failures"].items():
            again = Tally(tally["target"], cases=first["case"])
            worker = _run_batch(worker, root, found["seed"], again, count=1)
            told.append({"record": found["name"], "target": tally["target"], "case": first["case"], "then": kind,
                         "now": next(iter(again.failures), None)})
    worker.close()
    return told


def _run_batch(worker: Worker, root: Path, seed: int, tally: Tally, count: int = _BATCH) -> Worker:
    """The worker to go on with: another one where this died."""
    try:
        for number, outcome in worker.run(tally.target, tally.cases, count):
            tally.add(number, outcome)
        return worker
    except Died as death:
        tally.cases = death.number + 1
        tally.died += 1
        tally.fail(death.number, str(death), "")
        worker.close()
        return Worker(root, seed)
