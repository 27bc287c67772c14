"""Short forms of what python -m reliability.numerics measures: 30 s. The bounds are asserted in there."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.numerics import denormals, drift, overflow, window, worst_case  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_denormal_numbers_whatever_the_callers_mode():
    assert denormals.measure(repeats=0)["compared"] > 0


def test_activations_beyond_float16():
    overflow.measure(tokens=16)


def test_a_context_filled_to_its_last_position():
    window.measure(sizes=(64,))


def test_errors_do_not_grow_with_the_position():
    drift.measure(tokens=150, kinds=(("float32", None), ("float16", None), ("float32", "int8"), ("float32", "int4")))


@pytest.mark.parametrize("kind", ["int8", "int8-g32", "int4"])
def test_the_worst_case_of_integer_products(kind):
    worst_case.measure(segments=(64, 1024), kinds=(kind,), tokens=(14,))


def test_accumulators_of_the_longest_row_do_not_saturate():
    """All codes ±127: of the same signs, of opposite ones, alternating."""
    worst_case.measure(segments=(64, 24576), kinds=("int8", "int8-g32"), rows=33, tokens=(3,), most_cases=3)
