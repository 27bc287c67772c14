"""Bytes that a decode step reads from memory, counted from the model's sizes."""

from __future__ import annotations

import torch

from ..config import CodeGenConfig
from ..memory import cache_bytes, model_bytes


def weight_bytes(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None,
                 device: torch.device | str = "cpu") -> int:
    """Bytes of weights that one decode step reads, for all its rows together: all but the embedding.

    Of the embedding a step reads one row a token, which is nothing beside the rest.
    """
    return model_bytes(config, dtype, quantization, device) - config.vocab_size * config.n_embd * dtype.itemsize


def decode_bytes(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None, prompt_tokens: int,
                 new_tokens: list[int], device: torch.device | str = "cpu") -> int:
    """Bytes that decoding reads after the prefill of one prompt, whose samples have new_tokens[i] new tokens each.

    The first new token of a row comes from the prefill. Step k reads the weights once, and for each row that still
    runs prompt_tokens + k tokens of cache.
    """
    steps = max(new_tokens) - 1
    attended = sum((n - 1) * prompt_tokens + (n - 1) * n // 2 for n in new_tokens)
    return steps * weight_bytes(config, dtype, quantization, device) + cache_bytes(config, dtype, attended)
