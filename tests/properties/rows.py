"""embed and layer_norm."""

from __future__ import annotations

import math

import bounds
import calls
import oracle
import reference
import torch
from devices import Device
from fences import bits, same

from codegen_fast import ops

from .bitwise import everywhere, rows_alone
from .chance import Chance


def embed(device: Device, chance: Chance) -> None:
    act, kind = chance.note(act=chance.choice(device.acts), kind=chance.choice(("float32", "float16", "bfloat16")))
    vocab, width, tokens = chance.note(vocab=chance.size(1000), width=chance.columns(), tokens=chance.tokens())
    wte = (chance.normal(vocab, width) * 2.0 ** chance.randint(-20, 20)).to(getattr(torch, kind))
    ids = [chance.randrange(vocab) if chance.random() < 0.9 else chance.choice((-1, vocab, 2**40, -(2**63)))
           for _ in range(tokens)]  # fmt: skip
    ids = torch.tensor(ids, dtype=torch.int64)

    def op(part):
        return (calls.embed(device, ids[part], wte, act),)

    got = everywhere(device, chance, lambda: op(list(range(tokens))))
    expected = reference.embed(ids, wte, torch.float32).to(act)
    assert same(got[0], expected), "embed"
    rows_alone(chance, op, got)


def layer_norm(device: Device, chance: Chance) -> None:
    act = chance.note(act=chance.choice(device.acts))
    width, tokens, gaps = chance.columns(), chance.tokens(), chance.gaps()
    chance.note(width=width, tokens=tokens)
    x, norm = chance.activations(tokens, width, act), chance.norm(width)

    def op(part):
        return (calls.layer_norm(device, x[part], norm, gaps=gaps),)

    got = everywhere(device, chance, lambda: op(list(range(tokens))))
    bounds.assert_within(got[0], *oracle.layer_norm(x, norm), "layer_norm")
    rows_alone(chance, op, got)
    in_place = calls.fenced(device, x.shape, act, gap=gaps[0], values=x)
    ops.layer_norm(in_place.tensor, in_place.tensor, calls.norm_of(device, norm))
    assert torch.equal(bits(in_place.check().cpu()), bits(got[0])), "other bits in place"
    if tokens:
        spoilt = x.clone()
        row = chance.randrange(tokens)
        spoilt[row, chance.randrange(width)] = chance.choice((math.nan, math.inf, -math.inf))
        after = calls.layer_norm(device, spoilt, norm, gaps=gaps)
        others = [i for i in range(tokens) if i != row]
        assert after[row].isnan().any(), "NaN was lost"
        assert torch.equal(bits(after[others]), bits(got[0][others])), "NaN spread"
