"""codegen_fast.stops, stop="function", "statement" and "line": what is kept of code, however it comes in pieces."""

from __future__ import annotations

import argparse
import ast
import inspect
import json.decoder
import random
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_fast import ops
from codegen_fast.stops import truncate

HUMAN_EVAL = '''\
from typing import List

def helper(x):
    return x

def below_zero(operations: List[int]) -> bool:
    """ You're given a list (of deposits
    def is a word here, and # no comment.
    >>> below_zero([1, 2, 3])
    False
    """
'''
METHOD = "class A:\n    def f(self):\n        pass\n\n    def g(self, x):\n"

# (prompt, what is kept, what comes after that)
FUNCTION = [
    (HUMAN_EVAL, "    return 1\n", "\n\ndef g():\n    pass\n"),
    (HUMAN_EVAL, "    return 1\n", "\n# a comment\n"),
    (HUMAN_EVAL, "    return 1\n", "print(1)"),
    (HUMAN_EVAL, "    return 1\n", "\n  \n\t\n@decorated"),
    (HUMAN_EVAL, "    return 1\n", "\nif __name__ == '__main__':"),
    (HUMAN_EVAL, "    return 1\n", "\n'''text'''"),
    (HUMAN_EVAL, "", "\n\ndef g"),
    (HUMAN_EVAL, "    x = 1\n\n    # a comment\n\n    return x\n", "\nclass A"),
    (HUMAN_EVAL, "    def inner():\n        return 1\n    return inner()\n", "\n\nx"),
    (HUMAN_EVAL, "    x = '''\ndef g():\n# no comment\n'''\n    return x\n", "\nx"),
    (HUMAN_EVAL, '    x = r"""\\"""\n"""\n    return x\n', "\nx"),
    (HUMAN_EVAL, "    x = 'def' + \"#\" + f'{x}'\n", "y"),
    (HUMAN_EVAL, "    x = ''\n    y = '\\''\n    z = '\\\n  '\n", "y"),
    (HUMAN_EVAL, "    x = [\n1,\n# two\n2,\n(\n\n)]\n    return x\n", "\nx"),
    (HUMAN_EVAL, "    x = 1 + \\\n2\n    return x\n", "\nx"),
    (HUMAN_EVAL, "    x = 'an open quote\n", "def g"),
    (HUMAN_EVAL, "    x = 1)\n", "def g"),
    (HUMAN_EVAL, "\treturn 1\n\n        return 2\n", "\nx"),
    (HUMAN_EVAL, "    # it's a comment with (\n    pass\n", "x"),
    (HUMAN_EVAL, "    return 1\r\n", "\r\n\r\ndef g():"),
    (HUMAN_EVAL, "    return 1\r", "\r\rdef g():"),
    (HUMAN_EVAL, "    return 'é漢字'\n", "é"),
    ("def f(x):\n    \"\"\"Not closed, it's\n", "    yet.\ndef is a word\n\"\"\"\n    return 1\n", "\nx"),
    ("def f(x):\n    '''Not closed", " yet''' + ''\n    return 1\n", "\nx"),
    ("def f(x):\n    return (1", "\n+\n2)\n", "\nx"),
    ("def f(x):\n    return \\\n", "1\n", "x"),
    ("def f(x):\n    return", " 1\n", "x"),
    ("def f(", "x,\n y):\n    return 1\n", "\n\nx"),
    ("def f(x):", "\n    return 1\n", "\n\nx"),
    ("def f(x):", " return 1\n", "    y\n"),
    ("def f(x):", "  # why\n    return 1\n", "y"),
    ("async def f(x) ->", " int:\n    return 1\n", "y"),
    ("async", " def f(x):\n    return 1\n", "y"),
    ("x = 1\nde", "f f(x):\n    return 1\n", "y"),
    ("", "\nimport re\n\n\ndef f(x):\n    return 1\n", "y"),
    ("# write a function\n", "define = 1\n@decorated\nasync  def f():\n  return 1\n", "\n# next"),
    ("def f(): return 1\n", "def g(): return 2\n", "def h()"),
    ("def f():\n    return 1\nx = 2", "\ndef g():\n    return 2\n", "def h()"),
    ("def f():\n    return 1\n\n# Now g:\n", "def g():\n    return 2\n", "def h()"),
    ("def f():\n    a()\n#   b()\n    c()\n", "    d()\n", "def h()"),
    (METHOD, "        return x\n", "\n    def h(self):"),
    (METHOD, "        return x\n", "\n    # next"),
    (METHOD, "        return x\n", "\n    @property"),
    (METHOD, "        return x\n", "\nA()"),
    (METHOD + "        pass\n    ", "def h(self):\n        return 1\n", "\n    def i(self)"),
    ("def f():\n    def g():\n        return 1\n", "        return 2\n", "\n    return g"),
    ("def f():\n    def g():\n        return 1\n    ", "return g\n", "\nx"),
    ("def f():\n    def g():\n        return 1\n", "\n    return g\n", "\nx"),
    ("def f():\n    def g():\n        return 1\n\n    ", "    return 2\n", "\n    return g\n\nx"),
    ("def f():\n    def g():\n        retu", "rn 1\n", "\n    return g\n\nx"),
    ("def f():\n    def g():\n        return 1\n", "", "\nx"),
    ("def f():\n    x = 1\n    ", "return x\n", "\nx"),
    ("if x:\n\tdef f():\n\t\tpass\n", "\t\treturn 1\n         y\n", "        z"),
]
STATEMENT = [
    ("x", " = 1\n", "y = 2\n"),
    ("x = 1\n", "\n# first\ny = 2; z = 3  # both\n", "w = 4\n"),
    ("x = 1\n", "y = (2,\n\n3)\n", "w = 4\n"),
    ("x = 1\n", "y = '''2,\n\n3'''\n", "w = 4\n"),
    ("x = 1\n", "y = 2 + \\\n3\n", "w = 4\n"),
    ("x = 1\n", "y = 2\r\n", "w = 4\n"),
    ("x = 1\n", "y = 2\r", "w = 4\n"),
    ("f(", "1,\n2)\n", "w = 4\n"),
    ("def f(x):\n    ", "return x\n", "    y\n"),
    ("def f(x):\n    \"\"\"Doc", "\n    # text\n    \"\"\"\n", "    y\n"),
    ("if x:", "\n    y\n\n    z\n", "\nw"),
    ("if x:\n", "    y\n", "    z\n"),
    ("", "if x:\n    y\nelif z:\n    w\n\nelse:\n    v\n", "\n\nelsewhere = 1"),
    ("", "if x:\n    y\n# or\nelse:\n    v\n", "# done\nw"),
    ("", "if x:\n    y\n#   z\n    w\n", "# done\nw"),
    ("", "if x: y\nelif z: w\nelse: v\n", "u"),
    ("", "if x: y\n", "    z"),
    ("", "for x in y:\n    if x:\n        z\n    else:\n        w\nelse:\n    v\n", "\nif"),
    ("", "async for x in y:\n    z\nelse:\n    v\n", "\nw"),
    ("", "while x:\n    y\n", "\nwith z"),
    ("", "try:\n    x\nexcept A:\n    y\nexcept B: z\nelse:\n    w\nfinally:\n    v\n", "u"),
    ("", "with x:\n    y\n", "\n# done"),
    ("", "def f():\n    x\n    # y\n", "\n# done"),
    ("", "def f(): x\n", "else"),
    ("", "class A:\n    x = 1\n\n    def f(self):\n        pass\n", "\nA()"),
    ("", "match x:\n    case 1:\n        y\n    case 2: z\n", "w"),
    ("match x:\n    ", "case 1:\n        y\n    case 2:\n        z\n", "w"),
    ("", "match = 1\n", "    case"),
    ("", "@a\n@b(\n1)\n\n# why\ndef f():\n    x\n", "@c\n"),
    ("@a\n", "def f():\n    x\n", "@c\n"),
    ("for x in y:\n    z\n    ", "    if x: y\n", "    w"),
    ("if x:\n    y\n", "else:\n    z\n", "w"),
    ("", "  \n\n    x = 1\n", "    y"),
]
LINE = [
    ("x = ", "1", "\ny"),
    ("x = 1\n", "\n  \n\t\n  y ", "\nz"),
    ("x = 1\n    ", "y", "\nz"),
    ("x = 1", "", "\nz"),
    ("x = (", "1,", "\n2)"),
    ("x = '''", "1,", "\n2'''"),
    ("", "# why", "\nx"),
    ("x = 1\r", "\n y", "\r\nx"),
    ("x = 1\r\n  ", "\r\ny", "\r\nx"),
    ("", "é", "\nx"),
]
CASES = [(stop, *case) for stop, cases in (("function", FUNCTION), ("statement", STATEMENT), ("line", LINE))
         for case in cases]
