"""Medians, shares and ratios of a run's raw samples. A result is what results.py reads and writes.

Shares are taken within visits. Ratios are side by side: of visits beside which memory was read equally fast, in the same
round where there are such, since a machine that reads 34 GB/s in one minute and 60 in the next would compare its own two
states. Their median counts; a visit during which the ceiling changed has no counterpart. A round whose ceiling is far
below the run's best is flagged.
"""

from __future__ import annotations

import math

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.clock import Timing
from bench.cpu.ceiling import ABOVE, FLAG, alike

Result = dict[str, Any]
Key = tuple[str, int, int]  # engine, batch, context


@dataclass(frozen=True)
class Row:
    """An engine at one point: seconds of a step (or of a prompt), and its share of the ceiling (steps alone).

    share: of what the memory gave before and after each visit, the median over visits; of_best: of the run's best.
    """

    engine: str
    type: str
    ours: bool
    batch: int
    context: int
    timing: Timing
    tokens_per_second: float
    share: float | None
    of_best: float | None
    limit: float | None  # tokens a second at the run's best ceiling
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """How many times faster, the median over those of our visits that have a counterpart; agree: how many of these
    ``rounds`` are on the same side of 1."""

    value: float
    agree: int
    rounds: int

    @property
    def is_tie(self) -> bool:
        """A difference under 15% is one, unless at least 6 rounds all agree."""
        return abs(self.value - 1) < 0.15 and not (self.rounds >= 6 and self.agree == self.rounds)


def ceiling_of(result: Result) -> float | None:
    """The run's: the best of all rounds."""
    return max((each["best"] for rounds in result["rounds"].values() for each in rounds), default=None)


def flagged(result: Result, part: str) -> set[int]:
    """Rounds of a part whose ceiling fell below FLAG of the run's, before or after."""
    best = ceiling_of(result)
    return {each["round"] for each in result["rounds"].get(part, ()) if each["worst"] < FLAG * best}


def unsteady(result: Result, part: str) -> list[tuple[str, int]]:
    """(engine, round) of visits during which the ceiling changed, each time that they were made."""
    return sorted({(sample["engine"], sample["round"]) for sample in result["samples"]
                   if sample["part"] == part and not sample.get("steady", True)})  # fmt: skip


def whole_rounds(result: Result, part: str) -> set[int]:
    """Those that came to their end. Flagged ones are among them: in some runs hardly a round is not, and shares and
    ratios are of what was measured side by side."""
    return {each["round"] for each in result["rounds"].get(part, ())}


def medians(result: Result, part: str) -> dict[Key, dict[int, float]]:
    """(engine, batch, context) -> round -> median seconds, of whole rounds."""
    rounds = whole_rounds(result, part)
    seconds: dict[Key, dict[int, list[float]]] = {}
    for sample in result["samples"]:
        if sample["part"] == part and sample["round"] in rounds:
            key = sample["engine"], sample["batch"], sample["context"]
            seconds.setdefault(key, {}).setdefault(sample["round"], []).extend(sample["seconds"])
    return {key: {number: median(each) for number, each in by_round.items()} for key, by_round in seconds.items()}


def ceilings(result: Result, part: str) -> dict[tuple[str, int], float]:
    """(engine, round) -> what was measured beside its visit, else in the round."""
    rounds = {each["round"]: each["best"] for each in result["rounds"].get(part, ())}
    return {(sample["engine"], sample["round"]): sample.get("ceiling", rounds.get(sample["round"]))
            for sample in result["samples"] if sample["part"] == part}  # fmt: skip


def steady_ceilings(result: Result, part: str) -> dict[tuple[str, int], float]:
    """Those of visits during which the ceiling did not change: of the others nobody knows it."""
    changed = set(unsteady(result, part))
    return {visit: ceiling for visit, ceiling in ceilings(result, part).items() if visit not in changed}


def step_bytes(result: Result, engine: str, batch: int, context: float) -> float:
    """Bytes that a step must read: the weights once, the cache of every row."""
    row = engine_row(result, engine)
    return row["step_weight_bytes"] + row["cache_bytes_per_token"] * batch * context


def engine_row(result: Result, engine: str) -> dict[str, Any]:
    return next(row for row in result["engines"] if row["name"] == engine)


def rows(result: Result, part: str) -> list[Row]:
    """Every engine at every point, in order of points, types and speed; with marks for the best of each."""
    best, beside = ceiling_of(result), ceilings(result, part)
    found = []
    for (engine, batch, context), by_round in medians(result, part).items():
        seconds = [second for sample in result["samples"] if (sample["part"], sample["engine"], sample["batch"],
                   sample["context"]) == (part, engine, batch, context) and sample["round"] in by_round
                   for second in sample["seconds"]]  # fmt: skip
        timing, row = Timing.of(seconds), engine_row(result, engine)
        share = of_best = limit = None
        tokens = batch if part == "decode" else batch * context
        if part == "decode" and best:
            nbytes = step_bytes(result, engine, batch, mid_context(result, context))
            share = median(nbytes / second / beside[engine, number] for number, second in by_round.items())
            of_best = nbytes / timing.median / best
            limit = batch * best / nbytes
        found.append(
            Row(engine, row["type"], row["ours"], batch, context, timing, tokens / timing.median, share, of_best, limit)
        )
    order = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4}
    found.sort(key=lambda row: (row.batch, row.context, order[row.type], -row.tokens_per_second))
    return [_marked(row, found) for row in found]


