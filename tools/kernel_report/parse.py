"""Reads what ptxas and cuobjdump print about kernels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# Instructions that the report shows. The ones that move 128 bits are kept apart from narrower ones.
WATCHED = frozenset(
    ("HMMA", "IMMA", "HGMMA", "IGMMA", "LDSM", "LDGSTS", "UBLKCP", "LDG.128", "STG.128", "LDS.128", "STS.128",
     "LDL", "STL", "ACQBULK", "PREEXIT")
)  # fmt: skip
_WIDE = frozenset(("LDG", "STG", "LDS", "STS"))


@dataclass
class Kernel:
    """One kernel in one architecture's code. ``spill`` is None where no log of ptxas was read."""

    arch: str
    name: str
    registers: int
    shared: int  # bytes, static
    stack: int  # bytes
    spill: int | None = None  # bytes stored + bytes loaded
    uses: Counter[str] = field(default_factory=Counter)  # watched instructions and how often each stands in the code
    instructions: int = 0

    @property
    def local(self) -> int:
        """Instructions that touch local memory: spills, and arrays that did not fit into registers."""
        return self.uses["LDL"] + self.uses["STL"]


def short_name(demangled: str) -> str:
    """``void codegen_fast::cuda::(anonymous namespace)::rows<codegen_fast::cuda::f16, 2>(...)`` -> ``rows<f16, 2>``."""
    name = demangled.replace("(anonymous namespace)::", "").replace("codegen_fast::cuda::", "")
    name = name.removeprefix("void ").replace("> >", ">>")
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i]
    return name


def resource_usage(text: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(arch, mangled name, {REG: ..., STACK: ..., SHARED: ...}) of ``cuobjdump --dump-resource-usage``."""
    arch, function = "", None
    for line in text.splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ").strip()
        elif found := re.match(r"\s*Function (\S+):$", line):
            function = found[1]
        elif function and "REG:" in line:
            yield arch, function, {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
            function = None


_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def sass(lines: Iterable[str]) -> dict[tuple[str, str], Counter[str]]:
    """{(arch, mangled name): watched instructions, and "all" of them} of ``cuobjdump --dump-sass``."""
    found: dict[tuple[str, str], Counter[str]] = {}
    arch, counts = "", None
    for line in lines:
        if line.startswith("\t\tFunction : "):
            counts = found.setdefault((arch, line.removeprefix("\t\tFunction : ").strip()), Counter())
        elif line.startswith("arch = "):
            arch, counts = line.removeprefix("arch = ").strip(), None
        elif counts is not None and (match := _INSTRUCTION.match(line)):
            base, *modifiers = match[1].split(".")
            counts["all"] += 1
            watched = f"{base}.128" if base in _WIDE and "128" in modifiers else base
            if watched in WATCHED:
                counts[watched] += 1
    return found


def ptxas_log(text: str) -> dict[tuple[str, str], int]:
    """{(arch, mangled name): bytes of spill stores and loads} of what ``nvcc -Xptxas=-v`` printed."""
    spills: dict[tuple[str, str], int] = {}
    at = None
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            at = found[2], found[1]
        elif at and (found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            spills[at] = int(found[1]) + int(found[2])
            at = None
    return spills