FRAGMENTS = ["def f(x):", "async def g():", "class A:", "if x:", "elif y:", "else:", "try:", "except:", "return 1", "x",
             "@a", "# c", "print(1)", "'''", '"""', "'", '"', "(", ")", "[", "]", "{", "}", "\\", ":", "\n", "\n\n",
             "\r\n", "\r", "\f", " ", "    ", "        ", "\t", "é", "match x:", "case 1:", "=", ",", "else", "async"]
code = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)
stops = st.sampled_from(["function", "statement", "line"])


@pytest.mark.parametrize("stop, prompt, kept, rest", CASES)
def test_what_is_kept(stop, prompt, kept, rest):
    assert truncate(kept + rest, stop, prompt=prompt) == kept


@pytest.mark.parametrize("stop, prompt, completion", [
    ("function", HUMAN_EVAL, "    return 1\n\n\n"),  # blank lines may be followed by more of the function
    ("function", HUMAN_EVAL, "    x = (1,\ndef g"),
    ("function", HUMAN_EVAL, "    x = '''\ndef g"),
    ("function", "x = 1\n", "print(x)\n\nclass A:\n    x = 1\n\ny"),  # no function
    ("statement", "", "if x:\n    y\n\nel"),
    ("statement", "", "if x:\n    y\n# why\n"),
    ("statement", "", "@a\n\n"),
    ("statement", "", "\n# why\n"),
    ("line", "", "\n  \n"),
    ("line", "", "x = 1"),
])
def test_what_is_not_over(stop, prompt, completion):
    assert truncate(completion, stop, prompt=prompt) == completion


