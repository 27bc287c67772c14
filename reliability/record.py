"""Records: one JSON file a command, with the machine, the date and the commit that it ran on."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterator

from bench.cpu import results

FOLDER = Path(__file__).parent / "results"


def command_line() -> str:
    """The command that runs now, as somebody would type it at the root of the checkout.

    Of files elsewhere only the names: where they lie is this machine's own, and records are for others to read.
    """
    file = Path(sys.argv[0])
    module = file.parent.name if file.stem == "__main__" else file.stem
    arguments = (Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:])
    return shlex.join(["python", "-m", f"reliability.{module}", *arguments])


@contextmanager
def recording(name: str, threads: int, *, save: bool) -> Iterator[dict[str, Any]]:
    """A record to put results into; written to reliability/results/`name`.json at the end, if `save`.

    Nothing is written if the block raises: a record is of a run that came to its end. What failed within it belongs to
    its results.
    """
    started = datetime.now(timezone.utc)
    record: dict[str, Any] = {
        "name": name,
        "command": command_line(),
        "date": started.isoformat(timespec="seconds"),
        "commit": results.commit(),
        "machine": results.describe_machine(threads),
    }
    yield record
    record["seconds"] = (datetime.now(timezone.utc) - started).total_seconds()
    if save:
        results.write(record, FOLDER / f"{name}.json")


def read(name: str) -> dict[str, Any] | None:
    """The record of that name; None where nobody has made it."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None
