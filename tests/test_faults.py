"""The trials of reliability/faults.py, a few times each (a good minute in all; half of it is the Hub's silence)."""

import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

from codegen_fast.cache import PagedCache

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.faults import TRIALS, Trial, run  # noqa: E402
from reliability.trials.subject import Subject  # noqa: E402


@pytest.fixture(scope="module")
def subject():
    with Subject.opened() as subject:
        yield subject


@pytest.mark.parametrize("name", TRIALS)
def test_a_fault_is_an_error_and_the_model_stays_usable(subject, name):
    trial = TRIALS[name]
    found = run(subject, name, trial.short, again=0 if trial.times == 1 else trial.short)  # 1: it waits for timeouts
    assert found["failed"] is None
    print(f"{found['outcome']} ({found['seconds']:.1f} s)")
    if found["outcome"].startswith("left out"):
        pytest.skip(found["outcome"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_what_grows_in_the_second_run_too_is_a_leak(subject, monkeypatch):
    kept = []

    def leaking(subject, times):
        """Keeps what it made."""
        kept.extend(bytearray(1 << 16) for _ in range(40 * times))
        return "as it must"

    def filling(subject, times):
        """Keeps what it made when it was first called."""
        return leaking(subject, times) if not kept else "as it must"

    monkeypatch.setitem(TRIALS, "filling", Trial(filling, 1, 1))
    assert run(subject, "filling", 1, again=1)["failed"] is None
    monkeypatch.setitem(TRIALS, "leaking", Trial(leaking, 1, 1))
    assert "allocated memory grew by 2.6 MB in the second run" in run(subject, "leaking", 1, again=1)["failed"]


def test_a_shared_page_that_cannot_be_copied_stays_shared(monkeypatch):
    cache = PagedCache(1, 8, torch.float32)
    one = cache.new_sequence()
    cache.reserve([one], [3])
    one.length = 3
    cache.storage[:, one.pages[0]] = 7.0
    two = cache.fork(one)
    cache.reserve([cache.new_sequence()], [1])  # the next free page holds something else
    pages = cache.pages_in_use

    def full(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("codegen_fast.cache.ops.copy_pages", full)
        with pytest.raises(MemoryError):
            cache.reserve([two], [1])
    assert one.pages == two.pages and cache.pages_in_use == pages and cache.is_shared(one)
    cache.reserve([two], [1])
    assert one.pages != two.pages and bool((cache.storage[0, two.pages[0]] == 7.0).all())
    cache.release(one)
    cache.release(two)
    assert cache.pages_in_use == 1
