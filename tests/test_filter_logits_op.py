"""filter_logits, and the filters that sample shares with it, against the reference and transformers' warpers."""

from __future__ import annotations

import math

import calls
import pytest
import reference
import torch
from devices import CPU, CUDA, per_device
from fences import bits
from filters import FILTERS, NEUTRAL, arguments, check, expected
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from codegen_fast import ops

INF, NAN = math.inf, math.nan

# One filter each, then combinations.
KNOBS = (
    {},
    {"top_k": 7}, {"top_k": 300},
    {"top_p": 0.9}, {"top_p": 0.2}, {"top_p": 1e-6}, {"top_p": 0.0},
    {"min_p": 0.02}, {"min_p": 0.5}, {"min_p": 1.0}, {"min_p": 1e-9},
    {"typical_p": 0.95}, {"typical_p": 0.5}, {"typical_p": 0.05}, {"typical_p": 1e-6},
    {"epsilon_cutoff": 1e-3}, {"epsilon_cutoff": 0.1}, {"epsilon_cutoff": 0.9},
    {"eta_cutoff": 1e-3}, {"eta_cutoff": 0.02}, {"eta_cutoff": 0.9},
    {"top_k": 50, "top_p": 0.95},
    {"top_p": 0.9, "typical_p": 0.8},
    {"min_p": 0.01, "eta_cutoff": 0.005},
    {"typical_p": 0.3, "epsilon_cutoff": 0.05},
    {"top_k": 100, "top_p": 0.95, "min_p": 0.001, "typical_p": 0.9, "epsilon_cutoff": 0.005, "eta_cutoff": 0.01},
)  # fmt: skip
COMBINED = KNOBS[-1]


def filtered(device, logits, temperatures, knobs, at_least=1, gap=0):
    params, filters = arguments(temperatures, knobs, at_least)
    return calls.filter_logits(device, logits, params, gap=gap, **filters)


