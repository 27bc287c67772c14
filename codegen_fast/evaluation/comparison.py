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
    benchmark = read_settings(first)["benchmark"]
    summaries = [read_summary(folder) for folder in (first, second)]
    problems = _problems(summaries[0])
    require_comparable(first, benchmark, problems, second)
    if benchmark == "mtpb":
        return [_difference("pass rate", *(_best(summary, None, problems) for summary in summaries))]
    wanted = list(ks) or [k for k in map(int, summaries[0]["pass_at_k"]) if str(k) in summaries[1]["pass_at_k"]]
    return [_difference(f"pass@{k}", *(_best(summary, k, problems) for summary in summaries)) for k in wanted]


def require_comparable(folder: str | os.PathLike, benchmark: str, problems: Iterable[str], other: str | os.PathLike
                       ) -> None:
    """Whether the run in `folder`, of these problems, can be compared with the judged one in `other`.

    Raises as `compare`; `folder` need not be there yet.
    """
    theirs = read_settings(other)["benchmark"]
    if benchmark != theirs:
        raise ValueError(f"{folder} is a run of {benchmark} and {other} one of {theirs}: only runs of the same benchmark "
                         "can be compared")
    odd = sorted(set(problems) ^ set(_problems(read_summary(other))))
    if odd:
        raise ValueError(f"{folder} and {other} are of different problems: {odd[0]} is in one of them only")


def _problems(summary: dict[str, Any]) -> list[str]:
    return list(next(iter(summary["counts"].values())))


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
