"""Tokens do not depend on company: within a phase every op gives a row the same bits alone, in any batch, with any
number of threads or multiprocessors, wherever activations lie, and however a prompt was cut into chunks."""

from __future__ import annotations

import functools

import calls
import cases
import reference
import torch
from devices import CPUS, Device, Types, per_device
from fences import bits

TOKENS = 80
# Rows of the 80: alone, a batch of 7, chunks that fall on no tile's edge, all.
PARTS = ([0], [79], list(range(7)), [79, 3, 40, 40, 0, 12, 65], list(range(5, 22)), [41], list(range(80)))
LARGE = [dims for dims in cases.MODELS if dims.name in ("350M", "2B")]


def wanted(device: Device, dims: cases.Dims, types: Types, phase: str) -> bool:
    """The emulator takes one model for each pair of types and phase."""
    turn = device.types.index(types) + cases.PHASES.index(phase)
    return not device.emulated or LARGE[turn % 2] == dims


def same_bits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.shape == expected.shape and torch.equal(bits(got), bits(expected))


@functools.lru_cache(maxsize=None)
def weights(store: Device, kind: str, sections: tuple[int, ...], segments: tuple[int, ...]):
    torch.manual_seed(sum(sections) + sum(segments))
    return calls.pack(store, [[torch.randn(rows, cols) for cols in segments] for rows in sections], kind)


def check_rows(device: Device, op) -> None:
    """op(indices) computes the chosen rows in one call; each part, in all surroundings, must equal all rows computed
    at once."""
    whole = op(list(range(TOKENS)))
    variations, parts = device.variations(), PARTS
    for i, surroundings in enumerate(variations):
        if device.emulated:  # each part once
            parts = PARTS[i :: len(variations)]
        with surroundings():
            for part in parts:
                assert same_bits(op(part), whole[part]), f"rows {part} differ from those of the whole"


@per_device(act=Device.acts)
def test_layer_norm(device, act):
    x = torch.randn(TOKENS, 333).to(act)
    norm = (torch.randn(333), torch.randn(333), 1e-5)
    check_rows(device, lambda part: calls.layer_norm(device, x[part], norm))


@per_device(dims=LARGE, types=Device.types, phase=cases.PHASES, where=wanted)
def test_output_product(device, dims, types, phase):
    rows = device.rows(dims, 65)
    w = weights(device.store, types.kind, (rows,), (dims.n_embd, dims.inner))
    act, x = torch.randn(TOKENS, dims.n_embd + dims.inner).to(types.act), torch.randn(TOKENS, rows).to(types.act)
    bias = torch.randn(rows)
    check_rows(device, lambda part: calls.output_product(device, x[part], act[part], w, bias, phase))


@per_device(CPUS, kind=cases.INT4_KINDS[1:])
def test_output_product_in_larger_groups_of_int4(device, kind):
    w = weights(device.store, kind, (65,), (1024, 4001))
    act, x, bias = torch.randn(TOKENS, 5025), torch.randn(TOKENS, 65), torch.randn(65)
    check_rows(device, lambda part: calls.output_product(device, x[part], act[part], w, bias, "decode"))


@per_device(dims=LARGE, types=Device.types, phase=cases.PHASES, where=wanted)
def test_lm_head(device, dims, types, phase):
    rows = device.rows(dims, 257)
    w = weights(device.store, types.kind, (rows,), (dims.n_embd,))
    x, bias = torch.randn(TOKENS, dims.n_embd).to(types.act), torch.randn(rows)
    norm = (torch.randn(dims.n_embd), torch.randn(dims.n_embd), 1e-5)
    every = torch.arange(TOKENS, dtype=torch.int32)
    # The chosen rows of a large x, or all rows of a small one.
    check_rows(device, lambda part: calls.lm_head(device, x, every[part], norm, w, bias, phase))
    alone = calls.lm_head(device, x[41:42], every[:1], norm, w, bias, phase)
    assert same_bits(alone, calls.lm_head(device, x, every[41:42], norm, w, bias, phase))


