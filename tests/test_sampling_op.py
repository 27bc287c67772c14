"""sample: the token of every row against the reference, and the distribution of many."""

from __future__ import annotations

import math

import calls
import pytest
import reference
import torch
from devices import CPU, CUDA, per_device

from codegen_fast import ops

INF, NAN = math.inf, math.nan


@per_device()
def test_close_logits_are_not_equal(device):
    """Two neighbours in float32 far below the largest: subtracting that one first would make them equal."""
    logits = torch.tensor([10.0, 0.1, 0.1, -5.0])
    logits[2] = torch.nextafter(logits[1], torch.tensor(1.0))
    assert kept_by_draws(device, logits, 10.0, 2, 1.0) == [0, 2]


def number_of_draws(device) -> int:
    """A row costs the emulator some ten milliseconds."""
    return 40 if device.emulated else 400


def expected_tokens(logits, params) -> list[int]:
    """The reference's tokens; a case whose draw falls within 1e-6 of an edge is no case (float32 may round it)."""
    tokens = []
    for row, (temperature, top_k, top_p, seed, sample_index, position) in zip(logits, params):
        # The op sees float32 parameters.
        temperature, top_p = (float(torch.tensor(value, dtype=torch.float32)) for value in (temperature, top_p))
        token, margin = reference.sample(row, temperature, top_k, top_p, seed, sample_index, position)
        assert margin > 1e-6, "choose another seed for this case"
        tokens.append(token)
    return tokens


@per_device(vocab=(1, 2, 7, 33, 1003, 5000))
def test_greedy_takes_the_first_of_the_largest(device, vocab):
    torch.manual_seed(vocab)
    logits = torch.randn(9, vocab)
    logits[1] = 0.0  # all equal
    logits[2] = -1e30
    logits[3, vocab // 2 :] = 50.0
    logits[4] = -INF
    logits[4, -1] = -5.0  # one finite logit
    logits[5, -1], logits[5, 0] = 1e38, -1e38
    got = calls.sample(device, logits, [(0.0, 0, 1.0, 1, 0, i) for i in range(9)])
    assert got.tolist() == [row.tolist().index(row.max().item()) for row in logits]
    # top_k, top_p and the seed change nothing.
    assert torch.equal(calls.sample(device, logits, [(0.0, 3, 0.1, i, 7, 9) for i in range(9)]), got)


@per_device(temperature=(0.0, 0.7))
def test_rows_without_an_answer_give_minus_one(device, temperature):
    logits = torch.randn(6, 100)
    logits[1, 50], logits[2, 0], logits[3, 99] = NAN, NAN, -NAN
    logits[4] = -INF
    logits[5, 10:] = -INF
    got = calls.sample(device, logits, [(temperature, 0, 1.0, 5, 0, 3)] * 6).tolist()
    assert got[1:5] == [-1] * 4
    assert 0 <= got[0] < 100 and 0 <= got[5] < 10
    assert calls.sample(device, torch.full((1, 7), INF), [(temperature, 0, 1.0, 5, 0, 3)]).tolist() == [-1]
    assert calls.sample(device, torch.full((1, 1), NAN), [(temperature, 0, 1.0, 5, 0, 3)]).tolist() == [-1]


@per_device(temperature=(1e-3, 0.2, 1.0, 5.0), top_k=(0, 1, 2, 10, 1003, 5000), top_p=(1.0, 0.9, 0.31, 1e-6))
def test_tokens_are_those_of_the_reference(device, temperature, top_k, top_p):
    torch.manual_seed(top_k)
    logits = 4 * torch.randn(12, 1003)
    params = [(temperature, top_k, top_p, 1000003 * i, i % 3, 17 * i) for i in range(12)]
    assert calls.sample(device, logits, params).tolist() == expected_tokens(logits, params)


@per_device()
def test_parameters_differ_from_row_to_row(device):
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, 333)
    logits[7, 3] = NAN
    params = [
        ((0.0, 0.3, 1.0, 2.0)[i % 4], (0, 5, 1000)[i % 3], (1.0, 0.5, 0.9, 0.99, 0.1)[i % 5], -i * 2**40, i, 40 - i)
        for i in range(40)
    ]
    assert calls.sample(device, logits, params).tolist() == expected_tokens(logits, params)


