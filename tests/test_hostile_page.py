"""Which failures of a recorded run the page calls the harness's own: those that were looked at, by name, and no others."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability import hostile, record  # noqa: E402
from reliability.hostile import harness_faults  # noqa: E402


@pytest.fixture
def found():
    return record.read("hostile")


def test_the_list_names_causes_of_the_record(found):
    causes = {(part, each["target"], failure["case"]) for part in ("targets", "guided") for each in found[part]
              for failure in each["failures"].values()}  # fmt: skip
    listed = harness_faults._OWN[found["date"], found["commit"]]
    assert listed.keys() <= causes
    assert f"{len(listed)} of the {len(causes)} were the harness's own" in hostile._failures_text(found)


def test_a_later_record_has_no_excuse(found):
    later = copy.deepcopy(found) | {"date": "2027-01-01T00:00:00+00:00"}
    assert "it was still running after 60 s" in hostile._failures_text(later)
    assert "harness" not in hostile._failures_text(later)
