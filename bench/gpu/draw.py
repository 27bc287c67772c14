"""Plots from the JSON files of a GPU: tokens a second against peers and the limit, and the roofline of the kernels.

    python -m bench.gpu.draw [FOLDER]    # writes gpu-<machine>-*.svg beside them; needs matplotlib
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu import results
from bench.gpu.gates import OURS, chosen, latest, seconds

MODELS = ("350M", "2B", "6B", "16B")
INK, PAPER = "#24292f", "white"
COLORS = {f"{OURS} float16": "#1a7f64", f"{OURS} int8": "#0b4f8a", "transformers eager": "#b0b7bf",
          "transformers compiled": "#c2703d"}  # fmt: skip


def series(row: dict[str, Any]) -> str | None:
    """What a row of a decode result is drawn as."""
    if row["engine"] == OURS:
        return f"{OURS} {row['kind']}"
    return next((name for name in COLORS if row["engine"].startswith(name) and name.startswith("transformers")), None)


def tokens_a_second(found: list[dict[str, Any]], axes, batch: int = 1, context: int = 512) -> int:
    """A point for every engine of every model; a line above ours where reading the bytes alone would end. Returns how
    many points."""
    points = 0
    here = [(model, latest(found, f"decode-{model}")) for model in MODELS]
    here = [(model, result) for model, result in here if result]
    labelled: set[str] = set()

    def once(label: str) -> str | None:
        """For the legend: the label at its first use."""
        first = label not in labelled
        labelled.add(label)
        return label if first else None

    for x, (_, result) in enumerate(here):
        best: dict[str, dict[str, Any]] = {}
        for row in chosen(result["rows"], batch=batch, context=context):
            name = series(row)
            if name and (name not in best or seconds(row) < seconds(best[name])):
                best[name] = row
        for i, name in enumerate(COLORS):
            if name not in best:
                continue
            row, at = best[name], x + (i - 1.5) * 0.2
            rate = batch / seconds(row)
            axes.plot(at, rate, "o", color=COLORS[name], label=once(name))
            axes.annotate(f" {rate:.0f}", (at, rate), ha="left", va="center", fontsize=7, color=INK)
            if "nbytes" in row:
                limit = batch * row["read_bandwidth"] / row["nbytes"]
                axes.hlines(limit, at - 0.09, at + 0.09, color=INK, lw=1.5, label=once("limit of reading"))
            points += 1
    axes.set_xticks(range(len(here)), [model for model, _ in here])
    axes.set_yscale("log")
    axes.set_ylabel(f"tokens a second, batch {batch}, context {context}")
    axes.legend(frameon=False, fontsize=7)
    return points


def roofline(result: dict[str, Any] | None, axes) -> int:
    """Every timed kernel of ours under the roofs that were measured beside it. Returns how many points."""
    if result is None:
        return 0
    ceilings = result["ceilings"]
    kernels = [row for row in chosen(result["rows"], engine=OURS) if row["operations"]]
    intensity = [row["operations"] / row["nbytes"] for row in kernels]
    if not kernels:
        return 0
    span = [min(intensity) / 2, max(intensity) * 2]
    for name, style in (("float16", "-"), ("int8", "--")):
        xs = sorted([*span, min(max(ceilings[name] / ceilings["read"], span[0]), span[1])])
        axes.plot(xs, [min(x * ceilings["read"], ceilings[name]) / 1e12 for x in xs], style, color=INK, lw=1,
                  label=f"roof, {name}")  # fmt: skip
    for op, marker in (("input_product", "o"), ("output_product", "s"), ("lm_head", "^"), ("attention", "D")):
        for kind in ("float16", "int8"):
            some = [row for row in kernels if row["op"] == op and row["kind"] == kind]
            axes.scatter([row["operations"] / row["nbytes"] for row in some],
                         [row["operations"] / seconds(row) / 1e12 for row in some], s=14, marker=marker,
                         color=COLORS[f"{OURS} {kind}"], label=f"{op}, {kind}" if some else None)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("TFLOP/s (int8: TOP/s)")
    axes.legend(frameon=False, fontsize=6)
    return len(kernels)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else results.output_folder()
    found = results.read(folder)
    if not found:
        raise SystemExit(f"no result of a GPU in {folder}: nothing is drawn")
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    for name in sorted({result["machine"]["name"] for result in found}):
        of_machine = [result for result in found if result["machine"]["name"] == name]
        micro = latest(of_machine, "micro")
        title = f"{name}, {', '.join(sorted({result['date'][:10] for result in of_machine}))}"
        for what, draw in (("tokens", partial(tokens_a_second, of_machine)), ("roofline", partial(roofline, micro))):
            figure, axes = pyplot.subplots(figsize=(7, 4), facecolor=PAPER)
            axes.spines[["top", "right"]].set_visible(False)
            if draw(axes):
                axes.set_title(title, fontsize=8, loc="left")
                path = folder / f"gpu-{results.slug(name)}-{what}.svg"
                figure.savefig(path, bbox_inches="tight")
                print(path)
            pyplot.close(figure)


if __name__ == "__main__":
    main()
