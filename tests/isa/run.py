"""Builds the test of the CPU's instruction sets and runs it: on this machine, and under emulators for others.

    python tests/isa/run.py                all that can be done here
    python tests/isa/run.py --native       this machine's instruction sets alone

python -m reliability.sanitizers builds the same with sanitizers. What cannot be done is named with its reason. Exits with 1 where something that was done went wrong.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILDS = HERE / "build"  # kept: a second build compiles what changed
TOOLS = {
    "cmake": "cmake", "ninja": "ninja-build", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user", "qemu-x86_64": "qemu-user",
}  # fmt: skip


class Failed(Exception):
    """A build or a run that went wrong; the text is its output."""


@dataclass(frozen=True)
class Machine:
    """What runs the test.

    name      in reports
    launch    what stands before the program on the command line
    chosen    the instruction set that must be chosen of itself; None: whichever
    isas      the instruction sets to test; None: all that the machine executes
    """

    name: str
    launch: tuple[str, ...] = ()
    chosen: str | None = None
    isas: tuple[str, ...] | None = None

    def output(self, program: Path, *isas: str) -> str:
        done = subprocess.run([*self.launch, program, *isas], capture_output=True, text=True, timeout=1200)
        if done.returncode:
            raise Failed(f"{self.name}: {' '.join(isas)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


HERE_ITSELF = Machine("this machine")
# fmt: off
OLDER = (  # qemu-user emulates neither AVX-512 nor AVX-VNNI
    Machine("x86-64 without AVX (emulated)", ("qemu-x86_64", "-cpu", "qemu64"), "portable", ("portable",)),
    Machine("Haswell (emulated)", ("qemu-x86_64", "-cpu", "Haswell"), "avx2", ("avx2",)),
    Machine("Haswell, its system keeping no AVX registers (emulated)", ("qemu-x86_64", "-cpu", "Haswell,-xsave"),
            "portable", ()),
    Machine("Haswell without FMA (emulated)", ("qemu-x86_64", "-cpu", "Haswell,-fma"), "portable", ()),
)
ARM = (
    Machine("Cortex-A53 (emulated)", ("qemu-aarch64", "-cpu", "cortex-a53"), "neon", ("neon",)),
    Machine("Neoverse N1 (emulated)", ("qemu-aarch64", "-cpu", "neoverse-n1"), "neon_dotprod", ("neon_dotprod",)),
)
# fmt: on


def missing(*tools: str) -> str:
    """Which of these programs are not there, with the Debian packages that have them; "" if all are."""
    absent = [f"{tool} (Debian: {TOOLS[tool]})" for tool in tools if not shutil.which(tool)]
    return f"there is no {', no '.join(absent)}" if absent else ""


def build(name: str, *options: str) -> Path:
    """The test program, for the machine that the options say."""
    folder = BUILDS / name
    ninja = f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}"
    for command in (["cmake", "-S", HERE, "-B", folder, "-G", "Ninja", ninja, *options],
                    ["cmake", "--build", folder, "-j", "2"]):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr}")
    return folder / "isa_test"


def build_for_arm() -> Path:
    return build("aarch64", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
                 "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")  # fmt: skip


def test(program: Path, machines: Sequence[Machine]) -> str:
    """Runs the program on these machines, an instruction set at a time, and prints a line for each. Returns what the
    portable build computed: every run must agree on it."""
    runs = []
    for machine in machines:
        found = machine.output(program)
        chosen = re.search(r"^chosen: (\w+)$", found, re.M)[1]
        isas = re.search(r"^executable: (.+)$", found, re.M)[1].split()
        if machine.chosen not in (None, chosen):
            raise Failed(f"{machine.name}: {chosen} was chosen of {isas}, expected {machine.chosen}")
        lacks = [isa for isa in re.search(r"^built: (.+)$", found, re.M)[1].split() if isa not in isas]
        print(f"{machine.name}: executes {', '.join(isas)}; chooses {chosen}; lacks {', '.join(lacks) or 'nothing'}")
        runs += [(machine, isa) for isa in (isas if machine.isas is None else machine.isas)]
    bits = set()
    with ThreadPoolExecutor(2) as pool:
        for (machine, isa), output in zip(runs, pool.map(lambda run: run[0].output(program, run[1]), runs)):
            errors = re.findall(r"([\d.e+-]+) from portable", output)
            seconds = re.search(rf"^{isa}: passed \(([\d.]+) s\)$", output, re.M)[1]
            print(f"  passed: {isa:13} on {machine.name}, {seconds} s; model within {max(errors, key=float)} of portable")
            bits.add(re.search(r"^portable bits: (\w+)$", output, re.M)[1])
    if len(bits) != 1:
        raise Failed(f"the portable build does not always compute the same: {bits}")
    return bits.pop()


def native() -> tuple[Path, str]:
    """Tests what this machine executes; the program, and the portable build's bits."""
    program = build("native")
    return program, test(program, [HERE_ITSELF])


def emulated(program: Path, bits: str) -> list[str]:
    """Tests what this machine does not execute, or what older ones would choose; returns what could not be done."""
    left_out = []
    if platform.machine() not in ("x86_64", "AMD64"):
        left_out.append("older x86-64 machines: this one is another")
    elif why := missing("qemu-x86_64"):
        left_out.append(f"older x86-64 machines: not run, {why}")
    elif test(program, OLDER) != bits:
        raise Failed("the portable build computes something else on an older x86-64 machine")
    if why := missing("aarch64-linux-gnu-g++"):
        left_out.append(f"NEON: neither compiled nor run, {why}")
        return left_out
    program = build_for_arm()
    if why := missing("qemu-aarch64"):
        left_out.append(f"NEON: compiled, not run, {why}")
    elif test(program, ARM) != bits:
        raise Failed("the portable build computes something else on aarch64")
    return left_out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", action="store_true")
    args = parser.parse_args()
    if why := missing("cmake", "ninja"):
        print(f"instruction sets: nothing tested, {why}")
        return 1
    start = time.monotonic()
    try:
        program, bits = native()
        for what in [] if args.native else emulated(program, bits):
            print(f"NOT DONE: {what}")
    except Failed as failure:
        print(f"FAILED: {failure}")
        return 1
    print(f"instruction sets: done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
