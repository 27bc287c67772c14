"""Whether a line of a run's files has what is read of it: a folder may have come from somebody else."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .jsonl import Record

_MOST_TOKENS = 2**31
_MOST_NATS_A_TOKEN = 700.0  # exp of more is no number; of a text that a model has seen it is 1 to 10


def is_sample(record: Record, fields: Mapping[str, type]) -> bool:
    """One that `of_samples`, the judge and the prompts' perplexities can read. fields: what the judge reads."""
    reasons = record.get("finish_reasons", [record.get("finish_reason")])
    return (all(name in record and isinstance(record[name], kind) for name, kind in fields.items())
            and _is_count(record.get("tokens")) and isinstance(reasons, list)
            and all(isinstance(reason, str) for reason in reasons) and _has_nlls(record))


def is_result(record: Record) -> bool:
    return isinstance(record.get("passed"), bool) and isinstance(record.get("result"), str)


def _has_nlls(record: Record) -> bool:
    """Whether those that are there are numbers; without prompt_tokens nobody reads them."""
    tokens = record.get("prompt_tokens")
    if tokens is None:
        return True
    values = [record.get(name) for name in ("prompt_nll", "single_turn_prompt_nll")]
    return _is_count(tokens) and all(value is None or _is_nll(value, tokens) for value in values)


def _is_nll(value: Any, tokens: int) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= _MOST_NATS_A_TOKEN * tokens


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_TOKENS
