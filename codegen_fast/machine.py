"""What this machine is, and how fast it reads memory: the limit that a decoder's tokens a second stand under."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import torch

from . import ops
from .memory import available_bytes

_UNKNOWN_CACHE = 64 << 20  # bytes that a last-level cache is taken to have where the system does not say
_SMALLEST_BUFFER = 64 << 20


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    memory_bytes_per_second: float  # by its clock and bus, not measured


@dataclass(frozen=True)
class Machine:
    """This machine, as this process may use it."""

    cpu_name: str
    cores: int  # logical ones that the process may run on
    isa: str  # the instruction set that the CPU kernels run on
    isas: tuple[str, ...]  # those of this build that run here, best first
    threads: int  # that the CPU kernels use: torch's
    cache_bytes: int | None  # last-level caches of those cores together; None: the system does not say
    memory_bytes: int
    available_bytes: int | None  # that can still be allocated
    gpus: tuple[Gpu, ...]
    why_no_gpu: str


def this_machine() -> Machine:
    """Looks at the machine. Quick: measures nothing."""
    gpus, why_no_gpu = ops.cuda_devices()
    return Machine(
        cpu_name=cpu_name(),
        cores=len(_usable_cores()),
        isa=ops.cpu_isa(),
        isas=tuple(ops.cpu_isas()),
        threads=torch.get_num_threads(),
        cache_bytes=cache_bytes(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        available_bytes=available_bytes(),
        gpus=tuple(Gpu(**gpu) for gpu in gpus),
        why_no_gpu=why_no_gpu,
    )


def read_bandwidth(seconds: float, *, threads: int) -> float:
    """Bytes a second that `threads` threads read from memory: the best pass over a buffer that no cache holds.

    Takes about `seconds`, and the time to fill the buffer: 4 times the last-level cache, a quarter of the free memory
    at most.
    """
    nbytes = max(_SMALLEST_BUFFER, 4 * (cache_bytes() or _UNKNOWN_CACHE))
    free = available_bytes()
    if free is not None:
        nbytes = min(nbytes, max(free // 4, _SMALLEST_BUFFER))
    before = ops.num_threads()
    ops.set_num_threads(threads)
    try:
        return ops.read_bandwidth(nbytes, seconds)
    finally:
        ops.set_num_threads(before)


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or its architecture where the system names no model (many ARM machines)."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def cache_bytes(cpus: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Bytes of the last-level caches that the usable cores have, each counted once; None where nothing says so."""
    found: dict[int, dict[str, int]] = {}  # level -> cores that share a cache -> bytes
    for core in _usable_cores():
        for level, sharers, size in _caches(cpus / f"cpu{core}" / "cache"):
            found.setdefault(level, {})[sharers] = size
    return sum(found[max(found)].values()) if found else None


def _caches(folder: Path) -> Iterator[tuple[int, str, int]]:
    """(level, list of the cores that share it, bytes) of a core's data caches. Containers may hide any of the files."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for index in sorted(folder.glob("index*")):
        try:
            kind, level, sharers, size = ((index / name).read_text().strip()
                                          for name in ("type", "level", "shared_cpu_list", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[-1:] in units:
            yield int(level), sharers, int(size[:-1]) * units[size[-1]]


def _usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
