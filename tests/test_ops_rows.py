"""embed and layer_norm: the ops that work on one row at a time."""

from __future__ import annotations

import math

import bounds
import calls
import cases
import reference
import torch
from devices import Device, per_device
from fences import bits

from codegen_fast import ops

WIDTHS = sorted({dims.n_embd for dims in (*cases.MODELS[2:], *cases.ODD)} | {1, 2, 7, 33})


@per_device(act=Device.acts, kind=cases.FLOAT_KINDS, tokens=cases.TOKENS)
def test_embed_copies_rows_exactly(device, act, kind, tokens):
    torch.manual_seed(tokens)
    for width, vocab in [(64, 1003), (20, 1), (333, 50)]:
        wte = torch.randn(vocab, width).to(getattr(torch, kind))
        ids = torch.randint(0, vocab, (tokens,))
        assert torch.equal(calls.embed(device, ids, wte, act), reference.embed(ids, wte, torch.float32).to(act))


@per_device()
def test_embed_gives_nan_for_ids_outside_the_vocabulary(device):
    wte = torch.randn(50, 16)
    ids = torch.tensor([0, 50, 49, -1, 2**40, -(2**63), 2**63 - 1, 7])
    x = calls.embed(device, ids, wte, device.act)
    assert torch.equal(x.isnan().all(1), torch.tensor([0, 1, 0, 1, 1, 1, 1, 0], dtype=torch.bool))
    assert torch.equal(x[[0, 2, 7]], wte[[0, 49, 7]].to(device.act))


def check_layer_norm(device, x, weight, bias, what):
    got = calls.layer_norm(device, x, (weight, bias, 1e-5))
    expected = reference.layer_norm(x, weight, bias, 1e-5)
    bound = bounds.stored(bounds.layer_norm(x, weight, bias, 1e-5), expected, x.dtype)
    bounds.assert_within(got, expected, bound, what)


@per_device(act=Device.acts, mean=(0.0, 30.0), tokens=cases.TOKENS)
def test_layer_norm(device, act, mean, tokens):
    for width in WIDTHS:
        torch.manual_seed(width)
        x = torch.randn(tokens, width) * 2 + 2 * mean
        check_layer_norm(device, x.to(act), torch.randn(width), torch.randn(width), f"layer_norm of {width}")


@per_device(act=Device.acts)
def test_layer_norm_of_constant_rows_is_the_bias(device, act):
    weight, bias = torch.randn(48), torch.randn(48)
    for value in (0.0, 1.0, -3.0, 1024.0):
        got = calls.layer_norm(device, torch.full((2, 48), value, dtype=act), (weight, bias, 1e-5))
        assert torch.equal(got, bias.to(act).expand(2, 48))


# float16 ends at 65504 and at 2^-24.
@per_device(
    act=Device.acts, scale=(1e-12, 1e-6, 1e4, 1e12),
    where=lambda _, act, scale: act != torch.float16 or 1e-7 < scale < 1e5,
)  # fmt: skip
def test_layer_norm_of_small_and_large_values(device, act, scale):
    x = torch.randn(3, 256) * scale
    check_layer_norm(device, x.to(act), torch.randn(256), torch.zeros(256), "layer_norm")


@per_device(act=Device.acts)
def test_layer_norm_in_place(device, act):
    x = torch.randn(5, 100).to(act)
    norm = (torch.randn(100), torch.randn(100), 1e-5)
    apart = calls.layer_norm(device, x, norm)
    out = calls.fenced(device, (5, 100), act, values=x)
    ops.layer_norm(out.tensor, out.tensor, calls.norm_of(device, norm))
    assert torch.equal(bits(out.check().cpu()), bits(apart))


@per_device(act=Device.acts)
def test_layer_norm_lets_nan_and_infinity_through_to_their_own_row_only(device, act):
    x = torch.randn(4, 64).to(act)
    clean = calls.layer_norm(device, x, (torch.ones(64), torch.zeros(64), 1e-5))
    x[1, 3], x[2, 60] = math.nan, math.inf
    out = calls.layer_norm(device, x, (torch.ones(64), torch.zeros(64), 1e-5))
    assert out[1].isnan().all() and out[2].isnan().any()
    assert torch.equal(bits(out[[0, 3]]), bits(clean[[0, 3]]))


@per_device(act=Device.acts)
def test_layer_norm_of_strided_rows(device, act):
    x = torch.randn(7, 45).to(act)
    norm = (torch.randn(45), torch.randn(45), 1e-5)
    strided = calls.layer_norm(device, x, norm, gaps=(4, 9))
    assert torch.equal(bits(strided), bits(calls.layer_norm(device, x, norm)))
