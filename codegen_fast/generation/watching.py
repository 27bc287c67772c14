"""What looks at the logits of a step on the host: the caller's callbacks, and records of scores and hidden states."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..scoring.logprobs import log_probabilities
from ..workplace import Step
from .columns import Columns
from .processors import LogitsPipeline


@dataclass
class Records:
    """What a call keeps of every step: a list each, of tensors (rows, V) or tuples of hidden states; None: not kept."""

    logits: list[Tensor] | None = None
    scores: list[Tensor] | None = None
    hidden_states: list[tuple[Tensor, ...]] | None = None


@dataclass
class Alternatives:
    """The log-probabilities of one row: its tokens', and those of the k best tokens at each position."""

    token_logprobs: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)


class HostWatch:
    """A Watch of stepping.py. Rows that have ended keep their place in what callbacks see and records hold, as zeros.

    top: how many alternatives to log beside each token; None logs nothing.
    """

    def __init__(self, pipeline: LogitsPipeline, columns: Columns, num_rows: int, records: Records, *,
                 top: int | None = None, renormalize: bool = False):
        self._pipeline, self._columns, self._num_rows = pipeline, columns, num_rows
        self._records, self._top, self._renormalize = records, top, renormalize
        self.wants_states = records.hidden_states is not None
        self.alternatives = [Alternatives() for _ in range(num_rows)] if top is not None else None
        self._raw: tuple[list[int], Tensor] | None = None  # logits whose tokens are not known yet

    def scores(self) -> tuple[Tensor, ...] | None:
        """What transformers gives to stopping criteria."""
        return None if self._records.scores is None else tuple(self._records.scores)

    def __call__(self, rows: list[int], logits: Tensor, step: Step, states: list[Tensor] | None) -> None:
        records = self._records
        if records.logits is not None:
            records.logits.append(self._in_place_of_rows(rows, logits))
        if self._top is not None:
            self._raw = (rows, logits.clone())
        if states is not None:
            records.hidden_states.append(tuple(self._in_place_of_rows(rows, state)[:, None] for state in states))
        self._edit(rows, logits, step)
        if records.scores is not None:
            scores = step.logits.clone()  # logits are its first rows; the operands of sampling are for all of them
            step.filter(scores)
            scores = scores[:len(rows)]
            if self._renormalize:
                scores = torch.log_softmax(scores, -1)
            records.scores.append(self._in_place_of_rows(rows, scores))

    def chosen(self, rows: list[int], tokens: list[int]) -> None:
        """The tokens of the step that was looked at last."""
        if self._raw is None:
            return
        seen, logits = self._raw
        self._raw = None
        place = {row: i for i, row in enumerate(seen)}
        kept = logits[[place[row] for row in rows]] if rows != seen else logits
        targets = torch.tensor(tokens, dtype=torch.long, device=logits.device)
        own, ids, best = log_probabilities(kept, targets, self._top)
        for row, value, top_ids, top in zip(rows, own.tolist(), ids.tolist(), best.tolist()):
            row_log = self.alternatives[row]
            row_log.token_logprobs.append(value)
            row_log.top_ids.append(top_ids)
            row_log.top_logprobs.append(top)

    def _edit(self, rows: list[int], logits: Tensor, step: Step) -> None:
        history, which, lengths, prompt_lens = step.followed
        count = len(rows)
        if not self._pipeline.has_callbacks or count == self._num_rows:
            edited = self._pipeline.apply(logits, self._columns.ids, history, which[:count], lengths[:count],
                                          prompt_lens[:count])
            if edited is not logits:
                logits.copy_(edited)
            return
        # Callbacks may keep something for every row, so that a row must stay where it is while others end.
        where = torch.tensor(rows, dtype=torch.long, device=logits.device)
        full_which, full_lengths, full_prompts = (which.new_zeros(self._num_rows) for _ in range(3))
        for full, own in ((full_which, which), (full_lengths, lengths), (full_prompts, prompt_lens)):
            full[where] = own[:count]
        edited = self._pipeline.apply(self._in_place_of_rows(rows, logits), self._columns.ids, history, full_which,
                                      full_lengths, full_prompts)
        logits.copy_(edited[where])

    def _in_place_of_rows(self, rows: list[int], values: Tensor) -> Tensor:
        """(rows that run, width) -> (all rows, width), a copy."""
        if rows == list(range(self._num_rows)):
            return values.clone()
        full = values.new_zeros(self._num_rows, values.shape[1])
        full[torch.tensor(rows, dtype=torch.long, device=values.device)] = values
        return full
