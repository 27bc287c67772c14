"""What must hold on a CPU, evaluated on a result: each gate with its figure, what it needs, and whether it holds.

A gate whose figure was not measured in the run says so; it neither holds nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.cpu import report
from bench.cpu.catalogue import OURS
from bench.cpu.report import Result

CONTEXTS = (32, 512)
# Shares of the measured read bandwidth at batch 1, and how many times the best peer of the same type.
SHARES = {"float32": 0.90, "float16": 0.90, "bfloat16": 0.90, "int8": 0.85, "int4": 0.70}
OVER_PEERS = {"int8": 1.7, "int4": 2.0}
PREFILL_OVER_PEERS = {"int8": 1.3, "float32": 1.1}
PREFILL = 512
BATCH = 8


@dataclass(frozen=True)
class Gate:
    """``figure`` takes a result; the gate holds where it is at least (or at most) ``needs``. models: () is all."""

    text: str
    needs: float
    figure: Callable[[Result], float | None]
    show: str = "{:.1%}"
    at_most: bool = False
    models: tuple[str, ...] = ("350M",)

    def holds(self, figure: float) -> bool:
        return figure <= self.needs if self.at_most else figure >= self.needs


@dataclass(frozen=True)
class Verdict:
    gate: Gate
    figure: float | None

    @property
    def needs(self) -> str:
        return ("at most " if self.gate.at_most else "at least ") + self.gate.show.format(self.gate.needs)

    @property
    def measured(self) -> str:
        return "not measured" if self.figure is None else self.gate.show.format(self.figure)

    @property
    def outcome(self) -> str:
        return "" if self.figure is None else "pass" if self.gate.holds(self.figure) else "FAIL"


# ---- Figures -----------------------------------------------------------------------------------


def lowest(figures: Iterable[float]) -> float | None:
    return min(figures, default=None)


def bandwidth_share(kind: str, context: int) -> Callable[[Result], float | None]:
    return lambda result: lowest(
        row.share
        for row in report.rows(result, "decode")
        if (row.engine, row.batch, row.context) == (f"{OURS} {kind}", 1, context) and row.share is not None
    )


def over_best_peer(part: str, kind: str, context: int, *, own_type: bool) -> Callable[[Result], float | None]:
    def figure(result: Result) -> float | None:
        nearest = report.nearest_peer(result, part, (f"{OURS} {kind}", 1, context), kind if own_type else None)
        return nearest[1].value if nearest else None

    return figure


def batch_over_one(result: Result) -> float | None:
    ratio = report.ratio(result, "decode", (f"{OURS} int8", BATCH, 32), (f"{OURS} int8", 1, 32))
    return ratio.value if ratio else None


def not_products(context: int) -> Callable[[Result], float | None]:
    """The largest over types at batch 1: Python and all that is not a product."""

    def figure(result: Result) -> float | None:
        shares = [
            1 - report.stage_shares(stage)["products"]
            for stage in result["stages"]
            if (stage["batch"], stage["context"]) == (1, context)
        ]
        return max(shares, default=None)

    return figure


def load_over_read(result: Result) -> float | None:
    loads = [row["load_seconds"] for row in report.cold_rows(result, f"{OURS} int8")]
    reads = report.cold_read_seconds(result)
    return median(loads) / median(reads) if loads and reads else None


def first_token(result: Result) -> float | None:
    wholes = [row["whole_seconds"] for row in report.cold_rows(result, f"{OURS} int8")]
    return median(wholes) if wholes else None


def error(engine: str, result: Result) -> float | None:
    """The larger of both phases'."""
    row = next((row for row in result["engines"] if row["name"] == engine), None)
    return max(_errors(row), default=None) if row else None


def _errors(row: dict[str, Any]) -> list[float]:
    return [each["relative_rms_error"] for each in row["quality"].values() if "relative_rms_error" in each]


def best_peers_error_over_ours(result: Result) -> float | None:
    ours = error(f"{OURS} int8", result)
    peers = [error(row["name"], result) for row in result["engines"] if row["type"] == "int8" and not row["ours"]]
    peers = [each for each in peers if each is not None]
    return min(peers) / ours if ours and peers else None


def impossible(result: Result) -> float | None:
    return float(len(report.impossible(result))) if result["rounds"].get("decode") else None


# ---- The gates ---------------------------------------------------------------------------------

GATES = (
    *(
        Gate(
            f"decode {kind}, batch 1, context {context}: share of the read bandwidth",
            needs,
            bandwidth_share(kind, context),
            models=("350M", "2B") + (("6B",) if kind == "int8" else ()),
        )
        for kind, needs in SHARES.items()
        for context in CONTEXTS
    ),
    *(
        Gate(
            f"decode {kind}, batch 1, context {context}: over the best {kind} peer",
            needs,
            over_best_peer("decode", kind, context, own_type=True),
            "{:.2f} x",
        )
        for kind, needs in OVER_PEERS.items()
        for context in CONTEXTS
    ),
    Gate("decode int8: tokens/s of batch 8 over batch 1", 3.0, batch_over_one, "{:.2f} x"),
    *(
        Gate(
            f"prefill of {PREFILL} tokens, {kind}: over the best {kind} peer",
            needs,
            over_best_peer("prefill", kind, PREFILL, own_type=True),
            "{:.2f} x",
        )
        for kind, needs in PREFILL_OVER_PEERS.items()
    ),
    Gate(
        f"prefill of {PREFILL} tokens, int8: over the best peer of all",
        PREFILL_OVER_PEERS["int8"],
        over_best_peer("prefill", "int8", PREFILL, own_type=False),
        "{:.2f} x",
    ),
    *(
        Gate(
            f"Python and all that is not a product, of a step at context {context}",
            0.05,
            not_products(context),
            at_most=True,
        )
        for context in CONTEXTS
    ),
    Gate("load into int8 from a cold cache, over reading the file once", 2.0, load_over_read, "{:.2f} x", at_most=True),
    Gate("first token of a cold process, int8, 32-token prompt", 3.0, first_token, "{:.2f} s", at_most=True),
    Gate(
        "int8 logits: relative RMS error", 2.0e-2, lambda result: error(f"{OURS} int8", result), "{:.2e}", at_most=True
    ),
    Gate("int8 logits: error of the best int8 peer over ours", 1.0, best_peers_error_over_ours, "{:.2f} x"),
    Gate("engines above 105% of the ceiling", 0, impossible, "{:.0f}", at_most=True, models=()),
)


def evaluate(result: Result) -> list[Verdict]:
    """Every gate that is meant for the model that was measured."""
    name = result["model"]["name"]
    return [Verdict(gate, gate.figure(result)) for gate in GATES if not gate.models or name in gate.models]
