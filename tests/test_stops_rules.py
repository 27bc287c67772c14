"""codegen_fast.stops: the script's truncation, regular expressions, stop strings, and what is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_fast import ops
from codegen_fast.stops import PieceText, StopStrings, as_stop_rule, truncate
from codegen_fast.stops.expressions import ExpressionRows
from codegen_fast.stops.rules import Literal, LiteralStop

SCRIPT_PIECES = ["print", "def", "#", "<|endoftext|>", "<|endof", "'''", '"""', "'", '"', "\n", "\n\n", "\r\n", " ",
                 "x", "é", " print", "prin", "de"]
script_texts = st.lists(st.sampled_from(SCRIPT_PIECES), max_size=40).map("".join)
LITERALS = ["a", "ab", "abc", "b", "bab", "ba", "caba", "cc", "\n", "\n\n", "a\n"]
# Of these a match counts once a character follows it.
AT_END = ["^b+$", "c$", r"\bb", r"b\b", "b(?!c)", r"ac\Z", "(?>a+b?)", "a++", "(?>a*)(?<!aaa)c"]
BOUNDED = ["ab", "^a", "c$", r"b\b", r"\n\n", "[^a]c{2,3}", "(?<=a)c", "(?<!a)b", "é", "(?s)a.{3}", "abc|b"]
EXPRESSIONS = sorted({*AT_END, *BOUNDED, "a+b", "a(?=bc)", "a.*c", "(?i)A\nB", "a(b|c)*a", "(a)?b(?(1)a|c)", "a*c"})
expression_texts = st.text("abc\n é", max_size=30)


def script_truncation(completion: str) -> str:
    """What the CodeGen sampling script keeps, written from its description."""
    for keyword in ("print", "def"):
        starts = [match.start() for match in re.finditer(f"^{keyword}", completion, re.MULTILINE)]
        completion = completion[:starts[1]] if len(starts) > 1 else completion
    ends = [re.search(pattern, completion, re.MULTILINE)
            for pattern in ("^#", re.escape("<|endoftext|>"), "^'''", '^"""', "\n\n\n")]
    return completion[:min((match.start() for match in ends if match), default=len(completion))]


def cut_at_once(text: str, patterns: list[tuple[str, bool, int]]) -> int:
    """Where the text is cut if all patterns (text, at a line's start?, occurrence) are searched for in all of it."""
    cuts = [len(text)]
    for literal, at_line_start, occurrence in patterns:
        expression = ("^" if at_line_start else "") + re.escape(literal)
        starts = [match.start() for match in re.finditer(expression, text, re.MULTILINE)]
        cuts += starts[occurrence - 1:occurrence]
    return min(cuts)


def split(data: bytes, draw) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def kept_of_pieces(rows, pieces: list[bytes]) -> bytes:
    """What is kept of a completion that comes in pieces. Checks that nothing could be shown that is cut off."""
    rows.open(0, b"")
    length = shown = 0
    for piece in pieces:
        length += len(piece)
        if rows.feed([0], [piece]):
            assert shown <= rows.cut(0) <= length and rows.pending(0) == length - rows.cut(0)
            break
        assert 0 <= rows.pending(0) <= length
        shown = max(shown, length - rows.pending(0))
    cut = rows.cut(0)
    assert cut is None or cut >= shown
    return b"".join(pieces)[:cut]


# The script's truncation.

@settings(deadline=None, max_examples=500)
@given(script_texts)
def test_truncation_is_the_scripts(text):
    expected = script_truncation(text)
    assert truncate(text, "truncation") == truncate(text, "truncation", prompt="x = '''\ndef f()") == expected


@settings(deadline=None, max_examples=300)
@given(script_texts, st.data())
def test_truncation_of_any_pieces(text, data):
    rule = as_stop_rule("truncation")
    rows = ops.TextStops.at_patterns(
        [(each.text.encode(), each.at_line_start, each.occurrence) for each in rule.literals])
    assert kept_of_pieces(rows, split(text.encode(), data.draw)) == script_truncation(text).encode()


def test_truncation_ends_a_row_as_soon_as_it_is_decided():
    rows = ops.TextStops.at_patterns([(b"print", True, 2), (b"\n\n\n", False, 1)])
    rows.open(0, b"")
    for piece in (b"print(1)", b"\n", b"\n", b"prin"):
        assert rows.feed([0], [piece]) == []
    assert rows.pending(0) == 4
    assert rows.feed([0], [b"ter"]) == [0] and rows.cut(0) == 10


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(st.sampled_from(LITERALS), st.booleans(), st.integers(1, 3)), min_size=1, max_size=5),
       st.text("abc\n", max_size=40), st.data())
