"""The gates of the CUDA backend, and bench/results/GATES.md, written from the JSON files beside it:

    python -m bench.gpu.gates [--check]

Each gate is a function of the results that gives its figure, or None where nothing was measured. Of several results of
one stage the latest from an H200 counts, else the latest. Needs neither torch nor a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.gpu import results

OURS = "codegen_fast"
COMPILED = "transformers compiled"  # the engine's mode follows
Row = dict[str, Any]


@dataclass(frozen=True)
class Gate:
    """``figure`` takes the rows of ``stage``; the gate holds where it is at least (or at most) ``needs``."""

    text: str
    stage: str
    needs: float
    figure: Callable[[list[Row]], float | None]
    show: str = "{:.1%}"
    at_most: bool = False

    def holds(self, figure: float) -> bool:
        return figure <= self.needs if self.at_most else figure >= self.needs


# ---- Figures -----------------------------------------------------------------------------------


def seconds(row: Row) -> float:
    return median(row["samples"])


def chosen(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Measured rows with these values."""
    return [row for row in rows if row.get("samples") and all(row.get(key) == value for key, value in wanted.items())]


def lowest(figures: Iterable[float]) -> float | None:
    return min(figures, default=None)


def bandwidth_share(kind: str) -> Callable[[list[Row]], float | None]:
    """Of the read bandwidth, at batch 1 and context 512."""
    return lambda rows: lowest(
        row["nbytes"] / seconds(row) / row["read_bandwidth"]
        for row in chosen(rows, engine=OURS, kind=kind, batch=1, context=512)
    )


def int8_over_float16(rows: list[Row]) -> float | None:
    half = chosen(rows, engine=OURS, kind="float16", batch=1, context=512)
    int8 = chosen(rows, engine=OURS, kind="int8", batch=1, context=512)
    return seconds(half[0]) / seconds(int8[0]) if half and int8 else None


def over_compiled(batch: int | None, context: int | None) -> Callable[[list[Row]], float | None]:
    """How many times faster than the fastest compiled transformers; the lowest over the batches and contexts.

    float16 and int8 against float16: transformers has no int8 of its own that compiles.
    """

    def figure(rows: list[Row]) -> float | None:
        peers: dict[tuple[int, int], float] = {}
        for row in chosen(rows):
            at = row["batch"], row["context"]
            if row["engine"].startswith(COMPILED) and batch in (None, at[0]) and context in (None, at[1]):
                peers[at] = min(seconds(row), peers.get(at, seconds(row)))
        return lowest(
            peer / seconds(row) for at, peer in peers.items()
            for row in chosen(rows, engine=OURS, batch=at[0], context=at[1])
        )  # fmt: skip

    return figure


def attention_share(rows: list[Row]) -> float | None:
    """Of the read bandwidth, the lowest over all shapes whose cache a layer exceeds 32 MB."""
    return lowest(
        row["nbytes"] / seconds(row) / row["read_bandwidth"]
        for row in chosen(rows, op="attention", phase="decode", engine=OURS)
        if row["nbytes"] > 32 << 20
    )


def prefill_over_torch(rows: list[Row]) -> float | None:
    """How many times faster than the best of torch, the lowest over lengths; float16 against float16."""
    ratios = []
    for ours in chosen(rows, engine=OURS, kind="float16"):
        peers = [row for row in chosen(rows, kind="float16", context=ours["context"]) if row["engine"] != OURS]
        ratios += [min(map(seconds, peers)) / seconds(ours)] if peers else []
    return lowest(ratios)


def int8_prefill(rows: list[Row]) -> float | None:
    half, int8 = (chosen(rows, engine=OURS, kind=kind, context=2000) for kind in ("float16", "int8"))
    return seconds(half[0]) / seconds(int8[0]) if half and int8 else None


def failures(*names: str) -> Callable[[list[Row]], float | None]:
    """Tests that failed, or were left out, among those whose name holds one of these; None where one did not run."""

    def figure(rows: list[Row]) -> float | None:
        total = 0
        for name in names:
            ran = [row for row in rows if name in row["test"] and row["outcome"] != "skipped"]
            if not ran:
                return None
            total += sum(row["outcome"] != "passed" for row in ran)
        return total

    return figure


def reports(tool: str) -> Callable[[list[Row]], float | None]:
    """What compute-sanitizer reported; None where it did not come to its end."""
    return lambda rows: next((row["reports"] for row in rows if row["tool"] == tool and row["finished"]), None)


def of_model(model: str, figure: Callable[[list[Row]], float | None]) -> Callable[[list[Row]], float | None]:
    return lambda rows: figure([row for row in rows if row.get("model") == model])


# ---- The gates ---------------------------------------------------------------------------------

SHARES = {"float16": {"350M": 0.55, "2B": 0.82, "6B": 0.88}, "int8": {"350M": 0.40, "2B": 0.75, "6B": 0.84}}
AGAINST_COMPILED = {"350M": 3.0, "2B": 1.0, "6B": 1.3}

