"""docs/reliability.md, rendered from the records: python -m reliability.page"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import record

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"

OPENING = """\
# What it survives

Written by `python -m reliability.page` from the records in `reliability/results`, never by hand. Each part names the
command that repeats it, and the machine, the day and the commit of the run that its figures are from.
"""

# Modules with TITLE and section(record) -> Markdown, in the order of the page. A record has the name of its module.
PARTS: tuple[str, ...] = (
    "numerics",
    "versions",
    "sanitizers",
    "properties",
    "faults",
    "soak",
    "hostile",
    "sizes",
    "saving",
)


def render() -> str:
    """The page's text."""
    from importlib import import_module

    parts = [OPENING]
    for name in PARTS:
        module = import_module(f"reliability.{name}")
        found = record.read(name)
        body = module.section(found) + "\n" + origin(found) if found else f"Not run yet: `python -m reliability.{name}`.\n"
        parts.append(f"## {module.TITLE}\n\n{body}")
    return "\n".join(parts)


def origin(found: dict[str, Any]) -> str:
    """Where the figures of a part are from."""
    machine = found["machine"]
    return (f"`{found['command']}`: {found['seconds']:,.0f} s on {found['date'][:10]}, commit {found['commit']}, "
            f"{machine['cpu']} ({machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, kernels for "
            f"{machine['isa']}), Python {machine['python']}.\n")


def main() -> None:
    argparse.ArgumentParser(prog="python -m reliability.page", description=__doc__).parse_args()
    PAGE.write_text(render())
    print(f"wrote {PAGE.relative_to(PAGE.parents[1])}")


if __name__ == "__main__":
    main()
