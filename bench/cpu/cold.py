"""A cold process: from its start to the first token, with the checkpoint's files out of the cache of the system."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bench.cpu.pool import PeakMemory, Worker

PROMPT = 32
_CHUNK = 16 << 20


def forget(folder: Path) -> int:
    """Drops a folder's files from the system's cache. Returns their bytes."""
    total = 0
    for path in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)  # a page that is not yet on disk cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            total += os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    return total


def read_once(folder: Path) -> dict[str, float]:
    """Seconds to read a folder's weights from a cold cache, plainly, one file after another; and their bytes."""
    forget(folder)
    buffer, nbytes = bytearray(_CHUNK), 0
    begin = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        with open(path, "rb", buffering=0) as file:
            while read := file.readinto(buffer):
                nbytes += read
    return {"seconds": time.perf_counter() - begin, "nbytes": nbytes}


def first_token(worker: Worker, vocab: int, seed: int) -> dict[str, Any]:
    """Loads a new worker's engine, and runs a prompt of 32 tokens for one more."""
    with PeakMemory(worker) as memory:
        loaded = worker.ask("load")
        first = worker.ask("generate", rows=1, context=PROMPT, steps=1, vocab=vocab, seed=seed)
    return {"whole_seconds": time.perf_counter() - worker.begin, "torch_seconds": loaded["torch_seconds"],
            "import_seconds": loaded["import_seconds"], "load_seconds": loaded["seconds"],
            "first_token_seconds": first["seconds"][0], "peak_bytes": memory.nbytes}  # fmt: skip
