"""Two runs of one benchmark against each other, problem by problem."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .estimates import Interval, best_temperature, interval, pass_at_k_of_problems
from .run_folder import SUMMARY_FILE, read_settings


@dataclass(frozen=True)
class Difference:
    """A figure (in percent) of two runs, each at its best temperature, and the second less the first.

    The interval of the difference is of paired problems: it is narrower than those of the runs suggest.
    """

    name: str
    first: Interval
    second: Interval
    difference: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return not self.difference.low <= 0 <= self.difference.high


def compare(first: str | os.PathLike, second: str | os.PathLike, ks: Iterable[int] = ()) -> list[Difference]:
    """The folders of two runs that were judged. ks: for HumanEval; without any, those that both runs have.

    Raises OSError where a folder holds no judged run, ValueError where runs are of different benchmarks or problems.
    """
    settings = [read_settings(folder) for folder in (first, second)]
    summaries = [read_summary(folder) for folder in (first, second)]
    names = [own["benchmark"] for own in settings]
    if names[0] != names[1]:
        raise ValueError(f"{first} is a run of {names[0]} and {second} one of {names[1]}: only runs of the same "
                         "benchmark can be compared")
    problems = [list(next(iter(summary["counts"].values()))) for summary in summaries]
    if set(problems[0]) != set(problems[1]):
        odd = sorted(set(problems[0]) ^ set(problems[1]))[0]
        raise ValueError(f"{first} and {second} are of different problems: {odd} is in one of them only")
    if names[0] == "mtpb":
        return [_difference("pass rate", *(_best(summary, None, problems[0]) for summary in summaries))]
    wanted = list(ks) or [k for k in map(int, summaries[0]["pass_at_k"]) if str(k) in summaries[1]["pass_at_k"]]
    return [_difference(f"pass@{k}", *(_best(summary, k, problems[0]) for summary in summaries)) for k in wanted]


def _best(summary: dict[str, Any], k: int | None, problems: list[str]) -> np.ndarray:
    """(problems,) of the temperature with the best mean: pass@k, or pass rates."""
    values = {}
    for temperature, counts in summary["counts"].items():
        pairs = [tuple(counts[name]) for name in problems]
        values[float(temperature)] = 100 * (pass_at_k_of_problems(pairs, k) if k is not None else np.array(
            [passed / total for total, passed in pairs]))
    return values[best_temperature({temperature: float(each.mean()) for temperature, each in values.items()})]


def _difference(name: str, first: np.ndarray, second: np.ndarray) -> Difference:
    return Difference(name, interval(first), interval(second), interval(second - first))


def read_summary(folder: str | os.PathLike) -> dict[str, Any]:
    """Of a judged run. OSError where there is none."""
    read_settings(folder)
    path = Path(folder) / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text())
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror or error}): the run has not come to its end") from None
    if "counts" not in summary:
        raise OSError(f"the programs of {folder} have not been run: go on with it with --allow-code-execution")
    return summary
