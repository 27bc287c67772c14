"""A checkpoint as a folder of CTranslate2, as its own converter would write it for CodeGen (no tokenizer needed)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

from bench.cpu.formats.source import Source


def write(source: Source, folder: Path, quantization: str | None) -> None:
    """quantization: "int8", or None for the float32 of the source."""
    dims = source.dims
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        dims.n_layer, dims.n_head, pre_norm=True, activation=common_spec.Activation.GELUTanh,
        rotary_dim=dims.rotary_dim, rotary_interleave=False, parallel_residual=True, shared_layer_norm=True,
    )  # fmt: skip
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = source.get("transformer.wte.weight")
    _norm(decoder.layer_norm, source, "transformer.ln_f")
    _linear(decoder.projection, source, "lm_head")
    for index, layer in enumerate(decoder.layer):
        prefix = f"transformer.h.{index}"
        _norm(layer.shared_layer_norm, source, f"{prefix}.ln_1")
        q, k, v = source.qkv(index)
        q, k = (_sliced(w, dims.n_head, dims.rotary_dim) for w in (q, k))
        layer.self_attention.linear[0].weight = np.concatenate((q, k, v))
        layer.self_attention.linear[1].weight = source.layer(index, "attn.out_proj.weight")
        _linear(layer.ffn.linear_0, source, f"{prefix}.mlp.fc_in")
        _linear(layer.ffn.linear_1, source, f"{prefix}.mlp.fc_out")
    # Its tokens are texts; here text i is token i, and nothing ends a generation that min_length holds open.
    spec.register_vocabulary([str(token) for token in range(dims.vocab)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir(parents=True)
    spec.save(str(folder))


def _linear(spec, source: Source, name: str) -> None:
    spec.weight, spec.bias = source.get(f"{name}.weight"), source.get(f"{name}.bias")


def _norm(spec, source: Source, name: str) -> None:
    spec.gamma, spec.beta = source.get(f"{name}.weight"), source.get(f"{name}.bias")


def _sliced(weight: np.ndarray, n_head: int, rotary_dim: int) -> np.ndarray:
    """Rows in the order of a rotary embedding of pairs (i, i + R/2): of CodeGen's pairs, all first, then all second."""
    heads = weight.reshape(n_head, -1, weight.shape[1])
    rotary = (
        heads[:, :rotary_dim].reshape(n_head, rotary_dim // 2, 2, -1).swapaxes(1, 2).reshape(n_head, rotary_dim, -1)
    )
    return np.concatenate((rotary, heads[:, rotary_dim:]), axis=1).reshape(weight.shape)
