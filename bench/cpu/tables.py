"""A result as text: tables for the terminal, and in Markdown for the README."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from bench.clock import Timing
from bench.cpu import gates, report
from bench.cpu.ceiling import ABOVE
from bench.cpu.report import Result
from bench.cpu.stages import STAGES

Table = tuple[str, list[str], list[list[str]]]  # title, heads, rows


def tables(result: Result) -> Iterator[Table]:
    """Every table whose figures were measured, and those that say what was not."""
    for make in (_ceiling, _decode, _prefill, _speeds, _cold, _loads, _quality, _stages, _kernels, _absent, _gates):
        title, heads, body = make(result)
        if body:
            yield title, heads, body


def terminal(result: Result) -> str:
    lines = [headline(result)]
    for title, heads, body in tables(result):
        widths = [max(map(len, column)) for column in zip(heads, *body)]
        lines += ["", title]
        lines += [
            "  ".join(
                cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in (heads, *body)
        ]
    return "\n".join(lines + _warnings(result))


def markdown(result: Result) -> str:
    lines = [headline(result)]
    for title, heads, body in tables(result):
        lines += ["", f"**{title}**", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines + _warnings(result))


def headline(result: Result) -> str:
    machine, best = result["machine"], report.ceiling_of(result)
    reads = f", reads {best / 1e9:.1f} GB/s at best" if best else ""
    return (
        f"{result['model']['name']} on {machine['cpu']}, {machine['threads']} threads, {machine['isa']}{reads}; "
        f"commit {result['commit']}, {result['date'][:10]}"
    )


def _warnings(result: Result) -> list[str]:
    lines = ["The run was interrupted."] if result.get("interrupted") else []
    lines += [f"INVALID: {sentence}" for sentence in report.impossible(result)]
    for part in result["rounds"]:
        low = sorted(report.flagged(result, part))
        if low:
            lines.append(f"{part}: rounds {', '.join(str(n + 1) for n in low)} had under 75% of the best ceiling")
        changed = [f"{engine} in round {number + 1}" for engine, number in report.unsteady(result, part)]
        if changed:
            lines.append(f"{part}: the ceiling changed during every visit of {', '.join(changed)}")
    return ["", *lines] if lines else []


def _ceiling(result: Result) -> Table:
    best: dict[tuple[str, int], list[float]] = {}
    for rounds in result["rounds"].values():
        for each in rounds:
            for row in each["rows"]:
                best.setdefault((row["pattern"], row["threads"]), []).append(row["bytes_per_second"])
    body = [
        [pattern, str(threads), f"{max(rates) / 1e9:.1f}", f"{median(rates) / 1e9:.1f}", f"{min(rates) / 1e9:.1f}"]
        for (pattern, threads), rates in sorted(best.items(), key=lambda item: -max(item[1]))
    ]
    return "Read bandwidth, GB/s", ["pattern", "threads", "best", "median", "worst"], body


def _decode(result: Result) -> Table:
    body = []
    for row in report.rows(result, "decode"):
        body.append(
            [
                row.engine,
                str(row.batch),
                str(row.context),
                f"{row.tokens_per_second:.1f}",
                *_spread(row.timing),
                "" if row.limit is None else f"{row.limit:.1f}",
                *("" if share is None else f"{share:.0%}" for share in (row.share, row.of_best)),
                *_over_peers(result, "decode", row),
                ", ".join(row.marks),
            ]
        )
    heads = [
        "decode",
        "batch",
        "context",
        "tokens/s",
        "ms",
        "p10",
        "p90",
        "limit",
        "of limit then",
        "of best",
        "x best of type",
        "x best peer",
        "",
    ]
    return "Decode, a step at a time", heads, body


def _prefill(result: Result) -> Table:
    body = []
    for row in report.rows(result, "prefill"):
        body.append(
            [
                row.engine,
                str(row.context),
                f"{row.tokens_per_second:.0f}",
                *_spread(row.timing),
                *_over_peers(result, "prefill", row),
                ", ".join(row.marks),
            ]
        )
    heads = ["prefill", "tokens", "tokens/s", "ms", "p10", "p90", "x best of type", "x best peer", ""]
    return "Prefill, to the first token", heads, body


def _spread(timing: Timing) -> list[str]:
    return [f"{1e3 * seconds:.2f}" for seconds in (timing.median, timing.p10, timing.p90)]


def _over_peers(result: Result, part: str, row: report.Row) -> list[str]:
    """Times the best peer of the own type, and of all, side by side; a tilde where that is no difference."""
    if not row.ours:
        return ["", ""]
    cells = []
    for type in (row.type, None):
        nearest = report.nearest_peer(result, part, (row.engine, row.batch, row.context), type)
        if nearest:
            ratio = nearest[1]
            cells.append(f"{'~' if ratio.is_tie else ''}{ratio.value:.2f} ({ratio.agree}/{ratio.rounds})")
        else:
            cells.append("")
    return cells


def _speeds(result: Result) -> Table:
    """Tokens a second apart by how fast memory was read: of a machine that changes it, a median over both is neither's."""
    heads, body = ["part", "engine", "batch", "context"], {}
    apart = {part: found for part in result["rounds"] if len(found := report.speeds(result, part)) > 1}
    for part, found in apart.items():
        for row in report.rows(result, part):
            key = row.engine, row.batch, row.context
            cells = [report.tokens_per_second(result, part, key, speed) for speed in found]
            body[part, *key] = ["" if cell is None else f"{cell[0]:.1f} ({cell[1]})" for cell in cells]
    for number in range(2 if apart else 0):
        ranges = [found[number] for found in apart.values()]
        least, most = min(each.slowest for each in ranges), max(each.fastest for each in ranges)
        heads.append(f"at {least / 1e9:.0f} to {most / 1e9:.0f} GB/s")
    return ("Tokens a second (and visits), apart by how fast memory was read", heads,
            [[part, engine, str(batch), str(context), *cells] for (part, engine, batch, context), cells in body.items()])