def test_literals_cut_as_a_search_in_the_whole_text(patterns, text, data):
    rows = ops.TextStops.at_patterns([(literal.encode(), *others) for literal, *others in patterns])
    assert len(kept_of_pieces(rows, split(text.encode(), data.draw))) == cut_at_once(text, patterns)


def test_all_bytes_in_one_literal():
    everything = bytes(range(256))
    rows = ops.TextStops.at_patterns([(everything, False, 1)])
    assert kept_of_pieces(rows, [everything[128:], everything[:200], everything[200:]]) == everything[128:]


# Regular expressions.

@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(EXPRESSIONS), min_size=1, max_size=3), expression_texts, st.data())
def test_expressions_of_any_pieces(expressions, text, data):
    rows = ExpressionRows(as_stop_rule(expressions).expressions)
    rows.open(0, b"")
    pieces = split(text.encode(), data.draw)
    fed = b""
    for piece in pieces:
        fed += piece
        if rows.feed([0], [piece]):
            break
        assert 0 <= rows.pending(0) <= len(fed)
    kept = b"".join(pieces)[:rows.cut(0)]
    assert kept.decode() == truncate(text, expressions) == end_at_first_match(text, expressions)


def end_at_first_match(text: str, expressions: list[str]) -> str:
    """Expressions searched for in every beginning of the text, the slow way."""
    for end in range(len(text) + 1):
        starts = []
        for expression in expressions:
            match = re.compile(expression, re.MULTILINE).search(text[:end])
            if match and not (expression in AT_END and match.end() == end):
                starts.append(match.start())
        if starts:
            return text[:min(starts)]
    return text


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(BOUNDED), min_size=1, max_size=3), expression_texts, st.data())
def test_what_could_match_is_not_shown(expressions, text, data):
    kept_of_pieces(ExpressionRows(as_stop_rule(expressions).expressions), split(text.encode(), data.draw))


def test_expressions_of_broken_bytes():
    rows = ExpressionRows([re.compile("é|x")])
    assert kept_of_pieces(rows, [b"\xff", b"a\xc3", b"\xc3", b"\xa9z"]) == b"\xffa\xc3"
    rows.open(0, b"")
    assert rows.feed([0], [b"\xc3"]) == [] and rows.pending(0) == 1


def test_flags_are_kept_and_texts_are_multi_line():
    assert truncate("a\nB", [re.compile("^b", re.IGNORECASE)]) == "a\nB"
    assert truncate("a\nB", [re.compile("^b", re.IGNORECASE | re.MULTILINE)]) == truncate("a\nB", ["^B"]) == "a\n"


# Stop strings.

@pytest.mark.parametrize("pieces, ends", [
    (["st", "op"], [1]), (["stop"], [0]), (["st", "opera"], [1]), (["las", "topper"], [1]), (["s", "to", "pped"], [2]),
    (["stop", "at"], [0]), (["stop", "pstop", "x", "stopstop"], [0, 1, 3]), (["sto", "", "p"], []), (["x"], []),
])
def test_stop_strings_end_within_the_last_token(pieces, ends):
    rows = ops.TextStops.at_strings([b"stop"])
    rows.open(3, b"")
    assert [index for index, piece in enumerate(pieces) if rows.feed([3], [piece.encode()])] == ends
    assert rows.cut(3) is None and rows.pending(3) == 0
    rows.open(3, b"a stop, st")
    assert rows.feed([3], [b"op"]) == [3]


def test_stop_strings_are_checked():
    assert StopStrings("ab") == StopStrings(["ab"]) and StopStrings(("a", "b")).strings == ("a", "b")
    with pytest.raises(ValueError, match=r"stop_strings\[1\] is empty"):
        StopStrings(["a", ""])
    with pytest.raises(ValueError, match="stop_strings is empty"):
        StopStrings([])
    with pytest.raises(TypeError, match=r"stop_strings\[0\] must be a str, got 7"):
        StopStrings([7])


def test_too_long_literals_are_refused():
    longest = ["é" * 16384, "a" * 32768]
    assert StopStrings(longest).strings == tuple(longest)
    with pytest.raises(ValueError, match="stop_strings hold 65537 bytes in all, expected at most 65536"):
        StopStrings([*longest, "b"])
    with pytest.raises(ValueError, match="literals hold 65537 bytes in all, expected at most 65536"):
        LiteralStop(tuple(map(Literal, [*longest, "b"])))


# What is refused.

