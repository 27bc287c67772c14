"""Hours of mixed requests: memory stays flat, pages come back, and fixed requests keep their answers to the last bit.

Requests are those of requests.py, on the demo model in float32 and in int8, with pauses in between. After each one the
pages of all caches are counted; after every few one of the probes is asked again. Memory is what is anonymous or shared,
and of that what the allocator has given out, looked at twice a minute when sessions and caches have been let go of. What is
resident moves by tens of MB with what glibc's allocator keeps of free pieces, so at a few marks the allocator gives back what
nobody uses (malloc_trim), and what is held then is judged as well, by the same bounds. All are judged after a warm-up, in
which the allocator's pools and torch's own buffers fill, by their least values: a leak lifts the least as well. (The slope is
Theil and Sen's, which a few points do not turn.) Time in which the process was stopped does not count.

python -m reliability.soak --hours 2 --save    # Ctrl-C or SIGTERM ends it early, with a record of what was done
"""

from __future__ import annotations

import argparse
import signal
import statistics
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from bench.cpu import results

from . import record, requests
from .accounts import CacheAccounts, allocated_bytes, open_files, resident_bytes, retained_bytes
from .probes import Probes

TITLE = "Hours of mixed requests"

_PROBE_EVERY = 8  # requests
_REST_EVERY = 30.0  # seconds between looks at the memory, and between records of what has been done so far
_WARM_UP = 0.1  # of the time
_PARTS = 12  # of the rest, for the slope
_MARKS = 9  # from the end of the warm-up to the end, at which the allocator gives back what nobody uses
_POINTS = 250  # of the memory, in the record
_STANDSTILL = 1.0  # seconds that a request may take beyond its share of a core before it must have been stopped
# A page of the smallest cache lost in each request would be 50 times as much in two hours.
MOST_GROWTH_MB, MOST_MB_PER_HOUR = 8.0, 4.0


