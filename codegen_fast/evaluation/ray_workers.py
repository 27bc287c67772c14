"""Samplers in the processes of a Ray cluster. A worker that dies takes nothing with it: its unit goes to another.

Completions are those of one process, since a draw follows from (seed, problem, sample, position) and a row's bits from
nothing but itself; only workers on other instruction sets or GPUs may round otherwise, and those are warned of.
"""
from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .jsonl import Record
from .samplers import SamplerSpec, kernels
from .units import Unit

# Ray puts the folder that it is called from before all others on its workers' path. From a clone those would be sources
# without their compiled part; workers shall import what this process has imported.
_PACKAGES = Path(__file__).parents[2]
# Samples of a unit: as many as run at once on a CPU; with fewer, less is done twice when a worker dies.
_UNIT_SAMPLES = 64
# A worker that dies is replaced so many times for each that there shall be; then something else is wrong.
_REPLACEMENTS = 3


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """contextlib.chdir, which Python 3.10 lacks."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class _Worker:
    """Lives in a process of the cluster."""

    def begin(self, spec: SamplerSpec) -> tuple[int, str]:
        """Loads the model. The process, and what computes in it."""
        from ..loading import choose_device

        self._sampler = spec.build()
        return os.getpid(), kernels(choose_device(spec.device, None))

    def run(self, unit: Unit) -> list[tuple[float, Record]]:
        return list(self._sampler.run([unit]))


class RayWorkers:
    """A context manager: `run` gives the records of units as workers finish them."""

    def __init__(self, spec: SamplerSpec, address: str, workers: int):
        """address: "local" starts a cluster on this machine, which ends with the block.

        Raises ImportError without ray, OSError where the cluster cannot be had.
        """
        try:
            import ray
        except ImportError:
            raise ImportError("--ray needs the package ray, which is not installed: pip install 'codegen_fast[ray]'"
                              ) from None
        self._ray, self._wanted = ray, workers
        self._replacements = _REPLACEMENTS * workers
        self.pids: dict[Any, int] = {}  # of the workers that have answered
        self._kernels: str | None = None  # theirs
        options: dict[str, Any] = {"address": address}
        if address == "local":
            # A cluster for this run alone: it listens on this machine only, and reports to nobody.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options = {"include_dashboard": False, "num_cpus": workers, "_node_ip_address": "127.0.0.1"}
        try:
            with _working_in(_PACKAGES):
                ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
        except Exception as error:
            raise OSError(f"--ray {address}: the cluster cannot be reached: {error}") from error
        try:
            self._require_room(spec, address)
            self.use(spec)
        except BaseException:
            ray.shutdown()
            raise

    def _require_room(self, spec: SamplerSpec, address: str) -> None:
        """A worker that the cluster has no place for would be waited for without end."""
        there = self._ray.cluster_resources()
        for name in ("CPU", "GPU") if spec.device.startswith("cuda") else ("CPU",):
            if there.get(name, 0) < self._wanted:
                raise OSError(f"--ray {address}: the cluster has {there.get(name, 0):g} {name}s for --workers "
                              f"{self._wanted}, each of which takes one: ask for fewer")

    def use(self, spec: SamplerSpec) -> None:
        """From the next `run` on."""
        self._actor = self._ray.remote(num_cpus=1, num_gpus=1 if spec.device.startswith("cuda") else 0, max_restarts=0,
                                       max_task_retries=0)(_Worker)
        self._shared_spec = self._ray.put(spec)  # once in the cluster's store, and not once a worker

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ray.shutdown()

    def run(self, units: list[Unit]) -> Iterator[tuple[float, Record]]:
        """Raises what a sampler raises, and OSError when workers keep dying."""
        waiting = deque(part for unit in units for part in unit.split(_UNIT_SAMPLES))
        tasks: dict[Any, tuple[Any, Unit | None]] = {}  # result to come -> its worker and unit; None: it has begun
        try:
            for _ in range(min(self._wanted, len(waiting))):
                self._start(tasks)
            while waiting or any(unit is not None for _, unit in tasks.values()):
                yield from self._next(tasks, waiting)
        finally:
            for worker in {*self.pids, *(worker for worker, _ in tasks.values())}:
                self._ray.kill(worker)
            self.pids.clear()

    def _next(self, tasks: dict[Any, tuple[Any, Unit | None]], waiting: deque[Unit]) -> list[tuple[float, Record]]:
        """The records of the next unit that is done; none where a worker has begun, or died."""
        ray = self._ray
        (ready,), _ = ray.wait(list(tasks), num_returns=1)
        worker, unit = tasks.pop(ready)
        try:
            answer = ray.get(ready)
        except _lost(ray) as error:
            self.pids.pop(worker, None)
            ray.kill(worker)  # where only its answer, or its machine, was lost
            if unit is not None:
                waiting.appendleft(unit)
            busy = [other for other, _ in tasks.values()]
            idle = [other for other in self.pids if other not in busy]
            if idle and waiting:
                self._give(tasks, idle[0], waiting)
            else:
                self._replace(tasks, error)
            return []
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        if unit is None:
            self._greet(worker, *answer)
        if waiting:
            self._give(tasks, worker, waiting)
        return answer if unit is not None else []

    def _start(self, tasks: dict[Any, tuple[Any, Unit | None]]) -> None:
        worker = self._actor.remote()
        tasks[worker.begin.remote(self._shared_spec)] = (worker, None)

    def _give(self, tasks: dict[Any, tuple[Any, Unit | None]], worker: Any, waiting: deque[Unit]) -> None:
        unit = waiting.popleft()
        tasks[worker.run.remote(unit)] = (worker, unit)

    def _replace(self, tasks: dict[Any, tuple[Any, Unit | None]], error: Exception) -> None:
        if self._replacements == 0:
            if not tasks:
                raise OSError(f"workers keep dying, and none is left of {self._wanted}: {_told(error)}") from error
            return
        self._replacements -= 1
        self._start(tasks)

    def _greet(self, worker: Any, pid: int, own_kernels: str) -> None:
        self._kernels = self._kernels or own_kernels
        if own_kernels != self._kernels:
            warnings.warn(f"a worker computes on {own_kernels}, another one on {self._kernels}: completions may depend "
                          "on which of them computes a sample", UserWarning, stacklevel=2)
        self.pids[worker] = pid


def _told(error: Exception) -> str:
    """What Ray says first, and the end of the traceback where there is one, without colours."""
    first, *rest = re.sub(r"\x1b\[[0-9;]*m", "", str(error) or type(error).__name__).strip().splitlines()
    return " ... ".join([first, *rest[-1:]])


def _lost(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises where a worker, its machine or its answer is gone."""
    errors = ray.exceptions
    return (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError, errors.OutOfMemoryError,
            errors.WorkerCrashedError)
