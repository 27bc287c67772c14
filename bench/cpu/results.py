"""Results: one JSON file a run under bench/results, with all that tables and plots are drawn from."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "results"


def commit() -> str:
    """The commit that is measured, with + where the tree differs from it; "unknown" outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty=+"]
    described = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent)
    return described.stdout.strip() or "unknown"


def describe_machine(threads: int) -> dict[str, Any]:
    from codegen_fast import machine, ops

    found = machine.this_machine()
    return {
        "cpu": found.cpu_name,
        "cores": found.cores,
        "threads": threads,
        "isa": ops.cpu_isa(),
        "isas": ops.cpu_isas(),
        "cache_bytes": found.cache_bytes,
        "memory_bytes": found.memory_bytes,
        "system": platform.system(),
        "release": platform.release(),
        "python": platform.python_version(),
    }


def describe_model(folder: Path) -> dict[str, Any]:
    from bench.ops import cases
    from codegen_fast.config import CodeGenConfig

    config = CodeGenConfig.from_folder(folder)
    sizes = {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "inner": config.inner,
        "vocab": config.vocab_size,
        "n_positions": config.n_positions,
    }
    same = [dims.name for dims in cases.MODELS if (dims.n_layer, dims.n_embd) == (config.n_layer, config.n_embd)]
    return {"name": same[0] if same else f"{config.n_layer}x{config.n_embd}", **sizes}


def new_result(machine: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A run in which nothing has been measured yet.

    rounds: part -> what rounds.run gives. samples: {part, engine, batch, context, round, seconds, ceiling, steady}. cold: what
    cold.first_token gives, with engine and round; cold_reads: of the checkpoint. kernels, stages: rows.
    """
    return {
        "benchmark": "cpu",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine,
        "model": model,
        "settings": settings,
        "engines": [],
        "rounds": {},
        "samples": [],
        "cold": [],
        "cold_reads": [],
        "kernels": [],
        "stages": [],
    }


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def write(result: dict[str, Any], path: Path) -> None:
    """Seconds with 7 digits after the point: more is noise, and a file is read by people too."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(_compact(json.dumps(_rounded(result), indent=1)) + "\n")


def read(name: str) -> dict[str, Any]:
    path = path_of(name)
    if not path.exists():
        raise FileNotFoundError(f"--render {name}: there is no {path.name} under bench/results")
    return json.loads(path.read_text())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def _compact(text: str) -> str:
    """Lists of numbers on one line."""
    return re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
