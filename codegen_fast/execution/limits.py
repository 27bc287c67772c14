"""What a program may use, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

_SMALLEST = {"memory_bytes": 128 << 20, "file_bytes": 64 << 10, "processes": 1, "output_bytes": 0}


@dataclass(frozen=True)
class Limits:
    """What one program may use. A program over `seconds`, or over `memory_bytes` with all its processes, is killed;
    the other limits make its own calls fail (MemoryError, OSError). Raises ValueError for a limit that lets nothing run.
    """

    seconds: float = 3.0  # wall clock, from its first instruction
    memory_bytes: int = 4 << 30  # address space of a process, and memory of all its processes together
    file_bytes: int = 16 << 20  # largest file; the scratch folder holds four of them
    processes: int = 32  # processes and threads
    output_bytes: int = 1 << 20  # of each standard stream that is kept; what is more is read and dropped

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds: {self.seconds}, more than 0 expected")
        for field in fields(self):
            least = _SMALLEST.get(field.name)
            value = getattr(self, field.name)
            if least is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{field.name}: {value!r}, an int of at least {least} expected")


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    status: str  # "finished" (exit code 0), "failed" (another exit code, a signal), "timed out", "not run" (see detail)
    exit_code: int | None  # negative: the signal
    stdout: str  # utf-8 with errors replaced, cut at output_bytes
    stderr: str
    truncated: bool  # a stream was longer than output_bytes
    seconds: float  # wall clock
    detail: str  # one sentence for people: "killed after 3 s", "memory limit of 4.3 GB", ""
    reached_end: bool = False  # the source's last line was executed: tells "finished" from sys.exit() and os._exit(0)
