"""Engines in turns: A B C, then C B A, with the ceiling before and after every round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.cpu.ceiling import best


def in_turns(engines: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of every round: each begins with the engine that the one before ended with."""
    return [list(engines) if number % 2 == 0 else list(reversed(engines)) for number in range(rounds)]


def run(
    engines: Sequence[str],
    rounds: int,
    visit: Callable[[str, int], None],
    ceiling: Callable[[], list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Visits every engine in every round, and yields after each what the ceiling was: {round, rows, best, worst}.

    best: the better of before and after, since what was there in one of them was there to be had.
    """
    before = ceiling()
    for number, order in enumerate(in_turns(engines, rounds)):
        for engine in order:
            visit(engine, number)
        after = ceiling()
        rows = [{**row, "when": when} for when, rows in (("before", before), ("after", after)) for row in rows]
        bests = best(before), best(after)
        yield {"round": number, "rows": rows, "best": max(bests), "worst": min(bests)}
        before = after
