"""attention, what input_product appends as attention sees it, and copy_pages."""

from __future__ import annotations

import math

import bounds
import calls
import exact_cache
import oracle
import reference
import torch
from calls import Asked, Pool
from devices import Device
from fences import bits

from codegen_fast import ops

from .bitwise import everywhere, kept, rows_alone
from .chance import Chance


def beginnings(chance: Chance, sequences: list[Asked], page_size: int) -> list[tuple[int, Asked]]:
    """(which sequence it is of, what is asked): each of them, and some that share the pages of its beginning."""
    asked = []
    for i, sequence in enumerate(sequences):
        shorter = [chance.randint(1, sequence.length) for _ in range(chance.choice((0, 0, 1, 2)))]
        for length in [sequence.length, *shorter]:
            new = 0 if chance.random() < 0.1 else min(length, max(1, chance.tokens()))
            asked.append((i, Asked(sequence.pages[: -(-length // page_size)], length, new)))
    chance.shuffle(asked)
    return asked


def attention(device: Device, chance: Chance) -> None:
    """Over keys and values that are known exactly; the rest of the pool, and of a last page, may hold anything."""
    phase, gaps = chance.phase(), chance.gaps()
    act = chance.note(act=chance.choice(device.acts))
    cache = chance.note(cache=chance.choice(device.cache_dtypes(act)))
    n_head, head_dim = chance.note(n_head=chance.randint(1, 4), head_dim=2 * chance.size(16 if chance.small else 40))
    lengths, sharpness = chance.lengths(), chance.note(sharpness=chance.choice((0.1, 1.0, 8.0)))
    exact = exact_cache.values(n_head, head_dim, lengths)
    pool, sequences = exact_cache.filled(device, n_head, exact, lengths, (act, cache), seed=chance.getrandbits(30))
    pairs = beginnings(chance, sequences, pool.page_size)
    asked = chance.note(asked=[sequence for _, sequence in pairs])
    q = [(sharpness * chance.normal(sequence.new, n_head, head_dim)).to(act) for sequence in asked]
    k, v = ([part[i][: sequence.length] for i, sequence in pairs] for part in exact[2:])

    def op(part):
        rows = torch.cat([q[b] for b in part]).flatten(1)
        out = calls.attention(device, rows, n_head, pool, [asked[b] for b in part], phase, inner=chance.choice((0, 3)),
                              gaps=gaps)  # fmt: skip
        return (out.reshape(-1, n_head, head_dim),)

    every = list(range(len(asked)))
    got = everywhere(device, chance, lambda: op(every), pool.pages)
    bound = torch.cat([bounds.attention(*qkv, act=act) for qkv in zip(q, k, v)])
    bounds.assert_within(got[0], torch.cat(reference.attention(q, k, v)), bound, "attention")
    unused = pool.pages.isnan()
    pool.pages[unused] = chance.choice((0.0, math.inf, 65504.0))
    assert torch.equal(bits(op(every)[0]), bits(got[0])), "memory that is no token's matters"
    alone = chance.randrange(len(asked))
    own = got[0].split([sequence.new for sequence in asked])[alone]
    assert torch.equal(bits(op([alone])[0]), bits(own)), f"sequence {alone} has other bits alone"


def appended(device: Device, chance: Chance) -> None:
    """Keys and values that input_product appends, however a prompt is cut, decide what attention gives: bits do not
    depend on the cut, and are within what the products may err."""
    types, phase = chance.types(device), chance.phase()
    cache = chance.note(cache=chance.choice(device.cache_dtypes(types.act)))
    n_head, head_dim = chance.note(n_head=chance.randint(1, 3), head_dim=2 * chance.size(12 if chance.small else 40))
    rotary_dim, d = 2 * chance.randint(1, head_dim // 2), n_head * head_dim
    lengths = [chance.size(20 if chance.small else 70) for _ in range(chance.randint(1, 3))]
    chance.note(rotary_dim=rotary_dim, lengths=lengths)
    w = (*(chance.normal(3, d, d) / math.sqrt(d)), chance.normal(3, d))
    norm, bias = chance.norm(d), chance.normal(3)
    table = reference.rotary_table(max(lengths), rotary_dim, torch.float32)
    x = [chance.activations(length, d, types.act) for length in lengths]
    packed = calls.pack(device, [[part] for part in w], types.kind)
    q = [chance.normal(length, n_head, head_dim).to(types.act) for length in lengths]

    def attended(cuts: list[list[int]], part: list[int], cache_alone: bool = False) -> torch.Tensor:
        """Of these sequences. cuts: for every call, the new tokens of each of them. cache_alone: q and act have no rows."""
        pool = Pool(cache, d, seed=chance.getrandbits(30), tokens=lengths, device=device)
        sequences = pool.sequences([(0, lengths[b]) for b in part])
        done = [0] * len(part)
        for fresh in cuts:
            asked = [s.up_to(past + n).last(n) for s, past, n in zip(sequences, done, fresh)]
            rows = torch.cat([x[b][past : past + n] for b, past, n in zip(part, done, fresh)])
            calls.input_product(device, rows, norm, packed, bias, table, n_head, pool, asked, phase, cache_alone=cache_alone)
            done = [past + n for past, n in zip(done, fresh)]
        everything = [s.last(s.length) for s in sequences]
        rows = torch.cat([q[b] for b in part]).flatten(1)
        return calls.attention(device, rows, n_head, pool, everything, phase)

    parts = chance.note(parts=chance.randint(2, 4))
    every = list(range(len(lengths)))
    got = everywhere(device, chance, lambda: (attended([lengths], every),), *kept(device, packed))[0]
    cuts = list(zip(*(chance.cut(length, parts) for length in lengths)))
    assert torch.equal(bits(attended(cuts, every)), bits(got)), f"other bits where the prompts are cut into {cuts}"
    if phase == "prefill":
        assert torch.equal(bits(attended(cuts, every, cache_alone=True)), bits(got)), "other bits without q and act"
    alone = chance.randrange(len(lengths))
    assert torch.equal(bits(attended([[lengths[alone]]], [alone])), bits(got.split(lengths)[alone])), (
        f"sequence {alone} has other bits alone"
    )
    expected, bound = [], []
    for q_b, x_b in zip(q, x):
        made, error = oracle.input_product(
            x_b, norm, w, bias, table, n_head, torch.arange(len(x_b)), types.kind, device.arithmetic(types, phase)
        )
        errors = bounds.rounding_error(made.k, error.k, cache), bounds.rounding_error(made.v, error.v, cache)
        k, v = made.k.to(cache).double(), made.v.to(cache).double()
        expected += reference.attention([q_b], [k], [v])
        bound.append(bounds.attention(q_b, k, v, *errors, act=types.act))
    shape = (-1, n_head, head_dim)
    bounds.assert_within(got.reshape(shape), torch.cat(expected), torch.cat(bound), "attention over what was appended")


def copy_pages(device: Device, chance: Chance) -> None:
    dtype = chance.note(cache=chance.choice(device.cache_dtypes(chance.choice(device.acts))))
    width, count = chance.note(width=8 * chance.size(12), pages=chance.randint(1, 20))
    page_size = ops.kv_page_size(device.memory.type)
    pages = chance.normal(count, page_size, 2 * width).to(dtype)
    order = chance.sample(range(count), count)
    n = chance.note(copied=chance.randint(0, count // 2))
    destination, source = order[:n], [chance.choice(order[n:]) for _ in range(n)]

    def copied(pairs):
        """All pages after a copy of these pairs."""
        memory = calls.scratch(device, pages.nbytes)
        pool = memory.tensor.view(dtype).view(pages.shape)
        pool.copy_(pages)
        ids = [calls.guarded(device, torch.tensor([ends[i] for i in pairs], dtype=torch.int32))
               for ends in (source, destination)]  # fmt: skip
        ops.copy_pages(pool, *ids)
        memory.check()
        return pool.cpu()

    got = everywhere(device, chance, lambda: (copied(range(n)),))
    expected = pages.clone()
    expected[destination] = pages[source]
    assert torch.equal(bits(got[0]), bits(expected))

    def op(part):
        return (copied(dict.fromkeys(part))[[destination[i] for i in part]],)

    rows_alone(chance, op, (got[0][destination],))
