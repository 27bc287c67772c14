"""What goes wrong around a model: for each trial a clear error, no hang, no leak, and a model that answers as before.

The trials stand in reliability/trials. All run in one process on one model (the demo model in float32): whatever one
leaves behind, the others meet. After each, the pages of all caches are counted and fixed requests must give the tokens of
the start. Memory is judged by a second, shorter run of the trial: what the first loaded and filled stays (modules, pools of
threads, the allocator's own stock), and what grows again is a leak. A trial that takes too long ends the process with a
traceback.

python -m reliability.faults --save
"""

from __future__ import annotations

import argparse
import faulthandler
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from . import record
from .accounts import allocated_bytes, retained_bytes
from .trials import allocations, callbacks, disk, files, hub, interruptions, threads, values
from .trials.subject import Subject

TITLE = "Faults"

# Of the second run. What is allocated is what somebody holds. What is resident goes up and down by what glibc's arenas keep (18
# MB in a test's short run): it tells of memory that is mapped and not allocated, as caches and weights are.
ALLOWED_MB = {"allocated": 1.0, "resident": 32.0}
_SECONDS = 1800  # of a trial, before it counts as a hang; a machine may stand still for minutes meanwhile


class Trial(NamedTuple):
    run: Callable[[Subject, int], str]
    times: int  # in a recorded run
    short: int  # in the tests

    @property
    def again(self) -> int:
        """Times in the second run of a recorded one."""
        return max(1, self.times // 4)


TRIALS: dict[str, Trial] = {
    "allocations of cache pages fail": Trial(allocations.pages, 60, 5),
    "address space runs out": Trial(allocations.address_space, 80, 10),
    "callbacks raise": Trial(callbacks.raising, 200, 25),
    "a logits processor returns NaN": Trial(callbacks.nan_logits, 100, 10),
    "Ctrl-C": Trial(interruptions.ctrl_c, 200, 20),
    "Ctrl-C everywhere": Trial(interruptions.everywhere, 2000, 15),
    "threads at once": Trial(threads.at_once, 8, 1),
    "fork after load": Trial(threads.fork, 20, 2),
    "weights in a file are NaN or infinite": Trial(values.in_files, 18, 6),
    "weights in memory become NaN or infinite": Trial(values.in_memory, 40, 10),
    "a file's bytes are refused while saving": Trial(disk.file_size, 20, 3),
    "the disk is full while saving": Trial(disk.full, 12, 2),
    "a checkpoint file changes while it is read": Trial(files.changed_while_read, 144, 12),
    "a Hub that stops answering": Trial(hub.silent, 1, 1),
    "a Hub that falls silent after some answers": Trial(hub.silent_after, 8, 1),
}


def run(subject: Subject, name: str, times: int, again: int) -> dict[str, Any]:
    """What came out of a trial so many times, and again (0: not); an error of another kind than AssertionError is one of
    the trial itself."""
    trial, outcome, failed, begin = TRIALS[name], None, None, time.monotonic()
    used = [_used_mb()]
    try:
        for count in (times, again):
            if count:
                told = trial.run(subject, count)
                outcome = outcome or told
                used.append(_used_mb())
    except AssertionError as error:
        failed = str(error) or repr(error)
    growth = [{kind: after[kind] - before[kind] for kind in after} for before, after in zip(used, used[1:])]
    if len(growth) == 2:
        for kind, most in ALLOWED_MB.items():
            if growth[1][kind] > most:
                failed = f"{kind} memory grew by {growth[1][kind]:.1f} MB in the second run; at most {most:g} is allowed"
    return {"name": name, "tried": " ".join(trial.run.__doc__.split()), "times": times, "again": again, "outcome": outcome,
            "failed": failed, "growth_mb": growth, "seconds": time.monotonic() - begin}  # fmt: skip


def _used_mb() -> dict[str, float]:
    """After a collection of Python's, and after the allocator has given back what it can."""
    return {"resident": retained_bytes() / 1e6, "allocated": allocated_bytes() / 1e6}


def section(found: dict[str, Any]) -> str:
    lines = [
        f"In one process, on one model in turns. After each row: the pages of all caches were back, {found['checked']} times "
        "fixed requests (greedy, sampled, in a session) gave the tokens of the start, and no trial hung. Memory: what the "
        "process had grown by after the trial (modules, pools of threads, the allocator's stock), and then after a second, "
        f"shorter run of it, in which it may allocate {found['allowed_mb']['allocated']:g} MB more than it frees and grow "
        f"by {found['allowed_mb']['resident']:g} MB.",
        "",
        "| tried | times | what came out | grown by | in the second run | allocated in it |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for trial in found["trials"]:
        outcome = trial["outcome"] if trial["failed"] is None else f"**failed**: {trial['failed']}"
        first, second = [*trial["growth_mb"], None, None][:2]
        lines.append(f"| {trial['tried']} | {trial['times']} + {trial['again']} | {outcome} | "
                     f"{_megabytes(first, 'resident')} | {_megabytes(second, 'resident')} | {_megabytes(second, 'allocated')} |")
    return "\n".join([*lines, "", *(note.format(**found) for note in _NOTES), ""])


def _megabytes(growth: dict[str, float] | None, kind: str) -> str:
    return "-" if growth is None else f"{growth[kind]:+.1f} MB"


_NOTES = (
    "A download that the Hub breaks off is gone on with by its client within the call; a new call keeps the files that came "
    "whole and fetches the others again, because huggingface_hub {huggingface_hub} keeps no partial files.",
    "",
    "A file that is renamed over while it is read is read to its old end: one state of it, never a mixture. One that is "
    "written to in place and keeps its size is known by the time of its last change, which many systems count in ticks of "
    "some milliseconds: a write within the tick of the one before it, as right after a download, is not seen. The trial sets "
    "the time itself.",
)


def main() -> None:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m reliability.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORDS", default="", help="the trials whose name contains this")
    parser.add_argument("--short", action="store_true", help="as many times as in the tests")
    parser.add_argument("--save", action="store_true", help="write the record, which is of one run of all trials")
    arguments = parser.parse_args()
    if arguments.save and arguments.only:
        parser.error("--only: a record is of all trials, in one process; leave out --save or --only")
    torch.set_num_threads(2)
    with record.recording("faults", torch.get_num_threads(), save=arguments.save) as found, Subject.opened() as subject:
        found |= {"huggingface_hub": version("huggingface_hub"), "allowed_mb": ALLOWED_MB, "trials": []}
        for name in tqdm([name for name in TRIALS if arguments.only in name]):
            trial = TRIALS[name]
            faulthandler.dump_traceback_later(_SECONDS, exit=True)  # in the tests pytest does so
            result = run(subject, name, *((trial.short, trial.short) if arguments.short else (trial.times, trial.again)))
            faulthandler.cancel_dump_traceback_later()
            found["trials"].append(result)
            tqdm.write(f"{name}: {result['failed'] or 'as it must'} ({result['seconds']:.0f} s)")
        found["checked"] = subject.checked
    print(section(found))
    if any(trial["failed"] for trial in found["trials"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
