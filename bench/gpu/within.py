"""A pytest plugin for stages that must end in time: python -m pytest -p bench.gpu.within --within 140 --spread ...

Tests that would begin later are skipped and say so; --spread runs the tests in an order that mixes all files.
"""

from __future__ import annotations

import random
import time

import pytest

LEFT_OUT = "left out: the time of this stage is spent"
_begin = time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--within", type=float, default=float("inf"), metavar="SECONDS")
    parser.addoption("--spread", action="store_true")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--spread"):
        random.Random(0).shuffle(items)


def pytest_runtest_setup(item):
    if time.monotonic() - _begin > item.config.getoption("--within"):
        pytest.skip(LEFT_OUT)
