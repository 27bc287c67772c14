"""Rows that step together, their tokens read while the next steps run (floor 6).

On CUDA several steps are enqueued ahead of the host, which reads tokens from a small ring, and a row that has finished is
idle from the next step on. On a CPU the same ops run one step at a time, on exactly the rows that still run. Rows may join
and leave between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from . import transfer
from .cache import Sequence
from .decoder import Decoder
from .sampling import Sampling, as_signed
from .workplace import FILTERS, RING_SLOTS, BoundRules, Step, StepKind, Workplace

_EOS_SLOTS = 8  # eos tokens that a step looks for, at least


@dataclass
class Row:
    """One row of the result while it runs: a sequence that continues a prompt."""

    index: int  # in the result
    prompt: np.ndarray  # (n,) its tokens
    sequence: Sequence  # the prompt after prefill; the batch's, which gives its pages back
    seed: int
    sample_index: int
    tokens: list[int] = field(default_factory=list)  # so far

    @property
    def fed(self) -> int:
        """Tokens that have gone through the layers: all but the last."""
        return len(self.prompt) + max(0, len(self.tokens) - 1)


class Watch(Protocol):
    """Looks at the logits of every step on the host, and may change them in place."""

    wants_states: bool  # hidden states too; for the first tokens they are the caller's, from prefill

    def __call__(self, rows: list[int], logits: torch.Tensor, step: Step, states: list[torch.Tensor] | None) -> None:
        """rows: the rows of the result that logits (rows, V) belong to; states: n_layer + 1 tensors (rows, d)."""


class SteppingBatch:
    """Rows that generate together, at most ``max_new_tokens`` tokens each.

    rules: what changes the logits in the kernels. watch: who looks at them on the host: every step then waits for it.
    on_end: gets the rows that have ended, instead of their pages going back; row.sequence holds ``row.fed`` tokens.
    """

    def __init__(self, decoder: Decoder, place: Workplace, sampling: Sampling, max_new_tokens: int, *,
                 rules: BoundRules | None = None, watch: Watch | None = None,
                 on_end: Callable[[Row], None] | None = None) -> None:  # fmt: skip
        self._decoder, self._place, self._sampling = decoder, place, sampling
        self._max_new_tokens = max_new_tokens
        self._watch, self._on_end = watch, on_end
        self._kind = StepKind(sampling.filters, rules, rules is not None or watch is not None)
        self._ahead = place.ahead if watch is None else 1
        self._rows: list[Row] = []
        self._arranged: list[Row] = []  # in order of the device's rows; some may have ended
        self._ended: list[Row] = []  # whose pages go back now
        self._leaving: list[Row] = []  # ended by the host, while steps that write to their pages may be under way
        self._stale = True  # the device's rows are not those of _rows
        self._read = place.number  # the number of the last step whose tokens were read
        self._enqueued = 0  # steps since the rows were arranged
        self._room = 0  # steps that may be enqueued before pages must be reserved
        self._eos_slots = max(_EOS_SLOTS, 1 << max(0, len(sampling.eos) - 1).bit_length())

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def settled(self) -> bool:
        """Whether the tokens of all steps have been read: rows may ``start``."""
        return self._place.number == self._read

    def start(self, rows: list[Row], logits: torch.Tensor, sources: list[int]) -> tuple[list[int], list[int]]:
        """(rows, tokens): the first tokens of new rows, which join. The batch must be ``settled``.

        logits (N, V): what follows the prompts; that of rows[i] is logits[sources[i]].
        Raises ValueError if a row's logits allow no token.
        """
        self._rows += rows  # from here on the batch's
        self._stale = True
        step = self._describe(rows)
        target = step.logits[: len(rows)]
        if transfer.is_host(target.device):
            # On this thread: torch's pool would hang in a forked child.
            np.copyto(target.numpy(), logits.numpy()[sources])
        else:
            transfer.copy(target, logits[transfer.to_device(sources, target.device, torch.int64)])
        if self._watch is not None:
            self._watch([row.index for row in rows], target, step, None)
        self._place.choose(step)
        return self._take(step, rows)

    def step(self, *, hold: bool = False) -> tuple[list[int], list[int]]:
        """(rows, tokens) of the next step: tokens[i] is the new token of row rows[i]; rows that ended are left out.

        hold: enqueue no step ahead, because rows are to join.
        """
        if self.settled or not hold:
            while self._place.number - self._read < self._ahead and self._enqueue():
                pass
        return self._take(self._step, self._arranged)

    def finish(self, indexes: Iterable[int]) -> None:
        """These rows of the result leave; what steps that are under way give them is not told."""
        ended = set(indexes)
        leaving = [row for row in self._rows if row.index in ended]
        self._rows = [row for row in self._rows if row.index not in ended]
        if leaving:
            self._leaving += leaving
            self._stale = True
            if self.settled:
                self._let_go(self._leaving)

    def close(self) -> None:
        """Waits for what is enqueued; all sequences give their pages back."""
        if not self.settled:
            self._read = self._place.number
            transfer.wait_for(self._decoder.device)  # whoever waited for tokens has heard of what failed
        for row in [*self._rows, *self._leaving, *self._ended]:
            self._place.cache.release(row.sequence)
        self._rows, self._leaving, self._ended = [], [], []

    def _let_go(self, rows: list[Row]) -> None:
        """Their pages go back, or to whoever wants them. A row leaves the list before it belongs to somebody else."""
        cache = self._place.cache
        while rows:
            row = rows.pop(0)
            if self._on_end is None:
                cache.release(row.sequence)
            else:
                cache.crop(row.sequence, row.fed)
                self._on_end(row)

    def _describe(self, rows: list[Row]) -> Step:
        """The step of these rows, which are told to the device. No step is under way."""
        place, sampling = self._place, self._sampling
        step = place.step(self._decoder, place.bucket(len(rows)), self._eos_slots, self._kind)
        self._read = place.number
        state, count = step.state, len(rows)
        for name, values in (
            ("tokens", [row.tokens[-1] if row.tokens else 0 for row in rows]),
            ("seeds", [as_signed(row.seed) for row in rows]),
            ("seq_lens", [len(row.prompt) + len(row.tokens) for row in rows]),
            ("remaining", [self._max_new_tokens - len(row.tokens) for row in rows]),
            ("sample_indices", [row.sample_index for row in rows]),
            ("prompt_lens", [len(row.prompt) for row in rows]),
        ):
            state.host[name][:count] = values
            state.host[name][count:] = 0  # length 0: an idle row
        for name in ("temperature", "top_k", "top_p", *FILTERS):
            state.host[name][:] = getattr(sampling, name)
        state.host["eos"][:] = -1  # no token
        state.host["eos"][: len(sampling.eos)] = sampling.eos
        state.upload()
        if self._kind.history:
            history = _on_host(step.history)
            for target, row in zip(history, rows):
                target[: len(row.prompt)] = row.prompt
                target[len(row.prompt) : len(row.prompt) + len(row.tokens)] = row.tokens
            if not transfer.is_host(step.history.device):
                transfer.write(step.history, history)
        return step

    def _arrange(self) -> None:
        """Gives the rows that run their places on the device. No step is under way."""
        self._let_go(self._leaving)
        self._arranged = list(self._rows)
        self._step = self._describe(self._arranged)
        self._bases = [row.fed for row in self._arranged]
        self._left = [self._max_new_tokens - len(row.tokens) for row in self._arranged]
        self._longest = max(self._bases)
        self._enqueued = self._room = 0
        self._stale = False

    def _enqueue(self) -> bool:
        """One more step, unless all that can come is enqueued, or the rows must be arranged anew first."""
        if not self._rows:
            return False
        if self._stale or self._place.bucket(len(self._rows)) < self._step.rows:
            if not self.settled:
                return False
            self._arrange()
        if self._enqueued >= max(self._left):
            return False
        if self._room == 0:
            self._reserve()
        self._enqueued += 1
        self._room -= 1
        place, length = self._place, self._longest + self._enqueued
        if self._watch is None:
            place.run(self._decoder, self._step, length)
            return True
        states = None
        if self._watch.wants_states:
            states = self._step.run_with_states(self._decoder, place.cache, place.max_seq_len)
        else:
            place.run(self._decoder, self._step, length, choose=False)
        count = len(self._arranged)
        self._watch([row.index for row in self._arranged], self._step.logits[:count], self._step, states)
        place.choose(self._step)
        return True

    def _reserve(self) -> None:
        """Pages for the next tokens of every row, and the table of them."""
        cache = self._place.cache
        still = {id(row) for row in self._rows}
        running = [i for i, row in enumerate(self._arranged) if id(row) in still]
        lefts = [self._left[i] - self._enqueued for i in running]
        self._room = min(cache.page_size, max(lefts))
        for i in running:
            self._arranged[i].sequence.length = self._bases[i] + min(self._enqueued, self._left[i])
        cache.reserve([self._arranged[i].sequence for i in running], [max(0, min(self._room, left)) for left in lefts])
        table = _on_host(self._step.page_table)
        for i in running:
            pages = self._arranged[i].sequence.pages
            table[i, : len(pages)] = pages
        if not transfer.is_host(self._step.page_table.device):
            transfer.write(self._step.page_table, table)

    def _take(self, step: Step, arranged: list[Row]) -> tuple[list[int], list[int]]:
        """Waits for the tokens of the next step."""
        number = self._read + 1
        step.ring.wait(number, self._decoder.weights.embedding)
        self._read = number
        slot = step.slots[(number - 1) % RING_SLOTS, 1 : 1 + len(arranged)].tolist()
        running = {id(row) for row in self._rows}
        indexes: list[int] = []
        tokens: list[int] = []
        for row, token in zip(arranged, slot, strict=True):
            if token == -2 or id(row) not in running:  # it had ended before
                continue
            if token < 0:
                wider = "torch.bfloat16" if self._decoder.backend == "cuda" else "torch.float32 or torch.bfloat16"
                raise ValueError(
                    f"logits: row {row.index} holds NaN or no finite value, so no token can be chosen; the weights or "
                    f"the type they were converted to overflow (try dtype={wider}), or what edits the logits bans all"
                )
            indexes.append(row.index)
            tokens.append(token)
            row.tokens.append(token)
            if token in self._sampling.eos or len(row.tokens) == self._max_new_tokens:
                self._ended.append(row)
        if self._ended:
            ended = {id(row) for row in self._ended}
            self._rows = [row for row in self._rows if id(row) not in ended]
            self._let_go(self._ended)
        if self._leaving and self.settled:
            self._let_go(self._leaving)
        return indexes, tokens


def _on_host(tensor: torch.Tensor) -> np.ndarray:
    """An array for what the tensor is to hold: its own memory where the host may write it, else zeros."""
    if transfer.is_host(tensor.device):
        return tensor.numpy()
    return np.zeros(tensor.shape, dtype=getattr(np, str(tensor.dtype).removeprefix("torch.")))
