"""Callbacks by name, and the arguments of a case of parity: both sides run with exactly these."""
from __future__ import annotations

from typing import Any

import torch


def _favour_a_follower(ids, scores):
    """The token that each row's last one points at gains 6."""
    follower = (ids[:, -1:] * 7 + 3) % scores.shape[1]
    return scores.scatter_add(1, follower, torch.full_like(follower, 6.0, dtype=scores.dtype))


class _Halve:
    """An object, as transformers' processors are; it matters before another that adds something."""

    def __call__(self, ids, scores):
        return scores * 0.5


def _ban_by_length(ids, scores):
    """At every third width the likeliest token is banned, if another is left: of none transformers takes token 0."""
    if ids.shape[1] % 3:
        return scores
    another = scores.topk(2).values[:, 1:].isfinite()
    return torch.where(another, scores.scatter(1, scores.argmax(1, keepdim=True), -torch.inf), scores)


def _end_at_multiples_of_3(ids, scores):
    return ids[:, -1] % 3 == 0


class _EndAtWidth:
    """Ends all rows at a width, as a bool."""

    def __init__(self, width):
        self.width = width

    def __call__(self, ids, scores):
        return ids.shape[1] >= self.width


def _allow_a_third(vocab_size):
    """A third of the vocabulary, by the batch's index and the last token."""
    def allowed(batch_id, ids):
        first = (int(ids[-1]) + batch_id) % 3
        return list(range(first, vocab_size, 3))
    return allowed


def arguments(knobs: dict[str, Any], vocab_size: int, tokenizer: Any = None) -> dict[str, Any]:
    """What generate() is called with, from knobs as JSON holds them."""
    arguments = dict(knobs)
    if "bias_dict" in arguments:
        arguments["sequence_bias"] = {tuple(ids): bias for ids, bias in arguments.pop("bias_dict")}
    made = {"favour": lambda: _favour_a_follower, "halve": _Halve, "ban": lambda: _ban_by_length,
            "multiples": lambda: _end_at_multiples_of_3}
    for name in ("logits_processor", "stopping_criteria"):
        if name in arguments:
            arguments[name] = [_EndAtWidth(item) if isinstance(item, int) else made[item]()
                               for item in arguments[name]]
    if "prefix_allowed_tokens_fn" in arguments:
        arguments["prefix_allowed_tokens_fn"] = _allow_a_third(vocab_size)
    if "stop_strings" in arguments:
        arguments["tokenizer"] = tokenizer
    return arguments
