"""Writes .safetensors files from tensors that are produced while they are written.

safetensors' own save_file() wants every tensor of the file in memory at once; here a tensor is an iterator of pieces,
so a file of any size is written with the memory of one piece. The format: 8 bytes, the header's length (little
endian); the header, JSON; the tensors' bytes, one after another without gaps.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Sequence

import torch

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
          torch.uint8: "U8"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. pieces() yields its values in order, each piece a contiguous part, in `dtype`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the file and flushes it to the disk. Raises OSError if there is no room."""
    # The widest elements first: each tensor then begins at a multiple of its element size.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in entries:
            for piece in entry.pieces():
                file.write(memoryview(piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
        file.flush()
        # A full disk may show only here.
        os.fsync(file.fileno())


def shard(entries: Iterable[Entry], max_bytes: int) -> list[list[Entry]]:
    """Cuts the entries, in order, into files of at most max_bytes (more where one tensor is larger)."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def index_json(shards: Sequence[Sequence[Entry]], files: Sequence[str]) -> str:
    """The text of <whole file's name>.index.json over the shards."""
    weight_map = {entry.name: file for entries, file in zip(shards, files, strict=True) for entry in entries}
    total = sum(entry.nbytes for entries in shards for entry in entries)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
