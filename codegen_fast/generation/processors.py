"""What the caller's functions and the rules of a call do to the logits of a step, in transformers' order."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .checks import as_int
from .rules import Rules


class LogitsPipeline:
    """rules 1-5 -> prefix_allowed_tokens_fn -> rules 6-9 -> logits_processor, over the whole batch."""

    def __init__(self, rules: Rules, prefix_fn: Callable[[int, Tensor], Any] | None,
                 processors: Iterable[Callable[[Tensor, Tensor], Tensor]], num_beams: int = 1):
        """prefix_fn(batch_id, ids (n,)) -> tokens that may follow; row r belongs to batch_id r // num_beams.

        processors: each gets (ids (B, n), scores (B, V) float32) and returns scores.
        """
        self._rules, self._prefix_fn, self._num_beams = rules, prefix_fn, num_beams
        self._processors = list({id(processor): processor for processor in processors}.values())  # none twice
        self._workspace: Tensor | None = None

    @property
    def has_callbacks(self) -> bool:
        return self._prefix_fn is not None or bool(self._processors)

    def apply(self, logits: Tensor, input_ids: Callable[[], Tensor], history: Tensor, history_row: Tensor,
              history_len: Tensor, prompt_len: Tensor) -> Tensor:
        """Edits logits (B, V) float32 in place and returns them.

        input_ids(): (B, n) long, what callbacks are to see; called only where there are some. history (S, columns),
        history_row, history_len, prompt_len (B,) int32: see LogitsRules in csrc/ops.h.
        Raises TypeError or ValueError where a callback returns something else than it should.
        """
        followed = (history, history_row, history_len, prompt_len)
        if not self.has_callbacks:
            if not self._rules.is_empty:
                self._edit(logits, self._rules.operands(*followed))
            return logits
        ids = input_ids()
        if self._prefix_fn is None:
            if not self._rules.is_empty:
                self._edit(logits, self._rules.operands(*followed))
        else:
            first, second = self._rules.halves(*followed)
            self._edit(logits, first)
            self._keep_allowed(logits, ids)
            self._edit(logits, second)
        if self._processors:
            scores = logits.clone()  # a callback may keep what it gets, and logits are written again at the next step
            for processor in self._processors:
                scores = _checked(processor, processor(ids, scores), logits)
            logits.copy_(scores)
        return logits

    def _edit(self, logits: Tensor, rules: ops.LogitsRules | None) -> None:
        if rules is None:
            return
        needed = ops.edit_logits_workspace(*logits.shape, logits.device.type)
        if self._workspace is None or self._workspace.nbytes < needed or self._workspace.device != logits.device:
            self._workspace = torch.empty(needed, dtype=torch.uint8, device=logits.device)
        ops.edit_logits(logits, rules, self._workspace)

    def _keep_allowed(self, logits: Tensor, ids: Tensor) -> None:
        """-infinity for all but the allowed tokens; 0 for those where all beams of a prompt would have none left."""
        banned = torch.full(logits.shape, -torch.inf, device="cpu")
        for row, tokens in enumerate(ids):
            banned[row, self._allowed(row // self._num_beams, tokens, logits.shape[1])] = 0.0
        banned = banned.to(logits.device)
        logits += banned
        hopeless = logits.amax(-1).isneginf().view(-1, self._num_beams).all(1).repeat_interleave(self._num_beams)
        logits[hopeless] = banned[hopeless]

    def _allowed(self, batch_id: int, tokens: Tensor, vocab_size: int) -> list[int]:
        returned = self._prefix_fn(batch_id, tokens)
        if isinstance(returned, Tensor):
            returned = returned.tolist()
        if not isinstance(returned, Iterable) or isinstance(returned, (str, bytes)):
            raise TypeError(f"prefix_allowed_tokens_fn returned {returned!r} for batch_id {batch_id}, expected a list "
                            "of token ids")
        returned = list(returned)
        allowed = [as_int(token) for token in returned]
        if not allowed:
            raise ValueError(f"prefix_allowed_tokens_fn returned no tokens for batch_id {batch_id}: one at least must "
                             "be allowed")
        for token, given in zip(allowed, returned):
            if token is None:
                raise TypeError(f"prefix_allowed_tokens_fn returned {given!r} for batch_id {batch_id}, expected token "
                                "ids")
            if not 0 <= token < vocab_size:
                raise ValueError(f"prefix_allowed_tokens_fn allowed token {token} for batch_id {batch_id}, outside the "
                                 f"vocabulary: ids are 0 to {vocab_size - 1}")
        return allowed


def _checked(processor: Callable[..., Any], scores: Any, logits: Tensor) -> Tensor:
    """What a processor returned, as float32 on the device of the logits."""
    if isinstance(scores, Tensor) and scores.shape == logits.shape and scores.is_floating_point():
        return scores.to(logits.device, torch.float32)
    name = getattr(processor, "__name__", type(processor).__name__)
    got = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
    raise TypeError(f"logits_processor: {name} returned {got}, expected floating-point scores of shape "
                    f"{tuple(logits.shape)}, such as it was given")
