"""Which walls this machine offers, found by trying, and what they do and do not prevent in plain sentences."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

from .worker import LEVELS, SandboxRefused, Worker


@dataclass(frozen=True)
class Isolation:
    """The strongest level that could be started here."""

    level: str  # one of LEVELS
    facts: dict[str, bool]  # of its walls, see the classes in sandbox/
    refused: tuple[str, ...]  # why each stronger level was not to be had


@functools.cache
def best_isolation() -> Isolation:
    """Starts and ends a worker at each level until one works. Raises SandboxRefused where none does."""
    if sys.platform == "win32":
        raise SandboxRefused("programs are not run on Windows: it has neither fork nor limits of a process; use WSL 2")
    refused = []
    for level in LEVELS if sys.platform == "linux" else LEVELS[-1:]:
        try:
            worker = Worker(level, ())
        except SandboxRefused as error:
            refused.append(f"{level}: {error}")
            continue
        worker.close()
        return Isolation(level, worker.facts, tuple(refused))
    raise SandboxRefused("generated programs cannot be run safely here. " + "; ".join(refused))


def describe_isolation() -> list[str]:
    """What this machine can and cannot prevent generated programs from doing, one plain sentence each."""
    try:
        isolation = best_isolation()
    except SandboxRefused as error:
        return [f"Programs are refused: {error}"]
    sentences = [f"Not available here: {why}." for why in isolation.refused]
    return sentences + _SENTENCES[isolation.level](isolation.facts) + _EVERYWHERE


def _namespaces(facts: dict[str, bool]) -> list[str]:
    return [
        "Programs run in PID, user, mount, network and IPC namespaces of their own.",
        "Other processes can be neither seen nor signalled, and nothing that a program starts outlives it.",
        "Of the file system there are the interpreter and the system's libraries, read-only, and an empty scratch"
        " folder in memory; homes, sockets and secrets are not there.",
        "There is no network but a loopback of the program's own.",
        "The number of processes, the size of files and the address space are limited by the kernel.",
        "The memory of several processes together is looked at every 50 ms, so it can be exceeded for that long."
        if facts["processes_visible"] else
        "The memory of several processes together is not limited, because no /proc can be mounted here.",
    ]  # fmt: skip


def _restricted(facts: dict[str, bool]) -> list[str]:
    sentences = ["Programs run in processes of this machine behind seccomp"
                 + (" and Landlock, " if facts["files"] else ", ") + "and see that other processes exist."]  # fmt: skip
    if facts["as_root"]:
        sentences.append("They run as an unprivileged user instead of root." if facts["other_user"] else
                         "They run as root without privileges, because another user cannot read the interpreter.")  # fmt: skip
    sentences.append(
        "Only the scratch folder can be changed, and only the interpreter and the system's libraries can be read;"
        " modes, owners and times of files cannot be changed anywhere." if facts["files"] else
        "NOT PREVENTED: reading, changing and deleting files of the user, and reaching into the user's processes through"
        " /proc, because this kernel has no Landlock."
    )  # fmt: skip
    sentences.append(
        "Signals reach the program's own processes only." if facts["signals_scoped"] else
        "No signal can be sent, not even to the program's own children, because Landlock cannot tell them apart here."
    )  # fmt: skip
    return [
        *sentences,
        "No socket can be made, so there is no network.",
        "What a program starts cannot leave its process group and is killed with it; processes and memory are counted"
        " every 50 ms, so both can be exceeded for that long.",
        "NOT PREVENTED: filling the disk with many files in the scratch folder while the program runs.",
    ]


def _plain(facts: dict[str, bool]) -> list[str]:
    return [
        "NOT PREVENTED: this system has no walls that an ordinary user can put up. A program can read, change and delete"
        " the user's files, use the network, and signal the user's processes; run it in a virtual machine.",
        "Its time, address space and file size are limited as far as the system honours that, and its process group is"
        " killed at its end; a process that leaves the group goes on.",
    ]  # fmt: skip


_SENTENCES = {"namespaces": _namespaces, "restricted": _restricted, "plain": _plain}
_EVERYWHERE = [
    "Streams are cut at a limit, the environment holds none of the caller's variables, and no open file is inherited.",
    "NOT PREVENTED: errors of the kernel itself, what can be learned from the time things take, and full use of the"
    " processors for the time that a program has; for hostile code use a virtual machine of its own.",
]
