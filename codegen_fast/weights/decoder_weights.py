"""The weights of a loaded model, as the decoder reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import torch

from .. import ops


@dataclass
class LayerWeights:
    """One decoder layer; d = n_embd, F = n_inner."""

    norm: ops.Norm  # weight, bias (d,) float32
    w_in: ops.PackedWeight  # sections q, k, v (d rows each) and fc_in (F rows), d columns
    bias_in: torch.Tensor  # (F,) float32
    w_out: ops.PackedWeight  # d rows, segments attention out_proj (d columns) and fc_out (F columns)
    bias_out: torch.Tensor  # (d,) float32


@dataclass
class DecoderWeights:
    """All of them. `dtype` is the model's type; packed weights are of the kinds of quantization.packed_kinds()."""

    embedding: torch.Tensor  # (V, d) of `dtype`
    layers: list[LayerWeights]
    final_norm: ops.Norm
    lm_head: ops.PackedWeight  # V rows, d columns
    lm_head_bias: torch.Tensor  # (V,) float32
    dtype: torch.dtype
    quantization: str | None = None

    def nbytes(self) -> int:
        """Bytes that the weights take in memory."""
        return sum(part.nbytes for part in self._parts())

    def _parts(self) -> Iterator[torch.Tensor | ops.PackedWeight]:
        yield from (self.embedding, self.lm_head, self.lm_head_bias, self.final_norm.weight, self.final_norm.bias)
        for layer in self.layers:
            yield from (layer.w_in, layer.w_out, layer.bias_in, layer.bias_out, layer.norm.weight, layer.norm.bias)
