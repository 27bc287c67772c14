"""Changes the type of loaded weights: what .half(), .bfloat16() and .float() do."""

from __future__ import annotations

from typing import Iterator

import torch

from .. import ops
from ..config import CodeGenConfig
from ..memory import available_bytes, gigabytes, model_bytes, packed_kind
from .decoder_weights import DecoderWeights
from .loader import CHUNK_BYTES, all_finite


def convert_weights(config: CodeGenConfig, weights: DecoderWeights, dtype: torch.dtype) -> DecoderWeights:
    """Converts in place, one packed weight after another, each freed as it is replaced. Returns `weights`.

    int8 products stay int8; then only the embedding changes. An interrupted conversion leaves a usable model, some
    of whose layers have the new type. Raises ValueError, before anything is changed, if a value is beyond the range
    of `dtype`; OSError if the wider model is larger than the free memory.
    """
    if dtype == weights.dtype:
        return weights
    _check_memory(config, weights, dtype)
    ops.set_num_threads(torch.get_num_threads())
    if torch.finfo(dtype).max < torch.finfo(weights.dtype).max:
        _check_range(weights, dtype)
    if weights.quantization is None:
        kind = packed_kind(dtype, None)
        for layer in weights.layers:
            layer.w_in = _repack(layer.w_in, kind, weights.embedding.device)
            layer.w_out = _repack(layer.w_out, kind, weights.embedding.device)
        weights.lm_head = _repack(weights.lm_head, kind, weights.embedding.device)
    weights.embedding = weights.embedding.to(dtype)
    weights.dtype = dtype
    return weights


def packed_rows(packed: ops.PackedWeight) -> Iterator[tuple[dict[str, int], int]]:
    """(place, n) that cover the weight in chunks of n rows; place is section=, row= and segment= of the ops."""
    for segment, columns in enumerate(packed.segments):
        step = max(1, CHUNK_BYTES // (4 * columns))
        for section, count in enumerate(packed.sections):
            for row in range(0, count, step):
                yield {"section": section, "row": row, "segment": segment}, min(step, count - row)


def _repack(packed: ops.PackedWeight, kind: str, device: torch.device) -> ops.PackedWeight:
    new = ops.new_packed_weight(kind, packed.sections, packed.segments, device)
    status = ops.new_pack_status(device)
    for place, n in packed_rows(packed):
        ops.pack(new, ops.unpack(packed, n, torch.float32, **place), status, **place)
    return new


def _check_memory(config: CodeGenConfig, weights: DecoderWeights, dtype: torch.dtype) -> None:
    """The old model is there already: what must be free is the growth and the part that exists in both types."""
    largest = max(part.nbytes for part in (weights.layers[0].w_in, weights.layers[0].w_out, weights.lm_head))
    growth = model_bytes(config, dtype, weights.quantization) - weights.nbytes()
    needed = max(growth, 0) + largest * dtype.itemsize // weights.dtype.itemsize
    available = available_bytes(weights.embedding.device)
    if available is not None and needed > available:
        raise OSError(f"converting the model to {packed_kind(dtype, None)} needs {gigabytes(needed)} more memory and "
                      f"{gigabytes(available)} are free; load it with dtype='{packed_kind(dtype, None)}' instead, or "
                      f"free some memory")


def _check_range(weights: DecoderWeights, dtype: torch.dtype) -> None:
    parts = {"embedding": _float_chunks(weights.embedding)}
    if weights.quantization is None:
        for index, layer in enumerate(weights.layers):
            parts[f"attention input or fc_in of layer {index}"] = _unpacked(layer.w_in)
            parts[f"out_proj or fc_out of layer {index}"] = _unpacked(layer.w_out)
        parts["lm_head"] = _unpacked(weights.lm_head)
    for name, chunks in parts.items():
        for chunk in chunks:
            if not all_finite(chunk.to(dtype)):
                raise ValueError(f"the {name} holds values beyond the range of {packed_kind(dtype, None)}; the model "
                                 f"stays {packed_kind(weights.dtype, None)}, and bfloat16 or float32 can hold it")


def _unpacked(packed: ops.PackedWeight) -> Iterator[torch.Tensor]:
    return (ops.unpack(packed, n, torch.float32, **place) for place, n in packed_rows(packed))


def _float_chunks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(matrix.split(max(1, CHUNK_BYTES // (4 * matrix.shape[1]))))