def rows_of(vocab: int) -> torch.Tensor:
    """Usual, sharp, flat, coarse (many equals), and with logits of minus infinity."""
    torch.manual_seed(vocab)
    logits = torch.randn(6, vocab) * torch.tensor([3.0, 12.0, 0.05, 2.0, 3.0, 1.0])[:, None]
    logits[3] = logits[3].round()
    logits[4, : vocab // 2] = -INF
    logits[5] += 1000
    return logits


TEMPERATURES = [1.0, 0.7, 1.3, 1.0, 0.9, 1.0]


@per_device(vocab=(1, 2, 33, 1003), at_least=(1, 2, 5))
def test_every_filter_keeps_what_the_reference_keeps(device, vocab, at_least):
    logits = rows_of(vocab)
    for knobs in KNOBS if not device.emulated else KNOBS[:: 2 if vocab < 1003 else 5]:
        got = filtered(device, logits, TEMPERATURES, [knobs] * 6, at_least, gap=5)
        for row, temperature, scores in zip(logits, TEMPERATURES, got):
            check(scores, expected(row, temperature, knobs, at_least))


@per_device(where=lambda device: not device.emulated)
def test_a_large_vocabulary(device):
    """Thresholds fall in full buckets of the histograms."""
    logits = rows_of(51200)
    for knobs in ({"top_p": 0.95}, {"top_k": 40}, {"top_k": 20000}, {"typical_p": 0.9}, {"eta_cutoff": 1e-4}, COMBINED):
        got = filtered(device, logits, TEMPERATURES, [knobs] * 6)
        for row, temperature, scores in zip(logits, TEMPERATURES, got):
            check(scores, expected(row, temperature, knobs))


WARPERS = {
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}


@per_device(knobs=KNOBS, at_least=(1, 3), where=lambda device, knobs, at_least: not device.emulated or len(knobs) > 1)
def test_scores_are_those_of_transformers(device, knobs, at_least):
    torch.manual_seed(len(knobs))
    logits = 3 * torch.randn(8, 500)  # no ties, where the order among equals is transformers' own
    scores = TemperatureLogitsWarper(0.8)(None, logits.double())
    for name, warper in WARPERS.items():
        if name in knobs:
            scores = warper(knobs[name], min_tokens_to_keep=at_least)(None, scores)
    got = filtered(device, logits, [0.8] * 8, [knobs] * 8, at_least)
    for row, wanted in zip(got, scores):
        assert torch.equal(row > -INF, wanted > -INF)
        assert torch.allclose(row.double(), wanted, rtol=1e-6, atol=0)


@per_device()
def test_ties(device):
    logits = torch.tensor([0.0, 2.0, 2.0, -1.0, 2.0, 2.0, 1.0])

    def kept(at_least=1, **knobs):
        return torch.nonzero(filtered(device, logits[None], [1.0], [knobs], at_least)[0] > -INF).flatten().tolist()

    assert kept(top_k=1) == [1, 2, 4, 5]
    assert kept(top_k=1, top_p=0.6) == [1, 2, 4]
    assert kept(top_p=1e-3, at_least=3) == [1, 2, 4]
    assert kept(top_k=1, at_least=5) == [1, 2, 4, 5, 6]
    assert kept(min_p=1.0) == [1, 2, 4, 5]
    assert kept(min_p=1.0, at_least=2) == [1, 2, 4, 5]  # equals of the second most probable stay
    assert kept(epsilon_cutoff=0.9, at_least=5) == [1, 2, 4, 5, 6]
    assert kept(epsilon_cutoff=0.25, top_k=1) == [1, 2, 4, 5]  # exactly a quarter each
    assert kept(typical_p=1e-3) == [1, 2, 4, 5]
    # The most typical ones need not be the most probable: here logits of 0 are, and 9 holds less than half.
    flat = torch.cat([torch.tensor([5.0]), torch.zeros(400), torch.full((5,), -9.0)])
    got = filtered(device, flat[None], [1.0], [{"typical_p": 0.2}])[0]
    assert torch.nonzero(got > -INF).flatten().tolist() == list(range(1, 401))


@per_device()
def test_rows_of_temperature_0_stay_and_refused_rows_become_nan(device):
    torch.manual_seed(1)
    logits = torch.randn(7, 90)
    logits[1, 5], logits[2, 5], logits[3], logits[4, :80] = NAN, INF, -INF, -INF
    for temperature in (0.0, 1.0):
        params = [(temperature, 3, 0.5, 0, 0, 0)] * 7
        got = calls.filter_logits(device, logits, params, min_p=[0.1] * 7)
        assert got[1:4].isnan().all()
        assert not got[[0, 4, 5, 6]].isnan().any()
        if temperature == 0:
            assert torch.equal(bits(got[[0, 4, 5, 6]]), bits(logits[[0, 4, 5, 6]]))


WRONG = {
    "temperature": (-1.0, NAN, INF), "top_k": (-1,), "top_p": (-0.1, 1.1, NAN), "min_p": (-1e-6, 1.1, NAN),
    "typical_p": (0.0, -1.0, 1.1, NAN), "epsilon_cutoff": (-1e-6, 1.0, NAN), "eta_cutoff": (-1e-6, 1.0, NAN, INF),
}  # fmt: skip


@per_device(name=tuple(WRONG))
def test_parameters_out_of_range_refuse_their_row_alone(device, name):
    torch.manual_seed(2)
    values = WRONG[name]
    rows = len(values) + 1
    logits = torch.randn(rows, 40)
    temperatures, knobs = [1.0] * rows, [{}] + [{name: value} for value in values]
    if name == "temperature":
        temperatures, knobs = [1.0, *values], [{}] * rows
    params, filters = arguments(temperatures, knobs)
    tokens = calls.sample(device, logits, params, **filters)
    assert 0 <= tokens[0] < 40 and tokens[1:].tolist() == [-1] * len(values)
    scores = calls.filter_logits(device, logits, params, **filters)
    assert torch.equal(scores[0], logits[0]) and scores[1:].isnan().all()


@per_device()
def test_neutral_filters_are_no_filters(device):
    logits = rows_of(333)
    params = [(0.9, 30, 0.8, i, 0, i) for i in range(6)]
    neutral = {name: [NEUTRAL[name]] * 6 for name in FILTERS}
    for op in (calls.sample, calls.filter_logits):
        plain = op(device, logits, params)
        assert torch.equal(bits(op(device, logits, params, **neutral)), bits(plain))
        assert torch.equal(bits(op(device, logits, params, min_tokens_to_keep=1)), bits(plain))


@per_device()
def test_a_rows_scores_do_not_depend_on_its_company(device):
    torch.manual_seed(3)
    logits = torch.cat([rows_of(777)] * 3) + torch.randn(18, 1)
    knobs = [KNOBS[(5 * i) % len(KNOBS)] for i in range(17)] + [COMBINED]
    temperatures = [(0.7, 0.0, 1.0)[i % 3] for i in range(18)]
    params, filters = arguments(temperatures, knobs)

    def both(rows, gap=0):
        part = {name: [values[i] for i in rows] if name in FILTERS else values for name, values in filters.items()}
        chosen = logits[rows], [params[i] for i in rows]
        scores = calls.filter_logits(device, *chosen, gap=gap, **part)
        return torch.cat([bits(scores), bits(calls.sample(device, *chosen, gap=gap, **part)[:, None])], dim=1)

    whole = both(list(range(18)))
    for surroundings in device.variations():
        with surroundings():
            for rows in ([17], [3, 17, 0], list(range(18))[::-1], list(range(18))):
                assert torch.equal(both(rows, gap=len(rows) % 4), whole[rows])


@per_device(at_least=(1, 4))
def test_tokens_are_drawn_from_the_scores(device, at_least):
    """The draw is the reference's, over what the filters of the op have left."""
    torch.manual_seed(4)
    rows = 8 if device.emulated else 60
    logits = 2 * torch.randn(rows, 640)
    params, filters = arguments([0.8] * rows, [KNOBS[i % len(KNOBS)] for i in range(rows)], at_least)
    tokens = calls.sample(device, logits, params, **filters)
    scores = calls.filter_logits(device, logits, params, **filters)
    for row, token, (_, _, _, *place) in zip(scores, tokens.tolist(), params):
        wanted, margin = reference.sample(row, 1.0, 0, 1.0, *place)
        assert margin > 1e-6, "choose another seed for this case"
        assert token == wanted


@per_device(devices=CUDA, entered=False)
def test_scores_are_those_of_the_cpu(device):
    rows, vocab = (6, 1003) if device.emulated else (60, 51200)
    logits = torch.cat([rows_of(vocab)] * (rows // 6))
    knobs = [KNOBS[(7 * i) % len(KNOBS)] for i in range(rows)]
    with CPU.running():
        expected = filtered(CPU, logits, TEMPERATURES * (rows // 6), knobs)
    with device.running():
        got = filtered(device, logits, TEMPERATURES * (rows // 6), knobs)
    for row, wanted in zip(got, expected):
        check(row, wanted.double())


@per_device(devices=CUDA, entered=False)
def test_masses_of_more_than_65536_tokens(device):
    """They have fewer bits."""
    logits = rows_of(65537)[:3]
    knobs = [{"top_p": 0.9}, {"typical_p": 0.8}, {"top_p": 0.95, "typical_p": 0.9}]
    with CPU.running():
        expected = filtered(CPU, logits, TEMPERATURES[:3], knobs)
    with device.running():
        got = filtered(device, logits, TEMPERATURES[:3], knobs)
    for row, wanted in zip(got, expected):
        check(row, wanted.double())


@per_device()
def test_scores_that_overflow_are_infinite(device):
    logits = torch.tensor([[9.0, -9.0, 1.0, 0.0, -1.0, 8.0]])
    got = filtered(device, logits, [2e-38], [{}])[0]
    assert got[[0, 1, 3, 5]].tolist() == [INF, -INF, 0.0, INF]
    assert torch.allclose(got[[2, 4]], torch.tensor([5e37, -5e37]), rtol=2.0**-22, atol=0)
    assert filtered(device, logits, [2e-38], [{"top_k": 1}])[0].tolist() == [INF] + [-INF] * 5
    assert calls.sample(device, logits, [(2e-38, 0, 1.0, 0, 0, 0)]).tolist() == [0]


@per_device()
def test_no_rows(device):
    assert calls.filter_logits(device, torch.empty(0, 100), []).shape == (0, 100)


def tensors(device, rows=3):
    own = dict(device=device.memory)
    values = dict(temperature=torch.ones(rows, **own), top_k=torch.zeros(rows, dtype=torch.int32, **own),
                  top_p=torch.ones(rows, **own), seed=torch.zeros(rows, dtype=torch.int64, **own),
                  sample_index=torch.zeros(rows, dtype=torch.int32, **own),
                  position=torch.zeros(rows, dtype=torch.int32, **own))  # fmt: skip
    return values | {name: torch.full((rows,), NEUTRAL[name], **own) for name in FILTERS}


@per_device((CPU, *CUDA), name=FILTERS)
def test_filters_have_one_entry_a_row(device, name):
    values, logits = tensors(device), torch.randn(3, 10).to(device.memory)
    workspace = calls.scratch(device, ops.sample_workspace(3, 10, device.memory.type)).tensor
    out = torch.zeros(3, dtype=torch.int64, device=device.memory)
    for op in (lambda params: ops.filter_logits(logits, params, workspace),
               lambda params: ops.sample(out, logits, params, workspace)):  # fmt: skip
        op(ops.SamplingParams(**values))
        op(ops.SamplingParams(**values | {name: None}))
        with pytest.raises(ValueError, match=rf"^{name}: expected shape \(3,\), got \(2,\)"):
            op(ops.SamplingParams(**values | {name: values[name][:2]}))
        with pytest.raises(TypeError, match=rf"^{name}: expected dtype float32, got int32"):
            op(ops.SamplingParams(**values | {name: values["top_k"]}))
        with pytest.raises(ValueError, match="^min_tokens_to_keep: expected at least 1, got 0"):
            op(ops.SamplingParams(**values, min_tokens_to_keep=0))


@per_device((CPU, *CUDA))
def test_wrong_logits(device):
    params = ops.SamplingParams(**tensors(device))
    workspace = calls.scratch(device, ops.sample_workspace(3, 10, device.memory.type)).tensor
    own = dict(device=device.memory)
    calls.refuses_wrong_logits(device, ops.filter_logits, params, (3, 10), workspace)
    with pytest.raises(ValueError, match=r"^temperature: expected shape \(4,\), got \(3,\)"):
        ops.filter_logits(torch.zeros(4, 10, **own), params, workspace)
    with pytest.raises(ValueError, match="^logits: expected at least one column"):
        ops.filter_logits(torch.zeros(3, 0, **own), params, workspace)
