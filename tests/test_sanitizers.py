"""python -m reliability.sanitizers: what counts as passed, and the faults that it plants. It runs itself in .ci/run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reliability import sanitizers  # noqa: E402
from reliability.sanitized import Build  # noqa: E402


@dataclass(frozen=True)
class Program(Build):
    """Runs Python code instead of a program that was built."""

    code: str = ""

    def launch(self) -> list[str]:
        return [sys.executable, "-c", self.code]


RACE = "WARNING: ThreadSanitizer: data race (pid=1)"
OUTCOMES = {
    "print('avx2: passed')": (True, []),
    "print('avx2: FAILED')": (False, []),  # it did not do its work
    f"print('avx2: passed'); print({RACE!r}); exit(66)": (False, [RACE]),
    "import os; print('avx2: passed', flush=True); os.abort()": (False, []),
}


@pytest.mark.parametrize("code", OUTCOMES)
def test_what_passes(code):
    made = sanitizers.threads(Program("thread", code=code), "avx2").run()
    assert (made["passed"], made["reports"]) == OUTCOMES[code]
    assert made["passed"] or "avx2" in made["output"]


def test_planted_faults_fit_the_sources():
    for fault in sanitizers.faults("portable"):
        assert (ROOT / fault.path).read_text().count(fault.text) == 1, fault.text


def test_every_instruction_set_is_run_under_both_builds():
    for full in (False, True):
        found = {(trial.build.kind, trial.isa) for trial in sanitizers.trials(["avx2", "portable"], full=full)}
        assert found == {(kind, isa) for kind in ("address", "thread") for isa in ("avx2", "portable")} | {("address", "all")}
