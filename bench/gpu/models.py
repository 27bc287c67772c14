"""Models of random weights in true shapes, made on the device: ours, and the same weights for their engines."""

from __future__ import annotations

import cases
import torch
import torch.nn.functional as F

from bench.gpu import operands as o
from codegen_fast import ops
from codegen_fast.config import CodeGenConfig
from codegen_fast.decoder import Decoder
from codegen_fast.weights.decoder_weights import DecoderWeights, LayerWeights

BLOCKS = 4  # that the rows of qkv_proj stand in: [q | v | k] of a quarter of the heads each


def config_of(dims: cases.Dims) -> CodeGenConfig:
    return CodeGenConfig(vocab_size=dims.vocab, n_positions=dims.n_positions, n_ctx=dims.n_positions,
                         n_embd=dims.n_embd, n_layer=dims.n_layer, n_head=dims.n_head, rotary_dim=dims.rotary_dim,
                         n_inner=dims.inner, bos_token_id=1, eos_token_id=None)  # fmt: skip


def random_decoder(dims: cases.Dims, kind: str, device: torch.device) -> Decoder:
    """A decoder of random weights; the same ones at every call for a device, but for what int8 rounds away."""
    torch.manual_seed(0)
    config = config_of(dims)
    d, dtype = config.n_embd, o.act_dtype(kind)
    shapes = config.packed_shapes()
    embedding = torch.randn(config.vocab_size, d, device=device, dtype=dtype)
    layers = []
    for _ in range(config.n_layer):
        w_in, w_out = (o.random_weight(kind, *shapes[name], device) for name in ("w_in", "w_out"))
        biases = (0.1 * torch.randn(n, device=device) for n in (config.inner, d))
        layers.append(LayerWeights(o.new_norm(d, device), w_in, next(biases), w_out, next(biases)))
    lm_head = o.random_weight(kind, *shapes["lm_head"], device)
    weights = DecoderWeights(
        embedding=embedding, layers=layers, final_norm=o.new_norm(d, device), lm_head=lm_head,
        lm_head_bias=torch.zeros(config.vocab_size, device=device), dtype=dtype,
        quantization="int8" if kind == "int8" else None,
    )  # fmt: skip
    return Decoder(config, weights, device)


def step_bytes(decoder: Decoder, batch: int, length: float) -> int:
    """What a step must read: every packed weight once, the embeddings of its tokens, the keys and values once."""
    weights, config = decoder.weights, decoder.config
    row = config.n_embd * weights.dtype.itemsize
    cache = int(batch * length * 2 * config.n_layer * row)
    return weights.nbytes() - weights.embedding.nbytes + batch * row + cache


@torch.no_grad()
def transformers_twin(decoder: Decoder):
    """transformers' model with the decoder's weights, dequantised where they are int8."""
    from transformers import CodeGenConfig as TheirConfig
    from transformers import CodeGenForCausalLM

    config, weights = decoder.config, decoder.weights
    # A stop of its own would be looked for in every step
    values = {**config.to_dict(), "eos_token_id": None, "tie_word_embeddings": False}
    with torch.device(decoder.device):
        model = CodeGenForCausalLM._from_config(TheirConfig(**values), dtype=weights.dtype).eval()
    d, dtype = config.n_embd, weights.dtype

    def norm(module, ours: ops.Norm) -> None:
        module.weight.copy_(ours.weight)
        module.bias.copy_(ours.bias)

    for block, layer in zip(model.transformer.h, weights.layers, strict=True):
        norm(block.ln_1, layer.norm)
        q, k, v = (ops.unpack(layer.w_in, d, dtype, section=s).view(BLOCKS, -1, d) for s in range(3))
        block.attn.qkv_proj.weight.copy_(torch.cat([q, v, k], 1).view(3 * d, d))
        block.mlp.fc_in.weight.copy_(ops.unpack(layer.w_in, config.inner, dtype, section=3))
        block.mlp.fc_in.bias.copy_(layer.bias_in)
        block.attn.out_proj.weight.copy_(ops.unpack(layer.w_out, d, dtype, segment=0))
        block.mlp.fc_out.weight.copy_(ops.unpack(layer.w_out, d, dtype, segment=1))
        block.mlp.fc_out.bias.copy_(layer.bias_out)
    norm(model.transformer.ln_f, weights.final_norm)
    model.transformer.wte.weight.copy_(weights.embedding)
    model.lm_head.weight.copy_(ops.unpack(weights.lm_head, config.vocab_size, dtype))
    model.lm_head.bias.copy_(weights.lm_head_bias)
    return model


class Composed:
    """A prompt's way through the decoder's weights with the best that torch has: one product (cuBLASLt) for q, k, v and
    fc_in and one for both outputs, SDPA, fused LayerNorm. What prefill is compared with."""

    def __init__(self, decoder: Decoder, dims: cases.Dims) -> None:
        weights, dtype = decoder.weights, decoder.weights.dtype
        self.dims, self.embedding, self.final_norm = dims, weights.embedding, weights.final_norm
        self.layers = [(layer.norm, o.plain(layer.w_in, dtype), layer.bias_in.to(dtype), o.plain(layer.w_out, dtype),
                        layer.bias_out.to(dtype)) for layer in weights.layers]  # fmt: skip
        self.lm_head, self.lm_head_bias = o.plain(weights.lm_head, dtype), weights.lm_head_bias.to(dtype)
        self.rotary = decoder.rotary

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (1, V) of the last of ids (T,); keys and values are kept, as a cache must."""
        table, kept = self.rotary[: len(ids)], []
        x = F.embedding(ids, self.embedding)
        for norm, w_in, bias_in, w_out, bias_out in self.layers:
            q, k, v, m = o.input_in_torch(x, norm, w_in, bias_in, table, self.dims)
            q, k, v = (t.view(1, -1, self.dims.n_head, self.dims.head_dim).transpose(1, 2) for t in (q, k, v))
            kept.append((k, v))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(len(ids), -1)
            x = o.output_in_torch(x, torch.cat([a, m], -1), w_out, bias_out)
        return o.lm_head_in_torch(x[-1:], self.final_norm, self.lm_head, self.lm_head_bias)
