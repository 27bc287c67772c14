"""Where drafts come from: the row itself, or a smaller model (floor 7)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .. import transfer
from ..cache import Sequence
from ..decoder import Decoder
from ..sampling import Sampling
from ..stepping import Row
from ..verification import Chooser, Verifier
from ..workplace import BoundRules
from .pacing import Acceptance

LOOKUP_TOKENS = 10  # of a draft, where nobody says how many
ASSISTANT_TOKENS = 20
LONGEST_NGRAM = 10
_CATCH_UP = 16  # tokens a row that an assistant takes in as steps do; more go through prefill
_TEMPLATES = 4  # prompts that an assistant keeps for more samples of them


class Track:
    """The tokens of a running row, as an array on the host; a draft may stand behind them."""

    def __init__(self, row: Row, slot: int, line: np.ndarray) -> None:
        self.row, self.slot = row, slot
        self._line = line  # (columns,) int32
        self.length = 0
        self._append(row.prompt)
        self.catch_up()

    @property
    def tokens(self) -> np.ndarray:
        """(n,) int32: the prompt and what followed."""
        return self._line[: self.length]

    def catch_up(self) -> list[int]:
        """Takes in the row's new tokens, and returns them."""
        new = self.row.tokens[self.length - len(self.row.prompt) :]
        self._append(new)
        return new

    def lay(self, draft: list[int], behind: int = 0) -> None:
        """Writes tokens of a draft, the first of them ``behind`` places behind the row's own."""
        begin = self.length + behind
        self._line[begin : begin + len(draft)] = draft

    def _append(self, tokens: Iterable[int]) -> None:
        self._line[self.length : self.length + len(tokens)] = tokens
        self.length += len(tokens)


class Drafter(Protocol):
    """Guesses the next tokens of rows. What it guesses changes no token, only how many calls they take."""

    most_tokens: int  # of a draft
    probed: bool  # whether it must draft now and then to learn whether drafts would be right again

    def seconds_a_token(self, step: float) -> float:
        """What drafting one token more takes, for all rows at once, where a plain step takes ``step``."""

    def outlook(self, track: Track, limit: int) -> tuple[int, float]:
        """How long a draft of at most ``limit`` tokens can be, and what share of its tokens will be right."""

    def prepare(self, tracks: list[Track]) -> None:
        """What is done once for a row and not for every draft, before ``draft`` of these rows; it is not timed."""

    def draft(self, tracks: list[Track], lengths: list[int]) -> list[list[int]]:
        """A draft of at most so many tokens for each row, right after its ``outlook``."""

    def verified(self, track: Track, draft: list[int], tokens: list[int]) -> None:
        """The draft was verified, and gave the row these tokens; the track has them."""

    def stepped(self, track: Track, tokens: list[int]) -> None:
        """A plain step gave these tokens; the track has them."""

    def forget(self, track: Track) -> None:
        """The row has ended."""

    def close(self) -> None:
        """Gives everything back."""


def find_continuation(tokens: np.ndarray, longest_ngram: int, count: int) -> tuple[list[int], int]:
    """What followed the last tokens where they stood before: at most ``count`` tokens, and how many tokens agree there.

    tokens (n,). Of all places where the last token stood before, those whose tokens before agree furthest back, up to
    ``longest_ngram`` tokens, and of these the last. A place so near that the end is reached goes round from there.
    """
    last = len(tokens) - 1
    places = np.flatnonzero(tokens[:last] == tokens[last]) if last > 0 else tokens[:0]
    if count < 1 or not len(places):
        return [], 0
    agreeing = 1
    while agreeing < longest_ngram and agreeing <= last:
        further = places[places >= agreeing]
        further = further[tokens[further - agreeing] == tokens[last - agreeing]]
        if not len(further):
            break
        places = further
        agreeing += 1
    begin = int(places[-1]) + 1
    found = tokens[begin : begin + count].tolist()
    while len(found) < count:  # a loop: what was found goes on with itself
        found += found[: count - len(found)]
    return found, agreeing


@dataclass
class _Guess:
    tokens: list[int]
    grade: int