def _cold(result: Result) -> Table:
    body = []
    names = ("torch_seconds", "import_seconds", "load_seconds", "first_token_seconds", "whole_seconds")
    for engine in dict.fromkeys(row["engine"] for row in result["cold"]):
        rows = report.cold_rows(result, engine)
        body.append(
            [
                engine,
                *(f"{median(row[name] for row in rows):.2f}" for name in names),
                f"{median(row['peak_bytes'] for row in rows) / 1e6:.0f}",
            ]
        )
    if result["cold_reads"]:
        nbytes = result["cold_reads"][0]["nbytes"]
        seconds = f"{median(report.cold_read_seconds(result)):.2f}"
        body.append([f"reading the checkpoint once ({nbytes / 1e6:.0f} MB)", "", "", seconds, "", "", ""])
    heads = ["cold process, seconds", "import torch", "all imports", "load", "first token", "whole", "peak MB"]
    return "A cold process, its files out of the cache, to the first token after 32", heads, body


def _loads(result: Result) -> Table:
    body = [
        [
            row["name"],
            f"{min(load['seconds'] for load in row['load']):.2f}",
            f"{max(load['peak_bytes'] for load in row['load']) / 1e6:.0f}",
            f"{row.get('held_bytes', 0) / 1e6:.0f}",
            f"{row.get('step_weight_bytes', 0) / 1e6:.0f}",
        ]
        for row in result["engines"]
        if row["status"] == "measured" and row.get("load")
    ]
    return (
        "Load, files in the cache",
        ["engine", "seconds", "peak MB", "held MB at most", "weights a step reads, MB"],
        body,
    )


def _quality(result: Result) -> Table:
    body = []
    for row in result["engines"]:
        for phase, found in row["quality"].items():
            error, kl = (f"{found[key]:.1e}" if key in found else "" for key in ("relative_rms_error", "kl"))
            body.append([row["name"], phase, error, f"{found['same_best_token']:.0%}", kl])
    return (
        "Logits against transformers float32",
        ["engine", "phase", "relative RMS error", "same best token", "KL"],
        body,
    )


def _stages(result: Result) -> Table:
    names = (*STAGES, "other ops", "Python")
    body = []
    for stage in result["stages"]:
        shares = report.stage_shares(stage)
        body.append(
            [
                stage["engine"],
                str(stage["batch"]),
                str(stage["context"]),
                f"{1e3 * median(stage['steps']):.2f}",
                *(f"{shares[name]:.1%}" for name in names),
            ]
        )
    return "Where a step's time goes", ["engine", "batch", "context", "step, ms", *names], body


def _kernels(result: Result) -> Table:
    """Of few rows the share of the ceiling, of many the GFLOP/s."""
    tokens = sorted({row["tokens"] for row in result["kernels"]})
    best, lines = report.ceiling_of(result), {}
    for row in result["kernels"]:
        line = lines.setdefault((row["model"], row["op"], row["kind"]), {})
        seconds = row["seconds"]["median"]
        share = row["nbytes"] / seconds / row.get("ceiling", best or 1)
        line[row["tokens"]] = (
            f"{share:.0%}{'' if row.get('steady', True) and share <= ABOVE else '?'}"
            if row["phase"] == "decode" and row["tokens"] <= 8
            else f"{row['flops'] / seconds / 1e9:.0f}"
        )
    body = [[*key, *(line.get(n, "") for n in tokens)] for key, line in lines.items()]
    title = "Products: % of the read bandwidth up to 8 rows (?: it changed meanwhile), GFLOP/s from 16 on"
    return title, ["model", "op", "type", *(f"{n} rows" for n in tokens)], body


def _absent(result: Result) -> Table:
    body = [[row["name"], row["status"], row["reason"]] for row in result["engines"] if row["status"] != "measured"]
    body += [[row["name"], what, why] for row in result["engines"] for what, why in row["notes"].items()]
    return "Not measured", ["engine", "what", "why"], body


def _gates(result: Result) -> Table:
    body = [[verdict.gate.text, verdict.measured, verdict.needs, verdict.outcome] for verdict in gates.evaluate(result)]
    return "Gates", ["gate", "measured", "required", ""], body
