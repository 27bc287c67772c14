"""Where drafts come from without a model, and how long they are: as long as pays, on a clock of the test's own."""

from __future__ import annotations

import numpy as np
import pytest
from devices import CPU
from speculative_runs import (  # noqa: F401 (decoder: a fixture)
    GREEDY,
    HOT,
    Oracle,
    decoder,
    decoder_on,
    plain,
    prompt,
    repetitive,
    same,
    speculative,
)

import codegen_fast
from codegen_fast.generation import drafters, pacing, speculation
from codegen_fast.generation.drafters import PromptLookup, Track, find_continuation
from codegen_fast.generation.pacing import Acceptance, Brake, Costs, draft_lengths
from codegen_fast.generation.speculation import Speculation
from codegen_fast.stepping import Row


# ---- Prompt lookup -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, longest, count, expected",
    [
        ([1, 2, 3, 4, 1, 2], 2, 3, ([3, 4, 1], 2)),
        ([1, 2, 3, 9, 2, 4, 1, 2], 2, 2, ([3, 9], 2)),  # two tokens agree there, one at the later place
        ([1, 2, 3, 9, 2, 4, 1, 2], 1, 2, ([4, 1], 1)),  # the later
        ([1, 2, 3, 1, 2, 4, 1, 2], 5, 1, ([4], 2)),  # of equals the later
        ([5, 1, 2, 3, 1, 2, 4, 5, 1, 2], 5, 1, ([3], 3)),
        ([1, 7, 7], 3, 4, ([7, 7, 7, 7], 1)),
        ([1, 2, 3, 1, 2, 3], 3, 7, ([1, 2, 3, 1, 2, 3, 1], 3)),  # round and round
        ([1, 2, 3], 2, 5, ([], 0)),
        ([1], 2, 5, ([], 0)),
        ([1, 1], 2, 0, ([], 0)),
    ],
)
def test_find_continuation(tokens, longest, count, expected):
    assert find_continuation(np.array(tokens, dtype=np.int32), longest, count) == expected


def test_lookup_learns_from_plain_steps_too():
    lookup = PromptLookup(6)
    row = Row(0, np.array([1, 2, 3, 1], dtype=np.int32), None, 0, 0, [2])
    track = Track(row, 0, np.zeros(200, dtype=np.int32))
    before = lookup.outlook(track, 10)[1]
    for token in (3, 1, 2) * 10:
        row.tokens.append(token)
        lookup.stepped(track, track.catch_up())
        limit, share = lookup.outlook(track, 10)
    assert limit == 6 and share > 0.9 > before
    for token in range(100, 130):
        lookup.outlook(track, 10)
        row.tokens.append(token)
        lookup.stepped(track, track.catch_up())
        row.tokens.append(1)
        lookup.stepped(track, track.catch_up())
    assert lookup.outlook(track, 10)[1] < 0.3


# ---- How long drafts are -----------------------------------------------------------------------


def costs_like(seconds, rows=1, up_to=64) -> Costs:
    costs = Costs()
    for _ in range(2):
        costs.note_plain(rows, seconds(rows))
        for tokens in range(rows + 1, up_to):
            costs.note_verify(tokens, seconds(tokens))
    return costs


def test_drafts_are_as_long_as_pays():
    steep, flat = costs_like(lambda n: n), costs_like(lambda n: 1 + 0.01 * n)
    assert draft_lengths(steep, [(10, 0.99)], 0.0, 64) == [0]
    assert draft_lengths(flat, [(10, 0.99)], 0.0, 64) == [10]
    assert 1 <= draft_lengths(flat, [(10, 0.5)], 0.0, 64)[0] <= 5
    assert draft_lengths(flat, [(10, 0.99)], 1.0, 64) == [0]  # as dear as a step
    assert 1 <= draft_lengths(flat, [(10, 0.8)], 0.1, 64)[0] <= 6
    assert draft_lengths(flat, [(10, 0.99)], 0.0, 5) == [4]
    assert draft_lengths(Costs(), [(10, 0.99)], 0.0, 64) == [0]  # nothing was measured yet
    two = draft_lengths(costs_like(lambda n: 1 + 0.1 * n, rows=2), [(10, 0.95), (10, 0.2)], 0.0, 64)
    assert two[0] >= 5 and two[1] == 0


def test_lengths_that_were_never_tried_are_tried():
    costs = Costs()
    for _ in range(2):
        costs.note_plain(1, 1.0)
    assert draft_lengths(costs, [(10, 0.9)], 0.0, 64)[0] > 5
    for _ in range(2):
        costs.note_verify(11, 20.0)
    assert draft_lengths(costs, [(10, 0.9)], 0.0, 64) == [0]
    for _ in range(2):
        costs.note_verify(4, 1.1)
    assert draft_lengths(costs, [(10, 0.9)], 0.0, 64) == [3]


