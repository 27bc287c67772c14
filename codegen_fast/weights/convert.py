"""Changes the type of loaded weights, or the device they lie on: what .half(), .cuda() and .to() do."""

from __future__ import annotations

from typing import Iterator

import torch

from .. import ops
from ..config import CodeGenConfig
from ..memory import available_bytes, check_fits, gigabytes, model_bytes, packed_kind
from ..quantization import packed_kinds, require_stored, stored_quantization
from .decoder_weights import DecoderWeights, LayerWeights
from .loader import all_finite
from .repack import CHUNK_BYTES, packed_rows, repack


def convert_weights(config: CodeGenConfig, weights: DecoderWeights, dtype: torch.dtype,
                    device: torch.device | None = None) -> DecoderWeights:
    """The weights in another type, on another device (None: their own), or both.

    On their device they are converted in place, one packed weight after another, each freed as it is replaced, and an
    interruption leaves a model some of whose layers have the new type: usable on a CPU, and on CUDA, whose kernels take
    one type, after another call. Moved weights are new ones, and the old stay as they are: what it takes beside them is
    a chunk of a tensor. Quantised products stay as they are, bit for bit.
    Raises NotImplementedError for a quantisation that the device does not have; ValueError, before anything is changed,
    if a value is beyond the range of `dtype`; OSError if the new model is larger than the free memory.
    """
    own_device = weights.embedding.device
    moves = device is not None and device != own_device
    if dtype == weights.dtype and not moves:
        return weights
    if moves:
        if weights.quantization is not None:
            require_stored(stored_quantization(weights.quantization, weights.layers[0].w_in.kind), device)
        check_fits(config, dtype, weights.quantization, device=device, scratch=CHUNK_BYTES,
                   where=f"moving the model to {device}")
    else:
        _check_memory(config, weights, dtype)
    ops.set_num_threads(torch.get_num_threads())
    if torch.finfo(dtype).max < torch.finfo(weights.dtype).max:
        _check_range(weights, dtype)
    if moves:
        return _moved(weights, dtype, device)
    if weights.quantization is None:
        kind = packed_kind(dtype, None)
        for layer in weights.layers:
            layer.w_in = repack(layer.w_in, kind, own_device)
            layer.w_out = repack(layer.w_out, kind, own_device)
        weights.lm_head = repack(weights.lm_head, kind, own_device)
    weights.embedding = weights.embedding.to(dtype)
    weights.dtype = dtype
    return weights


def _moved(weights: DecoderWeights, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    if weights.quantization is None:
        kinds = packed_kinds(dtype, None)
    else:  # as they are
        first = weights.layers[0]
        kinds = {"w_in": first.w_in.kind, "w_out": first.w_out.kind, "lm_head": weights.lm_head.kind}

    def norm(old: ops.Norm) -> ops.Norm:
        return ops.Norm(old.weight.to(device), old.bias.to(device), old.eps)

    embedding = torch.empty(weights.embedding.shape, dtype=dtype, device=device)
    for old, new in zip(_float_chunks(weights.embedding), _float_chunks(embedding), strict=True):
        new.copy_(old.to(dtype))
    return DecoderWeights(
        embedding=embedding,
        layers=[
            LayerWeights(norm=norm(layer.norm),
                         w_in=repack(layer.w_in, kinds["w_in"], device), bias_in=layer.bias_in.to(device),
                         w_out=repack(layer.w_out, kinds["w_out"], device), bias_out=layer.bias_out.to(device))
            for layer in weights.layers
        ],
        final_norm=norm(weights.final_norm),
        lm_head=repack(weights.lm_head, kinds["lm_head"], device),
        lm_head_bias=weights.lm_head_bias.to(device),
        dtype=dtype,
        quantization=weights.quantization,
    )


def _check_memory(config: CodeGenConfig, weights: DecoderWeights, dtype: torch.dtype) -> None:
    """The old model is there already: what must be free is the growth and the part that exists in both types."""
    largest = max(part.nbytes for part in (weights.layers[0].w_in, weights.layers[0].w_out, weights.lm_head))
    growth = model_bytes(config, dtype, weights.quantization, weights.embedding.device) - weights.nbytes()
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
