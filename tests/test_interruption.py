"""Ctrl-C at random moments and at every place: caches that outlive a call lose nothing, and the model stays usable."""
from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoints import make_model

import codegen_fast
from codegen_fast.interruption import uninterrupted

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.places import interrupted_at, places_of  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return codegen_fast.accelerate(make_model(n_positions=300))


@pytest.fixture
def interrupts():
    """interrupts(seconds): Ctrl-C comes after so long, as a signal."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_session_survives_two_hundred_interruptions(model, interrupts):
    session = model.session(max_tokens=1000)
    chance = random.Random(0)
    heard = 0
    knobs = dict(max_new_tokens=30, do_sample=True, num_return_sequences=2, seed=1, eos_token_id=None)
    begin = time.perf_counter()
    model.generate([[5, 6, 7]], **knobs)
    took = time.perf_counter() - begin
    for _ in range(200):
        ids = [[5, 6, 7, *(chance.randrange(3, 100) for _ in range(chance.randrange(1, 40)))]]
        try:
            interrupts(chance.uniform(0.0, 1.5 * took) + 1e-6)
            session.generate(ids, **knobs)
            interrupts(0)
        except KeyboardInterrupt:
            heard += 1
        finally:
            interrupts(0)
    assert heard > 40
    owned = Counter(page for entry in session._entries for page in entry.sequence.pages)
    assert session.cache.pages_in_use == len(owned) and session._owners == owned
    expected = model.generate([[5, 6, 7, 8]], max_new_tokens=9, eos_token_id=None)
    assert torch.equal(session.generate([[5, 6, 7, 8]], max_new_tokens=9, eos_token_id=None), expected)


@pytest.fixture
def continued(model):
    """continued(past): the call that Ctrl-C falls into, on a cache of a prompt and four tokens."""
    prompt = model.generate([[5, 6, 7]], max_new_tokens=4, eos_token_id=None)
    knobs = dict(max_new_tokens=12, eos_token_id=None)
    whole = model.generate(prompt, **knobs)

    def past():
        return model.generate([[5, 6, 7]], max_new_tokens=4, return_dict_in_generate=True,
                              eos_token_id=None).past_key_values  # fmt: skip

    def call(past):
        return model.generate(prompt, past_key_values=past, **knobs)

    def require_as_it_was_or_whole(past):
        """Never in between: after the last step the cache grows by the whole call, and Ctrl-C may come after that."""
        length = past.get_seq_length()
        assert length in (prompt.shape[1] - 1, whole.shape[1] - 1)
        assert past.cache.pages_in_use == past.cache.pages_for(length)
        ids = prompt if length < prompt.shape[1] else whole
        expected = model.generate(ids, max_new_tokens=9, eos_token_id=None)
        assert torch.equal(model.generate(ids, past_key_values=past, max_new_tokens=9, eos_token_id=None), expected)
        return length < prompt.shape[1]

    return past, call, require_as_it_was_or_whole


def test_a_callers_cache_is_as_it_was_or_whole(continued, interrupts):
    new_past, call, require_as_it_was_or_whole = continued
    chance, as_it_was, heard = random.Random(1), 0, 0
    begin = time.perf_counter()
    call(new_past())
    took = time.perf_counter() - begin
    for _ in range(60):
        past = new_past()
        try:
            interrupts(chance.uniform(0.0, 0.9 * took) + 1e-6)
            call(past)
        except KeyboardInterrupt:
            heard += 1
        finally:
            interrupts(0)
        as_it_was += require_as_it_was_or_whole(past)
    assert heard and as_it_was


def test_a_callers_cache_wherever_ctrl_c_comes(continued):
    new_past, call, require_as_it_was_or_whole = continued
    call(new_past())
    past = new_past()
    places = places_of(lambda: call(past))
    outcomes = Counter()
    for place in places:
        if Path(place.code.co_filename).name in ("call.py", "beginnings.py", "past.py", "interruption.py"):
            past = new_past()
            assert interrupted_at(lambda: call(past), place) != "lost", place
            outcomes[require_as_it_was_or_whole(past)] += 1
    assert outcomes[True] > 20 and outcomes[False] > 5


def test_an_interruption_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
