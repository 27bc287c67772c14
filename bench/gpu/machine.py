"""Which machine runs the benchmark, and how results of a run begin."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.gpu import results
from codegen_fast import ops

NO_GPU = "no GPU is visible to torch, so nothing can be measured; --rehearse runs every call once without one"


def device(rehearse: bool) -> torch.device:
    """The GPU, or in a rehearsal the CPU whose tensors the emulator takes for a GPU's. SystemExit without either."""
    if rehearse:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    found, why_none = ops.cuda_devices()
    if not found:
        raise SystemExit(f"codegen_fast sees no GPU: {why_none}; its build: {ops.build_info()['cuda']}")
    return torch.device("cuda", torch.cuda.current_device())


def l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 1 << 10


def begin(device: torch.device) -> dict[str, Any]:
    """Everything of a result but its rows."""
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        machine = {"name": p.name, "memory": p.total_memory, "multiprocessors": p.multi_processor_count,
                   "l2": p.L2_cache_size, "capability": f"{p.major}.{p.minor}", "driver": _driver()}  # fmt: skip
    else:
        machine = {"name": f"emulator on {platform.machine()}"}
    versions = {name: _version(name) for name in ("torch", "transformers", "triton", "codegen_fast")}
    return {
        "rehearsal": device.type != "cuda",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": results.commit(),
        "sources": results.sources(),
        "machine": machine,
        "versions": {**versions, "cuda": torch.version.cuda, "python": platform.python_version()},
        "build": ops.build_info(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None
