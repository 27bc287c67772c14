"""The rows of one call under one rule; and the same for a whole text afterwards."""

from __future__ import annotations

from typing import Any

from .. import ops
from .expressions import Expression, ExpressionRows, first_match
from .rules import CodeStop, ExpressionStop, LiteralStop, StopRule, StopStrings, as_stop_rule
from .vocabulary import TokenBytes

_PASS = "surrogatepass"  # lone surrogates of a str survive the way to bytes and back


class StopSearch:
    """Decides for each row, token by token, whether its text is complete. Rows are any ints."""

    def __init__(self, rule: StopRule, vocabulary: TokenBytes):
        """rule: of as_stop_rule, or StopStrings."""
        self._rule, self._vocabulary = rule, vocabulary
        self._rows = _rows_under(rule)

    def open(self, row: int, prompt_ids: list[int]) -> None:
        """A row begins, or begins again. prompt_ids: its prompt without padding."""
        self._rows.open(row, self._prompt_bytes(prompt_ids))

    def feed(self, rows: list[int], tokens: list[int]) -> list[int]:
        """tokens[i] is the next one of rows[i]. Returns the rows whose text is complete with it.

        What comes after that is not looked at; but under StopStrings a row can be complete again with a later token.
        """
        return self._rows.feed(rows, self._vocabulary.pieces(tokens))

    def cut(self, row: int) -> int | None:
        """How many bytes of the completion are kept; None: all."""
        return self._rows.cut(row)

    def pending(self, row: int) -> int:
        """How many bytes at the end of the completion so far may still be cut off, and must not be shown yet."""
        return self._rows.pending(row)

    def close(self, row: int) -> None:
        """Forget a row; one that is not open is no error."""
        self._rows.close(row)

    def _prompt_bytes(self, prompt_ids: list[int]) -> bytes:
        if isinstance(self._rule, CodeStop):
            return self._vocabulary.join(prompt_ids)
        if isinstance(self._rule, StopStrings):
            longest = max(len(string.encode("utf-8", _PASS)) for string in self._rule.strings)
            return self._vocabulary.last_bytes(prompt_ids, longest - 1)
        return b""  # only the completion counts


def truncate(text: str, stop: Any, prompt: str = "") -> str:
    """A completion cut where `stop` ends it: what `generate(stop=...)` keeps of the same text.

    stop: as for generate; prompt: what the text continues. Raises as as_stop_rule, TypeError for what is no text.
    """
    for name, value in (("text", text), ("prompt", prompt)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, got {type(value).__name__}: {value!r:.80}")
    rule = as_stop_rule(stop)
    if isinstance(rule, ExpressionStop):
        cut = first_match(tuple(map(Expression.of, rule.expressions)), text)
        return text[:cut]
    rows = _rows_under(rule)
    data = text.encode("utf-8", _PASS)
    rows.open(0, prompt.encode("utf-8", _PASS))
    rows.feed([0], [data])
    return data[:rows.cut(0)].decode("utf-8", _PASS)


def _rows_under(rule: StopRule) -> ops.TextStops | ExpressionRows:
    if isinstance(rule, CodeStop):
        return ops.TextStops.at_code(rule.unit)
    if isinstance(rule, LiteralStop):
        return ops.TextStops.at_patterns([(each.text.encode(), each.at_line_start, each.occurrence)
                                          for each in rule.literals])
    if isinstance(rule, StopStrings):
        return ops.TextStops.at_strings([string.encode("utf-8", _PASS) for string in rule.strings])
    return ExpressionRows(rule.expressions)