# Tests whose names hold these prove an invariant of DESIGN.md, section 7, when they pass on a GPU.
PROOFS = {
    "logits within their type's bound": ("test_half_logits_err_no_more", "test_half_steps_err_no_more"),
    "teacher-forced logits and tokens of the CPU backend": ("test_cuda_and_the_cpu_agree",),
    "int8 as good as on the CPU": ("test_int8_on_cuda_is_as_good",),
    "graph = eager, bitwise": ("test_recorded_steps_give_the_bits_of_eager_ones",),
    "alone = in a batch, bitwise": ("test_logits_are_the_same_bits_alone_in_a_batch", "test_invariance_ops"),
    "1,000 steps without drift": ("test_a_thousand_steps_do_not_drift",),
    "all tests on cuda": ("[cuda",),
}

GATES = (
    *(
        Gate(f"decode {model} {kind}, batch 1, context 512: share of read bandwidth", f"decode-{model}", share,
             bandwidth_share(kind))
        for kind, models in SHARES.items() for model, share in models.items()
    ),
    Gate("decode 6B, batch 1, context 512: int8 over float16", "decode-6B", 1.8, int8_over_float16, "{:.2f} x"),
    *(
        Gate(f"decode {model}, batch 1, context 512: over compiled transformers", f"decode-{model}", ratio,
             over_compiled(1, 512), "{:.2f} x")
        for model, ratio in AGAINST_COMPILED.items()
    ),
    *(
        Gate(f"decode {model}, every batch and context measured: over compiled transformers", f"decode-{model}", 1.0,
             over_compiled(None, None), "{:.2f} x")
        for model in AGAINST_COMPILED
    ),
    Gate("decode attention, cache of a layer over 32 MB: share of read bandwidth", "micro", 0.85, attention_share),
    *(
        Gate(f"prefill {model} float16, 128 to 2000 tokens: over the best of torch", "prefill", 1.0,
             of_model(model, prefill_over_torch), "{:.2f} x")
        for model in AGAINST_COMPILED
    ),
    Gate("prefill 6B, 2000 tokens: int8 over float16", "prefill", 1.4, of_model("6B", int8_prefill), "{:.2f} x"),
    *(
        Gate(f"{what}: failures", "tests", 0, failures(*names), "{:.0f}", at_most=True)
        for what, names in PROOFS.items()
    ),
    *(
        Gate(f"compute-sanitizer {tool} on the op tests: reports", "sanitize", 0, reports(tool), "{:.0f}", at_most=True)
        for tool in ("memcheck", "racecheck", "synccheck")
    ),
)  # fmt: skip

HEADER = """# Gates of the CUDA backend

What the backend must reach, and what was measured. Written by `python -m bench.gpu.gates` from the JSON files in this
folder; `bench/gpu_check.sh all` on a machine with a GPU makes those. A figure without a JSON file beside it cannot
stand here: a test compares. The limits are meant for one H200.

| gate | needs | figure | holds | machine | commit | date |
|---|---|---|---|---|---|---|
"""


def latest(found: list[dict[str, Any]], stage: str) -> dict[str, Any] | None:
    """The result of a stage that counts."""
    of_stage = [result for result in found if result["stage"] == stage]
    h200 = [result for result in of_stage if "H200" in result["machine"]["name"]]
    return (h200 or of_stage or [None])[-1]


def evaluate(found: list[dict[str, Any]]) -> list[tuple[Gate, float | None, dict[str, Any] | None]]:
    """Every gate, its figure, and the result that it is from."""
    evaluated = []
    for gate in GATES:
        result = latest(found, gate.stage)
        evaluated.append((gate, gate.figure(result["rows"]) if result else None, result))
    return evaluated


def markdown(found: list[dict[str, Any]]) -> str:
    lines = []
    for gate, figure, result in evaluate(found):
        needs = ("at most " if gate.at_most else "at least ") + gate.show.format(gate.needs)
        if figure is None:
            cells = (gate.text, needs, "not measured", "", "", "", "")
        else:
            cells = (gate.text, needs, gate.show.format(figure), "yes" if gate.holds(figure) else "**no**",
                     result["machine"]["name"], result["commit"], result["date"][:10])  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |\n")
    return HEADER + "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if GATES.md is stale")
    args = parser.parse_args()
    path = results.FOLDER / "GATES.md"
    if args.check:
        sys.exit(0 if path.read_text() == markdown(results.read(results.FOLDER)) else f"{path} is stale: {__doc__}")
    folders = dict.fromkeys((results.FOLDER, results.output_folder()))
    text = markdown(results.read(*folders))
    for folder in folders:
        (folder / "GATES.md").write_text(text)
    print(text[text.index("| gate") :])


if __name__ == "__main__":
    main()