class PromptLookup:
    """Drafts what followed the last tokens where they stood before in the row, prompt or not.

    A guess that is not verified is compared with the tokens that plain steps give, so that the share of right ones is
    known while speculation is off. It is kept apart by how many tokens agreed: two in common mean less than eight.
    """

    probed = False
    _EXPECTED = (0.2, 0.4, 0.6, 0.7, 0.8)  # for 1, 2, 3-4, 5-8 and more tokens in common, before anything is known

    def __init__(self, most_tokens: int | None = None, longest_ngram: int | None = None) -> None:
        self.most_tokens = most_tokens or LOOKUP_TOKENS
        self._longest_ngram = longest_ngram or LONGEST_NGRAM
        self._acceptances = [Acceptance(expected) for expected in self._EXPECTED]
        self._guesses: dict[int, _Guess] = {}  # by the row's index

    def seconds_a_token(self, step: float) -> float:
        return 0.0

    def outlook(self, track: Track, limit: int) -> tuple[int, float]:
        found, agreeing = find_continuation(track.tokens, self._longest_ngram, self.most_tokens)
        grade = min((max(1, agreeing) - 1).bit_length(), len(self._acceptances) - 1)
        guess = self._guesses[track.row.index] = _Guess(found, grade)
        return min(limit, len(guess.tokens)), self._acceptances[guess.grade].share

    def prepare(self, tracks: list[Track]) -> None:
        pass

    def draft(self, tracks: list[Track], lengths: list[int]) -> list[list[int]]:
        return [self._guesses[track.row.index].tokens[:n] for track, n in zip(tracks, lengths, strict=True)]

    def verified(self, track: Track, draft: list[int], tokens: list[int]) -> None:
        self._compare(track, tokens)

    def stepped(self, track: Track, tokens: list[int]) -> None:
        self._compare(track, tokens)

    def forget(self, track: Track) -> None:
        self._guesses.pop(track.row.index, None)

    def close(self) -> None:
        self._guesses.clear()

    def _compare(self, track: Track, tokens: list[int]) -> None:
        guess = self._guesses.get(track.row.index)
        if guess is None:
            return
        for token in tokens:
            if not guess.tokens:
                break
            right = guess.tokens[0] == token
            self._acceptances[guess.grade].note(right)
            guess.tokens = guess.tokens[1:] if right else []
        if not guess.tokens:
            del self._guesses[track.row.index]


