"""What a token costs, counted from the model's sizes: parameters, and bytes that a decode step reads from memory."""

from __future__ import annotations

import torch

from ..config import CodeGenConfig
from ..memory import model_bytes


def parameter_count(config: CodeGenConfig) -> int:
    """Parameters of the model, whatever type they are stored in; a tied embedding counts once."""
    d = config.n_embd
    products = {name: sum(sections) * sum(segments) for name, (sections, segments) in config.packed_shapes().items()}
    layer = products["w_in"] + products["w_out"] + config.inner + d + 2 * d
    lm_head = config.vocab_size + (0 if config.tie_word_embeddings else products["lm_head"])
    return config.vocab_size * d + config.n_layer * layer + 2 * d + lm_head


def weight_bytes(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None) -> int:
    """Bytes of weights that one decode step reads, for all its rows together: all but the embedding.

    Of the embedding a step reads one row a token, which is nothing beside the rest.
    """
    return model_bytes(config, dtype, quantization) - config.vocab_size * config.n_embd * dtype.itemsize


def cache_bytes(config: CodeGenConfig, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of keys and values of `tokens` tokens, in all layers."""
    return 2 * config.n_layer * config.n_embd * dtype.itemsize * tokens


def decode_bytes(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None, prompt_tokens: int,
                 new_tokens: list[int]) -> int:
    """Bytes that decoding reads after the prefill of one prompt, whose samples have new_tokens[i] new tokens each.

    The first new token of a row comes from the prefill. Step k reads the weights once, and for each row that still
    runs prompt_tokens + k tokens of cache.
    """
    steps = max(new_tokens) - 1
    attended = sum((n - 1) * prompt_tokens + (n - 1) * n // 2 for n in new_tokens)
    return steps * weight_bytes(config, dtype, quantization) + cache_bytes(config, dtype, attended)
