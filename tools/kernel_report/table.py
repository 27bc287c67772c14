"""The committed tables of expected figures, one an architecture, and how a build is compared with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .parse import Kernel
from .rules import role_of

FOLDER = Path(__file__).parent / "expected"
COLUMNS = ("kernel", "registers", "shared", "stack", "spill", "local", "uses")
UPDATE = "python -m tools.kernel_report --update WHEEL --log LOG"
# The hardware hands registers to a warp in units of 256, which is 8 a thread: within a unit nothing changes. One nvcc
# always gives the same number, so that a table fails for a change of the source, or of the nvcc named at its top.
REGISTER_UNIT = 8


def format_table(kernels: list[Kernel], compiler: str) -> str:
    """Rows of one architecture. spill: bytes; local: instructions on local memory; uses: what else is watched."""
    rows = [COLUMNS] + [
        (k.name, f"{k.registers}", f"{k.shared}", f"{k.stack}", "-" if k.spill is None else f"{k.spill}", f"{k.local}",
         " ".join(sorted(_uses(k))) or "-")
        for k in sorted(kernels, key=lambda k: k.name)
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [" | ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:-1], widths[1:])] + [row[-1]])
             for row in rows]  # fmt: skip
    return f"# {kernels[0].arch}, {compiler}; written by {UPDATE}\n" + "\n".join(lines) + "\n"


def parse_table(text: str, arch: str) -> dict[str, Kernel]:
    """{name: kernel} of what ``format_table`` wrote."""
    kernels = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(" | ")]
        if line.startswith("#") or cells[0] == COLUMNS[0]:
            continue
        name, registers, shared, stack, spill, local, uses = cells
        counts = Counter(() if uses == "-" else uses.split())
        counts["LDL"] = int(local)
        kernels[name] = Kernel(arch, name, int(registers), int(shared), int(stack),
                               None if spill == "-" else int(spill), counts)  # fmt: skip
    return kernels


def compiler_of(text: str) -> str:
    """The nvcc that a table was written with."""
    return text.splitlines()[0].split(", ")[1].split(";")[0]


def problems(kernel: Kernel, expected: Kernel | None) -> list[str]:
    """What is wrong with a kernel by its role and by its row of the table; each a clause."""
    found = []
    role = role_of(kernel.name)
    if role is None:
        found.append("no role in tools/kernel_report/rules.py matches its name")
    else:
        missing = [name for name in role.needs(kernel.arch) if not kernel.uses[name]]
        if missing:
            found.append(f"a {role.name} has no {' and no '.join(missing)}")
        if role.hot and (kernel.spill or kernel.local):
            spilled = f"{kernel.spill} bytes spilled" if kernel.spill else "an array in local memory"
            found.append(f"hot, with {spilled} ({kernel.local} instructions on local memory)")
    if expected is None:
        return found + ["not in the table"]
    room = -(-expected.registers // REGISTER_UNIT) * REGISTER_UNIT
    if kernel.registers > room:
        found.append(f"{kernel.registers} registers, {expected.registers} in the table (up to {room} pass)")
    for name, now, then in (("shared memory", kernel.shared, expected.shared), ("stack", kernel.stack, expected.stack),
                            ("spills", kernel.spill or 0, expected.spill or 0)):  # fmt: skip
        if now > then:
            found.append(f"{now} bytes of {name}, {then} in the table")
    lost = _uses(expected) - _uses(kernel)
    if lost:
        found.append(f"no {', no '.join(sorted(lost))} any more")
    return found


def compare(kernels: list[Kernel], arch: str, table: str | None, *, whole: bool = True) -> list[str]:
    """A line for everything that is wrong in one architecture's code. Without a table the roles alone decide.

    whole: these are all kernels of a build, so that a row of the table without one is wrong too.
    """
    expected = parse_table(table, arch) if table is not None else {k.name: k for k in kernels}
    lines = [f"{arch} {k.name}: {problem}" for k in kernels for problem in problems(k, expected.get(k.name))]
    names = Counter(k.name for k in kernels)
    lines += [f"{arch} {name}: two kernels of this name; give one another" for name, n in names.items() if n > 1]
    gone = sorted(set(expected) - set(names)) if whole else []
    return lines + [f"{arch} {name}: in the table, but not in the build" for name in gone]


def _uses(kernel: Kernel) -> set[str]:
    return {name for name, count in kernel.uses.items() if count and name not in ("LDL", "STL", "all")}