@pytest.mark.parametrize("value, error, message", [
    ("functions", ValueError, "stop='functions' is not allowed: expected 'function', 'statement', 'line', "),
    ("", ValueError, "a list of regular expressions"),
    ([], ValueError, "names no expression"),
    (["("], ValueError, r"stop\[0\] is '\(', which is no regular expression"),
    (["a", "b*"], ValueError, r"stop\[1\] is 'b\*', which matches an empty text"),
    (7, TypeError, "stop=7 is not allowed"),
    (re.compile("a"), TypeError, "a list of regular expressions"),
    ([7], TypeError, r"stop\[0\] is 7, expected a regular expression"),
    ([b"a"], TypeError, r"stop\[0\] is b'a'"),
    ([re.compile(b"a")], TypeError, "expected a regular expression"),
])
def test_refused(value, error, message):
    with pytest.raises(error, match=message):
        as_stop_rule(value)
    with pytest.raises(error, match=message):
        truncate("text", value)


def test_rules_pass_through():
    rule = as_stop_rule("function")
    assert as_stop_rule(rule) is rule
    assert as_stop_rule([re.compile("a", re.DOTALL), "b"]).expressions[0].flags & re.DOTALL


def test_truncate_takes_texts():
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        truncate(b"x", "line")
    with pytest.raises(TypeError, match="prompt must be a str, got list"):
        truncate("x", "line", prompt=["x"])
    assert truncate("\ud800\nx", "line") == "\ud800"


REFUSED_FEEDS = [
    ([1, 2], [b"x\n", b""], ValueError, "row 2 is not open"),
    ([1, 1], [b"x\n"], ValueError, "got 2 rows and 1 pieces"),
    ([1], [b"x\n", b""], ValueError, "got 1 rows and 2 pieces"),
    ([1, 1], [b"x\n", "y"], TypeError, "pieces: expected bytes, got str"),
]


@pytest.mark.parametrize("rows", [
    lambda: ops.TextStops.at_code("line"), lambda: ops.TextStops.at_patterns([(b"\n", False, 1)]),
    lambda: ops.TextStops.at_strings([b"\n"]), lambda: ExpressionRows([re.compile("\n")])])
def test_a_refused_feed_changes_nothing(rows):
    rows = rows()
    for given, pieces, error, message in REFUSED_FEEDS:
        rows.open(1, b"")
        with pytest.raises(error, match=message):
            rows.feed(given, pieces)
        assert rows.feed([1], [b"x\n"]) == [1] and rows.cut(1) in (1, None)


def test_wrong_calls_of_the_compiled_part():
    rows = ops.TextStops.at_code("line")
    for call in (lambda: rows.feed([1], [b""]), lambda: rows.cut(1), lambda: rows.pending(1)):
        with pytest.raises(ValueError, match="row 1 is not open"):
            call()
    rows.close(1)
    rows.open(1, b"")
    with pytest.raises(ValueError, match="got 1 rows and 2 pieces"):
        rows.feed([1], [b"", b""])
    with pytest.raises(TypeError, match="pieces: expected bytes, got str"):
        rows.feed([1], ["x"])
    with pytest.raises(ValueError, match="unit: expected 'function'"):
        ops.TextStops.at_code("module")
    with pytest.raises(ValueError, match="occurrence 0"):
        ops.TextStops.at_patterns([(b"a", False, 0)])
    for make in (lambda: ops.TextStops.at_strings([b"a", b""]), lambda: ops.TextStops.at_patterns([(b"", True, 1)])):
        with pytest.raises(ValueError, match="an empty text"):
            make()


# Pieces of text.

@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=20), st.text(max_size=12).map(str.encode)), st.data())
def test_pieces_of_text_are_the_text(data, draws):
    text = PieceText()
    pieces = [text.push(piece) for piece in split(data, draws.draw)]
    assert "".join(pieces) + text.finish() == data.decode("utf-8", "replace")


def test_pieces_of_text_split_no_character():
    text = PieceText()
    assert [text.push(bytes([byte])) for byte in "é漢🙂".encode()] == ["", "é", "", "", "漢", "", "", "", "🙂"]
    assert text.push(b"\xf0\x9f") == "" and text.finish() == "\ufffd"


def test_pieces_of_text_hold_back_and_cut():
    text = PieceText()
    assert text.push("aé".encode(), pending=1) == "a"
    assert text.push(b"bcd", pending=2) == "éb"
    assert text.push(b"e", pending=0) == "cde"
    assert text.push(b"fgh", pending=3) == ""
    assert text.finish(cut=8) == "f"
    assert PieceText().finish() == ""
