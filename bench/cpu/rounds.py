"""Engines in turns: A B C, then C B A, with the ceiling before and after every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.cpu.ceiling import best


def in_turns(engines: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of every round: each begins with the engine that the one before ended with."""
    return [list(engines) if number % 2 == 0 else list(reversed(engines)) for number in range(rounds)]


def run(engines: Sequence[str], rounds: int, visit: Callable[[str, int], None],
        ceiling: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:  # fmt: skip
    """Visits every engine in every round. Returns for each round what the ceiling was: {round, rows, best}.

    The better of before and after counts: what was there in one of them was there to be had.
    """
    found = []
    before = ceiling()
    for number, order in enumerate(in_turns(engines, rounds)):
        for engine in order:
            visit(engine, number)
        after = ceiling()
        rows = [{**row, "when": when} for when, rows in (("before", before), ("after", after)) for row in rows]
        found.append({"round": number, "rows": rows, "best": best(rows), "worst": min(best(before), best(after))})
        before = after
    return found
