"""The header of a .safetensors file: where each tensor lies. The format is described in safetensors_writer.py."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..strangers import parse_json
from .file_tensors import CheckpointFile, StoredTensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_MOST_HEADER_BYTES = 16 << 20  # that of the largest model takes 50 kB
_MOST_DIMENSIONS = 64  # numpy's limit; the product of a million sizes takes hours


def read_header(file: CheckpointFile) -> dict[str, StoredTensor]:
    """Every tensor's place, in the order of the header.

    Raises OSError unless the header is whole, and the tensors fill the rest of the file without gaps and overlaps.
    """
    try:
        return _places(file)
    except _Broken as error:
        raise OSError(f"{file.path} is cut off or not a safetensors file ({error}); download it again") from None


class _Broken(Exception):
    """What is wrong with a header."""


def _places(file: CheckpointFile) -> dict[str, StoredTensor]:
    if file.size < 8:
        raise _Broken(f"it has {file.size} bytes, expected 8 at least")
    length = int.from_bytes(file.read(0, 8).numpy().tobytes(), "little")
    if length > min(_MOST_HEADER_BYTES, file.size - 8):
        raise _Broken(f"its header would be {length} bytes long")
    data = 8 + length
    header = _parse(file.read(8, length).numpy().tobytes())
    header.pop("__metadata__", None)
    places = {name: _place(name, entry, data) for name, entry in header.items()}
    end = data
    for begin, count, name in sorted((place.offset, _extent(header[name]), name) for name, place in places.items()):
        if begin != end:
            raise _Broken(f"tensor {name!r:.100} begins at byte {begin}, expected {end}")
        end = begin + count
    if end != file.size:
        raise _Broken(f"its tensors end at byte {end}, and it has {file.size} bytes")
    return places


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise _Broken(f"its header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise _Broken(f"its header is a {type(header).__name__}, expected an object")
    return header


def _place(name: str, entry: Any, data: int) -> StoredTensor:
    """data: where the tensors' bytes begin."""
    try:
        stored, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _Broken(f"tensor {name!r:.100} lacks its dtype, shape or data_offsets") from None
    is_sound = isinstance(stored, str) and isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS
    if not is_sound or not all(type(size) is int and 0 <= size < 2**63 for size in (*shape, begin, end)) or begin > end:
        raise _Broken(f"tensor {name!r:.100} has the dtype {stored!r:.20}, shape {shape!r:.60} and bytes "
                      f"{begin!r:.20} to {end!r:.20}")
    dtype = _DTYPES.get(stored, stored)
    if isinstance(dtype, torch.dtype) and math.prod(shape) * dtype.itemsize != end - begin:
        raise _Broken(f"tensor {name!r:.100} of type {stored} and shape {shape!r:.60} has {end - begin} bytes")
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return StoredTensor(dtype, tuple(shape), tuple(reversed(strides[: len(shape)])), data + begin)


def _extent(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return end - begin
