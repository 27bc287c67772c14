"""csrc under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, on every instruction set of this machine.

    python -m reliability.sanitizers           the short form, as in CI
    python -m reliability.sanitizers --save    the full form, with planted faults and aarch64: recorded
    ... --neon                                 the short form, and aarch64 beside it, under qemu-user

Two builds (build/sanitized-*, kept), and on them: tests/isa (every function of every kernel table between pages that
nobody may touch, and a model through the ops), the pool with callers, resizes and forks at once, random cases of every
op, tests of arguments and the binding, in the full form also of stops and packing, and Python threads that generate at
once. The first report ends a program, and its text is printed. The full form then plants faults in a copy of the
checkout, each of which must be reported: a sanitizer that sees nothing would pass everything.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench  # noqa: F401 (puts tests/ on the path)
import properties
from isa import run
from tqdm import tqdm

from . import record
from .sanitized import ROOT, ArmBuild, Build

TITLE = "Sanitizers"
NAMES = {"address": "AddressSanitizer, UndefinedBehaviorSanitizer", "thread": "ThreadSanitizer"}
REPORT = re.compile(r"(?:SUMMARY|ERROR|WARNING): \w+Sanitizer: .*|.*: runtime error: .*")
SECONDS = 3600  # a program that takes longer hangs


@dataclass(frozen=True)
class Trial:
    """A program on a build. isa: "all" where the program sees to it. proof: what it prints where it did its work.
    module: Python runs it."""

    what: str
    build: Build
    isa: str
    arguments: tuple[str, ...]
    proof: str
    module: bool = True

    def command(self) -> list[str]:
        if self.module:
            return [sys.executable, "-m", *self.arguments]
        return [*self.build.launch(), str(self.build.program(self.arguments[0])), *self.arguments[1:]]

    def run(self) -> dict[str, Any]:
        """seconds: of processors, which others' work on the machine does not lengthen."""
        with tempfile.TemporaryFile("w+", errors="replace") as kept:
            program = subprocess.Popen(self.command(), stdout=kept, stderr=kept, cwd=self.build.source,
                                       env=self.build.environment(python=self.module))  # fmt: skip
            hanging = threading.Timer(SECONDS, program.kill)
            hanging.start()
            _, status, used = os.wait4(program.pid, 0)
            hanging.cancel()
            program.returncode = os.waitstatus_to_exitcode(status)
            kept.seek(0)
            output = kept.read()
        passed = program.returncode == 0 and re.search(self.proof, output) is not None
        return {
            "what": self.what, "sanitizer": self.build.kind, "isa": self.isa, "seconds": used.ru_utime + used.ru_stime,
            "passed": passed, "reports": REPORT.findall(output)[:3], "output": "" if passed else output[-6000:],
        }  # fmt: skip


def threads(build: Build, isa: str) -> Trial:
    return Trial("pool, forks, generation at once from C++", build, isa, ("threads_test", isa), f"{isa}: passed", False)


def kernels(build: Build, isa: str) -> Trial:
    return Trial("kernels and a model between fences", build, isa, ("isa_test", isa), f"{isa}: passed", False)


def generation(build: Build, isa: str, tokens: int, rounds: int) -> Trial:
    options = ("--isa", isa, "--new-tokens", str(tokens), "--rounds", str(rounds))
    return Trial("Python threads generate at once", build, isa, ("reliability.concurrent_generation", *options),
                 "threads made .* alone: none")  # fmt: skip


def tests(what: str, build: Build, *names: str) -> Trial:
    paths = (f"tests/{name}.py" for name in names)
    # -s: a report ends the process, and what pytest had captured of it would be lost.
    return Trial(what, build, "all", ("pytest", "-qs", "-p", "no:cacheprovider", "-k", "not cuda", *paths), r"\d+ passed")


