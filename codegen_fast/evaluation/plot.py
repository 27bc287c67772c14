"""pass@k over k, drawn with matplotlib."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .estimates import pass_at_k_of_problems
from .paper import HUMANEVAL_KS, PaperModel

_SUFFIXES = (".svg", ".png", ".pdf")


def require_drawable(path: str) -> None:
    """Before a run: ImportError without matplotlib, ValueError for another kind of file, OSError without its folder."""
    if Path(path).suffix not in _SUFFIXES:
        raise ValueError(f"--plot {path}: expected a file that ends with {', '.join(_SUFFIXES)}")
    if not Path(path).parent.is_dir():
        raise OSError(f"--plot {path} cannot be written: there is no folder {Path(path).parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("--plot needs the package matplotlib, which is not installed: pip install "
                          "'codegen_fast[eval]'") from None


def draw(path: str | os.PathLike, summary: dict[str, Any], model: str, paper: PaperModel | None) -> None:
    """A curve for every temperature of a run of HumanEval, and the paper's figures as points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for temperature, counts in summary["counts"].items():
        pairs = [tuple(pair) for pair in counts.values()]
        most = min(total for total, _ in pairs)
        ks = sorted({round(k) for k in np.geomspace(1, most, 40)})
        axes.plot(ks, [100 * pass_at_k_of_problems(pairs, k).mean() for k in ks], marker="." if most < 3 else "",
                  label=f"temperature {temperature}")
    if paper is not None:
        axes.plot(HUMANEVAL_KS, [paper.humaneval(k) for k in HUMANEVAL_KS], "k^", label=f"paper, {paper}")
    axes.set(xscale="log", xlabel="k", ylabel="pass@k, %", title=f"HumanEval: {model}", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise OSError(f"--plot {path} cannot be written: {error.strerror or error}") from None