def test_draws_are_those_of_the_reference_to_the_last_bit():
    for seed in (0, 1, 2**64 - 1, 2**63, 12345678901234567):
        for sample_index, position in ((0, 0), (1, 0), (0, 1), (2**31 - 1, 2047), (7, 2**31 - 1)):
            expected = reference.uniform(seed, sample_index, position)
            assert ops.philox_uniform(seed, sample_index, position) == expected


@per_device(seed=(0, 1, -1, 2**63 - 1, -(2**63), 12345678901234567))
def test_seed_is_64_unsigned_bits(device, seed):
    torch.manual_seed(1)
    logits = torch.randn(8, 500)
    params = [(1.0, 0, 1.0, seed, i % 2, 2**31 - 1 - i) for i in range(8)]
    assert calls.sample(device, logits, params).tolist() == expected_tokens(logits, params)


def kept_by_draws(device, logits, temperature, top_k, top_p) -> list[int]:
    draws = number_of_draws(device)
    rows = logits.expand(draws, -1)
    tokens = calls.sample(device, rows, [(temperature, top_k, top_p, seed, 0, 0) for seed in range(draws)])
    return sorted(set(tokens.tolist()))


@per_device()
def test_ties(device):
    logits = torch.tensor([0.0, 2.0, 2.0, -1.0, 2.0, 2.0, 1.0])
    # Equals of the k-th largest stay.
    assert kept_by_draws(device, logits, 1.0, 1, 1.0) == [1, 2, 4, 5]
    assert kept_by_draws(device, logits, 1.0, 3, 1.0) == [1, 2, 4, 5]
    assert kept_by_draws(device, logits, 1.0, 5, 1.0) == [1, 2, 4, 5, 6]
    # Of equals the nucleus takes the lower id first: after top_k each of the four holds 1/4.
    assert kept_by_draws(device, logits, 1.0, 1, 0.2) == [1]
    assert kept_by_draws(device, logits, 1.0, 1, 0.3) == [1, 2]
    assert kept_by_draws(device, logits, 1.0, 1, 0.6) == [1, 2, 4]
    assert kept_by_draws(device, logits, 1.0, 1, 0.9) == [1, 2, 4, 5]
    # 1000 equal logits.
    assert kept_by_draws(device, torch.zeros(1000), 1.0, 1, 0.0025) == [0, 1, 2]
    assert len(kept_by_draws(device, torch.zeros(1000), 1.0, 7, 1.0)) > 0.75 * number_of_draws(device)


@per_device()
def test_extremes(device):
    torch.manual_seed(2)
    logits = torch.randn(1000)
    best = int(logits.argmax())
    assert kept_by_draws(device, logits, 1.0, 1, 1.0) == [best]
    assert kept_by_draws(device, logits, 1.0, 0, 1e-30) == [best]
    assert kept_by_draws(device, logits, 1e-6, 0, 1.0) == [best]
    assert kept_by_draws(device, logits, 1e-30, 0, 1.0) == [best]
    assert kept_by_draws(device, 1e30 * logits, 1.0, 0, 1.0) == [best]
    only = torch.full((1000,), -INF)
    only[777] = -1e30
    for top_k, top_p in [(0, 1.0), (1, 1.0), (50, 0.5), (2000, 1e-6)]:
        assert kept_by_draws(device, only, 1.0, top_k, top_p) == [777]
    # Logits of minus infinity are never drawn, however hot.
    half = torch.zeros(1000)
    half[::2] = -INF
    assert all(token % 2 for token in kept_by_draws(device, half, 1e30, 0, 1.0))


ALONE = {"min_p": 0.01, "typical_p": 0.9, "epsilon_cutoff": 0.008, "eta_cutoff": 0.02}
FILTERS = {name: {name: value} for name, value in ALONE.items()}
FILTERS |= {"none": {}, "all": ALONE, "keep_12": ALONE | {"typical_p": 0.05, "min_tokens_to_keep": 12}}
FLAT = (1.0, 0, 1.0)