def trials(isas: Sequence[str], *, full: bool) -> list[Trial]:
    """Those of Python first: they take the longest. Tests are those without transformers, which takes a minute to import
    under a sanitizer. Of the kernels between fences there is nothing that ThreadSanitizer could see."""
    address, thread = Build("address"), Build("thread")
    found = [tests("tests of arguments and the binding", address, "test_op_arguments", "test_binding", "test_ops_edges",
                   "test_advance_op")]  # fmt: skip
    if full:
        found += [tests("tests of stops and of packing", address, "test_stops_code", "test_ops_pack", "test_ops_rows",
                        "test_ops_idle")]  # fmt: skip
    cases, tokens = (600, 12) if full else (90, 6)
    for isa in isas:
        arguments = ("reliability.properties", "--devices", f"cpu-{isa}", "--cases", str(cases))
        found += [Trial("random cases of every op", address, isa, arguments, "cases, 0 failed"),
                  generation(address, isa, tokens, 1), generation(thread, isa, tokens, 1)]  # fmt: skip
    for isa in isas:
        found += [kernels(address, isa), threads(address, isa), threads(thread, isa)]
    return found


def arm_trials() -> list[Trial]:
    """What the kernels do on processors that an emulator stands for: what _ARM_LEAVES_OUT does not name."""
    return [kernels(ArmBuild("address", cpu=machine.launch[-1]), isa) for machine in run.ARM for isa in machine.isas]


_ARM_LEAVES_OUT = {
    "NEON under ThreadSanitizer, its pool and forks": "qemu-user runs neither the sanitizer nor a child of a process with "
                                                      "several threads",
    "NEON from Python": "there is no Python for aarch64 here",
}  # fmt: skip


def not_run(isas: Sequence[str], arm: Sequence[str], why_no_arm: str) -> dict[str, str]:
    """What the sanitizers have not seen, and why. isas, arm: what ran here, and under qemu-user."""
    left_out = {name: why for name, why in properties.missing_devices().items()
                if name.startswith("cpu-") and name.removeprefix("cpu-") not in (*isas, *arm)}  # fmt: skip
    neon = [name for name in left_out if "neon" in name]
    left_out |= dict.fromkeys(neon, why_no_arm) | (_ARM_LEAVES_OUT if arm else {})
    return left_out | {"CUDA's kernels": "these builds are without csrc/cuda"}


# ---- Planted faults ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """what is planted: text of a file replaced; who must report it, and the words of the report."""

    what: str
    path: str
    text: str
    replacement: str
    trial: Trial
    report: str


def faults(isa: str) -> list[Fault]:
    address, thread = Build("address"), Build("thread")
    shared = ("scratch that all threads share", "csrc/cpu/attention.cpp", "    float scaled[", "    static float scaled[")
    return [
        Fault("a region that does not wait for its workers", "csrc/cpu/pool.cpp", "active_.load() != 0;", "false;",
              threads(thread, isa), "ThreadSanitizer: (data race|heap-use-after-free)"),
        Fault(*shared, threads(thread, isa), "ThreadSanitizer: data race"),
        Fault(*shared, generation(thread, isa, 8, 2), "ThreadSanitizer: data race"),
        Fault("a loop that goes one row too far", "csrc/cpu/advance.cpp", "b < rows;", "b <= rows;",
              generation(address, isa, 8, 1), "AddressSanitizer: heap-buffer-overflow"),
        Fault("a sum of int32 that overflows", "csrc/cpu/advance.cpp",
              "left = static_cast<int32_t>(static_cast<uint32_t>(left) - 1u);", "left = left - 1;",
              tests("tests of advance", address, "test_advance_op"), "signed integer overflow"),
    ]  # fmt: skip


