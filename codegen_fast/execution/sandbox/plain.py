"""Systems without any of Linux's walls: limits of a process, and an end to its process group. isolation.py says so."""

from __future__ import annotations

import os

from . import scratch


class Plain:
    """No walls. See walls.py."""

    def __init__(self, readable: list[str], scratch_root: str | None) -> None:
        if scratch_root is None:
            raise ValueError("scratch_root: a folder expected, because without namespaces there is no other place")
        self._scratch = os.path.join(scratch_root, "program")

    def enter(self, caller: int) -> None:
        """Refused to root: a program that signals everybody would end the machine."""
        if os.geteuid() == 0:
            raise OSError("this system cannot keep a program of root's from the machine; run as an ordinary user")

    def facts(self) -> dict[str, bool]:
        return {}

    def fork_supervisor(self) -> int:
        return os.fork()

    def prepare(self, scratch_bytes: int) -> str:
        os.mkdir(self._scratch, 0o700)
        return self._scratch

    def own_processes(self) -> int:
        return 1 << 20  # cannot be counted here, and a limit below what the user runs already would let nothing start

    def seal(self, scratch: str) -> None:
        pass

    def members(self) -> list[int]:
        return []

    def end_orphans(self) -> None:
        """Nothing that could be done: a process that has left its program's group cannot be found."""

    def clean_up(self) -> None:
        scratch.remove(self._scratch)

    def leave(self) -> None:
        scratch.remove(os.path.dirname(self._scratch))