def mid_context(result: Result, context: int) -> float:
    """Of the steps behind a prompt of ``context``, the mean length."""
    return context + result["settings"]["steps"] / 2


def _marked(row: Row, all_rows: Iterable[Row]) -> Row:
    here = [other for other in all_rows if (other.batch, other.context) == (row.batch, row.context)]
    marks = []
    if row.tokens_per_second == max(other.tokens_per_second for other in here):
        marks.append("best of all")
    if row.tokens_per_second == max(other.tokens_per_second for other in here if other.type == row.type):
        marks.append(f"best {row.type}")
    return Row(**{**vars(row), "marks": tuple(marks)})


def nearest_peer(result: Result, part: str, ours: Key, type: str | None) -> tuple[str, Ratio] | None:
    """Of the engines that are not ours, of a type or of all, the one that ours is least ahead of; None where there is none
    side by side."""
    peers = {row["name"] for row in result["engines"] if not row["ours"] and type in (None, row["type"])}
    found = [(key[0], against) for key in medians(result, part) if key[0] in peers and key[1:] == ours[1:]
             and (against := ratio(result, part, ours, key))]  # fmt: skip
    return min(found, key=lambda each: each[1].value, default=None)


def ratio(result: Result, part: str, ours: Key, other: Key) -> Ratio | None:
    """Tokens a second of one over another's; None where they have no visits beside which memory was read equally fast."""
    found, beside = medians(result, part), steady_ceilings(result, part)
    if ours not in found or other not in found:
        return None
    scale = (ours[1] / other[1]) * (ours[2] / other[2] if part == "prefill" else 1)
    ratios = []
    for number, second in found[ours].items():
        here = beside.get((ours[0], number), 0.0)
        with_it = {n: each for n, each in found[other].items() if alike(here, beside.get((other[0], n), math.inf))}
        if with_it:
            ratios.append(with_it.get(number, median(with_it.values())) / second * scale)
    if not ratios:
        return None
    middle = median(ratios)
    return Ratio(middle, sum((each > 1) == (middle > 1) for each in ratios), len(ratios))


@dataclass(frozen=True)
class Speed:
    """How fast memory was read beside some visits, from slowest to fastest, and whose visits those were."""

    name: str  # "fast" or "slow"
    slowest: float
    fastest: float
    visits: frozenset[tuple[str, int]]  # (engine, round)


def speeds(result: Result, part: str) -> list[Speed]:
    """Steady visits apart by whether memory was read at FLAG of the run's best beside them; one where all were alike."""
    best, beside = ceiling_of(result), steady_ceilings(result, part)
    whole = {(engine, number) for (engine, *_), by_round in medians(result, part).items() for number in by_round}
    whole &= beside.keys()
    found = []
    for name, is_fast in (("fast", True), ("slow", False)):
        visits = {visit: beside[visit] for visit in whole if (beside[visit] >= FLAG * best) is is_fast}
        if visits:
            found.append(Speed(name, min(visits.values()), max(visits.values()), frozenset(visits)))
    return found


def tokens_per_second(result: Result, part: str, key: Key, speed: Speed) -> tuple[float, int] | None:
    """The median over the visits of one speed, and how many those are."""
    seconds = [second for number, second in medians(result, part)[key].items() if (key[0], number) in speed.visits]
    tokens = key[1] if part == "decode" else key[1] * key[2]
    return (tokens / median(seconds), len(seconds)) if seconds else None


def impossible(result: Result) -> list[str]:
    """What reads faster than the ceiling by more than 5%: one sentence each. Any makes the run invalid.

    What the caches hold is not read from memory and may.
    """
    cache = result["machine"]["cache_bytes"] or 0
    return [f"{row.engine} at batch {row.batch}, context {row.context} reads {row.share:.0%} of the ceiling"
            for row in rows(result, "decode") if row.share is not None and row.share > ABOVE
            and engine_row(result, row.engine)["step_weight_bytes"] > cache]  # fmt: skip


def stage_shares(stage: dict[str, Any]) -> dict[str, float]:
    """Of a step whose ops are timed: the share of every stage, and of Python."""
    from bench.cpu.stages import by_stage

    step = sum(stage["timed"]) / len(stage["timed"])
    return {name: seconds / step for name, seconds in by_stage(stage["ops"], step).items()}


def cold_rows(result: Result, engine: str) -> list[dict[str, Any]]:
    return [row for row in result["cold"] if row["engine"] == engine]


def cold_read_seconds(result: Result) -> list[float]:
    return [row["seconds"] for row in result["cold_reads"]]
