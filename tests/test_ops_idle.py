"""What lies on a GPU cannot be looked at, so CUDA's ops take every batch: a token at a negative position, or whose page
the table lacks or names outside of the cache, is idle. Nothing is appended for it, its attention is 0, and it changes
no bit of the others."""

from __future__ import annotations

import functools

import calls
import cases
import reference
import torch
from calls import Asked
from devices import CUDA, Device, per_device
from fences import bits

from codegen_fast import ops

HEADS, WIDTH, INNER, POSITIONS = 4, 64, 33, 2048


@functools.lru_cache(maxsize=None)
def weights(store: Device, kind: str):
    torch.manual_seed(1)
    return calls.pack(store, [[torch.randn(rows, WIDTH)] for rows in (WIDTH, WIDTH, WIDTH, INNER)], kind)


def run(device: Device, kind: str, pool: calls.Pool, x, sequences, phase):
    """(q, act, attention) of a call of both ops."""
    norm = (torch.ones(WIDTH), torch.zeros(WIDTH), 1e-5)
    table = reference.rotary_table(POSITIONS, 8, torch.float32)
    packed = weights(device.store, kind)
    bias = torch.linspace(-1, 1, INNER)
    q, act = calls.input_product(device, x, norm, packed, bias, table, HEADS, pool, sequences, phase)
    # Of no meaning where the token is idle; attention must not look at it.
    q[~q.isfinite()] = 0
    return q, act, calls.attention(device, q, HEADS, pool, sequences, phase)


# Sequences of which some tokens are idle, by name: (sequence, which of its new tokens are).
IDLE = {
    "of length 0": (Asked((), 0, 1), [True]),
    "of length 0 with many tokens": (Asked((), 0, 20), [True] * 20),
    "shorter than its new tokens": (Asked((0,), 2, 5), [True] * 3 + [False] * 2),
    "of negative length": (Asked((), -(2**31) + 5, 2), [True] * 2),
    "whose page is beyond the cache": (Asked((2**20,), 3, 2), [True] * 2),
    "whose page is the first behind the cache": (Asked((-2,), 3, 2), [True] * 2),  # put in below
    "whose page is negative": (Asked((-1,), 3, 2), [True] * 2),
    "of which the table lacks a page": (Asked((), 5, 3), [True] * 3),
    "longer than the table": (Asked((0,), 1500, 2), [True] * 2),
}


@per_device(CUDA, name=tuple(IDLE), phase=cases.PHASES)
def test_idle_tokens(device, name, phase):
    """Between two sequences, each with a past, that must get what they get alone."""
    asked, idle = IDLE[name]
    types = device.types[list(IDLE).index(name) % len(device.types)]
    torch.manual_seed(2)
    alone, together = (calls.Pool(types.act, WIDTH, seed=3, tokens=(70, 70, 70), device=device) for _ in range(2))
    first, second, spare = alone.sequences([(0, 40), (0, 33), (0, 1)])
    assert together.sequences([(0, 40), (0, 33), (0, 1)]) == [first, second, spare]
    if asked.pages:
        pages = {0: spare.pages[0], -2: len(alone.pages)}
        asked = Asked((pages.get(asked.pages[0], asked.pages[0]),), asked.length, asked.new)
    past = torch.randn(37 + 30, WIDTH).to(types.act)
    for pool in (alone, together):
        run(device, types.kind, pool, past, [first.up_to(37).last(37), second.up_to(30).last(30)], phase)
    x = torch.randn(3 + 3, WIDTH).to(types.act)
    got = torch.cat([x[:3], torch.randn(asked.new, WIDTH).to(types.act), x[3:]])
    busy = [0, 1, 2, *range(3 + asked.new, 6 + asked.new)]
    expected = run(device, types.kind, alone, x, [first.last(3), second.last(3)], phase)
    before = together.pages.clone()
    got = run(device, types.kind, together, got, [first.last(3), asked, second.last(3)], phase)
    for part, whole in zip(expected, got):
        assert torch.equal(bits(whole[busy]), bits(part))
    assert (got[2][3 : 3 + asked.new][idle] == 0).all()
    # What was appended: the busy sequences' tokens, and those of the asked one that are not idle.
    changed = (bits(together.pages) != bits(before)).reshape(before.numel(), -1).any(1)
    assert int(changed.sum()) == 2 * WIDTH * (6 + idle.count(False))
    if not all(idle):
        assert (got[2][3 : 3 + asked.new][[not i for i in idle]] != 0).any(1).all()


@per_device(CUDA, phase=cases.PHASES)
def test_all_are_idle(device, phase):
    types = device.types[0]
    pool = calls.Pool(types.act, WIDTH, seed=3, tokens=(70,), device=device)
    before = pool.pages.clone()
    _, _, out = run(device, types.kind, pool, torch.randn(64, WIDTH).to(types.act), [Asked((), 0, 1)] * 64, phase)
    assert (out == 0).all() and torch.equal(bits(pool.pages), bits(before))


@per_device(CUDA, phase=cases.PHASES)
def test_a_page_that_is_missing_before_the_tokens_own_disturbs_nobody(device, phase):
    """The token's attention is of no meaning then; memory outside of the cache must not be touched."""
    types = device.types[0]
    pools = [calls.Pool(types.act, WIDTH, seed=3, tokens=(70, 70), device=device) for _ in range(2)]
    x = torch.randn(1 + 40, WIDTH).to(types.act)
    results = []
    for pool, missing in zip(pools, (False, True)):
        broken, whole = pool.sequences([(39, 1), (0, 40)])
        pool.pages[list(broken.pages)] = 0  # a past
        if missing:
            broken = Asked((2**30, broken.pages[1]), 40, 1)
        results.append(run(device, types.kind, pool, x, [broken, whole], phase)[2])
    assert torch.equal(bits(results[0][1:]), bits(results[1][1:]))


@per_device(CUDA)
def test_pages_that_do_not_exist_are_not_copied(device):
    page = ops.kv_page_size(device.memory.type)
    pages = torch.arange(8.0)[:, None, None].expand(8, page, 32).to(device.memory, device.act).contiguous()
    ids = ([0, 8, -1, 3, 1, 2**31 - 1], [5, 6, 7, 8, -1, 4])
    ops.copy_pages(pages, *(torch.tensor(part, dtype=torch.int32, device=device.memory) for part in ids))
    assert pages[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 6, 7]
