"""embed and layer_norm: the ops that work on one row at a time."""

from __future__ import annotations

import math

import bounds
import calls
import cases
import pytest
import reference
import torch
from calls import isa  # noqa: F401 (a fixture)
from fences import Fenced, bits, guarded

from codegen_fast import ops

WIDTHS = sorted({dims.n_embd for dims in (*cases.MODELS[2:], *cases.ODD)} | {1, 2, 7, 33})


@pytest.mark.parametrize("kind", cases.FLOAT_KINDS)
@pytest.mark.parametrize("tokens", cases.TOKENS)
def test_embed_copies_rows_exactly(isa, kind, tokens):
    torch.manual_seed(tokens)
    for width, vocab in [(64, 1003), (20, 1), (333, 50)]:
        wte = torch.randn(vocab, width).to(getattr(torch, kind))
        ids = torch.randint(0, vocab, (tokens,))
        assert torch.equal(calls.embed(ids, wte), reference.embed(ids, wte, torch.float32))


def test_embed_gives_nan_for_ids_outside_the_vocabulary(isa):
    wte = torch.randn(50, 16)
    ids = torch.tensor([0, 50, 49, -1, 2**40, -(2**63), 2**63 - 1, 7])
    x = calls.embed(ids, wte)
    assert torch.equal(x.isnan().all(1), torch.tensor([0, 1, 0, 1, 1, 1, 1, 0], dtype=torch.bool))
    assert torch.equal(x[[0, 2, 7]], wte[[0, 49, 7]])


@pytest.mark.parametrize("tokens", cases.TOKENS)
@pytest.mark.parametrize("mean", [0.0, 30.0], ids=["centred", "mean_30_std"])
def test_layer_norm(isa, tokens, mean):
    for width in WIDTHS:
        torch.manual_seed(width)
        x = torch.randn(tokens, width) * 2 + 2 * mean
        weight, bias = torch.randn(width), torch.randn(width)
        got = calls.layer_norm(x, (weight, bias, 1e-5))
        bound = bounds.layer_norm(x, weight, bias, 1e-5)
        bounds.assert_within(got, reference.layer_norm(x, weight, bias, 1e-5), bound, f"layer_norm of {width}")


def test_layer_norm_of_constant_rows_is_the_bias(isa):
    weight, bias = torch.randn(48), torch.randn(48)
    for value in (0.0, 1.0, -3.0, 1024.0):
        assert torch.equal(calls.layer_norm(torch.full((2, 48), value), (weight, bias, 1e-5)), bias.expand(2, 48))


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e4, 1e12])
def test_layer_norm_of_small_and_large_values(isa, scale):
    x = torch.randn(3, 256) * scale
    weight, bias = torch.randn(256), torch.zeros(256)
    expected = reference.layer_norm(x, weight, bias, 1e-5)
    bounds.assert_within(
        calls.layer_norm(x, (weight, bias, 1e-5)), expected, bounds.layer_norm(x, weight, bias, 1e-5), "layer_norm"
    )


def test_layer_norm_in_place(isa):
    x = torch.randn(5, 100)
    norm = (torch.randn(100), torch.randn(100), 1e-5)
    apart = calls.layer_norm(x, norm)
    out = Fenced((5, 100), torch.float32, values=x)
    ops.layer_norm(out.tensor, out.tensor, ops.Norm(*norm))
    assert torch.equal(bits(out.check()), bits(apart))


def test_layer_norm_lets_nan_and_infinity_through_to_their_own_row_only(isa):
    x = torch.randn(4, 64)
    clean = calls.layer_norm(x, (torch.ones(64), torch.zeros(64), 1e-5))
    x[1, 3], x[2, 60] = math.nan, math.inf
    out = calls.layer_norm(guarded(x), (torch.ones(64), torch.zeros(64), 1e-5))
    assert out[1].isnan().all() and out[2].isnan().any()
    assert torch.equal(bits(out[[0, 3]]), bits(clean[[0, 3]]))


def test_layer_norm_of_strided_rows(isa):
    x = torch.randn(7, 45)
    norm = (torch.randn(45), torch.randn(45), 1e-5)
    out = Fenced((7, 45), torch.float32, gap=4)
    ops.layer_norm(out.tensor, guarded(x, gap=9), ops.Norm(*norm))
    assert torch.equal(bits(out.check()), bits(calls.layer_norm(x, norm)))
