"""Ctrl-C at random moments: caches that outlive a call lose nothing, and the model stays usable."""
from __future__ import annotations

import random
import signal
import time
from collections import Counter

import pytest
import torch
from checkpoints import make_model

import codegen_fast
from codegen_fast.generation.interruption import uninterrupted


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


def test_a_callers_cache_is_as_it_was(model, interrupts):
    out = model.generate([[5, 6, 7]], max_new_tokens=4, return_dict_in_generate=True, eos_token_id=None)
    past, chance, heard = out.past_key_values, random.Random(1), 0
    begin = time.perf_counter()
    model.generate(out.sequences, max_new_tokens=40, eos_token_id=None)
    took = time.perf_counter() - begin
    for _ in range(60):
        length, pages = past.get_seq_length(), past.cache.pages_in_use
        try:
            interrupts(chance.uniform(0.0, 0.9 * took) + 1e-6)
            model.generate(out.sequences, past_key_values=past, max_new_tokens=40, eos_token_id=None)
            break  # too late: it has grown
        except KeyboardInterrupt:
            heard += 1
            assert past.get_seq_length() == length and past.cache.pages_in_use == pages
        finally:
            interrupts(0)
    assert heard


def test_an_interruption_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
