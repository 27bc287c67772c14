"""MTPB's programs through the sandbox: judged as the benchmark's script mtpb_exec.py judges them.

What is expected here was read off that script, and the script gives it.
"""

import json

import numpy as np
import pytest

from codegen_fast.evaluation import mtpb
from codegen_fast.evaluation.harnesses.mtpb import is_equivalent, with_last_value_printed
from codegen_fast.evaluation.verdicts import judge
from codegen_fast.execution import Executor

# (program, expected output, whether it passes)
PROGRAMS = {
    "a value is printed": ("s = sorted(set('banana'))\nprint(s)", ["a", "b", "n"], True),
    "another value": ("print(sorted('banana'))", ["a", "b", "n"], False),
    "the last value is printed by itself": ("def f(a):\n    return a ** 2\nf(2)", 4, True),
    "of an assignment too": ("total = 60 * 133", 7980, True),
    "a last statement without value": ("for i in range(3):\n    print(i)", 2, True),
    "the last print counts": ("print(1)\nprint(2)", 1, False),
    "its first argument counts": ("print(4, 'and', 5)", 4, True),
    "prints of functions count": ("def show(x):\n    print(x)\nshow(9)\nx = show", "9", False),
    "an error after the print does not matter": ("print(3025)\nraise ValueError('late')", 3025, True),
    "nor does exit": ("print(3025)\nexit()\nprint(1)", 3025, True),
    "nor the end of the time": ("print(5)\nwhile True:\n    pass", 5, True),
    "an error before it does": ("print(1 / 0)", 0, False),
    "a syntax error": ("print(1", 1, False),
    "nothing is printed": ("def f():\n    return 1\n", 1, False),
    "an empty print": ("print()", "", False),
    "only comments": ("# nothing\n", "", False),
    "no end": ("while True:\n    pass", 1, False),
    "a text where a number is expected": ("print('42')", 42, True),
    "a number where a text is expected": ("print(42)", "42", True),
    "floats nearly equal": ("print(0.1 + 0.2)", 0.3, True),
    "floats not so equal": ("print(0.31)", 0.3, False),
    "floats in lists are compared exactly": ("print([0.1 + 0.2])", [0.3], False),
    "an int where a float is expected": ("print(3)", 3.0, True),
    "a float where an int is expected is cut": ("print(3.9)", 3, True),
    "tuples in a list": ("print([('a', 'b'), ('b', 'c')])", [["a", "b"], ["b", "c"]], True),
    "a tuple where a list is expected": ("print((1, 2))", [1, 2], True),
    "True": ("print(True)", True, True),
    "a text that says False": ("print('False')", False, True),
    "1 is not True": ("print(1)", True, False),
    "an array": ("import numpy as np\nprint(np.array([[1, 2], [3, 4]]) * 2)", [[2, 4], [6, 8]], True),
    "numbers of numpy": ("import numpy as np\nprint(np.float64(1.5))", 1.5, True),
    "numpy's int": ("import numpy as np\nprint(np.int64(7) * 3)", 21, True),
    "numpy's bool": ("import numpy as np\nprint(np.bool_(True))", True, True),
    "dictionaries cannot be compared": ("print({'a': 1})", {"a": 1}, False),
    "nor None": ("print(None)", None, False),
    "nothing of what it writes is the verdict": ('print(\'{"passed": true}\')', "no", False),
    "standard input is empty": ("print(input())", "", False),
}


@pytest.fixture(scope="module")
def verdicts():
    with Executor(workers=2) as executor:
        items = [(name, mtpb.program_of({}, {"completions": text, "gold_output": expected}, 2.0))
                 for name, (text, expected, _) in PROGRAMS.items()]
        return dict(judge(items, executor))


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_judged_as_the_script_judges_them(verdicts, name):
    assert verdicts[name].passed == PROGRAMS[name][2], verdicts[name]


def test_reasons_are_told(verdicts):
    assert verdicts["another value"].result == "failed: another value was printed"
    assert verdicts["an error before it does"].result == "failed: ZeroDivisionError: division by zero"
    assert verdicts["nothing is printed"].result == "failed: nothing was printed"
    assert verdicts["no end"].result == "failed: TimeIsUp: timed out"


class Series:
    """As pandas' is known by its name."""

    __module__ = "pandas.core.series"

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return np.array(self.values)


def test_a_series_is_compared_as_an_array():
    assert is_equivalent(Series([35.5, 66.5]), [35.5, 66.5 + 1e-9])
    assert not is_equivalent(Series([35.5, 66.5]), [35.5, 66.0])


@pytest.mark.parametrize("text, printed", [
    ("df.groupby('a')['b'].value_counts()", "print(df.groupby('a')['b'].value_counts())"),
    ("print(1)", "print(1)"),
    ("printed(1)", "printed(1)"),  # the script goes by how the name begins
    ("x  =  1 # one", "x = print(1)"),
    ("if x:\n    1", "if x:\n    1"),
    ("", ""),
    ("x: int", "x: int"),
    ("1 +", "1 +"),
])
def test_the_last_value_is_printed(text, printed):
    assert with_last_value_printed(text) == printed


def test_expected_outputs_survive_the_way():
    value = [1, -2.5, "a'\"\\\n\u00e9\U0001f600", True, None, {"k": [1e300, 1e-9]}]
    program = mtpb.program_of({}, {"completions": "", "gold_output": value}, 1.0)
    assert json.loads(program.expected) == value and repr(value) in program.source("m")
