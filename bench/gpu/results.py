"""Results of a GPU as JSON files: bench/results/gpu-<machine>-<stage>.json. Needs neither torch nor a GPU.

A file holds: stage, machine (name, memory, driver, versions), commit, sources (a digest of what was built), date,
ceilings (bytes and operations a second, measured in the same run), rows (raw samples in seconds). What was rehearsed
without a GPU says so and is never counted as a result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench" / "results"


def output_folder(rehearsal: bool = False) -> Path:
    """Where this run writes: $OUT if it is set, else bench/results; a rehearsal to build/, which git ignores."""
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    return ROOT / "build" / "gpu_check" if rehearsal else FOLDER


def slug(machine: str) -> str:
    """ "NVIDIA H200" -> "h200" """
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-").removeprefix("nvidia-")


def write(stage: str, result: dict[str, Any]) -> Path:
    """Writes one stage's result beside its place and renames it; a stage that is cut off leaves its last state."""
    rehearsal = bool(result.get("rehearsal"))
    kind = "rehearsal" if rehearsal else "gpu"
    path = output_folder(rehearsal) / f"{kind}-{slug(result['machine']['name'])}-{stage}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps({"stage": stage, **result}, indent=1) + "\n")
    beside.rename(path)
    return path


def read(*folders: Path) -> list[dict[str, Any]]:
    """Every GPU result in these folders, oldest first."""
    found = [json.loads(path.read_text()) for folder in folders for path in sorted(folder.glob("gpu-*.json"))]
    return sorted((result for result in found if not result.get("rehearsal")), key=lambda result: result["date"])


def commit() -> str:
    """$COMMIT, or what git says, or "unknown" (a GPU machine may have a copy of the tree and no git)."""
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"


def sources() -> str:
    """A digest of the kernels and the Python that was measured, so that a commit can be found for it later."""
    digest = hashlib.sha256()
    paths = [p for folder in ("csrc", "codegen_fast") for p in (ROOT / folder).rglob("*")]
    for path in sorted(p for p in paths if p.suffix in (".h", ".cuh", ".cu", ".cpp", ".py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
