"""Which damage a file takes, by its name."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random

from . import documents
from .archives import mutate_archive
from .files import replace_file
from .plain import mutate_bytes, mutate_lines
from .safetensors import mutate_safetensors



@cache
def _bomb() -> bytes:
    """A quarter of a gigabyte in 260 KB."""
    return gzip.compress(b" " * (256 << 20), 9)


def mutate(rng: Random, folder: Path, names: Sequence[str], *, replaced: float) -> None:
    """Damages one to three of the files; `replaced`: how often, of all times, something else takes a file's place."""
    for name in rng.sample(list(names), min(len(names), rng.choice((1, 1, 1, 2, 3)))):
        path = folder / name
        if rng.random() < replaced:
            replace_file(rng, path)
        else:
            path.write_bytes(mutate_bytes_of(rng, name, path.read_bytes()))


def mutate_bytes_of(rng: Random, name: str, data: bytes) -> bytes:
    """Other contents for a file of that name. Contents that their own kind of damage cannot read are damaged as bytes."""
    kind = _kind(name) if rng.random() < 0.85 else mutate_bytes
    try:
        return kind(rng, data)
    except Exception:  # zipfile, pickletools and json have many, and what grows too much is a MemoryError
        return mutate_bytes(rng, data)


def _kind(name: str) -> Callable[[Random, bytes], bytes]:
    for suffix, kind in ((".jsonl.gz", _mutate_compressed), (".jsonl", _mutate_json_lines), (".json", documents.mutate_json),
                         (".safetensors", mutate_safetensors), (".bin", mutate_archive), (".txt", mutate_lines)):
        if name.endswith(suffix):
            return kind
    return mutate_bytes


def _mutate_json_lines(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return mutate_lines(rng, data)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines) - 1)
    lines[at] = documents.mutate_json(rng, lines[at])
    return b"\n".join(lines)


def _mutate_compressed(rng: Random, data: bytes) -> bytes:
    match rng.randrange(6):
        case 0:
            return mutate_bytes(rng, data)
        case 1:
            return rng.choice((_bomb(), data + data, data + b"x", data[:-4], gzip.compress(data), gzip.decompress(data), b""))
        case _:
            return gzip.compress(_mutate_json_lines(rng, gzip.decompress(data)), 1)
