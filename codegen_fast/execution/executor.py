"""Programs in sandboxes, several at a time."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from ..interruption import uninterrupted
from .isolation import best_isolation
from .limits import Limits, Outcome
from .worker import LEVELS, SandboxRefused, Worker, WorkerLost

_Task = tuple[Future, dict]


class Executor:
    """Runs the Python programs it is given, each in a sandbox of its own; describe_isolation() says how strong it is.

    THE CODE IS EXECUTED. Ask the user before giving it what a model wrote.

    A program is a whole source text. It runs as __main__ of a process of this interpreter, with its packages, in an
    empty scratch folder that is removed afterwards. The process is forked from one that has imported `preload` (and
    small modules of the standard library), which is what a program that imports them saves.

    workers: programs at a time; the processors this process may use by default. isolation: "namespaces", "restricted"
    or "plain"; by default the first that this machine offers. Where none is safe (root without any wall), outcomes are
    "not run". Use it in a `with` statement, or close it; what runs ends with this process in any case.
    """

    def __init__(self, workers: int | None = None, limits: Limits = Limits(), *, preload: Sequence[str] = (),
                 isolation: str | None = None) -> None:  # fmt: skip
        if workers is not None and workers < 1:
            raise ValueError(f"workers: {workers}, at least 1 expected")
        if isolation is not None and isolation not in LEVELS:
            raise ValueError(f"isolation: {isolation!r}, one of {', '.join(LEVELS)} expected")
        self.limits = limits
        self._pool = pool = _Pool(tuple(preload), isolation)
        # Daemons: a process that ends without close() must not wait for programs. Their sandboxes end with it.
        self._threads: list[threading.Thread] = []
        try:
            with uninterrupted():  # Ctrl-C could leave the lock of a thread or a future held: see side_thread.py
                for i in range(workers or _processors()):
                    thread = threading.Thread(target=pool.work, daemon=True, name=f"program-{i}")
                    thread.start()
                    self._threads.append(thread)
        except BaseException:
            self.close()
            raise

    def submit(self, source: str, *, seconds: float | None = None, stdin: str = "") -> Future[Outcome]:
        """Puts a program in the queue. `seconds` replaces the limit's. Raises RuntimeError on a closed executor."""
        limits = self.limits
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds: {seconds}, more than 0 expected")
        request = {"source": source, "stdin": stdin, "seconds": limits.seconds if seconds is None else float(seconds),
                   "memory_bytes": limits.memory_bytes, "file_bytes": limits.file_bytes,
                   "processes": limits.processes, "output_bytes": limits.output_bytes}  # fmt: skip
        future: Future[Outcome] = Future()
        future.executor = self  # which is not dropped as long as somebody may wait for the future
        self._pool.put(future, request)
        return future

    def run(self, source: str, *, seconds: float | None = None, stdin: str = "") -> Outcome:
        """Runs a program and waits for it."""
        ended: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
        with uninterrupted():
            self.submit(source, seconds=seconds, stdin=stdin).add_done_callback(ended.put)
        future = ended.get()
        with uninterrupted():
            return future.result()

    def close(self) -> None:
        """Kills what runs (those futures get a "failed" outcome), cancels what waits, and returns when all is gone."""
        with uninterrupted():
            self._pool.stop(len(self._threads))
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_threads"):  # Ctrl-C may come before that, and before `close`
            self._pool.stop(len(self._threads))


class _Pool:
    """What the threads of an executor know: not the executor, which may be dropped."""

    def __init__(self, preload: tuple[str, ...], isolation: str | None) -> None:
        self._preload = preload
        self._isolation = isolation
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        # Of the two below. Reentrant: Python may drop an executor, which takes it, wherever it collects circles.
        self._lock = threading.RLock()
        self._closed = False
        self._busy: set[Worker] = set()

    def put(self, future: Future[Outcome], request: dict) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("submit: the executor is closed; make another")
            self._tasks.put((future, request))

    def stop(self, threads: int) -> None:
        """Kills what runs, cancels what waits, and has so many threads end."""
        with self._lock:
            self._closed = True
            for worker in self._busy:
                worker.interrupt()
        with contextlib.suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
        for _ in range(threads):
            self._tasks.put(None)

    def work(self) -> None:
        """One thread: a sandbox, which is made when first needed and made again when it was lost."""
        worker: Worker | None = None
        try:
            while (found := self._work_once(worker)) is not None:
                worker = found[0]
        finally:
            if worker is not None:
                self._forget(worker)
                worker.close()

    def _work_once(self, worker: Worker | None) -> tuple[Worker | None] | None:
        """One task, and the sandbox for the next; None: there is none to come. Nothing of it is held while the next is
        waited for."""
        task = self._tasks.get()
        if task is None:
            return None
        future, request = task
        if future.set_running_or_notify_cancel():
            try:
                worker, outcome = self._run(worker, request)
            except BaseException as error:  # noqa: BLE001 (the caller waits for an answer)
                future.set_exception(error)
            else:
                future.set_result(outcome)
        return (worker,)

    def _run(self, worker: Worker | None, request: dict) -> tuple[Worker | None, Outcome]:
        """What became of the program, and the sandbox for the next one.

        A sandbox can be lost by no fault of its program (the system is short of memory and kills something), so the
        program is run once more; one that loses two has failed.
        """
        lost_before = False
        while True:
            try:
                worker = worker or self._start()
                return worker, Outcome(**{**_NOTHING, **worker.run(request)})
            except SandboxRefused as error:
                return None, Outcome(**{**_NOTHING, "detail": str(error)})
            except WorkerLost as error:
                self._forget(worker)
                worker = None
                words = "killed because the executor was closed" if self._closed else str(error)
                if self._closed or lost_before:
                    return None, Outcome(**{**_NOTHING, "status": "failed", "detail": words})
                lost_before = True

    def _start(self) -> Worker:
        worker = Worker(self._isolation or best_isolation().level, self._preload)
        with self._lock:
            self._busy.add(worker)
            if self._closed:
                worker.interrupt()
        return worker

    def _forget(self, worker: Worker | None) -> None:
        with self._lock:
            self._busy.discard(worker)


_NOTHING = {"status": "not run", "exit_code": None, "stdout": "", "stderr": "", "truncated": False, "seconds": 0.0,
            "detail": "", "reached_end": False}  # fmt: skip


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
