"""Programs that run in the sandbox, each around one generated program, and write a verdict as their last line.

They import the standard library alone (MTPB's also numpy, as its generated programs do) and are sent as text:
`source_of` joins the shared part, the judge of a benchmark and its arguments.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def source_of(benchmark: str, **arguments: Any) -> str:
    """A complete program: judge(**arguments) of benchmark.py. Arguments are what repr writes and Python reads."""
    shared = (_FOLDER / "shared.py").read_text()
    judge = (_FOLDER / f"{benchmark}.py").read_text().split("# ---- sent from here on ----\n", 1)[1]
    return f"{shared}\n{judge}\njudge(**{arguments!r})\n"
