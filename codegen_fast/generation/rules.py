"""What changes the logits of every row before a token is chosen: settings turned into the kernels' LogitsRules."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops, transfer
from .config import Settings

_INT32_MAX = 2**31 - 1
# Operands of rules 1 to 5 and 6 to 9 of `edit_logits`; between them stands prefix_allowed_tokens_fn.
_FIRST = ("bias_tokens", "bias_starts", "biases", "repetition_penalty", "no_repeat_ngram_size", "banned_tokens",
          "banned_starts", "eos", "min_new_tokens")
_SECOND = ("eos", "forced_eos", "forced_eos_after", "remove_invalid_values", "decay_start", "decay_factor",
           "suppressed", "suppressed_at_begin")


class Rules:
    """The rules of one call; operands whose value is neutral are left out."""

    def __init__(self, values: dict[str, Any]):
        """values: operands of ops.LogitsRules by name, lists where it takes tensors."""
        self._values = values
        self._on_device: dict[torch.device, dict[str, Any]] = {}

    @classmethod
    def of(cls, settings: Settings, columns: int, steps: int) -> Rules:
        """For prompts of `columns` columns, padding included, that get at most `steps` new tokens."""
        values: dict[str, Any] = {}
        eos = _listed(settings.eos_token_ids)
        if settings.sequence_bias:
            sequences = [sequence for sequence, _ in settings.sequence_bias]
            values["bias_tokens"], values["bias_starts"] = _packed(sequences)
            values["biases"] = [bias for _, bias in settings.sequence_bias]
        if settings.repetition_penalty != 1.0:
            values["repetition_penalty"] = settings.repetition_penalty
        if settings.no_repeat_ngram_size > 0:
            values["no_repeat_ngram_size"] = min(settings.no_repeat_ngram_size, _INT32_MAX)
        if settings.bad_words_ids:
            values["banned_tokens"], values["banned_starts"] = _packed(settings.bad_words_ids)
        least = max(settings.min_new_tokens, settings.min_length - columns)
        if least > 0 and eos:
            values["min_new_tokens"] = min(least, _INT32_MAX)
        if forced := _listed(settings.forced_eos_token_ids):
            values["forced_eos"] = forced
            values["forced_eos_after"] = steps - 1
        if settings.remove_invalid_values:
            values["remove_invalid_values"] = True
        if settings.exponential_decay_length_penalty is not None:
            start, factor = settings.exponential_decay_length_penalty
            if eos and start < steps - 1:  # else no row gets so far
                values["decay_start"], values["decay_factor"] = start, factor
        for name, ids in (("suppressed", settings.suppress_tokens),
                          ("suppressed_at_begin", settings.begin_suppress_tokens)):
            if ids := _listed(ids):
                values[name] = ids
        if "min_new_tokens" in values or "decay_start" in values:
            values["eos"] = eos
        return cls(values)

    @property
    def is_empty(self) -> bool:
        return not self._values

    def operands(self, history: Tensor, history_row: Tensor, history_len: Tensor, prompt_len: Tensor
                 ) -> ops.LogitsRules:
        """All rules, for rows whose tokens stand in `history`; its lists are on the history's device."""
        return ops.LogitsRules(history, history_row, history_len, prompt_len, **self._tensors(history.device))

    def halves(self, history: Tensor, history_row: Tensor, history_len: Tensor, prompt_len: Tensor
               ) -> tuple[ops.LogitsRules | None, ops.LogitsRules | None]:
        """Those that come before prefix_allowed_tokens_fn and those after it; None: there are none."""
        tensors = self._tensors(history.device)

        def some(names: tuple[str, ...]) -> ops.LogitsRules | None:
            values = {name: value for name, value in tensors.items() if name in names}
            if values.keys() <= {"eos"}:  # which is no rule
                return None
            return ops.LogitsRules(history, history_row, history_len, prompt_len, **values)

        return some(_FIRST), some(_SECOND)

    def _tensors(self, device: torch.device) -> dict[str, Any]:
        if device not in self._on_device:
            self._on_device[device] = {name: _as_operand(value, device) for name, value in self._values.items()}
        return self._on_device[device]


def _listed(ids: Iterable[int]) -> list[int]:
    """Without repetitions, and without ids that no vocabulary has and no int32 holds."""
    return [token for token in dict.fromkeys(ids) if token <= _INT32_MAX]


def _packed(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """All tokens one after another, and where each sequence starts, with the end."""
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence))
    return [token for sequence in sequences for token in sequence], starts


def _as_operand(value: Any, device: torch.device) -> Any:
    if not isinstance(value, list):
        return value
    return transfer.to_device(value, device, torch.float32 if isinstance(value[0], float) else torch.int32)
