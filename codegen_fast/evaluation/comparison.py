"""Two runs of one benchmark against each other, problem by problem."""
from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..strangers import is_there, read_json_object
from .estimates import Interval, best_temperature, interval, pass_at_k_of_problems
from .run_folder import SUMMARY_FILE, read_settings

_MOST_PROGRAMS = 10**6  # of one problem: pass@k takes an array of as many numbers


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
    wanted = list(ks) or _common_ks(first, second, summaries)
    return [_difference(f"pass@{k}", *(_best(summary, k, problems) for summary in summaries)) for k in wanted]


def _common_ks(first: str | os.PathLike, second: str | os.PathLike, summaries: list[dict[str, Any]]) -> list[int]:
    """The k of pass@k that both have, in the first one's order."""
    tables = [summary.get("pass_at_k") for summary in summaries]
    for folder, table in zip((first, second), tables):
        if not isinstance(table, dict) or not all(k.isdecimal() and k.isascii() and len(k) < 10 for k in table):
            raise ValueError(f"{Path(folder) / SUMMARY_FILE} has no pass_at_k of numbers; expected it in a run of "
                             "humaneval")
    return [int(k) for k in tables[0] if k in tables[1]]


def require_comparable(folder: str | os.PathLike, benchmark: str, problems: Iterable[str], other: str | os.PathLike
                       ) -> None:
    """Whether the run in `folder`, of these problems, can be compared with the judged one in `other`.

    Raises as `compare`; `folder` need not be there yet.
    """
    theirs = read_settings(other)["benchmark"]
    if benchmark != theirs:
        raise ValueError(f"{folder} is a run of {benchmark!r:.80} and {other} one of {theirs!r:.80}: only runs of the same "
                         "benchmark can be compared")
    odd = sorted(set(problems) ^ set(_problems(read_summary(other))))
    if odd:
        raise ValueError(f"{folder} and {other} are of different problems: {odd[0]!r:.80} is in one of them only")


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
    if not is_there(path):
        raise OSError(f"{path} is not there: the run has not come to its end")
    summary = read_json_object(path)
    if "counts" not in summary:
        raise OSError(f"the programs of {folder} have not been run: go on with it with --allow-code-execution")
    if not _is_counted(summary):
        raise ValueError(f"{path} is not the summary of a run; expected counts of each problem at every temperature")
    return summary


def _is_counted(summary: dict[str, Any]) -> bool:
    """Whether counts are {temperature: {problem: [programs, those that passed]}}, the same problems everywhere."""
    counts = summary["counts"]
    if not isinstance(counts, dict) or not counts or not all(isinstance(each, dict) for each in counts.values()):
        return False
    names = next(iter(counts.values())).keys()
    return bool(names) and all(
        _is_number(temperature) and each.keys() == names and all(map(_is_pair, each.values()))
        for temperature, each in counts.items())


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_pair(pair: Any) -> bool:
    """[programs, those that passed]."""
    return (isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)
            and 0 <= pair[1] <= pair[0] <= _MOST_PROGRAMS and pair[0] > 0)
