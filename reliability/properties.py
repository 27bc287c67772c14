"""Every op of the contract (csrc/ops.h) on random cases, against the float64 reference: tests/properties.

    python -m reliability.properties --save                    10,000 cases on every device that is here
    python -m reliability.properties --cases 500 --ops sample  so many of one op
    python -m reliability.properties --case cpu-avx2/sample/7  one case again, as a failure names it

A case is an op of one device with shapes, types, gaps between rows, batches and page tables that follow from its name.
Its result must be within the derived bounds of tests/bounds.py (codes, tokens, edited logits and copies: equal);
everything around outputs, packed weights and pages must keep its poison and inputs their bits; the bits must be the same
with other numbers of threads (in the emulator: of multiprocessors), at other addresses, and for some of its rows alone
(of attention and input_product: one of its sequences; of copy_pages: some of its pairs).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import bench  # noqa: F401 (puts tests/ on the path)
import properties
from devices import Device
from tqdm import tqdm

from . import record

TITLE = "Random cases of every op"
SHOWN = 10  # failures that are printed in full
# What of a case's types is counted: how a property calls it, and the page.
DRAWN = {"types": "weights", "kind": "weights", "act": "activations", "cache": "cache"}
EMULATED_SHARE = 0.1  # of all cases: an emulated one takes ten times as long


def plan(cases: int, devices: Sequence[Device], operations: Sequence[str]) -> dict[tuple[str, str], int]:
    """How many cases of each (device, op): in all at least ``cases``."""
    emulated = [device for device in devices if device.emulated]
    share = EMULATED_SHARE if len(emulated) < len(devices) else 1.0
    counts = {}
    for device in devices:
        others = len(devices) - len(emulated)
        of_device = cases * share if device.emulated else cases * (1 - share * len(emulated)) / others
        for op in operations:
            counts[device.name, op] = max(1, -(-int(of_device) // len(operations)))
    return counts


def run(counts: dict[tuple[str, str], int]) -> tuple[list[dict[str, Any]], list[str]]:
    """(for every device and op the cases and their seconds, the names of those that failed)"""
    rows, failed = [], []
    with tqdm(total=sum(counts.values()), unit="case", mininterval=5) as progress:
        for (device, op), count in counts.items():
            start, types = time.monotonic(), Counter()
            for number in range(count):
                name = f"{device}/{op}/{number}"
                try:
                    drawn = properties.run_case(name)
                    types.update(f"{what} {drawn[name]}" for name, what in DRAWN.items() if name in drawn)
                except properties.CaseFailed as failure:
                    failed.append(name)
                    if len(failed) <= SHOWN:
                        tqdm.write(str(failure))
                progress.update()
            seconds = time.monotonic() - start
            rows.append({"device": device, "op": op, "cases": count, "seconds": seconds, "types": types})
    return rows, failed


def section(found: dict[str, Any]) -> str:
    rows = found["results"]
    devices = list(dict.fromkeys(row["device"] for row in rows))
    cases = {(row["device"], row["op"]): row["cases"] for row in rows}
    lines = [
        f"{sum(cases.values()):,} random cases, {len(found['failed'])} of them failed: shapes, types, gaps between rows, "
        "ragged batches, page tables (also shared ones), prompts cut into chunks. Asked of each: results within bounds "
        "derived from the float64 reference (codes, tokens, edited logits and copies: equal), poison around outputs, packed "
        "weights and pages and the bits of inputs untouched, the same bits on 1, 2 and another number of threads up to 6 "
        "and at other addresses (in the emulator: in one of those surroundings, its multiprocessors and the order of its "
        "warps for threads), and for some of the rows alone (of attention, appended and input_product: one of the sequences; "
        "of copy_pages: some of the pairs). `--case NAME` runs one again.", "",
        f"| op | {' | '.join(devices)} |", "|---" * (1 + len(devices)) + "|",
    ]  # fmt: skip
    for op in dict.fromkeys(row["op"] for row in rows):
        lines.append(f"| {op} | {' | '.join(str(cases[device, op]) for device in devices)} |")
    drawn = {device: Counter() for device in devices}
    for row in rows:
        drawn[row["device"]].update(row["types"])
    lines += ["", f"| types of operands | {' | '.join(devices)} |", "|---" * (1 + len(devices)) + "|"]
    for name in sorted(set().union(*drawn.values())):
        lines.append(f"| {name} | {' | '.join(str(drawn[device][name] or '-') for device in devices)} |")
    if found["failed"]:
        lines += ["", f"Failed: {', '.join(found['failed'])}."]
    left_out = [f"{name} ({why})" for name, why in found["not_run"].items()]
    if left_out:
        lines += ["", f"Not run: {'; '.join(left_out)}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.properties", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    here = properties.devices()
    parser.add_argument("--cases", type=int, default=10_000, help="in all")
    parser.add_argument("--devices", nargs="+", default=[device.name for device in here], metavar="DEVICE")
    parser.add_argument("--ops", nargs="+", default=list(properties.PROPERTIES), choices=properties.PROPERTIES)
    parser.add_argument("--case", help="run this one alone")
    parser.add_argument("--save", action="store_true", help="write the record that docs/reliability.md shows")
    args = parser.parse_args()
    if args.case:
        properties.run_case(args.case)
        print(f"{args.case}: holds")
        return 0
    if unknown := set(args.devices) - {device.name for device in here}:
        parser.error(f"--devices: {', '.join(sorted(unknown))} cannot run here; expected of "
                     f"{', '.join(device.name for device in here)}")
    with record.recording("properties", threads=2, save=args.save) as made:
        counts = plan(args.cases, [device for device in here if device.name in args.devices], args.ops)
        made["results"], made["failed"] = run(counts)
        made["not_run"] = properties.missing_devices()
    print(f"{sum(counts.values())} cases, {len(made['failed'])} failed")
    return 1 if made["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
