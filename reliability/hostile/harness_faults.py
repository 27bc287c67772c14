"""Causes in a record that were the harness's own and not the package's, each looked at and mended with it.

They are named one by one and for one run: what a later record tells is the package's until somebody has looked.
"""

from __future__ import annotations

from typing import Any

_LOST = "it lost lines that came two at a time"
_RAISED = "its damage raised"
_SEED = "it took a sound seed for a failure"
_GREW = "inputs grew without bound, and the system ended the process for want of memory"

# (date, commit) of a record -> (in which part of it, target, case) -> what was wrong.
_OWN: dict[tuple[str, str], dict[tuple[str, str, int], str]] = {
    ("2026-11-29T22:27:06+00:00", "f17488a"): {
        ("targets", "torch .bin, old format", 0): _RAISED,
        ("targets", "index and shards", 1495): _LOST,
        ("targets", "vocab.json and merges.txt", 607): _RAISED,
        ("targets", "MTPB data", 1494): _LOST,
        ("targets", "run gone on with", 1018): _LOST,
        ("targets", "run compared", 0): _SEED,
        ("targets", "links and devices, weights", 774): _RAISED,
        ("targets", "links and devices, tokenizers", 626): _RAISED,
        ("targets", "links and devices, runs", 200): _RAISED,
        ("guided", "torch .bin", 0): _RAISED,
        ("guided", "run gone on with", 0): _GREW,
        ("guided", "run compared", 0): _SEED,
    },
}


def what_was_wrong(found: dict[str, Any], part: str, target: str, case: int) -> str | None:
    """With the harness, for a cause of this record; None for one of the package's."""
    return _OWN.get((found["date"], found["commit"]), {}).get((part, target, case))
