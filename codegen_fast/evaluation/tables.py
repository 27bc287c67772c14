"""What a run comes to, as text for people."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..scoring import Perplexity
from .comparison import Difference
from .paper import PaperModel
from .perplexity import Divergence
from .rows import NO_ROOM

Cells = Sequence[str]


def run_table(benchmark: str, summary: dict[str, Any], paper: PaperModel | None, folder: str) -> str:
    """Rates, beside the paper's where the model is one of its; without verdicts, what there is and what to do."""
    lines = [_counts_line(summary)]
    no_room = sum(each["finish_reasons"].get(NO_ROOM, 0) for each in summary["samples"].values())
    if no_room:
        lines.append(f"{no_room} times the prompt filled the context, and nothing could be written")
    if "counts" not in summary:
        lines.append(f"no program has been run: the samples are in {folder}; score them with --allow-code-execution")
    elif benchmark == "humaneval":
        lines += ["", *_pass_at_k_lines(summary, paper)]
    else:
        lines += ["", *_pass_rate_lines(summary, paper)]
    if "prompt_perplexity" in summary:
        lines += _prompt_perplexity_lines(summary["prompt_perplexity"])
    return "\n".join(lines) + "\n"


def comparison_table(first: str, second: str, differences: list[Difference]) -> str:
    rows = [(one.name, *(f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})" for each in (one.first, one.second)),
             f"{one.difference.value:+.2f} ({one.difference.low:+.2f} to {one.difference.high:+.2f})",
             "yes" if one.is_clear else "no") for one in differences]
    return _table(("%", first, second, "difference", "clear"), rows) + "in brackets: 95%, over problems\n"


def perplexity_table(files: list[str], each: list[Perplexity], total: Perplexity) -> str:
    rows = [(name, f"{one.bits_per_byte:.4f}", f"{one.perplexity:.3f}", str(one.num_tokens))
            for name, one in zip(files, each)]
    if len(files) > 1:
        rows.append(("all", f"{total.bits_per_byte:.4f}", f"{total.perplexity:.3f}", str(total.num_tokens)))
    return _table(("file", "bits per byte", "perplexity", "tokens scored"), rows)


def divergence_table(base: Perplexity, rows: list[tuple[str, Perplexity, Divergence]]) -> str:
    cells = [(name, f"{own.bits_per_byte:.4f}", f"{own.bits_per_byte - base.bits_per_byte:+.4f}",
              f"{own.perplexity:.3f}", f"{100 * (own.perplexity / base.perplexity - 1):+.2f}%",
              f"{found.kl:.2e}", f"{100 * found.same_best:.2f}%") for name, own, found in rows]
    return _table(("against", "bits per byte", "difference", "perplexity", "difference", "KL (nats a token)",
                   "same likeliest token"), cells)


def _counts_line(summary: dict[str, Any]) -> str:
    parts = [f"{each['samples']} samples at temperature {temperature}, {each['tokens']} tokens"
             for temperature, each in summary["samples"].items()]
    return "; ".join(parts)


def _pass_at_k_lines(summary: dict[str, Any], paper: PaperModel | None) -> list[str]:
    table = summary["pass_at_k"]
    temperatures = list(summary["samples"])
    header = ["%", *(f"t={temperature}" for temperature in temperatures), "best (95%)"]
    rows = []
    for k, entry in table.items():
        best = entry["best"]
        row = [f"pass@{k}", *(f"{entry['by_temperature'][temperature]:.2f}" for temperature in temperatures),
               f"{best['value']:.2f} ({best['low']:.2f} to {best['high']:.2f})"]
        if paper is not None:
            row.append("-" if entry["paper"] is None else f"{entry['paper']:.2f}")
        rows.append(row)
    problems = len(next(iter(summary["counts"].values())))
    if paper is not None:
        header.append("paper")
    lines = _table(header, rows).splitlines()
    if paper is not None:
        lines.append(f"paper: {paper}, arXiv 2203.13474, all 164 problems; here: {problems}")
    return lines


def _pass_rate_lines(summary: dict[str, Any], paper: PaperModel | None) -> list[str]:
    lines = []
    for temperature, rates in summary["pass_rate"].items():
        turns = rates["by_turns"]
        header = ["pass rate, %", "all (95%)", *(f"{number} turns" for number in turns)]
        bounds = rates["interval"]
        row = [f"t={temperature}", f"{rates['overall']:.2f} ({bounds['low']:.2f} to {bounds['high']:.2f})",
               *(f"{each['rate']:.2f}" for each in turns.values())]
        if paper is not None:
            header.append("paper")
            row.append(f"{paper.mtpb():.2f}")
        lines += _table(header, [row]).splitlines()
        lines += ["by problem: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates["by_problem"].items())]
    if paper is not None:
        lines.append(f"paper: {paper}, arXiv 2203.13474, multi-turn, all 115 problems")
    return lines


def _prompt_perplexity_lines(perplexities: dict[str, Any]) -> list[str]:
    lines = []
    for temperature, each in perplexities.items():
        known = [f"{words} {each[name]:.3f}" for name, words in (("multi_turn", "turn by turn"),
                                                                 ("single_turn", "all at once"))
                 if each[name] is not None]
        if known:
            lines.append(f"prompt perplexity at t={temperature}: {', '.join(known)}")
    return lines


def _table(header: Cells, rows: Sequence[Cells]) -> str:
    """Columns of the width they need: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [[cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))]
             for row in (header, *rows)]
    return "".join("  ".join(line).rstrip() + "\n" for line in lines)
