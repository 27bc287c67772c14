"""Where the sequences of a call begin, and where they go: past_key_values, and sessions."""
from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ..cache import PagedCache, Sequence
from ..decoder import Decoder
from ..past import PastKeyValues, require_past
from ..session import Session
from ..stepping import Row
from ..workplace import Workplace


class KeptRows:
    """The caches of all rows, for `past_key_values` of the result. `past`: what the caller continues, or None."""

    def __init__(self, decoder: Decoder, past: PastKeyValues | None):
        self._decoder, self._past = decoder, past
        self.cache: PagedCache | None = None if past is None else past.cache
        # One of our own is nobody else's before the call is over.
        self.lock = threading.RLock() if past is None else past.cache.lock
        self._rows: dict[int, Row] = {}

    def attach(self, place: Workplace) -> None:
        self.cache = place.cache
        place.lent = True

    def begin(self, prompt: int, ids: Tensor) -> Sequence:
        # A fork: Ctrl-C leaves the caller's as it was.
        return self.cache.new_sequence() if self._past is None else self.cache.fork(self._past.sequences[prompt])

    def keep(self, row: Row) -> None:
        self._rows[row.index] = row

    def settle(self, mask: Tensor, counts: list[int]) -> PastKeyValues:
        """The cache of all rows. mask (rows, n) bool of the prompts; counts: new tokens of each row, the last of which
        is not in the cache. The caller's own, where there is one and each of its rows went on as one, grows in place."""
        rows = [self._rows[index] for index in range(len(mask))]
        columns = mask.shape[1]
        whole = torch.zeros(len(rows), columns + max(counts) - 1, dtype=torch.bool, device="cpu")
        whole[:, :columns] = mask
        for i, (row, count) in enumerate(zip(rows, counts)):
            self.cache.crop(row.sequence, len(row.prompt) + count - 1)  # drafts may reach past what ended the row
            whole[i, columns:columns + count - 1] = True
        sequences = [row.sequence for row in rows]
        past = self._past
        if past is None or len(past.sequences) != len(rows):
            past = PastKeyValues(self._decoder, self.cache, sequences, whole)
            self._rows = {}
            return past
        before = past.sequences
        past.sequences, past.mask = sequences, whole
        self._rows = {}
        for sequence in before:
            self.cache.release(sequence)
        return past

    def abandon(self) -> None:
        """Gives back what was kept and not handed on."""
        for row in self._rows.values():
            self.cache.release(row.sequence)
        self._rows = {}


class OfSession:
    """Sequences of a session: prompts continue what it knows, and rows stay with it. Its lock is held meanwhile."""

    def __init__(self, session: Session):
        self._session = session
        self.cache: PagedCache | None = session.cache
        self.lock = session.lock

    def attach(self, place: Workplace) -> None:
        pass

    def begin(self, prompt: int, ids: Tensor) -> Sequence:
        return self._session.begin(ids)

    def keep(self, row: Row) -> None:
        # Drafts that were accepted may reach past what ended the row: those tokens are as good a beginning.
        ids = torch.tensor([*row.prompt.tolist(), *row.tokens], dtype=torch.long, device="cpu")
        self._session.keep(ids, row.sequence, len(row.prompt))

    def abandon(self) -> None:
        pass


def past_to_continue(past: Any, decoder: Decoder, mask: Tensor) -> PastKeyValues | None:
    """past_key_values that prompts of this mask (B, n) continue: TypeError or ValueError where they don't."""
    past = require_past(past, decoder, mask.shape[0])
    if past is None:
        return None
    columns = past.get_seq_length()
    if columns >= mask.shape[1]:
        raise ValueError(f"past_key_values holds {columns} columns and input_ids {mask.shape[1]}: pass all tokens so "
                         "far and at least one that is not in the cache")
    if not torch.equal(past.mask, mask[:, :columns]):
        raise ValueError(f"attention_mask differs in its first {columns} columns from the mask with which "
                         "past_key_values was made")
    return past
