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
                 new_tokens: list[int], steps: int, device: torch.device | str = "cpu") -> int:
    """Bytes that so many decode steps read after the prefill of a prompt, whose samples get new_tokens[i] tokens each.

    The first new token of a row comes from the prefill. A step reads the weights once, and for each of its rows, if it
    is the row's k-th, prompt_tokens + k tokens of cache.
    """
    attended = sum((n - 1) * prompt_tokens + (n - 1) * n // 2 for n in new_tokens)
    return steps * weight_bytes(config, dtype, quantization, device) + cache_bytes(config, dtype, attended)