class Assistant:
    """Drafts the tokens of a smaller model, chosen with the very draws of the large one: where both give a token much
    of their mass, a shared draw makes them choose the same.

    Args:
        decoder: the small model's, on any device; of the same vocabulary.
        verifier: the large model's, of which only the size is taken: until drafts are timed it says what they cost.
        history: (slots, columns) int32, the tokens of every track.
        confidence: a token of less probability than this ends its draft, without it.
    """

    probed = True

    def __init__(self, decoder: Decoder, verifier: Decoder, sampling: Sampling, rules: BoundRules | None,
                 history: np.ndarray, *, most_tokens: int | None = None,
                 confidence: float | None = None) -> None:  # fmt: skip
        slots, columns = history.shape
        self.most_tokens = most_tokens or ASSISTANT_TOKENS
        self._seconds_a_token = 0.0  # not yet measured
        self._share_of_step = decoder.weights.nbytes() / verifier.weights.nbytes()
        self._decoder = decoder
        self._eos = sampling.eos
        self._temperature = sampling.temperature or 1.0
        self._confidence = confidence or 0.0
        self._longest = min(columns, decoder.config.n_positions)
        self._cache = decoder.new_cache()
        self._verifier = Verifier(decoder, self._cache, slots * _CATCH_UP, slots, self._longest, logits="last")
        self._chooser = Chooser(decoder, sampling, rules, history, slots)
        self._acceptance = Acceptance(0.7)
        self._sequences: dict[int, Sequence] = {}  # by the row's index
        self._templates: dict[bytes, Sequence] = {}  # of prompts

    def seconds_a_token(self, step: float) -> float:
        return self._seconds_a_token or step * self._share_of_step

    def outlook(self, track: Track, limit: int) -> tuple[int, float]:
        return max(0, min(limit, self._longest - track.length)), self._acceptance.share

    def prepare(self, tracks: list[Track]) -> None:
        """Takes in prompts, and what else is new in these rows, but for a few tokens."""
        self._join([track for track in tracks if track.row.index not in self._sequences])
        behind = [(self._sequences[track.row.index], track) for track in tracks]
        behind = [(sequence, track) for sequence, track in behind if track.length - sequence.length > _CATCH_UP]
        if behind:
            ids = [torch.from_numpy(track.tokens[sequence.length : -1].astype(np.int64)) for sequence, track in behind]
            self._decoder.prefill(self._cache, [sequence for sequence, _ in behind], ids, logits="none")

    def draft(self, tracks: list[Track], lengths: list[int]) -> list[list[int]]:
        begin = time.perf_counter()
        drafts: list[list[int]] = [[] for _ in tracks]
        running = [i for i, length in enumerate(lengths) if length > 0]
        fed = [tracks[i].tokens[self._sequences[tracks[i].row.index].length :].tolist() for i in running]
        calls = 0
        while running:
            logits = self._verifier.verify([self._sequences[tracks[i].row.index] for i in running], fed)
            calls += 1
            shares = self._shares(logits) if self._confidence else None
            chosen = self._chooser.choose(
                logits, [tracks[i].row for i in running], [tracks[i].slot for i in running],
                [tracks[i].length + len(drafts[i]) for i in running],
            )  # fmt: skip
            going = []
            for place, (i, token) in enumerate(zip(running, chosen, strict=True)):
                unsure = shares is not None and shares[place, token] < self._confidence
                if token < 0 or token in self._eos or unsure:
                    continue
                tracks[i].lay([token], len(drafts[i]))
                drafts[i].append(token)
                if len(drafts[i]) < lengths[i]:
                    going.append(i)
            running, fed = going, [drafts[i][-1:] for i in going]
        if calls:
            each = (time.perf_counter() - begin) / calls
            self._seconds_a_token = 0.7 * self._seconds_a_token + 0.3 * each if self._seconds_a_token else each
        return drafts

    def verified(self, track: Track, draft: list[int], tokens: list[int]) -> None:
        for guess, token in zip(draft, tokens):
            self._acceptance.note(guess == token)
        # The last token is new to the assistant, or stands where a wrong one of its own did.
        sequence = self._sequences.get(track.row.index)
        if sequence is not None and sequence.length >= track.length:
            self._cache.crop(sequence, track.length - 1)

    def stepped(self, track: Track, tokens: list[int]) -> None:
        pass

    def forget(self, track: Track) -> None:
        sequence = self._sequences.pop(track.row.index, None)
        if sequence is not None:
            self._cache.release(sequence)

    def close(self) -> None:
        for sequence in (*self._sequences.values(), *self._templates.values()):
            self._cache.release(sequence)
        self._sequences, self._templates = {}, {}

    def _join(self, tracks: list[Track]) -> None:
        """Rows of which nothing is known yet; samples of one prompt share its pages."""
        keys = {track.row.index: track.row.prompt.tobytes() for track in tracks}
        fresh = {keys[t.row.index]: t.row.prompt for t in tracks if keys[t.row.index] not in self._templates}
        sequences = [self._cache.new_sequence() for _ in fresh]
        self._templates.update(zip(fresh, sequences))
        if fresh:
            ids = [torch.from_numpy(prompt.astype(np.int64)) for prompt in fresh.values()]
            self._decoder.prefill(self._cache, sequences, ids, logits="none")
        for track in tracks:
            self._sequences[track.row.index] = self._cache.fork(self._templates[keys[track.row.index]])
        for key in list(self._templates)[: max(0, len(self._templates) - _TEMPLATES)]:
            self._cache.release(self._templates.pop(key))

    def _shares(self, logits: torch.Tensor) -> np.ndarray:
        """(B, V): the probability of every token, before rules and filters."""
        # On this thread where the host can read it: torch's pool would hang in a forked child.
        values = logits.numpy() if transfer.is_host(logits.device) else logits.cpu().numpy()
        values = values / self._temperature
        values = np.exp(values - values.max(1, keepdims=True))
        return values / values.sum(1, keepdims=True)
