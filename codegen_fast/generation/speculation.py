"""Speculative decoding: drafts of several tokens, verified in one call, with the tokens of plain decoding (floor 7).

Why the tokens are the same. A draw is a function of (seed, sample index, position), and the decode ops give a token
the same logits whatever else is in the call. So one call over the last token and a draft gives, for every position, the
very token that plain decoding would choose there if the draft is right so far. Tokens are taken up to the first that
differs from the draft, itself included; the cache forgets the rest.

How long drafts are follows from times that are measured here, and changes no token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..decoder import Decoder
from ..sampling import Sampling
from ..stepping import Row, SteppingBatch
from ..verification import Chooser, Verifier
from ..workplace import BoundRules, Workplace
from .drafters import Assistant, Drafter, PromptLookup, Track
from .pacing import FIRST_WAIT, LONGEST_WAIT, Brake, costs_of, draft_lengths

_MOST_DRAFTED = 64  # tokens of a call: its scratch is made for so many
_RECENT = 16  # calls after the last draft in which the next ones are still looked for at every step
_SELDOM = 8  # afterwards only after so many steps
_REMEASURE = 64  # calls after which a plain step is timed again
_PROBE_TOKENS = 2  # of a draft that is tried after a long while


@dataclass
class Report:
    """What speculation did so far; seconds are those inside the batch, the caller's work is not counted."""

    drafted: int = 0  # tokens that were verified
    accepted: int = 0  # of these
    tokens: int = 0  # that came out, the prompts' first ones not counted
    verify_calls: int = 0
    plain_calls: int = 0
    seconds: float = 0.0
    plain_seconds: float = 0.0  # the same tokens in plain steps, as the plain steps here were measured
    on: bool = False  # whether drafts pay at present

    @property
    def decode_calls(self) -> int:
        return self.verify_calls + self.plain_calls

    @property
    def acceptance(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.decode_calls if self.decode_calls else 0.0

    @property
    def speed_up(self) -> float:
        """Estimated, over plain decoding; 1 where nothing was measured."""
        return self.plain_seconds / self.seconds if self.seconds and self.plain_seconds else 1.0


@dataclass(frozen=True)
class Speculation:
    """Where drafts come from: of an assistant where one is given, else of the row itself.

    most_tokens: of a draft. fixed: drafts are always so long, whether it pays or not; else as long as it pays.
    """

    assistant: Decoder | None = None
    most_tokens: int | None = None
    longest_ngram: int | None = None
    confidence: float | None = None
    fixed: bool = False


class SpeculativeBatch(SteppingBatch):
    """A ``SteppingBatch`` that gives the same tokens in fewer calls.

    A step may give a row several tokens, in order; they come in rounds, each with a token for every row that has one
    more. Where drafts do not pay, its steps are plain ones.
    """

    def __init__(self, decoder: Decoder, place: Workplace, sampling: Sampling, max_new_tokens: int,
                 speculation: Speculation, *, rules: BoundRules | None = None,
                 on_end: Callable[[Row], None] | None = None, drafter: Drafter | None = None) -> None:  # fmt: skip
        """drafter: one of the caller's, in place of what ``speculation`` names."""
        super().__init__(decoder, place, sampling, max_new_tokens, rules=rules, on_end=on_end)
        self.report = Report()
        self._fixed = speculation.fixed
        self._costs = costs_of(decoder)
        self._tracks: dict[int, Track] = {}  # by the row's index
        self._history = np.zeros((place.rows, place.max_seq_len), dtype=np.int32)
        self._slots = list(range(place.rows))
        if drafter is None and speculation.assistant is not None:
            drafter = Assistant(speculation.assistant, decoder, sampling, rules, self._history,
                                most_tokens=speculation.most_tokens, confidence=speculation.confidence)  # fmt: skip
        self._drafter = drafter or PromptLookup(speculation.most_tokens, speculation.longest_ngram)
        size = place.rows + min(place.rows * self._drafter.most_tokens, _MOST_DRAFTED)
        self._verifier = Verifier(decoder, place.cache, size, place.rows, place.max_seq_len)
        self._chooser = Chooser(decoder, sampling, rules, self._history, size)
        self._since_draft = self._since_plain = 0  # calls
        self._wait = FIRST_WAIT
        self._brake = Brake()
        self._must_step = False  # a row allowed no token: a plain step says so

    def start(self, rows: list[Row], logits: torch.Tensor, sources: list[int]) -> tuple[list[int], list[int]]:
        self._drop_tracks()
        told = super().start(rows, logits, sources)
        for row in self._rows:
            if row.index not in self._tracks:
                slot = self._slots.pop()
                self._tracks[row.index] = Track(row, slot, self._history[slot])
        return told

    def step(self, *, hold: bool = False) -> tuple[list[int], list[int]]:
        begin = time.perf_counter()
        self._drop_tracks()
        running = len(self._rows)
        lengths = self._choose_lengths()
        if self.settled and any(lengths):
            tracks = [self._tracks[row.index] for row in self._rows]
            self._drafter.prepare([track for track, length in zip(tracks, lengths) if length])
            ready = time.perf_counter()
            told = self._speculate(tracks, lengths)
            plain, seconds = self._costs.plain(running), time.perf_counter() - ready
            worth = seconds if plain is None else len(told[0]) / running * plain
            self._brake.note(worth, seconds)
            seconds = time.perf_counter() - begin
            self._since_draft, self._since_plain = 0, self._since_plain + 1
            self.report.verify_calls += 1
        else:
            told, worth = self._step_plainly(running, hold=hold or any(lengths))
            seconds = time.perf_counter() - begin
            self._since_draft, self._since_plain = self._since_draft + 1, 0
            self.report.plain_calls += 1
        self.report.tokens += len(told[0])
        self.report.seconds += seconds
        self.report.plain_seconds += worth
        self.report.on = self._is_on
        return told

    def close(self) -> None:
        super().close()
        self._drafter.close()
        self._tracks.clear()

    @property
    def _is_on(self) -> bool:
        return self.report.verify_calls > 0 and self._since_draft < _RECENT

    def _drop_tracks(self) -> None:
        """Of rows that have ended."""
        if len(self._tracks) == len(self._rows):
            return
        running = {row.index for row in self._rows}
        for index in [index for index in self._tracks if index not in running]:
            track = self._tracks.pop(index)
            self._slots.append(track.slot)
            self._drafter.forget(track)

    def _choose_lengths(self) -> list[int]:
        """Tokens to draft for every running row; all 0 for a plain step."""
        drafter, costs, running = self._drafter, self._costs, len(self._rows)
        none = [0] * running
        seldom = self._since_draft >= _RECENT and self._since_draft % _SELDOM != 0
        if self._must_step or (not self._fixed and (self._brake.holds() or seldom)):
            return none
        outlooks = []
        for row in self._rows:
            # The token after a draft that is right needs no place in it.
            limit = min(drafter.most_tokens, self._max_new_tokens - len(row.tokens) - 1)
            outlooks.append(drafter.outlook(self._tracks[row.index], limit))
        limits, most = [limit for limit, _ in outlooks], self._verifier.tokens
        if self._fixed:
            return _within(limits, most - running)
        if not costs.knows_plain(running) or self._since_plain >= _REMEASURE * self._place.ahead:
            return none
        each = drafter.seconds_a_token(costs.plain(running))
        lengths = draft_lengths(costs, outlooks, each, most)
        if any(lengths):
            self._wait = FIRST_WAIT
        elif drafter.probed and self._since_draft >= self._wait:
            # Not where drafts would not pay if all were right.
            if any(draft_lengths(costs, [(limit, 1.0) for limit in limits], each, most)):
                lengths = _within([min(limit, _PROBE_TOKENS) for limit in limits], most - running)
            if self.settled:
                self._wait = min(2 * self._wait, LONGEST_WAIT)
        return lengths

    def _step_plainly(self, running: int, *, hold: bool) -> tuple[tuple[list[int], list[int]], float]:
        """A plain step, and the seconds it took."""
        self._must_step = False
        # Drafts need the last token, so no step is enqueued ahead where they are likely to come.
        in_time = not self._is_on or not self._costs.knows_plain(running)
        self._ahead = self._place.ahead if in_time else 1
        begin = time.perf_counter()
        told = super().step(hold=hold)
        seconds = time.perf_counter() - begin
        if self._ahead == self._place.ahead:
            self._costs.note_plain(running, seconds)
        for index in told[0]:
            track = self._tracks[index]
            self._drafter.stepped(track, track.catch_up())
        return told, seconds

    def _speculate(self, tracks: list[Track], lengths: list[int]) -> tuple[list[int], list[int]]:
        """A step that verifies drafts of at most so many tokens; tracks: of all running rows."""
        rows, cache, drafter = [track.row for track in tracks], self._place.cache, self._drafter
        drafts = [self._before_eos(draft) for draft in drafter.draft(tracks, lengths)]
        begin = time.perf_counter()
        for row, track, draft in zip(rows, tracks, drafts, strict=True):
            cache.crop(row.sequence, row.fed)  # plain steps take pages ahead
            track.lay(draft)
        self._stale = True
        fed = [[row.tokens[-1], *draft] for row, draft in zip(rows, drafts, strict=True)]
        logits = self._verifier.verify([row.sequence for row in rows], fed)
        places = [(track, i) for track, own in zip(tracks, fed) for i in range(len(own))]
        chosen = self._chooser.choose(
            logits, [track.row for track, _ in places], [track.slot for track, _ in places],
            [track.length + i for track, i in places],
        )  # fmt: skip

        news: list[list[int]] = []
        for row, track, draft in zip(rows, tracks, drafts):
            own, chosen = chosen[: len(draft) + 1], chosen[len(draft) + 1 :]
            right = next((i for i, token in enumerate(draft) if own[i] != token), len(draft))
            new = own[: right + 1]
            if new[-1] < 0:
                new.pop()
                self._must_step = True
            news.append(new)
            row.tokens += new
            self.report.drafted += len(draft)
            self.report.accepted += right
            ends = len(row.tokens) == self._max_new_tokens or (new and new[-1] in self._sampling.eos)
            if ends:
                self._ended.append(row)
            else:
                cache.crop(row.sequence, row.fed)
            track.catch_up()
            drafter.verified(track, draft, new)
        ended = {row.index for row in self._ended}
        self._rows = [row for row in self._rows if row.index not in ended]
        self._let_go(self._ended)
        self._costs.note_verify(len(places), time.perf_counter() - begin)
        longest = max(map(len, news))
        told = [(row.index, new[i]) for i in range(longest) for row, new in zip(rows, news) if i < len(new)]
        return [index for index, _ in told], [token for _, token in told]

    def _before_eos(self, draft: list[int]) -> list[int]:
        return draft[: next((i for i, token in enumerate(draft) if token in self._sampling.eos), len(draft))]


def _within(limits: list[int], most: int) -> list[int]:
    """Numbers up to these limits whose sum is at most ``most``: the limits are lowered alike."""
    level = max(limits)
    while sum(min(limit, level) for limit in limits) > most:
        level -= 1
    return [min(limit, level) for limit in limits]
