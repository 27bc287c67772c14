"""What is sampled together, and what a run still lacks."""
from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """Samples of one problem (of MTPB: of one of its cases) at one temperature, to be computed by one worker.

    Which unit a sample is computed in changes none of its tokens.
    """

    temperature: float
    problem: int  # its place in the run's list
    case: int     # 0 in HumanEval
    samples: tuple[int, ...]

    def split(self, size: int) -> Iterator[Unit]:
        """The same samples in units of at most `size`."""
        for begin in range(0, len(self.samples), size):
            yield Unit(self.temperature, self.problem, self.case, self.samples[begin:begin + size])


def missing_units(temperatures: Iterable[float], cases: Iterable[tuple[int, int]], n: int,
                  done: Callable[[float], Container[Any]]) -> list[Unit]:
    """The samples 0 to n - 1 of every (problem, case) that are not done yet, a unit each, in the files' order.

    done: the keys (problem, case, sample) of the records at a temperature.
    """
    cases = list(cases)
    units = []
    for temperature in temperatures:
        there = done(temperature)
        for problem, case in cases:
            samples = tuple(sample for sample in range(n) if (problem, case, sample) not in there)
            if samples:
                units.append(Unit(temperature, problem, case, samples))
    return units
