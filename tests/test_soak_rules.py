"""What the soak calls a leak, and what not: records made up, no hours."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability import soak  # noqa: E402

SECONDS = 7200.0


def make_record(resident, allocated, held):
    """Each a function of the hours since the start, in MB; looked at every half minute, and at nine marks."""
    course = [[at, resident(at / 3600), allocated(at / 3600)] for at in range(30, 7201, 30)]
    marks = [720 + 810 * mark for mark in range(9)]
    return {
        "failures": [], "soaked_seconds": SECONDS, "planned_seconds": SECONDS, "came_to_its_end": True, "requests": 1000,
        "kinds": {"greedy": 1000}, "models": ["float32"], "share_of_a_core": 0.4, "probes": 10, "caches": 100,
        "files": [6, 6], "threads": [2, 2], "peak_bytes": 250_000_000,
        "memory": {"samples": len(course), "course": course, "held": [[at, held(at / 3600)] for at in marks]},
    }  # fmt: skip


def flat(hours):
    return 100.0


def leaking(hours):
    return 100.0 + 6 * hours


def test_memory_that_stays_is_right():
    record = make_record(flat, flat, flat)
    assert soak.faults(record) == []
    assert "Nothing failed." in soak.section(record)


def test_what_the_allocator_keeps_may_come_and_go():
    assert soak.faults(make_record(lambda hours: 200 + 20 * (int(60 * hours) % 3), flat, flat)) == []


def test_what_fills_in_the_warm_up_does_not_count():
    def filling(hours):
        return 100.0 if hours >= 0.2 else 0.0

    assert soak.faults(make_record(filling, filling, flat)) == []


@pytest.mark.parametrize(("sizes", "name"), [
    ((leaking, flat, flat), "resident memory"),
    ((flat, leaking, flat), "of it allocated"),
    ((flat, flat, leaking), "of it held"),
])  # fmt: skip
def test_a_leak_is_found_in_what_is_resident_allocated_or_held(sizes, name):
    record = make_record(*sizes)
    growth, slope = soak.faults(record)
    assert growth.startswith(name) and growth.endswith("at most 8 is allowed") and "grew by" in growth
    assert slope.startswith(name) and "grows by 6.0 MB an hour" in slope
    assert "Failed: " + name in soak.section(record)


def test_files_left_open_are_a_fault():
    record = make_record(flat, flat, flat)
    record["files"] = [6, 7]
    assert soak.faults(record) == ["open files: 6 at the start, 7 at the end"]


def test_a_run_that_was_ended_early_has_a_section():
    record = make_record(flat, flat, flat)
    record.update(came_to_its_end=False, soaked_seconds=300.0)
    record["memory"].update(course=record["memory"]["course"][:10], held=[])
    assert soak.faults(record) == []
    assert "(so far, of 2.0 hours planned)" in soak.section(record)
