"""The loop of generation: prompts go through prefill once, rows continue them, waiting rows follow those that end."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..cache import PagedCache, Sequence
from ..decoder import Decoder
from ..stepping import Row, SteppingBatch
from ..workplace import Room, Workplace, workplace
from .stopping import Emitted, Stops


@dataclass(frozen=True)
class Task:
    """What a call of `generate` runs."""

    prompts: list[Tensor]      # B LongTensors (n_i,) on the CPU, without padding
    samples: int               # rows a prompt: row r continues prompts[r // samples]
    steps: int                 # new tokens a row at most
    seeds: list[int]           # one a row
    sample_indices: list[int]  # one a row
    max_rows: int              # rows that run at once


class Beginnings(Protocol):
    """Caches that outlive a call: sequences that hold the beginning of a prompt, and rows that have ended.

    attach(place): where the call runs; `cache` is its cache from then on, if it was None.
    begin(i, ids): a sequence in `cache` that holds at most the first len(ids) - 1 tokens of prompt i; the caller's.
    keep(row): gets row.sequence, with row.fed tokens.
    """

    cache: PagedCache | None

    def attach(self, place: Workplace) -> None: ...
    def begin(self, prompt: int, ids: Tensor) -> Sequence: ...
    def keep(self, row: Row) -> None: ...


# Makes the batch of a call at its workplace; on_end gets rows that have ended.
MakeBatch = Callable[[Workplace, Callable[[Row], None] | None], SteppingBatch]


def run(decoder: Decoder, task: Task, stops: Stops, make_batch: MakeBatch, *, beginnings: Beginnings | None = None,
        on_prompt_states: Callable[[list[Tensor]], None] | None = None) -> Iterator[Emitted]:
    """The new tokens of every row, as they come.

    on_prompt_states gets the hidden states of prompts that have gone through prefill: n_layer + 1 tensors (tokens, d),
    those of one prompt after another.
    However this ends (closing it included), all pages are returned and no step is under way; several threads may run on
    one decoder. A row that has ended leaves the batch, and the next that waits takes its place.
    """
    waiting = deque(range(len(task.prompts) * task.samples))
    at_once = min(len(waiting), task.max_rows)
    lens = [len(prompt) for prompt in task.prompts]
    first_prompts = lens[:-(-at_once // task.samples)]
    room = Room(at_once, first_prompts, task.steps, max(lens) + task.steps)
    with workplace(decoder, room, beginnings.cache if beginnings is not None else None) as place:
        if beginnings is not None:
            beginnings.attach(place)
        prompts = _Prompts(decoder, place, task, beginnings, on_prompt_states)
        batch = make_batch(place, beginnings.keep if beginnings is not None else None)
        try:
            while waiting or len(batch):
                free = at_once - len(batch) if waiting else 0
                if free and stops.are_late:
                    emitted = Emitted([], [], dict.fromkeys(waiting, "time"))
                    waiting.clear()
                    yield emitted
                    continue
                if free and batch.settled:
                    joining = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                    for row in joining:
                        stops.open(row, task.prompts[row // task.samples])
                    indexes, tokens = batch.start(*prompts.admit(joining))
                    prompts.started()
                else:
                    indexes, tokens = batch.step(hold=free > 0)
                emitted = stops.after(indexes, tokens)
                batch.finish(emitted.reasons)
                yield emitted
        finally:
            try:
                batch.close()
            finally:
                prompts.close()


class _Prompts:
    """Sequences of prompts: computed when the first of their rows begins, let go with the last."""

    def __init__(self, decoder: Decoder, place: Workplace, task: Task, beginnings: Beginnings | None,
                 on_states: Callable[[list[Tensor]], None] | None):
        self._decoder, self._cache, self._task = decoder, place.cache, task
        self._beginnings, self._on_states = beginnings, on_states
        self._held: dict[int, Sequence] = {}  # of prompts with rows to come
        self._logits: dict[int, Tensor] = {}  # (1, V) of those
        self._joined = [0] * len(task.prompts)
        self._made: list[Row] = []  # not yet the batch's

    def admit(self, rows: list[int]) -> tuple[list[Row], Tensor, list[int]]:
        """Rows that begin now, logits (N, V), and which of them follows each row's prompt."""
        task = self._task
        needed = list(dict.fromkeys(row // task.samples for row in rows))
        self._compute([prompt for prompt in needed if prompt not in self._held])
        logits = [self._logits[prompt] for prompt in needed]
        for row in rows:
            prompt = row // task.samples
            ids = task.prompts[prompt].numpy().astype(np.int32)
            self._made.append(Row(row, ids, self._sequence(prompt), task.seeds[row], task.sample_indices[row]))
        place = {prompt: i for i, prompt in enumerate(needed)}
        return list(self._made), _stack(logits), [place[row // task.samples] for row in rows]

    def started(self) -> None:
        """The rows of the last `admit` are the batch's now."""
        self._made.clear()

    def close(self) -> None:
        for sequence in (*self._held.values(), *(row.sequence for row in self._made)):
            self._cache.release(sequence)
        self._held.clear()
        self._made.clear()

    def _sequence(self, prompt: int) -> Sequence:
        """For one more row of the prompt."""
        self._joined[prompt] += 1
        if self._joined[prompt] < self._task.samples:
            return self._cache.fork(self._held[prompt])
        del self._logits[prompt]
        return self._held.pop(prompt)

    def _compute(self, prompts: list[int]) -> None:
        if not prompts:
            return
        for prompt in prompts:
            ids = self._task.prompts[prompt]
            self._held[prompt] = self._cache.new_sequence() if self._beginnings is None \
                else self._beginnings.begin(prompt, ids)
        sequences = [self._held[prompt] for prompt in prompts]
        output = self._decoder.prefill(
            self._cache, sequences, [self._task.prompts[prompt][sequence.length:] for prompt, sequence
                                     in zip(prompts, sequences)], hidden_states=self._on_states is not None)
        if self._on_states is not None:
            self._on_states(output.hidden_states)
        for i, prompt in enumerate(prompts):
            self._logits[prompt] = output.logits[i:i + 1]


def _stack(logits: list[Tensor]) -> Tensor:
    """(1, V) each -> (N, V), without a copy where they lie one after another."""
    first = logits[0]
    storage = first.untyped_storage().data_ptr()
    if all(row.untyped_storage().data_ptr() == storage and row.data_ptr() == first.data_ptr() + i * first.nbytes
           for i, row in enumerate(logits)):
        return first.as_strided((len(logits), first.shape[1]), (first.shape[1], 1))
    return torch.cat(logits)