@per_device(
    knobs=(FLAT, (0.7, 0, 0.9), (1.3, 20, 1.0), (0.9, 30, 0.8)),
    name=tuple(FILTERS),
    where=lambda device, knobs, name: (knobs == FLAT or not device.emulated)
    and (name in ("none", "all") or (knobs == FLAT and not device.emulated)),
)
def test_twenty_thousand_draws_follow_the_distribution(device, knobs, name):
    """In the emulator a thousand: its draws are the CPU's, which test_tokens_are_those_of_the_cpu shows."""
    temperature, top_k, top_p = knobs
    filters = FILTERS[name]
    per_row = {name: value for name, value in filters.items() if name != "min_tokens_to_keep"}
    torch.manual_seed(4)
    logits = 1.5 * torch.randn(64)
    draws, at_once = 1_000 if device.emulated else 20_000, 200 if device.emulated else 400
    tokens = []
    # Seeds, samples and positions all vary: their draws must be independent.
    for seed in range(draws // at_once):
        params = [(temperature, top_k, top_p, seed, i % 20, i // 20) for i in range(at_once)]
        rows = {name: [value] * at_once for name, value in per_row.items()}
        tokens.append(calls.sample(device, logits.expand(at_once, -1), params, **filters | rows))
    tokens = torch.cat(tokens)
    p = reference.distribution(logits, temperature, top_k, top_p, **filters)
    assert name == "none" or (p == 0).any()
    counts = torch.bincount(tokens, minlength=64).double()
    assert (counts[p == 0] == 0).all()
    kept = p * draws >= 5  # the usual condition of the test; what is rarer forms one class
    observed = torch.cat([counts[kept], counts[~kept].sum()[None]])
    expected = draws * torch.cat([p[kept], p[~kept].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    # Wilson-Hilferty: a normal deviate; the draws are fixed by their seeds, so this never flickers.
    deviate = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(deviate) < 3.5, f"chi-square {chi_square:.1f} with {freedom} degrees of freedom"


@per_device()
def test_a_rows_token_does_not_depend_on_its_company(device):
    torch.manual_seed(5)
    logits = 2 * torch.randn(30, 777)
    params = [((0.0, 0.5, 1.0)[i % 3], (0, 40)[i % 2], (1.0, 0.9)[i % 2], i, i % 4, i + 100) for i in range(30)]
    together = calls.sample(device, logits, params).tolist()
    order = torch.randperm(30).tolist()
    shuffled = calls.sample(device, logits[order], [params[i] for i in order]).tolist()
    assert [shuffled[order.index(i)] for i in range(30)] == together
    assert [calls.sample(device, logits[i : i + 1], params[i : i + 1]).item() for i in range(30)] == together


@per_device(devices=CUDA, entered=False)
def test_tokens_are_those_of_the_cpu(device):
    """Also of sharp and flat rows, and where a draw falls close to an edge: one generator, one arithmetic."""
    torch.manual_seed(6)
    rows, vocab = (24, 3001) if device.emulated else (256, 51200)
    logits = torch.randn(rows, vocab) * torch.tensor([0.0, 0.5, 3.0, 20.0]).repeat(rows // 4)[:, None]
    params = [
        ((0.2, 0.7, 1.0, 3.0)[i % 4], (0, 50, 1000)[i % 3], (1.0, 0.95, 0.3)[i // 3 % 3], i, 0, i) for i in range(rows)
    ]
    with CPU.running():
        expected = calls.sample(CPU, logits, params)
    with device.running():
        assert torch.equal(calls.sample(device, logits, params), expected)


@per_device((CPU, *CUDA))
def test_workspaces_of_negative_sizes_are_refused(device):
    where = device.memory.type
    weight = calls.new_weight(device, device.types[0].kind, (16,), (16,))
    for op in (ops.sample_workspace, ops.edit_logits_workspace):
        for name, sizes in (("num_rows", (-5, 10)), ("vocab_size", (5, -10))):
            with pytest.raises(ValueError, match=f"^{name}: expected at least 0, got -"):
                op(*sizes, where)
    for op in (ops.input_product_workspace, ops.output_product_workspace, ops.lm_head_workspace):
        with pytest.raises(ValueError, match="^num_(tokens|rows): expected at least 0, got -5"):
            op(-5, weight)
    for i, name in enumerate(("num_tokens", "n_head", "head_dim", "max_seq_len")):
        with pytest.raises(ValueError, match=f"^{name}: expected at least 0, got -5"):
            ops.attention_workspace(*(-5 if i == j else 8 for j in range(4)), where)


@per_device()
def test_no_rows(device):
    assert calls.sample(device, torch.empty(0, 100), []).tolist() == []
