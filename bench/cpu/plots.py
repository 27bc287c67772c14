"""Plots of a result, by matplotlib (the extra ``bench``): tokens a second by engine with the limit, the products' share
of the bandwidth by shape, prefill against length."""

from __future__ import annotations

from pathlib import Path

from bench.cpu import report, results
from bench.cpu.report import Result

_OURS, _PEERS, _LIMIT = "#1f6feb", "#a8adb5", "#c93c37"


def draw(result: Result, name: str) -> list[Path]:
    """Writes NAME-decode.svg, NAME-kernels.svg and NAME-prefill.svg, as far as there are figures.

    Raises ImportError where there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "codegen_fast", "font.size": 9})
    from matplotlib import pyplot

    written = []
    for part, make in (("decode", _decode), ("kernels", _kernels), ("prefill", _prefill)):
        figure = make(result, pyplot)
        if figure is not None:
            path = results.FOLDER / f"{name}-{part}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            pyplot.close(figure)
            written.append(path)
    return written


def _decode(result: Result, pyplot):
    """A bar an engine, slowest below, its limit a line across it; one panel a point."""
    rows = report.rows(result, "decode")
    points = sorted({(row.batch, row.context) for row in rows})
    if not points:
        return None
    most = max(sum((row.batch, row.context) == point for row in rows) for point in points)
    figure, panels = pyplot.subplots(1, len(points), figsize=(5.2 * len(points), 0.6 + 0.26 * most), squeeze=False)
    for panel, point in zip(panels[0], points, strict=True):
        here = sorted((row for row in rows if (row.batch, row.context) == point), key=lambda row: row.tokens_per_second)
        for place, row in enumerate(here):
            panel.barh(place, row.tokens_per_second, color=_OURS if row.ours else _PEERS, height=0.7)
            panel.text(row.tokens_per_second, place, f" {row.tokens_per_second:.0f}", va="center", fontsize=7)
            if row.limit is not None and row.batch == 1:
                panel.plot([row.limit] * 2, [place - 0.45, place + 0.45], color=_LIMIT, linewidth=1.5)
        panel.set_yticks(range(len(here)), [row.engine for row in here], fontsize=7)
        panel.set_title(f"batch {point[0]}, context {point[1]}")
        panel.set_xlabel("tokens/s" + ("; red: what the memory allows" if point[0] == 1 else ""))
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['model']['name']}, {result['machine']['cpu']}, {result['machine']['threads']} threads")
    figure.tight_layout()
    return figure


def _kernels(result: Result, pyplot):
    """Of the products of one row: share of the read bandwidth by bytes of the weight, a line a type."""
    rows = [row for row in result["kernels"] if row["phase"] == "decode" and row["tokens"] == 1]
    if not rows:
        return None
    figure, panel = pyplot.subplots(figsize=(6, 3.4))
    for kind in dict.fromkeys(row["kind"] for row in rows):
        line = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["nbytes"])
        panel.plot(
            [row["nbytes"] / 1e6 for row in line],
            [100 * row["nbytes"] / row["seconds"]["median"] / row["ceiling"] for row in line],
            marker="o",
            markersize=3,
            label=kind,
        )
    panel.axhline(100, color=_LIMIT, linewidth=1)
    panel.set_xscale("log")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("MB of weights (input, output and vocabulary products of four models)")
    panel.set_ylabel("% of the read bandwidth, one row")
    panel.legend(fontsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def _prefill(result: Result, pyplot):
    """Tokens a second against the prompt's length: ours, and the best peers."""
    rows = report.rows(result, "prefill")
    if not rows:
        return None
    figure, panel = pyplot.subplots(figsize=(6, 4))
    for engine in dict.fromkeys(row.engine for row in rows):
        line = sorted((row for row in rows if row.engine == engine), key=lambda row: row.context)
        panel.plot(
            [row.context for row in line],
            [row.tokens_per_second for row in line],
            marker="o",
            markersize=3,
            linestyle="-" if line[0].ours else "--",
            linewidth=1.6 if line[0].ours else 0.9,
            label=engine,
        )
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted({row.context for row in rows}), sorted({row.context for row in rows}))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("tokens of the prompt")
    panel.set_ylabel("tokens/s")
    panel.legend(fontsize=6, ncols=2)
    panel.spines[["top", "right"]].set_visible(False)
    return figure
