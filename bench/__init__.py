"""Benchmarks. They share the table of cases with the tests: ``import cases`` finds tests/cases.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
