"""A module of the checkout in a process of its own, with the package that this process has: installed, or in the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import codegen_fast

ROOT = Path(__file__).parents[1]


def run_module(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """subprocess.run of python -m `name` arguments."""
    places = [str(Path(codegen_fast.__file__).parents[1]), str(ROOT)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.run([sys.executable, "-m", name, *arguments], env=environment, **options)