def test_an_outlier_does_not_count_for_long_and_old_times_are_forgotten():
    costs = costs_like(lambda n: 1 + 0.01 * n)
    costs.note_verify(5, 1000.0)
    assert costs.verify(1, 5)[-1] < 2
    for _ in range(600):
        costs.note_verify(3, 1.0)
    assert costs.verify(1, 3)[-1] == pytest.approx(1.01, abs=0.02)
    assert len(costs._verify.points()) == 1


def test_the_brake_holds_longer_each_time_it_was_right():
    brake, held = Brake(), []
    for _ in range(4):
        for _ in range(8):
            assert not brake.holds()
            brake.note(1.0, 1.5)
        count = 0
        while brake.holds():
            count += 1
        held.append(count)
    assert held == [15, 31, 63, 127]
    for _ in range(8):
        brake.note(2.0, 1.0)
    assert not brake.holds()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only verifications, plain steps and assistants move: seconds by the tokens of a call."""

    class Clock:
        now = 0.0
        seconds = staticmethod(lambda tokens: 1.0 + 0.05 * tokens)

        def perf_counter(self):
            return self.now

    clock = Clock()
    for module in (speculation, drafters):
        monkeypatch.setattr(module, "time", clock)
    run_layers = codegen_fast.decoder.Decoder.run_layers

    def timed(self, x, q, act, cache, batch, decode, *more):
        clock.now += clock.seconds(len(x)) * (getattr(self, "slowness", 1.0)) if decode else 0
        return run_layers(self, x, q, act, cache, batch, decode, *more)

    monkeypatch.setattr(codegen_fast.decoder.Decoder, "run_layers", timed)
    monkeypatch.setattr(codegen_fast.workplace.Step, "has_run", lambda *_: False)  # a replay calls no layers
    pacing._COSTS.clear()
    yield clock
    pacing._COSTS.clear()


def test_where_drafts_are_right_it_pays(decoder, clock):
    prompts = [prompt(9)]
    expected = plain(decoder, prompts, HOT, 200)
    report = same(decoder, prompts, HOT, 200, Speculation(), drafter=lambda place: Oracle(expected.tokens, 0.1)).report
    assert report.on and report.speed_up > 2 and report.plain_calls < 10
    assert report.seconds == pytest.approx(clock.now, rel=1)


@pytest.mark.parametrize("claimed", (0.0, 0.9, 0.99))
def test_where_drafts_are_wrong_it_costs_little(decoder, clock, claimed):
    """Whatever the drafter says of itself."""

    class Liar(Oracle):
        def outlook(self, track, limit):
            return limit, claimed

    prompts = [prompt(9)]
    expected = plain(decoder, prompts, HOT, 280)
    began = clock.now
    plain(decoder, prompts, HOT, 280)
    plain_seconds = clock.now - began
    began = clock.now
    got = speculative(decoder, prompts, HOT, 280, drafter=lambda place: Liar(expected.tokens, 1.0))
    assert got.tokens == expected.tokens and got.report.accepted == 0
    assert clock.now - began < 1.08 * plain_seconds
    assert got.report.speed_up == pytest.approx(plain_seconds / (clock.now - began), rel=0.02)


def test_lookup_that_never_helps_is_left_alone(decoder, clock):
    clock.seconds = lambda tokens: float(tokens)  # a call of two tokens costs two steps
    report = same(decoder, [repetitive(40)], GREEDY, 100, Speculation()).report
    assert report.verify_calls <= 2


@pytest.mark.parametrize("slowness", (0.1, 1.5))
def test_an_assistant_is_asked_again_now_and_then_if_it_could_pay(decoder, clock, slowness):
    other = decoder_on(CPU, n_layer=1, n_embd=16, rotary_dim=4)  # agrees by chance
    other.slowness = slowness
    report = same(decoder, [prompt(9)], HOT, 280, Speculation(assistant=other, most_tokens=4)).report
    assert report.speed_up > 0.95
    assert 3 <= report.verify_calls <= 12 if slowness < 1 else report.verify_calls <= 3


def test_speculation_comes_back(decoder, clock):
    """An assistant that is wrong at first and right later."""
    prompts = [prompt(9)]
    expected = plain(decoder, prompts, HOT, 250)

    class Late(Oracle):
        probed = True
        acceptance = Acceptance(0.7)

        def outlook(self, track, limit):
            return limit, self.acceptance.share

        def draft(self, tracks, lengths):
            self.wrong = 0.0 if len(tracks[0].row.tokens) > 60 else 1.0
            return super().draft(tracks, lengths)

        def verified(self, track, draft, tokens):
            for guess, token in zip(draft, tokens):
                self.acceptance.note(guess == token)

    got = speculative(decoder, prompts, HOT, 250, drafter=lambda place: Late(expected.tokens))
    assert got.tokens == expected.tokens
    assert got.report.on and got.report.accepted > 60