def plant(isa: str, jobs: int) -> list[dict[str, Any]]:
    """Plants the faults one after another in a copy of the checkout; for each whether it was reported."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        for fault in tqdm(faults(isa), desc="planted faults"):
            path = copy / fault.path
            right = path.read_text()
            if right.count(fault.text) != 1:
                raise ValueError(f"{fault.path}: expected {fault.text!r} once in it, found {right.count(fault.text)}")
            path.write_text(right.replace(fault.text, fault.replacement))
            trial = replace(fault.trial, build=Build(fault.trial.build.kind, copy, ("threads_test",)))
            trial.build.make(jobs)
            made = trial.run()
            path.write_text(right)
            text = "\n".join(made["reports"]).replace(f"{copy}/", "")
            found = not made["passed"] and re.search(fault.report, text) is not None
            results.append({"fault": fault.what, "file": fault.path, "by": trial.what, "sanitizer": trial.build.kind,
                            "found": found, "report": text, "output": "" if found else made["output"]})  # fmt: skip
    return results


# ---- The record --------------------------------------------------------------------------------


def section(found: dict[str, Any]) -> str:
    rows = found["results"]
    isas = [isa for isa in dict.fromkeys(row["isa"] for row in rows) if isa != "all"]
    here = found["machine"]["isas"]
    lines = [
        f"{len(rows)} programs on builds with sanitizers, {sum(not row['passed'] for row in rows)} with a report. "
        "Processor seconds of each:", "",
        f"| | sanitizers | {' | '.join(isas)} |", "|---" * (2 + len(isas)) + "|",
    ]  # fmt: skip
    for what, kind in dict.fromkeys((row["what"], row["sanitizer"]) for row in rows):
        of = {row["isa"]: f"{row['seconds']:.0f}{'' if row['passed'] else ' FAILED'}" for row in rows
              if (row["what"], row["sanitizer"]) == (what, kind)}  # fmt: skip
        everywhere = of.get("all", "-")  # on this machine
        cells = " | ".join(of.get(isa, everywhere if isa in here else "-") for isa in isas)
        lines.append(f"| {what} | {NAMES[kind]} | {cells} |")
    planted = found["planted"]
    seen = sum(row["found"] for row in planted)
    lines += ["", f"Faults planted in a copy of the sources: {len(planted)}, reported: {seen}:", ""]
    lines += [f"- {row['fault']} (`{row['file']}`), by \"{row['by']}\" with {NAMES[row['sanitizer']]}"
              f"{'' if row['found'] else ': NOT FOUND'}" for row in planted]  # fmt: skip
    lines += ["", "Not run:", "", *(f"- {name}: {why}." for name, why in found["not_run"].items()), ""]
    lines += ["Python and torch themselves are not built with sanitizers: what they alone do to memory is not seen."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.sanitizers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers and programs at once")
    parser.add_argument("--save", action="store_true", help="the full form; writes what docs/reliability.md shows")
    parser.add_argument("--neon", action="store_true",
                        help="tests/isa for aarch64 too, under qemu-user: minutes; --save does so wherever it can")
    args = parser.parse_args()
    why_no_arm = run.missing("aarch64-linux-gnu-g++", "qemu-aarch64")
    if args.neon and why_no_arm:
        parser.error(f"--neon: {why_no_arm}")
    from codegen_fast import ops

    with record.recording("sanitizers", threads=3, save=args.save) as made:
        start = time.monotonic()
        chosen, arm = trials(ops.cpu_isas(), full=args.save), []
        if args.neon or (args.save and not why_no_arm):
            arm = arm_trials()
        chosen += arm
        for build in {trial.build.folder: trial.build for trial in chosen}.values():
            build.make(args.jobs)
        made["build_seconds"] = time.monotonic() - start
        print(f"built in {made['build_seconds']:.0f} s")
        made["results"], made["planted"] = [], []
        made["not_run"] = not_run(ops.cpu_isas(), [trial.isa for trial in arm], why_no_arm or "`--neon` was not given")
        with ThreadPoolExecutor(args.jobs) as pool:
            for row in tqdm(pool.map(Trial.run, chosen), total=len(chosen)):
                made["results"].append(row)
                tqdm.write(f"{'passed' if row['passed'] else 'FAILED'}: {row['what']}, {row['sanitizer']}, {row['isa']}, "
                           f"{row['seconds']:.0f} s{row['output'] and chr(10) + row['output']}")  # fmt: skip
        if args.save:
            made["planted"] = plant(ops.cpu_isas()[0], args.jobs)
    for row in made["planted"]:
        print(f"{'found' if row['found'] else 'NOT FOUND'}: {row['fault']}: {row['report']}{row['output']}")
    right = all(row["passed"] for row in made["results"]) and all(row["found"] for row in made["planted"])
    print(f"sanitizers: {len(chosen)} programs, {sum(not row['passed'] for row in made['results'])} failed, "
          f"{time.monotonic() - start:.0f} s")  # fmt: skip
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