@pytest.mark.parametrize("stop, prompt, kept, rest", CASES)
def test_cases_byte_by_byte(stop, prompt, kept, rest):
    data = (kept + rest).encode()
    check_pieces(stop, prompt.encode(), [data[i:i + 1] for i in range(len(data))])


@settings(deadline=None, max_examples=400)
@given(stops, code, code, st.data())
def test_any_pieces_give_the_same(stop, prompt, completion, data):
    text = completion.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    check_pieces(stop, prompt.encode(), pieces)


@settings(deadline=None, max_examples=200)
@given(stops, code, code, code)
def test_what_is_kept_stays_when_more_comes(stop, prompt, completion, more):
    kept = truncate(completion, stop, prompt=prompt)
    if kept != completion:
        assert truncate(completion + more, stop, prompt=prompt) == kept
        # Cutting again what was cut changes nothing.
        assert truncate(kept, stop, prompt=prompt) == kept


def check_pieces(stop: str, prompt: bytes, pieces: list[bytes]) -> None:
    """Fed piece by piece the cut is that of the whole text, and lies behind all that could be shown before it."""
    whole = b"".join(pieces)
    expected = truncate(whole.decode("utf-8"), stop, prompt=prompt.decode("utf-8")).encode()
    rows = ops.TextStops.at_code(stop)
    rows.open(7, prompt)
    length = shown = 0
    for piece in pieces:
        ended = rows.feed([7], [piece])
        length += len(piece)
        if ended:
            assert ended == [7] and shown <= rows.cut(7) <= length
            assert rows.pending(7) == length - rows.cut(7)
            assert rows.feed([7], [b"\n\nx\nx\n"]) == []
            break
        assert rows.cut(7) is None and 0 <= rows.pending(7) <= length
        shown = max(shown, length - rows.pending(7))
    assert whole[:rows.cut(7)] == expected


# Real code, against Python's own parser.

@pytest.mark.parametrize("module", [argparse, ast, json.decoder, textwrap], ids=lambda module: module.__name__)
def test_functions_and_statements_of_real_code(module):
    source = inspect.getsource(module)
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    chance, compared = random.Random(1), 0
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno > node.lineno:
            compared += 1  # the prompt ends at a line of the function's body
            begin = starts[chance.choice(node.body).lineno - 1]
            if not holds_comment_at(lines, node):
                check_kept(source, begin, starts[node.end_lineno], "function")
    for node in chance.sample(nodes, 200 if len(nodes) > 200 else len(nodes)):
        begin = starts[node.lineno - 1] + node.col_offset
        if not getattr(node, "decorator_list", ()) and source[starts[node.lineno - 1]:begin].isspace() \
                and not holds_comment_at(lines, node):
            compared += 1  # the prompt ends within the statement's first word, or before it
            check_kept(source, begin + chance.randrange(3), starts[node.end_lineno], "statement")
    assert compared > 50


def holds_comment_at(lines: list[str], node: ast.stmt) -> bool:
    """Whether comments stand in a block no deeper than what begins it; there they end it, unlike for Python."""
    return any(line.lstrip().startswith("#") and len(line) - len(line.lstrip()) <= node.col_offset
               for line in lines[node.lineno:node.end_lineno])


def check_kept(source: str, begin: int, end: int, stop: str) -> None:
    """What is kept of source[begin:] ends at `end`, comments at the end of a block aside."""
    kept = truncate(source[begin:], stop, prompt=source[:begin])
    behind = source[end:begin + len(kept)].splitlines()
    assert source[begin:].startswith(kept) and begin + len(kept) >= end
    assert all(line.isspace() or not line or line.lstrip().startswith("#") for line in behind)
