"""The other end of a worker's pipes: requests, failures, memory, and silence while others are measured."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# This checkout comes last on the path: its package has no compiled part where another one is installed.
_START = "import sys; sys.path.append(sys.argv.pop(1)); from bench.cpu.worker import main; main()"
SECONDS = 600.0  # that a request may take: compiling a model does


class EngineFailed(Exception):
    """An engine that ended, hung, or said that it cannot; its text is the reason."""


class Unsupported(Exception):
    """One request that an engine cannot do; it goes on with others."""


class Worker:
    """A process of bench.cpu.worker. Between requests it is stopped, so that its threads cannot spin."""

    def __init__(self, python: str, arguments: list[str], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
                       "TOKENIZERS_PARALLELISM": "false",
                       # torch.compile in the worker itself: processes of its own would not be stopped with it
                       "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # fmt: skip
        self._log = tempfile.TemporaryFile()
        self.begin = time.perf_counter()
        self._process = subprocess.Popen(
            [python, "-P", "-c", _START, str(ROOT), *arguments], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        self._buffer = b""

    def ask(self, do: str, *, timeout: float = SECONDS, **request: Any) -> dict[str, Any]:
        """The reply. Raises EngineFailed, or Unsupported where only this request is none of its business."""
        process = self._process
        try:
            process.send_signal(signal.SIGCONT)
            process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            process.stdin.flush()
        except (BrokenPipeError, ProcessLookupError):
            raise EngineFailed(self._last_words()) from None
        reply = json.loads(self._line(time.monotonic() + timeout, do))
        process.send_signal(signal.SIGSTOP)
        if "unsupported" in reply:
            raise Unsupported(reply["unsupported"])
        if "error" in reply:
            raise EngineFailed(reply["error"])
        return reply

    def _line(self, deadline: float, do: str) -> bytes:
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineFailed(f"no answer to {do} in time")
            read = os.read(descriptor, 1 << 16)
            if not read:
                raise EngineFailed(self._last_words())
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with {code}" + (f": {said[-1].strip()}" if said else "")

    def held_bytes(self) -> int:
        """Anonymous and shared memory; mapped files do not count."""
        return held_bytes(self._process.pid)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PeakMemory:
    """The most memory that a worker held in the block, looked at every 10 ms: not while anything is timed closely."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._done = worker, threading.Event()
        self.nbytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            try:
                self.nbytes = max(self.nbytes, self._worker.held_bytes())
            except OSError:
                return
            if self._done.wait(0.01):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def held_bytes(pid: int | str = "self") -> int:
    """RssAnon + RssShmem of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in fields) * 1024
