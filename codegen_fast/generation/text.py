"""The text of a generation, piece by piece: iterators for a caller's own loop, and for asyncio."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ..memory import named_where_full
from ..side_thread import Outcome, SideThread
from ..stops import PieceText
from .call import Generation


@dataclass(frozen=True)
class Piece:
    """New text of one row. The pieces of a row, one after another, are its completion.

    finish_reason: None, or in the row's last piece "eos", "stop", "criteria", "time" or "length".
    token_ids: the tokens that have come since the row's last piece.
    """

    text: str
    row: int
    finish_reason: str | None
    token_ids: tuple[int, ...]


def pieces(generation: Generation, device: torch.device, cancelled: Callable[[], bool] = lambda: False
           ) -> Iterator[Piece]:
    """Runs a generation. It stops at the next token when the iterator is closed, or `cancelled` says so."""
    texts = [_RowText(generation, row) for row in range(len(generation.rows))]
    with named_where_full(device), closing(generation.events()) as events:
        for emitted in events:
            for row, token in zip(emitted.rows, emitted.tokens):
                texts[row].push(token)
            for row in dict.fromkeys([*emitted.rows, *emitted.reasons]):
                piece = texts[row].take(emitted.reasons.get(row))
                if piece is not None:
                    yield piece
            if cancelled():
                return


async def pieces_async(generation: Generation, device: torch.device) -> AsyncIterator[Piece]:
    """`pieces`, made in a thread of its own."""
    loop, stopped = asyncio.get_running_loop(), False
    iterator = pieces(generation, device, lambda: stopped)
    worker = SideThread("codegen_fast-stream")
    try:
        while (piece := await _asked(loop, worker, next, iterator, None)) is not None:
            yield piece
    finally:
        stopped = True
        # After the step that may be under way there; then all memory is given back.
        closed = _asked(loop, worker, iterator.close)
        worker.end()
        await asyncio.shield(closed)


def _asked(loop: asyncio.AbstractEventLoop, worker: SideThread, function: Callable[..., Any],
           *arguments: Any) -> asyncio.Future[Any]:  # fmt: skip
    """What a call in the worker returns or raises, in the event loop."""
    future = loop.create_future()

    def settle(outcome: Outcome) -> None:
        value, error = outcome
        with suppress(asyncio.InvalidStateError):  # cancelled
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def take(outcome: Outcome) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(settle, outcome)

    worker.deliver(take, function, *arguments)
    return future


class _RowText:
    """The text of a row while it comes: whole characters, and nothing that a stop may still cut off."""

    def __init__(self, generation: Generation, row: int):
        self._generation, self._row = generation, row
        self._text = PieceText()
        self._data = b""  # of the tokens below
        self._tokens: list[int] = []  # since the last piece

    def push(self, token: int) -> None:
        self._tokens.append(token)
        if token not in self._generation.eos_token_ids:
            self._data += self._generation.vocabulary[token]

    def take(self, reason: str | None) -> Piece | None:
        """What can be given out now; None: nothing."""
        search = self._generation.cut
        data, self._data = self._data, b""
        text = self._text.push(data, search.pending(self._row) if search is not None else 0)
        if reason is not None:
            text += self._text.finish(search.cut(self._row) if search is not None else None)
        if not text and reason is None:
            return None
        tokens, self._tokens = tuple(self._tokens), []
        return Piece(text, self._row, reason, tokens)
