"""A process that reads damaged files for the campaign, and may die of it.

Standard input says which cases, standard output which of them begins and what came of it: a line of JSON each.
"""

from __future__ import annotations

import base64
import ctypes
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# This checkout comes last on the path: its package has no compiled part where another one is installed.
_START = "import sys; sys.path.append(sys.argv.pop(1)); from reliability.hostile.worker import main; main()"
_PR_SET_PDEATHSIG = 1
_SILENT_SECONDS = 60.0  # without a word: a case hangs


class Died(Exception):
    """The process ended or hung in a case; its text says how."""

    def __init__(self, number: int, how: str) -> None:
        super().__init__(how)
        self.number = number


def start_python(source: str, arguments: list[str], **pipes: Any) -> subprocess.Popen:
    """A process of this interpreter that finds this checkout's `reliability`, and the package wherever it is."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                   "CUDA_VISIBLE_DEVICES": ""}
    safe = ["-P"] if sys.flags.safe_path else []
    return subprocess.Popen([sys.executable, *safe, "-c", source, str(ROOT), *arguments], env=environment, **pipes)


class Worker:
    """The campaign's end of the pipes."""

    def __init__(self, root: Path, seed: int) -> None:
        self._log = tempfile.TemporaryFile()
        self._told = b""  # what has been read and is no whole line yet, or the lines after the one that is awaited
        self._process = start_python(_START, [str(root), str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=self._log, bufsize=0)

    def run(self, target: str, first: int, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, outcome) of each case as it ends. Raises Died where one kills the process, or hangs."""
        yield from self._answers({"target": target, "first": first, "count": count})

    def read_file(self, target: str, seed: str, name: str, data: bytes) -> dict[str, Any]:
        """The outcome of a seed with these contents of one of its files. Raises as `run`."""
        asked = {"target": target, "first": 0, "count": 1, "file": [seed, name, base64.b64encode(data).decode()]}
        return next(self._answers(asked))[1]

    def _answers(self, asked: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        number = asked["first"]
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        except BrokenPipeError:
            raise Died(number, self._how_it_ended()) from None
        for _ in range(2 * asked["count"]):
            line = self._line(number)
            if "begins" in line:
                number = line["begins"]
            else:
                yield number, line

    def _line(self, number: int) -> dict[str, Any]:
        """The next line, or Died."""
        silent = 0.0
        while b"\n" not in self._told:
            if select.select([self._process.stdout], [], [], 0.2)[0]:
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise Died(number, self._how_it_ended())
                self._told += piece
                continue
            # Time in which this process was stopped too (a busy machine, a debugger) is not the case's.
            silent += 0.2
            if silent > _SILENT_SECONDS:
                self._process.kill()
                self._process.wait()
                raise Died(number, f"it was still running after {_SILENT_SECONDS:g} s")
        line, _, self._told = self._told.partition(b"\n")
        return json.loads(line)

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        told = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the process ended ({f'signal {-code}' if code < 0 else f'exit status {code}'}): {' / '.join(told[-3:])[:300]}"

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=_SILENT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def main() -> None:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    faulthandler.enable()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a case that hangs must not outlive the campaign
    # Only what is told goes to standard output; what else is printed must not be taken for it.
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    from .cases import Cases
    from .targets import TARGETS
    from .watch import Watch

    watch = Watch(root / "outside")
    known: dict[str, Cases] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        cases = known.get(asked["target"]) or Cases(root, TARGETS[asked["target"]], seed, watch)
        known[asked["target"]] = cases
        for number in range(asked["first"], asked["first"] + asked["count"]):
            told.write(json.dumps({"begins": number}) + "\n")
            if "file" in asked:
                seed_name, name, data = asked["file"]
                outcome = cases.read_files(seed_name, name, base64.b64decode(data))
            else:
                outcome = cases.run(number)
            told.write(json.dumps(asdict(outcome)) + "\n")
