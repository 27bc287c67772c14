"""When a row ends: eos, text, criteria of the caller, time, length."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .columns import Columns


class TextSearch(Protocol):
    """Looks for stops in the text of every row; see codegen_fast.stops.StopSearch."""

    def open(self, row: int, prompt_ids: list[int]) -> None: ...
    def feed(self, rows: list[int], tokens: list[int]) -> list[int]: ...


@dataclass(frozen=True)
class Emitted:
    """New tokens: tokens[i] is the next one of row rows[i]; and the rows that end with them, and why."""

    rows: list[int]
    tokens: list[int]
    reasons: dict[int, str]


class Stops:
    """Decides after every token whether its row ends, and why: "eos", "stop", "criteria", "time" or "length"."""

    def __init__(self, *, eos: tuple[int, ...], steps: int, prompt_columns: int, searches: Iterable[TextSearch] = (),
                 seconds: float | None = None, criteria: Iterable[Callable[..., Any]] = (),
                 columns: Columns | None = None, scores: Callable[[], Any] = lambda: None):
        """columns: gets every token, for whoever looks at all of them; scores: criteria(columns.ids(), scores())."""
        self._eos, self._steps, self._prompt_columns = frozenset(eos), steps, prompt_columns
        self._searches = tuple(searches)
        self._seconds = seconds
        self._deadline: float | None = None  # from the first row on
        self._criteria = tuple(criteria)
        self._columns, self._scores = columns, scores
        self._counts: dict[int, int] = {}

    @property
    def are_outside(self) -> bool:
        """Whether rows may end by more than an eos token and their length."""
        return bool(self._searches or self._criteria or self._seconds is not None)

    @property
    def are_late(self) -> bool:
        """Whether the time is over that the rows have together."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def open(self, row: int, prompt: Tensor) -> None:
        """A row begins."""
        self._counts[row] = 0
        if self._deadline is None and self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds
        for search in self._searches:
            search.open(row, prompt.tolist())

    def after(self, rows: list[int], tokens: list[int]) -> Emitted:
        """tokens[i] is the next one of rows[i]; a row may come several times, and what follows its end is dropped."""
        emitted = Emitted([], [], {})
        while rows:  # rounds in which no row comes twice
            first, later = _first_of_each(rows, tokens, emitted.reasons)
            self._after_round(list(first), list(first.values()), emitted)
            rows, tokens = [row for row, _ in later], [token for _, token in later]
        return emitted

    def _after_round(self, rows: list[int], tokens: list[int], emitted: Emitted) -> None:
        emitted.rows.extend(rows)
        emitted.tokens.extend(tokens)
        if self._columns is not None:
            self._columns.append(rows, tokens)
        stopped = {row for search in self._searches for row in search.feed(rows, tokens)}
        by_criteria = self._by_criteria(self._columns.ids(), self._scores()).tolist() if self._criteria else None
        late = self.are_late
        for row, token in zip(rows, tokens):
            self._counts[row] += 1
            if token in self._eos:
                emitted.reasons[row] = "eos"
            elif row in stopped:
                emitted.reasons[row] = "stop"
            elif by_criteria is not None and by_criteria[row]:
                emitted.reasons[row] = "criteria"
            elif late:
                emitted.reasons[row] = "time"
            elif self._counts[row] == self._steps:
                emitted.reasons[row] = "length"

    def verdict(self, ids: Tensor, prompts: list[Tensor], scores: Any) -> Tensor:
        """(rows,) bool: which rows of ids (rows, columns) end with their last column by text, criteria or time.

        For rows that change places between steps: each is read from the end of its prompt on. prompts: one a row.
        """
        if self._deadline is None and self._seconds is not None:
            self._deadline = time.monotonic() + self._seconds
        done = self._by_criteria(ids, scores) if self._criteria else torch.zeros(len(ids), dtype=torch.bool)
        if self.are_late:
            done[:] = True
        rows = list(range(len(ids)))
        for search in self._searches:
            for row, prompt in zip(rows, prompts):
                search.open(row, prompt.tolist())
            stopped: list[int] = []
            for column in ids[:, self._prompt_columns:].T.tolist():
                stopped = search.feed(rows, column)
            done[stopped] = True
        return done.to(ids.device)

    def _by_criteria(self, ids: Tensor, scores: Any) -> Tensor:
        done = torch.zeros(len(ids), dtype=torch.bool, device="cpu")
        for criterion in self._criteria:
            verdict = criterion(ids, scores)
            if isinstance(verdict, bool):
                verdict = torch.tensor(verdict, device="cpu")
            if not isinstance(verdict, Tensor) or verdict.shape not in ((), done.shape) or verdict.is_floating_point():
                raise TypeError(f"stopping_criteria: {type(criterion).__name__} returned {_shown(verdict)}, expected a "
                                f"bool, or a bool tensor of shape ({len(ids)},)")
            done |= verdict.cpu().bool()
        return done


def _first_of_each(rows: list[int], tokens: list[int], ended: dict[int, str]
                   ) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """The first token of every row that has not ended, and the (row, token) after those."""
    first: dict[int, int] = {}
    later = []
    for row, token in zip(rows, tokens):
        if row in ended:
            continue
        if row in first:
            later.append((row, token))
        else:
            first[row] = token
    return first, later


def _shown(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
