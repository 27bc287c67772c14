"""The three products."""

from __future__ import annotations

import math

import bounds
import calls
import oracle
import reference
import torch
from devices import Device
from fences import bits

from .bitwise import everywhere, kept, rows_alone
from .chance import Chance


def spoils_its_own_row_alone(chance: Chance, x: torch.Tensor, column: int, op, whole: torch.Tensor) -> None:
    """op(x) gives whole; with a value of x that is not finite no other row changes, and its own row is not finite."""
    if not len(x):
        return
    spoilt, row = x.clone(), chance.randrange(len(x))
    spoilt[row, column] = chance.note(value=chance.choice((math.nan, math.inf, -math.inf)))
    got = op(spoilt)
    others = [i for i in range(len(x)) if i != row]
    assert not got[row].isfinite().any(), "a value that is not finite was lost"
    assert torch.equal(bits(got[others]), bits(whole[others])), "a value that is not finite spoilt another row"


def output_product(device: Device, chance: Chance) -> None:
    types, phase, gaps = chance.types(device), chance.phase(), chance.gaps()
    segments = chance.note(segments=tuple(chance.columns() for _ in range(chance.choice((1, 2)))))
    rows, tokens = chance.note(rows=chance.size(100), tokens=chance.tokens())
    w, bias = tuple(chance.normal(rows, columns) for columns in segments), chance.normal(rows)
    x, act = chance.normal(tokens, rows).to(types.act), chance.activations(tokens, sum(segments), types.act)
    packed = calls.pack(device, [w], types.kind)

    def op(part):
        return (calls.output_product(device, x[part], act[part], packed, bias, phase, gaps=gaps),)

    got = everywhere(device, chance, lambda: op(list(range(tokens))), *kept(device, packed))
    how = device.arithmetic(types, phase)
    bounds.assert_within(got[0], *oracle.output_product(x, act, w, bias, types.kind, how), "output_product")
    rows_alone(chance, op, got)
    spoils_its_own_row_alone(
        chance, act, chance.randrange(sum(segments)),
        lambda spoilt: calls.output_product(device, x, spoilt, packed, bias, phase), got[0],
    )  # fmt: skip


def lm_head(device: Device, chance: Chance) -> None:
    types, phase, gaps = chance.types(device), chance.phase(), chance.gaps()
    width, vocab, tokens = chance.note(width=1 + chance.columns(), vocab=chance.size(300), tokens=1 + chance.tokens())
    w, bias, norm = chance.normal(vocab, width), chance.normal(vocab), chance.norm(width)
    x = chance.activations(tokens, width, types.act)
    rows = torch.tensor([chance.randrange(tokens) for _ in range(chance.tokens())], dtype=torch.int32)
    packed = calls.pack(device, [[w]], types.kind)

    def op(part):
        return (calls.lm_head(device, x, rows[part], norm, packed, bias, phase, gaps=gaps),)

    got = everywhere(device, chance, lambda: op(list(range(len(rows)))), *kept(device, packed))
    expected, bound = oracle.lm_head(x, norm, w, bias, types.kind, device.arithmetic(types, phase))
    bounds.assert_within(got[0], expected[rows.long()], bound[rows.long()], "lm_head")
    rows_alone(chance, op, got)
    outside = rows.clone()
    for i in chance.some(len(rows)):
        outside[i] = chance.choice((-1, tokens, 2**31 - 1, -(2**31)))
    wrong = (outside < 0) | (outside >= tokens)
    after = calls.lm_head(device, x, outside, norm, packed, bias, phase)
    assert after[wrong].isnan().all() and torch.equal(bits(after[~wrong]), bits(got[0][~wrong]))


def input_product(device: Device, chance: Chance) -> None:
    """q, act, and what the cache gets: 2 d values a token where NaN was, and nothing else."""
    types, phase, gaps = chance.types(device), chance.phase(), chance.gaps()
    n_head, head_dim = chance.note(n_head=chance.randint(1, 4), head_dim=2 * chance.size(16 if chance.small else 40))
    rotary_dim, inner = chance.note(rotary_dim=2 * chance.randint(1, head_dim // 2), inner=chance.size(130))
    cache = chance.note(cache=chance.choice(device.cache_dtypes(types.act)))
    d, lengths = n_head * head_dim, chance.lengths()
    new = [0 if chance.random() < 0.1 else min(length, chance.tokens()) for length in lengths]
    x, norm, bias = chance.activations(sum(new), d, types.act), chance.norm(d), chance.normal(inner)
    w = tuple(chance.normal(rows, d) for rows in (d, d, d, inner))
    table = reference.rotary_table(max(lengths), rotary_dim, torch.float32)
    packed = calls.pack(device, [[part] for part in w], types.kind)
    pool = calls.Pool(cache, d, seed=chance.getrandbits(30), tokens=lengths, device=device)
    asked = pool.sequences([(length - n, n) for length, n in zip(lengths, new)])

    def op(part):
        """Of these sequences; of the cache, every page."""
        pool.pages.fill_(math.nan)
        rows = torch.cat([x_of[b] for b in part])
        got = calls.input_product(device, rows, norm, packed, bias, table, n_head, pool, [asked[b] for b in part], phase,
                                  gaps=gaps)  # fmt: skip
        return *got, pool.pages.cpu().clone()

    x_of = x.split(new)
    q, act, pages = everywhere(device, chance, lambda: op(list(range(len(new)))), *kept(device, packed))
    alone = chance.note(alone=chance.randrange(len(new)))
    pages_alone = list(asked[alone].pages)
    own, of_all = op([alone]), (q.split(new)[alone], act.split(new)[alone], pages[pages_alone])
    for one, among in zip((*own[:2], own[2][pages_alone]), of_all, strict=True):
        assert torch.equal(bits(one), bits(among)), f"sequence {alone} has other bits alone"
    positions = torch.tensor([p for length, n in zip(lengths, new) for p in range(length - n, length)])
    assert int((~pages.isnan()).sum()) == 2 * d * sum(new), "other elements of the cache than those of the new tokens"
    if not sum(new):
        return
    expected, bound = oracle.input_product(
        x, norm, w, bias, table, n_head, positions, types.kind, device.arithmetic(types, phase)
    )
    bounds.assert_within(q, expected.q.flatten(1), bound.q.flatten(1), "q")
    bounds.assert_within(act, expected.act, bound.act, "act")
