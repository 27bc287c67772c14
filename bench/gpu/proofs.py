"""What proves the kernels right on a GPU, as rows of a result: the tests on cuda, and compute-sanitizer's reports.

    python -m bench.gpu.proofs tests JUNIT.xml
    python -m bench.gpu.proofs sanitize memcheck=LOG racecheck=LOG synccheck=LOG
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.gpu import machine, results
from bench.gpu.within import LEFT_OUT


def tests(junit: str) -> list[dict[str, Any]]:
    """A row for every test of pytest's JUnit file: passed, failed, skipped, or left out for want of time."""
    rows = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        found = {child.tag: child.get("message", "") for child in case}
        outcome = "failed" if found.keys() & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        if LEFT_OUT in found.get("skipped", ""):
            outcome = "left out"
        rows.append({"test": f"{case.get('classname')}::{case.get('name')}", "outcome": outcome,
                     "seconds": float(case.get("time", 0))})  # fmt: skip
    return rows


def sanitized(tool: str, log: str) -> dict[str, Any]:
    """What a tool of compute-sanitizer reported. ``finished``: its summary is there, and tests ran under it."""
    summary = re.search(r"ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards?", log)
    ran = re.search(r"(\d+) passed", log)
    failed = re.search(r"(\d+) failed", log)
    return {"tool": tool, "reports": int(summary[1] or summary[2]) if summary else None,
            "tests": int(ran[1]) if ran else 0, "failed": int(failed[1]) if failed else 0,
            "finished": bool(summary and ran and not failed)}  # fmt: skip


def main() -> None:
    stage, *arguments = sys.argv[1:]
    device = machine.device(rehearse=False)
    if stage == "tests":
        rows = tests(Path(arguments[0]).read_text())
        ran = [row for row in rows if row["outcome"] != "skipped"]
        wrong = [f"{row['outcome']}: {row['test']}" for row in ran if row["outcome"] != "passed"]
        print(f"{len(ran)} tests on the GPU, {len(wrong)} of them failed or left out")
    else:
        rows = [sanitized(tool, Path(path).read_text()) for tool, path in (a.split("=", 1) for a in arguments)]
        wrong = [row["tool"] for row in rows if not row["finished"] or row["reports"]]
        for row in rows:
            print(f"compute-sanitizer {row['tool']}: "
                  + (f"{row['reports']} reports over {row['tests']} tests" if row["finished"] else "did not finish"))
    print(results.write(stage, machine.begin(device) | {"rows": rows}))
    for name in wrong[:20]:
        print(f"  {name}")
    if wrong or not rows:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
