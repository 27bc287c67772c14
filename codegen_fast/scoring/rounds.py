"""Pairs of a prompt and a completion, scored in rounds that bound the memory (floor 7).

In a round prompts are computed once, and the completions of one go on from its pages. Only positions whose successors
are scored get logits, a bounded number of rows at a time.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..cache import Sequence
from ..chunked import LOGITS_ROWS, chunked
from ..decoder import Decoder
from .logprobs import log_probabilities
from .token_lists import long_tensor
from ..transfer import to_device

# Tokens whose keys and values are kept at once: those of one longest text.
BATCH_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class Score:
    """Log-probabilities (natural) of n tokens, each given all before it; tensors on the CPU.

    The alternatives at each position are the top_k most likely tokens, in falling order; None with top_k=0.
    """

    token_ids: Tensor                     # (n,) long
    token_logprobs: Tensor                # (n,) float32
    top_ids: Tensor | None = None         # (n, top_k) long
    top_logprobs: Tensor | None = None    # (n, top_k) float32

    @property
    def sum(self) -> float:
        """The log-probability of all tokens together."""
        return float(self.token_logprobs.double().sum())

    @property
    def mean(self) -> float:
        """The log-probability a token."""
        return self.sum / len(self)

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Pair:
    """Token ids: a prompt, not empty, and the completion that is scored, not empty."""

    prompt: tuple[int, ...]
    completion: list[int]


def score_pairs(decoder: Decoder, pairs: list[Pair], top_k: int, batch_tokens: int = BATCH_TOKENS) -> list[Score]:
    """A score a pair, in order. Equal prompts are computed once, wherever in the list they are.

    Memory beside the scores: keys and values of batch_tokens tokens (of one prompt with one completion where those are
    more), two (LOGITS_ROWS, V) float32, and the scratch of a prefill.
    """
    prompts: dict[tuple[int, ...], _Prompt] = {}
    entries = []
    for pair in pairs:
        n = len(pair.completion)
        alternatives = (torch.empty(n, top_k, dtype=torch.long, device="cpu"),
                        torch.empty(n, top_k, dtype=torch.float32, device="cpu")) if top_k else (None, None)
        entry = Score(long_tensor(pair.completion), torch.empty(n, dtype=torch.float32, device="cpu"), *alternatives)
        entries.append(entry)
        prompts.setdefault(pair.prompt, _Prompt(long_tensor(pair.prompt), [])).scores.append(entry)
    _Rounds(decoder, top_k).run(list(prompts.values()), batch_tokens)
    return entries


@dataclass(eq=False)
class _Prompt:
    """A prompt with the scores of its completions, to be filled in, and its place in the cache while it has one."""

    ids: Tensor
    scores: list[Score]
    sequence: Sequence | None = None


@dataclass(eq=False)
class _Run:
    """New tokens of a sequence. What follows ids[first + j] is token `place + j` of each of the scores."""

    sequence: Sequence
    ids: Tensor
    first: int
    place: int
    scores: list[Score]


@dataclass(frozen=True, eq=False)
class _Span:
    """Rows `row` ... of a chunk's last hidden states. What follows row + j is token `place + j` of each score."""

    scores: list[Score]
    row: int
    place: int
    count: int


