"""Which processes there are, what memory they hold, and an end to all that a program has started."""

from __future__ import annotations

import contextlib
import os
import signal
import time

_STATE, _PARENT, _GROUP, _THREADS = 0, 1, 2, 17  # of /proc/<pid>/stat, after the process's name
_PATIENCE = 5.0  # seconds that killed processes get to disappear


def visible() -> list[int]:
    """The process ids that /proc shows; empty where there is none."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def descendants(root: int) -> list[int]:
    """Children of `root`, their children and so on. Looks at all processes: Linux's lists of children are optional."""
    return list(_groups_of_descendants(root))


def threads(pids: list[int]) -> int:
    """Threads of the processes; a process has at least one."""
    return sum(int(fields[_THREADS]) for pid in pids if (fields := _stat(pid)))


def memory_bytes(pids: list[int]) -> int:
    """Memory of the processes that no file backs. Pages they share are counted once for each, so this is too much."""
    return sum(_kilobytes(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:")) for pid in pids) << 10


def own_memory_bytes(pids: list[int]) -> int:
    """The same with shared pages divided among their holders: slower. Too much where the kernel does not tell."""
    return sum(_kilobytes(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:"))
               or _kilobytes(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:")) for pid in pids) << 10  # fmt: skip


def end_descendants() -> bool:
    """Kills whatever this process, a subreaper, has below it, and waits; whether it has gone after five seconds.

    A process group dies in one stroke: a chain of forks could run away from a look at one process after the other.
    """
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        family = _groups_of_descendants(os.getpid())
        with contextlib.suppress(ProcessLookupError, PermissionError):
            for group in set(family.values()) - {os.getpgrp()}:
                os.killpg(group, signal.SIGKILL)
        for pid in family:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
    return False


def _groups_of_descendants(root: int) -> dict[int, int]:
    """The process group of every descendant."""
    groups: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for pid in visible():
        if (fields := _stat(pid)) and (fields[_STATE] != b"Z" or int(fields[_PARENT]) == root):
            children.setdefault(int(fields[_PARENT]), []).append(pid)
            groups[pid] = int(fields[_GROUP])
    found = list(children.get(root, []))
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return {pid: groups[pid] for pid in found}


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the state on; empty for a process that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()  # the name, in parentheses, may hold anything
    except OSError:
        return []


def _kilobytes(path: str, keys: tuple[bytes, ...]) -> int:
    try:
        with open(path, "rb") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(keys))
    except OSError:
        return 0  # it has ended
