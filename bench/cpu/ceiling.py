"""The ceiling: how fast this machine reads memory, the best over numbers of threads and ways to read.

A plain sum, and a product of one row (lm_head of the 6B shape) in float32 and int8: reading is all that those do. Their
buffers are far beyond the caches. Virtual machines lose half of their bandwidth for minutes, so it is measured in every
round, and a round below FLAG of the run's best is flagged. They also win and lose it within seconds, so what there is
to be had is measured before and after every visit of an engine, whose share is of the better of the two: its median
step against the median pass. Where the two differ, no one ceiling was above that visit: it is made again, VISITS times at
most, whatever it found, and one that never was steady is marked. Above ABOVE of that nothing can be: such a run says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

FLAG = 0.75
STEADY = 0.9  # of what was measured on the one side of a visit, at least, on the other
VISITS = 3
ABOVE = 1.05
_SUM_BYTES = 512 << 20
_SUMS = 3  # passes over half of them, of a moment
_COLUMNS, _ROWS = 4096, 51200  # lm_head of the 6B shape: 839 MB in float32


def alike(a: float, b: float) -> bool:
    """Whether two ceilings are the same memory's."""
    return min(a, b) >= STEADY * max(a, b)


def beside(measured: Callable[[], Any], moment: Callable[[], float]) -> tuple[Any, float, bool]:
    """What was measured; the better of what memory gave before and after; whether the two agree, after VISITS tries at most."""
    for _ in range(VISITS):
        before, found, after = moment(), measured(), moment()
        if alike(before, after):
            break
    return found, max(before, after), alike(before, after)


class Ceiling:
    """Answers a worker's requests. patterns: of "sum", "float32 product", "int8 product"."""

    def __init__(self, threads: str) -> None:
        from codegen_fast import ops

        self._ops = ops
        self._threads = thread_counts(int(threads))
        self._products: dict[str, Any] = {}

    def _product(self, kind: str):
        """Calls that read another weight each, 420 MB at least together; and the bytes of one."""
        if kind not in self._products:
            from bench.ops import lm_head_calls

            self._products[kind] = lm_head_calls(kind, _COLUMNS, _ROWS, at_least=400 << 20)
        return self._products[kind]

    def measure(self, seconds: float) -> dict[str, Any]:
        """rows of {pattern, threads, bytes_per_second}, the best pass; each takes about ``seconds``."""
        rows = []
        for threads in self._threads:
            self._ops.set_num_threads(threads)
            rate = self._ops.read_bandwidth(_SUM_BYTES, seconds)
            rows.append({"pattern": "sum", "threads": threads, "bytes_per_second": rate})
            for kind in ("float32", "int8"):
                rate = max(self._product_rates(kind, seconds))
                rows.append({"pattern": f"{kind} product", "threads": threads, "bytes_per_second": rate})
        return {"rows": rows}

    def moment(self, seconds: float) -> dict[str, Any]:
        """What all threads get just now: the better of the sum's and the float32 product's median pass."""
        self._ops.set_num_threads(self._threads[-1])
        sums = [self._ops.read_bandwidth(_SUM_BYTES // 2, 0.0) for _ in range(_SUMS)]
        return {"bytes_per_second": max(median(sums), median(self._product_rates("float32", seconds)))}

    def _product_rates(self, kind: str, seconds: float) -> list[float]:
        """Bytes a second of single calls, taken in turn for about ``seconds``."""
        calls, nbytes = self._product(kind)
        rates, deadline = [], time.perf_counter() + seconds
        while not rates or time.perf_counter() < deadline:
            for call in calls:
                begin = time.perf_counter()
                call()
                rates.append(nbytes / (time.perf_counter() - begin))
        return rates


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 ... and most."""
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return sorted({*counts, most})


def best(rows: list[dict[str, Any]]) -> float:
    return max(row["bytes_per_second"] for row in rows)
