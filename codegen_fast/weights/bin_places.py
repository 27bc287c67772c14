"""Where the tensors of a mapped .bin file lie in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Mapping

import torch

from .file_tensors import CheckpointFile, StoredTensor


def places_of_mapped(tensors: Mapping[str, torch.Tensor], file: CheckpointFile) -> dict[str, StoredTensor] | None:
    """Places of tensors that torch.load has mapped from this file; None where the system does not tell (no /proc).

    torch keeps no offsets, so they follow from addresses: those of the tensors, and those of the file's mappings.
    """
    mappings = list(_mappings(file))
    places = {}
    for name, tensor in tensors.items():
        address = tensor.data_ptr()
        offset = 0
        if tensor.numel():
            found = [offset + address - begin for begin, end, offset in mappings if begin <= address < end]
            if not found:
                return None
            offset = found[0]
        places[name] = StoredTensor(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), offset)
    return places


def _mappings(file: CheckpointFile) -> Iterator[tuple[int, int, int]]:
    """(first address, end, offset in the file) of every mapping of the file in this process.

    It is known by its device and inode; or by its path, as some file systems (btrfs, overlays) have one device for fstat
    and another for mappings.
    """
    try:
        with open("/proc/self/maps", errors="surrogateescape") as maps:
            lines = maps.read().rstrip("\n").split("\n")
    except OSError:
        return
    device, inode = file.identity
    shown = [os.fspath(file.real).replace("\n", "\\012")] if file.has_its_name() else None
    for line in lines:
        span, _, offset, major_minor, number, *path = line.split(maxsplit=5)
        same_device = tuple(int(part, 16) for part in major_minor.split(":")) == device
        if int(number) == inode and same_device or path == shown:
            begin, end = (int(address, 16) for address in span.split("-"))
            yield begin, end, int(offset, 16)
