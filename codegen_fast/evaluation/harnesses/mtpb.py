"""Judges a program of MTPB as the benchmark's script mtpb_exec.py does.

What it printed last, first argument, is compared with what is expected. An error after that, the end of the time
included, does not matter. A program whose last statement has a value and is no print has that value printed.
"""
from .shared import silence, start_clock, stop_clock, tell

# ---- sent from here on ----
import ast
import builtins

import numpy as np


def with_last_value_printed(program):
    """The program, its last statement's value printed; as it is where that cannot be done."""
    try:
        tree = ast.parse(program)
        last = tree.body[-1]
        called = getattr(getattr(getattr(last, "value", None), "func", None), "id", "")
        if called.startswith("print"):
            return program
        last.value = ast.Call(ast.Name("print", ast.Load()), [last.value], [])
        return ast.unparse(ast.fix_missing_locations(tree))
    except Exception:
        return program


def is_equivalent(got, expected):
    """As the script compares; raises where it does. Dictionaries and None it cannot compare, so those never pass."""
    kind = type(got)
    if kind.__name__ == "Series" and kind.__module__.partition(".")[0] == "pandas":
        got, expected = got.to_numpy(), np.array(expected)
    elif kind is list and got and type(got[0]) is tuple:
        got = [list(each) for each in got]
    elif kind in (np.uint8, np.int16, np.int32, np.int64):
        got = int(got)
    elif kind in (np.float16, np.float32, np.float64):
        got = float(got)
    elif kind is np.bool_:
        got = bool(got)
    elif kind is np.ndarray:
        got = got.tolist()

    if type(got) is not type(expected):
        if type(expected) is bool:  # bool("False") is True
            got, expected = str(got), str(expected)
        else:
            got = type(expected)(got)
    if type(got) in (str, int, set, list, bool, tuple):
        return got == expected
    if type(got) is float:
        return abs(got - expected) < 1e-6
    if type(got) is np.ndarray:
        return bool(np.allclose(got, expected))
    raise ValueError(f"values of type {type(got).__name__} cannot be compared")


def judge(program, expected, seconds, mark):
    silence()
    printed = []  # the arguments of the last print

    def print_(*args, **kwargs):
        printed[:] = [args]
        return print(*args, **kwargs)

    shown = ""
    try:
        start_clock(seconds)
        try:
            exec(with_last_value_printed(program), {"__name__": "__main__", "builtins": builtins, "print": print_})
        except (Exception, SystemExit) as error:  # the script's own process would end with SystemExit
            failure = f"failed: {type(error).__name__}: {error}"
        else:
            failure = "failed: nothing was printed"
        if not printed:
            stop_clock()
            tell(mark, False, failure)
        got = printed[0][0]
        passed = is_equivalent(got, expected)
        stop_clock()
        shown = str(got)
        tell(mark, bool(passed), "passed" if passed else "failed: another value was printed", shown)
    except BaseException as error:
        stop_clock()
        tell(mark, False, f"failed: {type(error).__name__}: {error}", shown)