LENGTHS = (1, 40, 18, 5, 33, 16, 66)  # a batch of 7
TOGETHER = [tuple(range(len(LENGTHS)))]
ALONE = [(b,) for b in range(len(LENGTHS))]
WHOLE = [LENGTHS]
CUT = [tuple(n // 3 for n in LENGTHS), tuple(n - n // 3 for n in LENGTHS)]
ENDING_IN_STEPS = [tuple(max(0, n - 3) for n in LENGTHS)] + [tuple(int(n > i) for n in LENGTHS) for i in range(3)]
# (chunks, the sequences of each call, which of the device's variations); all must equal the first.
RUNS = [
    (WHOLE, TOGETHER, 1),
    (WHOLE, ALONE, 0),
    (CUT, TOGETHER, 0),
    (WHOLE, [(6, 0, 3), (1,), (5, 4, 2)], 1),
    (CUT, ALONE, 1),
    (ENDING_IN_STEPS, [(2, 6), (4, 0, 1, 3, 5)], 0),
    (CUT, [(6, 0, 3), (1,), (5, 4, 2)], -1),
]
BLOCKS = (
    cases.Dims("64", 1, 4, 64, 32, 256, 1, max(LENGTHS)),
    cases.Dims("80", 1, 4, 80, 64, 333, 1, max(LENGTHS)),
)


@functools.lru_cache(maxsize=None)
def block(store: Device, types: Types, dims: cases.Dims):
    """The inputs of input_product: (packed, x of every sequence, bias, norm, table)."""
    packed = weights(store, types.kind, (dims.n_embd,) * 3 + (dims.inner,), (dims.n_embd,))
    torch.manual_seed(7)
    x = [torch.randn(n, dims.n_embd).to(types.act) for n in LENGTHS]
    norm = (torch.randn(dims.n_embd), torch.randn(dims.n_embd), 1e-5)
    table = reference.rotary_table(dims.n_positions, dims.rotary_dim, torch.float32)
    return packed, x, torch.randn(dims.inner), norm, table


def run_block(device, types, dims, cache, phase, chunks, groups):
    """q, act and attention of every sequence, and the pages, after running ``chunks`` for each group of sequences."""
    packed, x, bias, norm, table = block(device.store, types, dims)
    pool = calls.Pool(cache, dims.n_embd, seed=3, tokens=LENGTHS, device=device)
    sequences = pool.sequences([(0, n) for n in LENGTHS])
    parts = [[] for _ in LENGTHS]
    for group in groups:
        done = [0] * len(LENGTHS)
        for chunk in chunks:
            news = [chunk[b] for b in group]
            asked = [sequences[b].up_to(done[b] + chunk[b]).last(chunk[b]) for b in group]
            rows = torch.cat([x[b][done[b] : done[b] + chunk[b]] for b in group])
            q, act = calls.input_product(device, rows, norm, packed, bias, table, dims.n_head, pool, asked, phase)
            out = calls.attention(device, q, dims.n_head, pool, asked, phase)
            for b, part in zip(group, torch.cat([q, act, out], dim=1).split(news)):
                parts[b].append(part)
                done[b] += chunk[b]
    return [torch.cat(part) for part in parts], pool.pages


def wanted_block(device: Device, dims: cases.Dims, types: Types, phase: str) -> bool:
    turn = device.types.index(types) + cases.PHASES.index(phase)
    return not device.emulated or BLOCKS[turn % 2] == dims


@per_device(dims=BLOCKS, types=Device.types, phase=cases.PHASES, where=wanted_block)
def test_input_product_and_attention(device, dims, types, phase):
    narrow = device.backend == "cpu" and types.kind in cases.FLOAT_KINDS
    cache = getattr(torch, types.kind) if narrow else types.act
    expected = expected_pages = None
    for chunks, groups, which in RUNS:
        with device.variations()[which]():
            got, pages = run_block(device, types, dims, cache, phase, chunks, groups)
        if expected is None:
            expected, expected_pages = got, pages
        for b in range(len(LENGTHS)):
            assert same_bits(got[b], expected[b]), f"sequence {b}, chunks {chunks}, groups {groups}"
        assert same_bits(pages, expected_pages), f"pages, chunks {chunks}, groups {groups}"
