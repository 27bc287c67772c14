"""What a stretch of a process took: seconds in which it ran, and the most memory that it held."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

_PERIOD = 0.002
_STOPPED = 0.25  # a thread that wakes every 2 ms and misses this long was not running: neither was what it watches


def resident_bytes() -> int:
    """Anonymous and shared memory of this process, and its huge pages of hugetlbfs; mapped files do not count."""
    names = ("RssAnon:", "RssShmem:", "HugetlbPages:")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(names))


class Watch:
    """A block whose peak of memory is sampled every 2 ms.

    seconds: of the block, without those in which this whole process was stopped (a suspended machine, a frozen control
    group), which are stopped_seconds. cpu_seconds: of processor time, of all threads but the one that watches: what the
    block costs on a machine that others use as well.
    """

    def __init__(self) -> None:
        self.peak_bytes = resident_bytes()
        self.seconds = self.stopped_seconds = self.cpu_seconds = 0.0
        self.samples = 0
        self._own_cpu = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._begin, self._cpu_begin = time.perf_counter(), time.process_time()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        elapsed = time.perf_counter() - self._begin
        cpu = time.process_time() - self._cpu_begin
        self._done.set()
        self._thread.join()
        self.seconds = elapsed - self.stopped_seconds
        self.cpu_seconds = cpu - self._own_cpu

    def _sample(self) -> None:
        last = self._begin
        while not self._done.wait(_PERIOD):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())
            now = time.perf_counter()
            if now - last > _STOPPED:
                self.stopped_seconds += now - last
            last, self.samples = now, self.samples + 1
            self._own_cpu = time.thread_time()