class _Rounds:
    def __init__(self, decoder: Decoder, top_k: int):
        self._decoder, self._top_k = decoder, top_k
        self._cache = decoder.new_cache()  # of this call alone: whatever ends it gives the memory back
        self._logits: Tensor | None = None

    def run(self, prompts: list[_Prompt], batch_tokens: int) -> None:
        members: list[tuple[_Prompt, Score]] = []
        room = batch_tokens
        for prompt in prompts:
            counted = False
            for one in prompt.scores:
                cost = len(one) + (0 if counted else len(prompt.ids))
                if members and cost > room:
                    self._round(members)
                    members, room, cost = [], batch_tokens, len(one) + len(prompt.ids)
                members.append((prompt, one))
                room -= cost
                counted = True
        self._round(members)

    def _round(self, members: list[tuple[_Prompt, Score]]) -> None:
        cache = self._cache
        cache.grow_to(cache.pages_in_use + sum(
            cache.pages_for(len(one)) + 1 + (cache.pages_for(len(prompt.ids)) if one is prompt.scores[0] else 0)
            for prompt, one in members))
        runs = []
        for prompt, one in members:
            if prompt.sequence is None:
                prompt.sequence = cache.new_sequence()
                alone = len(prompt.scores) == 1  # then all in one go
                ids = torch.cat([prompt.ids, one.token_ids[:-1]]) if alone else prompt.ids
                runs.append(_Run(prompt.sequence, ids, len(prompt.ids) - 1, 0, prompt.scores))
        self._compute(runs)

        runs, done = [], []
        for prompt, one in members:
            last = one is prompt.scores[-1]
            sequence = prompt.sequence if last else cache.fork(prompt.sequence)
            done.append(sequence)
            if len(prompt.scores) > 1 and len(one) > 1:
                runs.append(_Run(sequence, one.token_ids[:-1], 0, 1, [one]))
        self._compute(runs)
        for sequence in done:
            cache.release(sequence)

    def _compute(self, runs: list[_Run]) -> None:
        """Appends the runs' tokens and fills in what follows from them."""
        if not runs:
            return
        passes = chunked(self._decoder, self._cache, [run.sequence for run in runs], [run.ids for run in runs])
        for pieces, x, workspace in passes:
            spans = []
            at = 0
            for i, begin, end in pieces:
                run = runs[i]
                first = max(begin, run.first)
                if first < end:
                    spans.append(_Span(run.scores, at + first - begin, run.place + first - run.first, end - first))
                at += end - begin
            for block in _blocks(spans, LOGITS_ROWS):
                self._read(x, workspace, block)

    def _read(self, x: Tensor, workspace: Tensor, spans: list[_Span]) -> None:
        """Fills in the scores that follow from these rows of x, at most LOGITS_ROWS."""
        decoder, device = self._decoder, self._decoder.device
        x_rows = np.concatenate([np.arange(span.row, span.row + span.count, dtype=np.int32) for span in spans])
        if self._logits is None or len(self._logits) < len(x_rows):
            self._logits = torch.empty(len(x_rows), decoder.config.vocab_size, dtype=torch.float32, device=device)
        logits = self._logits[:len(x_rows)]
        decoder.run_lm_head(logits, x, to_device(x_rows, device), False, workspace)

        # A row of logits is read once by every score: by many where their prompt's last token gives it.
        ends = np.cumsum([span.count for span in spans]).tolist()
        reads = [(one, span, end) for span, end in zip(spans, ends) for one in span.scores]
        rows = np.concatenate([np.arange(end - span.count, end) for _, span, end in reads])
        targets = torch.cat([one.token_ids[span.place:span.place + span.count] for one, span, _ in reads])
        own, top_ids, top_logprobs = (part.cpu() for part in log_probabilities(
            logits, to_device(targets, device), self._top_k, to_device(rows, device, torch.long)))
        at = 0
        for one, span, end in reads:
            places = slice(span.place, span.place + span.count)
            one.token_logprobs[places] = own[at:at + span.count]
            at += span.count
            if self._top_k:
                one.top_ids[places] = top_ids[end - span.count:end]
                one.top_logprobs[places] = top_logprobs[end - span.count:end]


def _blocks(spans: list[_Span], size: int) -> Iterator[list[_Span]]:
    """The same rows in lists of at most `size`."""
    block: list[_Span] = []
    room = size
    for span in spans:
        done = 0
        while done < span.count:
            count = min(room, span.count - done)
            block.append(_Span(span.scores, span.row + done, span.place + done, count))
            done, room = done + count, room - count
            if room == 0:
                yield block
                block, room = [], size
    if block:
        yield block
