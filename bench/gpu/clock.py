"""Time on a GPU: CUDA events around replays of a graph, contestants in turns, and a budget for a whole stage.

A contestant is a list of calls that do the same with different memory, recorded as one graph. Enough memory is rotated
that the cache serves none of what a model would read from memory. Samples are seconds of one call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.clock import Timing
from codegen_fast import ops

REPLAYS = 200  # of a graph; of one that takes milliseconds, calls
LONG_REPLAY = 2e-3  # seconds
FEWEST_REPLAYS = 24
MOST_COPIED = 2 << 30  # bytes
CACHES = 3  # rotated memory is at least this many times the L2 cache


@dataclass
class Contestant:
    """``replay`` enqueues ``calls`` calls."""

    name: str
    replay: Callable[[], object]
    calls: int


def copies(nbytes: int, l2_bytes: int, *, at_least: int = 8, at_most: int = 256) -> int:
    """How many copies of ``nbytes`` to rotate so that none of them is still cached when it is read again.

    at_least: so that a replay is long enough to be timed, as long as they take little memory; at_most: for what is so
    small that it may stay cached.
    """
    cold = -(-CACHES * l2_bytes // max(1, nbytes))
    long_enough = at_least if at_least * nbytes <= MOST_COPIED else 2
    return max(2, min(at_most, max(long_enough, cold)))


class EventClock:
    """The clock of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm_up(self, seconds: float = 3.5) -> None:
        """Keeps the GPU busy until its clocks have risen."""
        a = torch.randn(4096, 4096, device=self.device, dtype=torch.float16)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for _ in range(20):
                a @ a
            torch.cuda.synchronize()

    def ours(self, name: str, calls: Sequence[Callable[[], object]]) -> Contestant:
        """Ops of codegen_fast, recorded as its decoder records a step. ``calls`` must keep their tensors alive."""
        calls[0]()  # out of the graph: what is set up once
        torch.cuda.synchronize()
        graph = ops.new_graph(torch.empty(1, device=self.device))
        with ops.recorded(graph):
            for call in calls:
                call()
        return Contestant(name, graph.replay, len(calls))

    def torchs(self, name: str, calls: Sequence[Callable[[], object]]) -> Contestant:
        """Calls of torch, recorded as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:3]:  # cuBLAS chooses its algorithm and takes its workspace
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return Contestant(name, graph.replay, len(calls))

    def span(self, work: Callable[[], object]) -> float:
        """Seconds on the GPU between two events around the work."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def race(self, contestants: Sequence[Contestant], replays: int = REPLAYS) -> dict[str, list[float]]:
        """Seconds a call of each, over ``replays`` replays in turns A B B A."""
        samples: dict[str, list[float]] = {c.name: [] for c in contestants}
        quarters = {c.name: -(-self._replays(c, replays) // 4) for c in contestants}
        for order in (contestants, contestants[::-1], contestants, contestants[::-1]):
            for c in order:
                c.replay()
                events = [torch.cuda.Event(enable_timing=True) for _ in range(quarters[c.name] + 1)]
                events[0].record()
                for event in events[1:]:
                    c.replay()
                    event.record()
                torch.cuda.synchronize()
                samples[c.name] += [a.elapsed_time(b) * 1e-3 / c.calls for a, b in zip(events, events[1:])]
        return samples

    def _replays(self, c: Contestant, replays: int) -> int:
        c.replay()
        if self.span(c.replay) <= LONG_REPLAY:
            return replays
        return min(replays, max(FEWEST_REPLAYS, -(-replays // c.calls)))


class RehearsalClock:
    """Runs everything once and counts nothing: for machines without a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm_up(self, seconds: float = 0) -> None:
        pass

    def ours(self, name: str, calls: Sequence[Callable[[], object]]) -> Contestant:
        return Contestant(name, lambda: [call() for call in calls], len(calls))

    torchs = ours

    def span(self, work: Callable[[], object]) -> None:
        work()

    def race(self, contestants: Sequence[Contestant], replays: int = REPLAYS) -> dict[str, list[float]]:
        for c in contestants:
            c.replay()
        return {c.name: [] for c in contestants}


Clock = EventClock | RehearsalClock


def new_clock(device: torch.device) -> Clock:
    return EventClock(device) if device.type == "cuda" else RehearsalClock(device)


class Budget:
    """Seconds that a stage may take. Rows come most important first; what is left when it is spent is skipped."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        return self._until - time.monotonic()

    def allows(self, seconds: float = 0) -> bool:
        return self.left() > seconds


def rounded(samples: Sequence[float]) -> list[float]:
    """Raw samples as they go to a file: to a hundredth of a microsecond."""
    return [round(s, 8) for s in samples]


def show(samples: Sequence[float]) -> str:
    if not samples:
        return "ran, not timed"
    t = Timing.of(samples)
    return f"{t.median * 1e6:9.1f} us ({t.p10 * 1e6:.1f} to {t.p90 * 1e6:.1f})"