class _Ended:
    """Whether somebody asked for the end: Ctrl-C, SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def soak(found: dict[str, Any], seconds: float, seed: int, share: float, write: Any) -> None:
    """Runs requests for so long and keeps in `found` what came out; `write` is called every half minute."""
    from tqdm import tqdm

    ended = _Ended()
    client = requests.Client.of_demo_models(seed)
    kinds: Counter[str] = Counter()
    memory: list[_Sample] = []
    held: list[tuple[float, int]] = []  # seconds since the beginning, bytes, at the marks
    state = {"planned_seconds": seconds, "share_of_a_core": share, "seed": seed, "models": ["float32", "int8"],
             "probe_every": _PROBE_EVERY, "failures": [], "probes": 0, "files": [open_files()],
             "threads": [threading.active_count()], "peak_bytes": 0}  # fmt: skip
    found.update(state)
    accounts = CacheAccounts()
    with accounts.opened(), tqdm(total=round(seconds), unit="s", mininterval=10) as bar:
        probes = [Probes(model) for model in client.models]
        found["failures"] += accounts.faults(client.held)
        questions = [(index, name) for index, probe in enumerate(probes) for name in probe.names]
        now = rested = 0.0
        while not ended.asked and now < seconds:
            busy, started = time.process_time(), time.monotonic()
            torch.set_num_threads(client.chance.choice([1, 1, 1, 2, 3]))
            kind = requests.draw(client.chance)
            kinds[kind.__name__] += 1
            try:
                kind(client)
            except Exception:
                found["failures"].append(f"{kind.__name__}: {traceback.format_exc(limit=-4)}")
            found["failures"] += [f"{kind.__name__}: {fault}" for fault in
                                  accounts.faults(client.held, interrupted=kind in requests.INTERRUPTED)]  # fmt: skip
            total = kinds.total()
            if total % _PROBE_EVERY == 0:
                index, name = questions[total // _PROBE_EVERY % len(questions)]
                found["probes"] += 1
                if probes[index].differs(name):
                    found["failures"].append(f"probe {name} of model {index} differs after {total} requests")
                found["failures"] += accounts.faults(client.held)
            found["peak_bytes"] = max(found["peak_bytes"], resident_bytes())
            if now - rested >= _REST_EVERY:
                rested = now
                client.let_go()
                found["failures"] += accounts.faults([])
                memory.append(_Sample.at(now))
                if now >= _mark(len(held), seconds):
                    held.append((now, retained_bytes()))
                bar.update(round(now) - bar.n)
                bar.set_postfix(requests=total, MB=memory[-1].resident // 10**6, failures=len(found["failures"]))
                _sum_up(found, kinds, memory, held, accounts, now)
                write()
            # What was computed is this share of the time that passes.
            due = (time.process_time() - busy) / share
            time.sleep(max(0.0, due - (time.monotonic() - started)))
            now += min(time.monotonic() - started, due + _STANDSTILL)
        client.let_go()
        memory.append(_Sample.at(now))
        held.append((now, retained_bytes()))
        for index, probe in enumerate(probes):
            found["probes"] += len(probe.names)
            found["failures"] += [f"probe {name} of model {index} differs at the end" for name in probe.different()]
        found["files"].append(open_files())
        found["threads"].append(threading.active_count())
        _sum_up(found, kinds, memory, held, accounts, now)
    found["came_to_its_end"] = not ended.asked


@dataclass(frozen=True)
class _Sample:
    """Of the memory: seconds since the beginning, bytes."""

    when: float
    resident: int
    allocated: int

    @classmethod
    def at(cls, when: float) -> _Sample:
        return cls(when, resident_bytes(), allocated_bytes())


def _mark(number: int, seconds: float) -> float:
    """When mark `number` is due. (The last is the end, whenever it comes.)"""
    return seconds * (_WARM_UP + (1 - _WARM_UP) * number / (_MARKS - 1))


def _sum_up(found: dict[str, Any], kinds: Counter[str], memory: list[_Sample], held: list[tuple[float, int]],
            accounts: CacheAccounts, now: float) -> None:  # fmt: skip
    found.update(
        soaked_seconds=now, requests=kinds.total(), kinds=dict(kinds), caches=accounts.made, collected=accounts.collected,
        memory=_memory(memory, held), came_to_its_end=False,
    )  # fmt: skip


def _memory(samples: list[_Sample], held: list[tuple[float, int]]) -> dict[str, Any]:
    """When memory was looked at (seconds), and how much of it was resident and allocated, or held at a mark (MB)."""
    step = max(1, len(samples) // _POINTS)
    course = [[round(at.when), round(at.resident / 1e6, 1), round(at.allocated / 1e6, 1)] for at in samples[::step]]
    return {"samples": len(samples), "course": course, "held": [[round(when), round(size / 1e6, 1)] for when, size in held]}


@dataclass(frozen=True)
class Trend:
    """What the course of a size says: MB, and MB an hour."""

    first: float  # the least in the first and in the last quarter
    last: float
    slope: float  # of the least values of twelve parts
    lowest: float
    highest: float

    @classmethod
    def of(cls, course: list[tuple[float, float]]) -> Trend:
        """course: seconds and MB, at least once."""
        quarter, part = max(1, len(course) // 4), max(1, -(-len(course) // _PARTS))
        least = [min(course[i : i + part], key=lambda point: point[1]) for i in range(0, len(course), part)]
        slopes = [3600 * (b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(least) for b in least[i + 1 :] if b[0] > a[0]]
        sizes = [size for _, size in course]
        return cls(min(sizes[:quarter]), min(sizes[-quarter:]), statistics.median(slopes) if slopes else 0.0, min(sizes),
                   max(sizes))  # fmt: skip


@dataclass(frozen=True)
class _Rule:
    """That a size does not grow in the time after the warm-up."""

    name: str
    trend: Trend

    @classmethod
    def all(cls, found: dict[str, Any]) -> list[_Rule]:
        course = found["memory"]["course"]
        rest = [point for point in course if point[0] >= _WARM_UP * found["soaked_seconds"]] or course[-1:]
        return [
            cls("resident memory", Trend.of([(at, size) for at, size, _ in rest])),
            cls("of it allocated", Trend.of([(at, size) for at, _, size in rest])),
            cls("of it held when the allocator has given back what nobody uses", Trend.of(
                [(at, size) for at, size in found["memory"]["held"]] or [(0.0, 0.0)])),
        ]  # fmt: skip

    @property
    def growth(self) -> float:
        return self.trend.last - self.trend.first

    def faults(self) -> list[str]:
        wrong = []
        if self.growth > MOST_GROWTH_MB:
            wrong.append(f"{self.name}: grew by {self.growth:.1f} MB; at most {MOST_GROWTH_MB:.0f} is allowed")
        if self.trend.slope > MOST_MB_PER_HOUR:
            wrong.append(f"{self.name}: grows by {self.trend.slope:.1f} MB an hour; at most {MOST_MB_PER_HOUR:.0f} is allowed")
        return wrong

    def rows(self) -> list[str]:
        return [
            f"| {self.name}, at rest: the least of the last quarter less that of the first ({self.trend.first:.1f} MB) | "
            f"{self.growth:+.1f} MB | {MOST_GROWTH_MB:.0f} MB |",
            f"| its slope | {self.trend.slope:+.2f} MB an hour | {MOST_MB_PER_HOUR:.0f} MB an hour |",
        ]


def faults(found: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    wrong = found["failures"] + [fault for rule in _Rule.all(found) for fault in rule.faults()]
    for what in ("files", "threads"):
        if found[what][-1] > found[what][0]:
            wrong.append(f"open {what}: {found[what][0]} at the start, {found[what][-1]} at the end")
    return wrong


def _listed(sizes: Iterable[float]) -> str:
    return ", ".join(f"{size:.0f}" for size in sizes)


def section(found: dict[str, Any]) -> str:
    rules, wrong = _Rule.all(found), faults(found)
    kinds = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(found["kinds"].items()))
    ended = "" if found["came_to_its_end"] else (f" (so far, of {found['planned_seconds'] / 3600:.1f} hours "
                                                 "planned)")  # fmt: skip
    lines = [
        f"{found['requests']:,} requests in {found['soaked_seconds'] / 3600:.2f} hours{ended}, on the demo model in "
        f"{' and '.join(found['models'])} in turns, with pauses ({found['share_of_a_core']:.0%} of one core): {kinds}.",
        "",
        "| | found | allowed |",
        "|---|---|---|",
        f"| answers of {found['probes']:,} fixed requests in between that differ from the first by a bit | "
        f"{sum('probe' in failure for failure in found['failures'])} | 0 |",
        f"| pages or caches (of {found['caches']:,}) that did not come back, other errors | "
        f"{sum('probe' not in failure for failure in found['failures'])} | 0 |",
        *(row for rule in rules for row in rule.rows()),
        f"| open files, threads at the end (at the start: {found['files'][0]}, {found['threads'][0]}) | "
        f"{found['files'][-1]}, {found['threads'][-1]} | no more |",
        "",
        f"{_WARM_UP:.0%} of the time is warm-up, which is left out. Resident memory was between "
        f"{rules[0].trend.lowest:.1f} and {rules[0].trend.highest:.1f} MB, as the allocator keeps more or less of what is free "
        "between what is in use: where it grows, and what is allocated and what is held do not, no request has left anything. "
        f"At the {len(found['memory']['held'])} marks {_listed(size for _, size in found['memory']['held'])} MB were held. "
        f"The peak: {found['peak_bytes'] / 1e6:.1f} MB. "
        + ("Nothing failed." if not wrong else "Failed: " + "; ".join(fault.strip().splitlines()[-1] for fault in wrong) + "."),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reliability.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default 0)")
    parser.add_argument("--share", type=float, default=0.4, help="of one core (default 0.4)")
    parser.add_argument("--save", action="store_true",
                        help="write the record, every half minute too: what was done so far survives a kill")  # fmt: skip
    arguments = parser.parse_args()
    begin = time.monotonic()
    with record.recording("soak", torch.get_num_threads(), save=arguments.save) as found:

        def write() -> None:
            found["seconds"] = time.monotonic() - begin
            if arguments.save:
                results.write(found, record.FOLDER / "soak.json")

        soak(found, 3600 * arguments.hours, arguments.seed, arguments.share, write)
    print(section(found))
    wrong = faults(found)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
