r"""The search for regular expressions in texts that come in pieces.

A text ends with the first character that makes any expression match. So the result does not depend on the pieces, and
is found again afterwards. What an expression sees at the end of a text is open while the text goes on: of one that
looks there ($, \b, a lookahead for what must not follow), a match counts once a character follows it.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

try:
    from re import _constants as opcodes
    from re import _parser as parser
except ImportError:  # they are private: without them nothing is known of an expression
    opcodes = parser = None

# Bytes that are no UTF-8 become one character each, so that characters can be counted back into bytes.
ERRORS = "surrogateescape"
_LONGEST = 10_000  # characters; a match that can be longer counts as one without a limit


@dataclass(frozen=True)
class Expression:
    """An expression, and what can be said of it without a text.

    looks_at_end: it may match a text and not match a longer one. reach: in a text that it does not match, the most
    characters before the end at which a match may begin that later text completes; None: any number.
    """

    pattern: re.Pattern[str]
    looks_at_end: bool
    reach: int | None

    @classmethod
    def of(cls, pattern: re.Pattern[str]) -> Expression:
        if parser is None:
            return cls(pattern, True, None)
        parsed = parser.parse(pattern.pattern, pattern.flags)
        nodes = list(_nodes(parsed))
        looks_ahead = any(op in (opcodes.ASSERT, opcodes.ASSERT_NOT) and value[0] > 0 for op, value in nodes)
        # Atomic groups take what they can and never give it back, so a longer text may end a match.
        looks_at_end = any(
            op in (opcodes.ATOMIC_GROUP, opcodes.POSSESSIVE_REPEAT)
            or op is opcodes.ASSERT_NOT and value[0] > 0
            or op is opcodes.AT and value not in (opcodes.AT_BEGINNING, opcodes.AT_BEGINNING_STRING)
            for op, value in nodes)
        longest = int(parsed.getwidth()[1])
        return cls(pattern, looks_at_end,
                   None if looks_ahead or longest > _LONGEST else max(0, longest - 1 + looks_at_end))

    def start_in(self, text: str, known: int, end: int) -> int | None:
        """Where the first match in text[:end] begins; there is none in text[:known]."""
        begin = 0 if self.reach is None else max(0, known - self.reach)
        match = self.pattern.search(text, begin, end)
        return None if match is None or self.looks_at_end and match.end() == end else match.start()

    def shortest(self, text: str, known: int) -> int | None:
        """The length of the shortest beginning of a text that has a match; there is none in text[:known]."""
        ends = range(known + 1, len(text) + 1)
        if self.looks_at_end:
            return next((end for end in ends if self.start_in(text, end - 1, end) is not None), None)
        if self.start_in(text, known, len(text)) is None:
            return None
        return ends[bisect_left(ends, True, key=lambda end: self.start_in(text, known, end) is not None)]


def first_match(expressions: Iterable[Expression], text: str, known: int = 0) -> int | None:
    """Where the first match begins in the shortest beginning of a text that has one; there is none in text[:known]."""
    lengths = [expression.shortest(text, known) for expression in expressions]
    shortest = min((length for length in lengths if length is not None), default=None)
    if shortest is None:
        return None
    return min(expression.start_in(text, shortest - 1 if expression.looks_at_end else known, shortest)
               for expression, length in zip(expressions, lengths) if length == shortest)


class ExpressionRows:
    """The rows of one call; methods as those of ops.TextStops."""

    def __init__(self, patterns: Iterable[re.Pattern[str]]):
        self._expressions = tuple(map(Expression.of, patterns))
        self._rows: dict[int, _Row] = {}

    def open(self, row: int, prompt: bytes) -> None:
        self._rows[row] = _Row(self._expressions)

    def feed(self, rows: list[int], pieces: list[bytes]) -> list[int]:
        if len(rows) != len(pieces):
            raise ValueError(f"feed: got {len(rows)} rows and {len(pieces)} pieces, expected one piece a row")
        for piece in pieces:
            if not isinstance(piece, bytes):
                raise TypeError(f"pieces: expected bytes, got {type(piece).__name__}")
        states = [self._at(row) for row in rows]
        return [row for row, state, piece in zip(rows, states, pieces) if state.push(piece)]

    def cut(self, row: int) -> int | None:
        return self._at(row).cut

    def pending(self, row: int) -> int:
        return self._at(row).pending()

    def close(self, row: int) -> None:
        self._rows.pop(row, None)

    def _at(self, row: int) -> _Row:
        if row not in self._rows:
            raise ValueError(f"row {row} is not open: call open first")
        return self._rows[row]


class _Row:
    def __init__(self, expressions: tuple[Expression, ...]):
        self._expressions = expressions
        self._decoder = codecs.getincrementaldecoder("utf-8")(ERRORS)
        self._text = ""
        self._length = 0  # bytes so far
        self.cut: int | None = None

    def push(self, piece: bytes) -> bool:
        self._length += len(piece)
        if self.cut is not None:
            return False
        new = self._decoder.decode(piece)
        if not new:
            return False
        known = len(self._text)
        self._text += new
        start = first_match(self._expressions, self._text, known)
        if start is None:
            return False
        self.cut = _num_bytes(self._text[:start])
        return True

    def pending(self) -> int:
        """What may begin a match; of expressions without a limit at least the last line."""
        if self.cut is not None:
            return self._length - self.cut
        begin = len(self._text)
        for expression in self._expressions:
            reach = expression.reach
            begin = min(begin, self._text.rfind("\n") + 1 if reach is None else max(0, len(self._text) - reach))
        return _num_bytes(self._text[begin:]) + len(self._decoder.getstate()[0])


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", ERRORS))


def _nodes(parsed: Any) -> Iterator[tuple[Any, Any]]:
    """(opcode, argument) of a parsed expression and of all expressions within."""
    if isinstance(parsed, parser.SubPattern):
        for op, argument in parsed.data:
            yield op, argument
            yield from _nodes(argument)
    elif isinstance(parsed, (list, tuple)):
        for each in parsed:
            yield from _nodes(each)
