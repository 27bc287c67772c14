"""Bytes as they come -> pieces of text that split no character."""

from __future__ import annotations

import codecs


class PieceText:
    """The text of a row. All that push and finish return, joined, is the text of the bytes that are kept.

    Bytes that are no UTF-8 become U+FFFD, as in the tokenizer's decode.
    """

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""  # not decoded yet
        self._given = 0   # bytes before that

    def push(self, data: bytes, pending: int = 0) -> str:
        """Take the next bytes; the last `pending` ones of all are held back (StopSearch.pending)."""
        self._held += data
        return self._give(max(0, len(self._held) - pending), final=False)

    def finish(self, cut: int | None = None) -> str:
        """The rest: of all bytes the first `cut` are kept (StopSearch.cut); None: all. What was given out stays."""
        end = len(self._held) if cut is None else min(len(self._held), max(0, cut - self._given))
        text = self._give(end, final=True)
        self._held = b""
        return text

    def _give(self, count: int, final: bool) -> str:
        text = self._decoder.decode(self._held[:count], final)
        self._held = self._held[count:]
        self._given += count
        return text
