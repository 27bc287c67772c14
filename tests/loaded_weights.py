"""Loaded weights against the state dict that they came from, by the description of the layout and not the loader's."""

import torch

from codegen_fast import ops
from codegen_fast.config import CodeGenConfig
from codegen_fast.weights import checkpoint_dtype, load_weights, open_checkpoint

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load(folder, dtype=None, **options):
    config, source = CodeGenConfig.from_folder(folder), open_checkpoint(folder)
    return load_weights(config, source, dtype=dtype or checkpoint_dtype(source, config), progress=False, **options)


def straight_rows(state, config, index):
    """The four sections of w_in, as DESIGN's description has them: q, k, v, fc_in."""
    prefix = f"transformer.h.{index}"
    fc_in = state[f"{prefix}.mlp.fc_in.weight"]
    if config.model_type == "gptj":
        return [state[f"{prefix}.attn.{n}_proj.weight"] for n in "qkv"] + [fc_in]
    blocks = state[f"{prefix}.attn.qkv_proj.weight"].reshape(4, 3, config.n_embd // 4, config.n_embd)
    q, v, k = (blocks[:, i].reshape(config.n_embd, config.n_embd) for i in range(3))
    return [q, k, v, fc_in]


def packed_parts(weights, state, config):
    """(packed weight, its place, the checkpoint's matrix) for every matrix of the model."""
    for index, layer in enumerate(weights.layers):
        for section, matrix in enumerate(straight_rows(state, config, index)):
            yield layer.w_in, {"section": section}, matrix
        for segment, name in enumerate(("attn.out_proj", "mlp.fc_out")):
            yield layer.w_out, {"segment": segment}, state[f"transformer.h.{index}.{name}.weight"]
    yield weights.lm_head, {}, state["lm_head.weight"]


def check_weights(weights, state, config, dtype):
    """Unquantised weights against the state dict, bit for bit."""
    for packed, place, matrix in packed_parts(weights, state, config):
        assert torch.equal(ops.unpack(packed, matrix.shape[0], dtype, **place), matrix.to(dtype))
    assert weights.embedding.dtype == dtype
    assert torch.equal(weights.embedding, state["transformer.wte.weight"].to(dtype))
    vectors = {"lm_head.bias": weights.lm_head_bias, "transformer.ln_f.weight": weights.final_norm.weight,
               "transformer.ln_f.bias": weights.final_norm.bias}
    for index, layer in enumerate(weights.layers):
        prefix = f"transformer.h.{index}"
        vectors |= {f"{prefix}.mlp.fc_in.bias": layer.bias_in, f"{prefix}.mlp.fc_out.bias": layer.bias_out,
                    f"{prefix}.ln_1.weight": layer.norm.weight, f"{prefix}.ln_1.bias": layer.norm.bias}
    for name, vector in vectors.items():
        assert vector.dtype == torch.float32 and torch.equal(vector, state[name].float()), name
