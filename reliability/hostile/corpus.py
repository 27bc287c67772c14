"""python -m reliability.hostile.corpus tests/hostile_corpus: reads the inputs that were worth keeping once more.

An input is kept, by `python -m reliability.hostile --keep FOLDER`, because it failed or because it reached a line of the package
from a line that no smaller one did. It stands in <seed>/<file>/<hash>: the seed whose file it takes the place of.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import codegen_fast

from .cases import Cases, lay_out
from .guided import FAILED, GUIDED
from .targets import TARGETS
from .watch import Watch

_PACKAGE = str(Path(codegen_fast.__file__).parent) + os.sep
_MOST_BYTES = 4096  # of an input, unless it failed
_MOST_BYTES_OF_ALL = 4000  # of a row's
Arc = tuple[str, int, int]  # a file of the package, and two lines that ran one after the other


def keep(root: Path, row: str, inputs: Path, kept: Path) -> None:
    """Adds to kept/<row> those of the inputs that reach something which neither it nor smaller ones do, and what failed.

    root: as cases.lay_out left it. For a process of its own, as it sets limits.
    """
    cases, folder = Cases(root, TARGETS[GUIDED[row]], 0, Watch(root / "outside")), kept / row
    folder.mkdir(parents=True, exist_ok=True)
    known = [path.read_bytes() for path in sorted(folder.iterdir())]
    seen, total = _arcs(cases, row, (root / "seeds" / row).read_bytes()), sum(map(len, known))
    for data in known:
        seen |= _arcs(cases, row, data)
    for path in sorted(inputs.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        data = path.read_bytes()
        has_failed = path.name.startswith(FAILED)
        if not has_failed and (len(data) > _MOST_BYTES or total + len(data) > _MOST_BYTES_OF_ALL):
            continue
        arcs = _arcs(cases, row, data)
        if has_failed or arcs - seen:
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            seen |= arcs
            total += len(data)


def _arcs(cases: Cases, row: str, data: bytes) -> set[Arc]:
    """What of the package runs where the file has these contents."""
    found: set[Arc] = set()
    last: dict[FrameType, int] = {}

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE):
            return None
        found.add((name, last.get(frame, 0), frame.f_lineno))
        last[frame] = frame.f_lineno
        if event == "return":
            last.pop(frame)
        return look

    sys.settrace(look)
    try:
        cases.read_files(*row.split("/"), data)
    finally:
        sys.settrace(None)
    return found


def keep_in_process() -> None:
    """For guided.run_guided, which starts it with the arguments of `keep`."""
    torch.set_num_threads(1)
    root, row, inputs, kept = sys.argv[1:]
    keep(Path(root), row, Path(inputs), Path(kept))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.hostile.corpus", description="Reads kept inputs once more.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    count, failures = 0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as made:
        root = Path(made)
        lay_out(root)
        watch = Watch(root / "outside")
        for row in sorted(GUIDED):
            paths = sorted((folder / row).glob("*"))
            cases = Cases(root, TARGETS[GUIDED[row]], 0, watch) if paths else None
            for path in paths:
                outcome = cases.read_files(*row.split("/"), path.read_bytes())
                count += 1
                if outcome.is_failure:
                    failures += 1
                    print(f"{path}: {outcome.kind}\n    {outcome.detail}", file=sys.stderr)
    print(f"{count} inputs, {failures} failures")
    return 1 if failures or not count else 0


if __name__ == "__main__":
    sys.exit(main())
