"""The one clock of all benchmarks: medians with the 10th and 90th percentile of single calls."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, 10th and 90th percentile, over ``samples`` calls."""

    median: float
    p10: float
    p90: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of single calls, in any order."""
        ordered = sorted(seconds)

        def percentile(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(percentile(0.5), percentile(0.1), percentile(0.9), len(ordered))


def measure(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float = 0.5,
    min_samples: int = 10,
    synchronize: Callable[[], object] | None = None,
) -> Timing:
    """Times ``calls`` in turn for about ``seconds``, after each has run once.

    Several calls that do the same with different memory keep a cache from serving what a model would read from
    memory. ``synchronize`` waits for a device, inside the timed span.
    """
    for call in calls:
        call()
    if synchronize is not None:
        synchronize()
    samples = []
    deadline = time.perf_counter() + seconds
    for call in itertools.cycle(calls):
        start = time.perf_counter_ns()
        call()
        if synchronize is not None:
            synchronize()
        samples.append(time.perf_counter_ns() - start)
        if len(samples) >= min_samples and time.perf_counter() > deadline:
            break
    return Timing.of([ns * 1e-9 for ns in samples])
