"""Every kernel at the shapes of the models: time, rate, share of the ceiling, and torch's kernels in the same run:

    python -m bench.gpu.micro --model 350M 2B 6B --budget 400

A line's limit is the larger of its bytes over the read bandwidth and its operations over the rate of a large product
of its type, all measured in this run; its share is that limit over the time. Weights and caches are rotated, so that
they come from memory. ``--rehearse`` runs each call once on the emulator, at tiny shapes, and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
from typing import Any

import cases
import torch

from bench.clock import Timing
from bench.gpu import ceilings, clock, machine, results, shapes
from bench.gpu.rehearsal import LONGEST, TINY, on_the_emulator

OURS = "codegen_fast"


def limit(case: shapes.Case, found: dict[str, float]) -> tuple[float, str]:
    """Seconds below which the case cannot be, and what bounds it."""
    memory, arithmetic = case.nbytes / found["read"], case.operations / found[case.arithmetic]
    return (memory, "memory") if memory >= arithmetic else (arithmetic, case.arithmetic)


def measure(case: shapes.Case, timer: clock.Clock, found: dict[str, float]) -> list[dict[str, Any]]:
    """A row for ours and one for each peer; a single row with an error where ours is wrong or does not run."""
    row = {"model": case.dims.name, "op": case.op, "phase": case.phase, "kind": case.kind, "tokens": case.tokens,
           "length": case.length, "nbytes": case.nbytes, "operations": case.operations,
           "read_bandwidth": found["read"]}  # fmt: skip
    row["limit"], row["bound"] = limit(case, found)
    try:
        prepared = case.prepare(timer.device, machine.l2_bytes(timer.device))
        error, bound = prepared.check()
        row |= {"error": error, "error_bound": bound}
        if error > bound:
            return [{**row, "engine": OURS, "wrong": f"differs from float32 by {error:.2e}, bound {bound:.2e}"}]
        contestants = [timer.ours(OURS, prepared.ours)]
    except Exception as failure:  # one kernel that fails must not take the others' rows with it
        return [{**row, "engine": OURS, "wrong": f"{type(failure).__name__}: {failure}"}]
    absent = {}  # recorded, so that a row without a peer says why
    for name, calls in prepared.peers.items():
        try:
            contestants.append(timer.torchs(name, calls))
        except Exception as failure:
            absent[name] = f"{type(failure).__name__}: {failure}"
            print(f"      {name} is left out: {absent[name]}")
    if absent:
        row = {**row, "left_out": absent}
    samples = timer.race(contestants)
    return [{**row, "engine": c.name, "calls": c.calls, "samples": clock.rounded(samples[c.name])} for c in contestants]


def line(row: dict[str, Any], name: str) -> str:
    if "wrong" in row:
        return f"{name}  {row['wrong']}"
    if not row["samples"]:
        return f"{name}  {row['engine']:<29} ran; error {row['error']:.1e}, bound {row['error_bound']:.1e}"
    t = Timing.of(row["samples"])
    rate = (f"{row['nbytes'] / t.median / 1e9:7.0f} GB/s" if row["bound"] == "memory"
            else f"{row['operations'] / t.median / 1e12:5.0f} TFLOP/s")  # fmt: skip
    return f"{name}  {row['engine']:<29}{clock.show(row['samples']):>36} {rate:>14} {row['limit'] / t.median:>5.0%}"


def main() -> None:
    models = {dims.name: dims for dims in cases.MODELS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=models, default=list(models))
    parser.add_argument("--op", nargs="+", help="only ops whose name begins so")
    parser.add_argument("--budget", type=float, default=400, help="seconds in all; the last rows are left out")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    with on_the_emulator(args.rehearse):
        run([TINY] if args.rehearse else [models[name] for name in args.model], args)


def run(models: list[cases.Dims], args: argparse.Namespace) -> None:
    budget = clock.Budget(args.budget)
    timer = clock.new_clock(machine.device(args.rehearse))
    result = machine.begin(timer.device) | {"rows": [], "skipped": []}
    timer.warm_up()
    result["ceilings"] = found = ceilings.measure(timer)
    if not args.rehearse:
        print("ceilings a second: " + ", ".join(f"{name} {rate:.4g}" for name, rate in found.items()))
    for case in shapes.all_cases(models, *([LONGEST] if args.rehearse else [])):
        if args.op and not case.op.startswith(tuple(args.op)):
            continue
        if not budget.allows():
            result["skipped"].append(case.name)
            continue
        rows = measure(case, timer, found)
        for row in rows:
            print(line(row, case.name), flush=True)
        result["rows"] += rows
        gc.collect()
        if timer.device.type == "cuda":
            torch.cuda.empty_cache()
        results.write("micro", result)
    wrong = [row for row in result["rows"] if "wrong" in row]
    print(f"{results.write('micro', result)}: {len(result['rows'])} rows, {len(wrong)} wrong, "
          f"{len(result['skipped'])} cases left out")  # fmt: skip
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
