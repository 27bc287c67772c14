r"""What ends a text.

"function"    the function that the prompt's end is in, else the first one of the completion: it is over where a line
              begins, outside strings and brackets, that is indented no deeper than its `def`. Kept: all lines before,
              without the blank ones at the end. csrc/stops/code_stops.h says how the function is found.
"statement"   the statement that the prompt's end is in, else the first one of the completion: a logical line, with the
              block and the clauses (elif, else, except, finally, case) that belong to it. Kept: its whole lines.
"line"        the line that the prompt's end is in, else the first one of the completion that is not blank. Kept: the
              text before its line break.
"truncation"  what the CodeGen sampling script cuts off a completion, with the same result: from the second `^print`,
              from the second `^def` and from the first of `^#`, `<|endoftext|>`, `^'''`, `^\"\"\"` and three newlines.
expressions   a list of regular expressions (texts are compiled with re.MULTILINE), searched for in the completion. The
              text ends with the character that makes any of them match, and is cut where the first match begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

CODE_UNITS = ("function", "statement", "line")
TRUNCATION = "truncation"
_MOST_BYTES = 65536  # of all literals of a rule: csrc/stops/automaton.h says what a byte costs
_ALLOWED = "expected 'function', 'statement', 'line', 'truncation' or a list of regular expressions"


def _require_few_bytes(name: str, texts: Sequence[str]) -> None:
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size > _MOST_BYTES:
        raise ValueError(f"{name} hold {size} bytes in all, expected at most {_MOST_BYTES}")


@dataclass(frozen=True)
class CodeStop:
    """The end of a piece of Python; unit: one of CODE_UNITS."""

    unit: str


@dataclass(frozen=True)
class Literal:
    """A text at which a completion is cut; at_line_start: as ^ in multi-line mode; occurrence: counted from 1."""

    text: str
    at_line_start: bool = False
    occurrence: int = 1


@dataclass(frozen=True)
class LiteralStop:
    """The first of some literals."""

    literals: tuple[Literal, ...]

    def __post_init__(self):
        _require_few_bytes("literals", [each.text for each in self.literals])


@dataclass(frozen=True)
class ExpressionStop:
    """The first match of any of the regular expressions."""

    expressions: tuple[re.Pattern[str], ...]


@dataclass(frozen=True, init=False)
class StopStrings:
    """transformers' stop_strings: a row ends with the token that completes one of them; nothing is cut off.

    A string may begin in the prompt, and the token that completes it may go on behind it. Compared are bytes.
    """

    strings: tuple[str, ...]

    def __init__(self, strings: str | Sequence[str]):
        """Raises TypeError for what is no text, ValueError for empty texts, an empty list and more than 64 KiB."""
        strings = (strings,) if isinstance(strings, str) else tuple(strings)
        for index, string in enumerate(strings):
            if not isinstance(string, str):
                raise TypeError(f"stop_strings[{index}] must be a str, got {string!r}")
            if not string:
                raise ValueError(f"stop_strings[{index}] is empty: every text would end at once")
        if not strings:
            raise ValueError("stop_strings is empty: pass None for no stop")
        _require_few_bytes("stop_strings", strings)
        object.__setattr__(self, "strings", strings)


StopRule: TypeAlias = CodeStop | LiteralStop | ExpressionStop | StopStrings

SCRIPT_TRUNCATION = LiteralStop((
    Literal("print", at_line_start=True, occurrence=2), Literal("def", at_line_start=True, occurrence=2),
    Literal("#", at_line_start=True), Literal("<|endoftext|>"), Literal("'''", at_line_start=True),
    Literal('"""', at_line_start=True), Literal("\n\n\n")))


def as_stop_rule(value: object) -> StopRule:
    """The rule that a user's `stop=` names.

    Raises ValueError for other names, for no expressions, and for an expression that is none or matches an empty text;
    TypeError for other types.
    """
    if isinstance(value, StopRule):
        return value
    if isinstance(value, str):
        if value in CODE_UNITS:
            return CodeStop(value)
        if value == TRUNCATION:
            return SCRIPT_TRUNCATION
        raise ValueError(f"stop={value!r} is not allowed: {_ALLOWED}, such as [{value!r}]")
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"stop={value!r} is not allowed: {_ALLOWED}")
    if not value:
        raise ValueError(f"stop={value!r} names no expression: {_ALLOWED}, or None for no stop")
    return ExpressionStop(tuple(_expression(each, index) for index, each in enumerate(value)))


def _expression(value: object, index: int) -> re.Pattern[str]:
    if isinstance(value, str):
        try:
            value = re.compile(value, re.MULTILINE)
        except re.error as error:
            raise ValueError(f"stop[{index}] is {value!r}, which is no regular expression: {error}") from error
    if not isinstance(value, re.Pattern) or not isinstance(value.pattern, str):
        raise TypeError(f"stop[{index}] is {value!r}, expected a regular expression: a str, or a compiled one over str")
    if value.search(""):
        raise ValueError(f"stop[{index}] is {value.pattern!r}, which matches an empty text: rows would end at once")
    return value
