"""The contract of a level of isolation: what namespaces.py, restricted.py and plain.py each do in their own way."""

from __future__ import annotations

from typing import Protocol


class Walls(Protocol):
    """One worker's. Three processes call it: the worker, a supervisor forked for each program, and the program."""

    # ---- In the worker -------------------------------------------------------------------------

    def enter(self, caller: int) -> None:
        """Once, before anything else; `caller` is the process that this one must not outlive.

        Raises OSError where the system does not offer the level, or where it would not be safe for this user.
        """

    def facts(self) -> dict[str, bool]:
        """What the sentences of isolation.py depend on."""

    def fork_supervisor(self) -> int:
        """Like os.fork; the child is a supervisor."""

    def clean_up(self) -> None:
        """After a supervisor's end, however it came: what its program has started ends, its scratch folder goes."""

    def leave(self) -> None:
        """Once, at the end."""

    # ---- In the supervisor ---------------------------------------------------------------------

    def prepare(self, scratch_bytes: int) -> str:
        """Makes the program's scratch folder, of `scratch_bytes` where it can be limited. Returns its path."""

    def own_processes(self) -> int:
        """Processes and threads that the kernel counts towards the program's limit without being its own."""

    def members(self) -> list[int]:
        """The program's processes, as far as they can be seen."""

    def end_orphans(self) -> None:
        """After the program's first process and its group have been killed: whatever else it has started."""

    # ---- In the program ------------------------------------------------------------------------

    def seal(self, scratch: str) -> None:
        """The last thing before the source: gives up every right that the program must not have."""
