"""What goes wrong around a model: for each trial a clear error, no hang, no leak, and a model that answers as before.

The trials stand in reliability/trials. All run in one process on one model (the demo model in float32): whatever one
leaves behind, the others meet. After each, the pages of all caches are counted, fixed requests must give the tokens of the
start, and memory must not have grown by more than a bound. A trial that takes too long ends the process with a traceback.

python -m reliability.faults --save
"""

from __future__ import annotations

import argparse
import faulthandler
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench.cpu.results import write

from . import record
from .accounts import retained_bytes
from .trials import allocations, callbacks, disk, files, hub, interruptions, threads, values
from .trials.subject import Subject

TITLE = "Faults"

MOST_GROWTH_MB = 48.0  # modules are loaded and pools of threads fill; one cache a call left behind would be far more
_SECONDS = 1800  # of a trial, before it counts as a hang; a machine may stand still for minutes meanwhile


class Trial(NamedTuple):
    run: Callable[[Subject, int], str]
    times: int  # in a recorded run
    short: int  # in the tests


TRIALS: dict[str, Trial] = {
    "allocations of cache pages fail": Trial(allocations.pages, 60, 5),
    "address space runs out": Trial(allocations.address_space, 80, 10),
    "callbacks raise": Trial(callbacks.raising, 200, 25),
    "a logits processor returns NaN": Trial(callbacks.nan_logits, 100, 10),
    "Ctrl-C": Trial(interruptions.ctrl_c, 200, 20),
    "threads at once": Trial(threads.at_once, 8, 1),
    "fork after load": Trial(threads.fork, 20, 2),
    "weights in a file are NaN or infinite": Trial(values.in_files, 18, 6),
    "weights in memory become NaN or infinite": Trial(values.in_memory, 40, 10),
    "a file's bytes are refused while saving": Trial(disk.file_size, 20, 3),
    "the disk is full while saving": Trial(disk.full, 12, 2),
    "a checkpoint file changes while it is read": Trial(files.changed_while_read, 120, 12),
    "a Hub that stops answering": Trial(hub.silent, 1, 1),
    "a Hub that falls silent after some answers": Trial(hub.silent_after, 8, 1),
}


def run(subject: Subject, name: str, times: int) -> dict[str, Any]:
    """What came out of a trial; an error of another kind than AssertionError is one of the trial itself."""
    trial = TRIALS[name]
    before, begin = retained_bytes(), time.monotonic()
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    try:
        outcome, failed = trial.run(subject, times), None
    except AssertionError as error:
        outcome, failed = None, str(error) or repr(error)
    finally:
        faulthandler.cancel_dump_traceback_later()
    growth = (retained_bytes() - before) / 1e6
    if failed is None and growth > MOST_GROWTH_MB:
        failed = f"memory grew by {growth:.0f} MB; at most {MOST_GROWTH_MB:.0f} is allowed"
    return {"name": name, "tried": " ".join(trial.run.__doc__.split()), "times": times, "outcome": outcome,
            "failed": failed, "growth_mb": growth, "seconds": time.monotonic() - begin}  # fmt: skip


def section(found: dict[str, Any]) -> str:
    lines = [
        f"In one process, on one model in turns. After each row: the pages of all caches were back, {found['checked']} times "
        "fixed requests (greedy, sampled, in a session) gave the tokens of the start, no trial hung, and memory had grown by "
        f"at most {MOST_GROWTH_MB:.0f} MB.",
        "",
        "| tried | times | what came out | memory |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for trial in found["trials"]:
        outcome = trial["outcome"] if trial["failed"] is None else f"**failed**: {trial['failed']}"
        lines.append(f"| {trial['tried']} | {trial['times']} | {outcome} | {trial['growth_mb']:+.1f} MB |")
    return "\n".join([*lines, "", *_NOTES, ""])


_NOTES = (
    "A download that the Hub breaks off is gone on with by its client within the call; a new call keeps the files that came "
    "whole and fetches the others again, because huggingface_hub 2.4 keeps no partial files.",
    "A file that is renamed over while it is read is read to its old end: one state of it, never a mixture.",
)


def main() -> None:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m reliability.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORDS", default="", help="the trials whose name contains this; --save keeps the others' results as they are in the record")
    parser.add_argument("--short", action="store_true", help="as many times as in the tests")
    parser.add_argument("--save", action="store_true", help="write the record")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with record.recording("faults", torch.get_num_threads(), save=arguments.save) as found, Subject.opened() as subject:
        before = (record.read("faults") or {"trials": [], "checked": 0}) if arguments.only else {"trials": [], "checked": 0}
        results = {trial["name"]: trial for trial in before["trials"]}
        for name in tqdm([name for name in TRIALS if arguments.only in name]):
            trial = TRIALS[name]
            results[name] = run(subject, name, trial.short if arguments.short else trial.times)
            tqdm.write(f"{name}: {results[name]['failed'] or 'as it must'} ({results[name]['seconds']:.0f} s)")
        found["trials"] = [results[name] for name in TRIALS if name in results]
        found["checked"] = before["checked"] + subject.checked
        found["command"] = before.get("command", found["command"])
    if arguments.only and arguments.save:  # the record is of several runs
        found["seconds"] = sum(trial["seconds"] for trial in found["trials"])
        write(found, record.FOLDER / "faults.json")
    print(section(found))
    if any(trial["failed"] for trial in found["trials"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
