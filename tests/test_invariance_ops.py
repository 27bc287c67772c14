"""Tokens do not depend on company: within a phase every op gives a row the same bits alone, in any batch, with any
number of threads, and however a prompt was cut into chunks."""

from __future__ import annotations

import functools

import calls
import cases
import pytest
import reference
import torch
from calls import isa  # noqa: F401 (a fixture)
from fences import bits

from codegen_fast import ops

TOKENS = 80
# Rows of the 80: alone, a batch of 7, chunks that fall on no tile's edge, all.
PARTS = ([0], [79], list(range(7)), [79, 3, 40, 40, 0, 12, 65], list(range(5, 22)), [41], list(range(80)))
LARGE = [dims for dims in cases.MODELS if dims.name in ("350M", "2B")]


def same_bits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.shape == expected.shape and torch.equal(bits(got), bits(expected))


@functools.lru_cache(maxsize=None)
def weights(kind: str, sections: tuple[int, ...], segments: tuple[int, ...]):
    torch.manual_seed(sum(sections) + sum(segments))
    return calls.pack([[torch.randn(rows, cols) for cols in segments] for rows in sections], kind)


def check_rows(op) -> None:
    """op(indices) computes the chosen rows in one call; each part, with one thread and with two, must equal all rows
    computed with two."""
    ops.set_num_threads(2)
    whole = op(list(range(TOKENS)))
    for threads in (1, 2):
        ops.set_num_threads(threads)
        for part in PARTS:
            assert same_bits(op(part), whole[part]), f"rows {part} differ from those of the whole"


def test_layer_norm(isa):
    x = torch.randn(TOKENS, 333)
    norm = (torch.randn(333), torch.randn(333), 1e-5)
    check_rows(lambda part: calls.layer_norm(x[part], norm))


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("kind", cases.WEIGHT_KINDS)
@pytest.mark.parametrize("dims", LARGE, ids=cases.by_name(LARGE))
def test_output_product(isa, dims, kind, phase):
    rows = 65
    w = weights(kind, (rows,), (dims.n_embd, dims.inner))
    act, x, bias = torch.randn(TOKENS, dims.n_embd + dims.inner), torch.randn(TOKENS, rows), torch.randn(rows)
    check_rows(lambda part: calls.output_product(x[part], act[part], w, bias, phase))


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("kind", cases.WEIGHT_KINDS)
@pytest.mark.parametrize("dims", LARGE, ids=cases.by_name(LARGE))
def test_lm_head(isa, dims, kind, phase):
    w = weights(kind, (257,), (dims.n_embd,))
    x, bias = torch.randn(TOKENS, dims.n_embd), torch.randn(257)
    norm = (torch.randn(dims.n_embd), torch.randn(dims.n_embd), 1e-5)
    every = torch.arange(TOKENS, dtype=torch.int32)
    # The chosen rows of a large x, or all rows of a small one.
    check_rows(lambda part: calls.lm_head(x, every[part], norm, w, bias, phase))
    alone = calls.lm_head(x[41:42], every[:1], norm, w, bias, phase)
    assert same_bits(alone, calls.lm_head(x, every[41:42], norm, w, bias, phase))


LENGTHS = (1, 40, 18, 5, 33, 16, 66)  # a batch of 7
TOGETHER = [tuple(range(len(LENGTHS)))]
ALONE = [(b,) for b in range(len(LENGTHS))]
WHOLE = [LENGTHS]
CUT = [tuple(n // 3 for n in LENGTHS), tuple(n - n // 3 for n in LENGTHS)]
ENDING_IN_STEPS = [tuple(max(0, n - 3) for n in LENGTHS)] + [tuple(int(n > i) for n in LENGTHS) for i in range(3)]
# (chunks, the sequences of each call, threads); the first is what the others are compared with.
RUNS = [
    (WHOLE, TOGETHER, 2),
    (WHOLE, ALONE, 1),
    (CUT, TOGETHER, 1),
    (WHOLE, [(6, 0, 3), (1,), (5, 4, 2)], 2),
    (CUT, ALONE, 2),
    (ENDING_IN_STEPS, [(2, 6), (4, 0, 1, 3, 5)], 1),
]
BLOCKS = (
    cases.Dims("64", 1, 4, 64, 32, 256, 1, max(LENGTHS)),
    cases.Dims("80", 1, 4, 80, 64, 333, 1, max(LENGTHS)),
)


@functools.lru_cache(maxsize=None)
def block(kind: str, dims: cases.Dims):
    """The inputs of input_product: (packed, x of every sequence, bias, norm, table)."""
    packed = weights(kind, (dims.n_embd,) * 3 + (dims.inner,), (dims.n_embd,))
    torch.manual_seed(7)
    x = [torch.randn(n, dims.n_embd) for n in LENGTHS]
    norm = (torch.randn(dims.n_embd), torch.randn(dims.n_embd), 1e-5)
    table = reference.rotary_table(dims.n_positions, dims.rotary_dim, torch.float32)
    return packed, x, torch.randn(dims.inner), norm, table


def run_block(kind, dims, dtype, phase, chunks, groups):
    """q, act and attention of every sequence, and the pages, after running ``chunks`` for each group of sequences."""
    packed, x, bias, norm, table = block(kind, dims)
    pool = calls.Pool(dtype, dims.n_embd, seed=3, tokens=LENGTHS)
    sequences = pool.sequences([(0, n) for n in LENGTHS])
    parts = [[] for _ in LENGTHS]
    for group in groups:
        done = [0] * len(LENGTHS)
        for chunk in chunks:
            news = [chunk[b] for b in group]
            asked = [sequences[b].up_to(done[b] + chunk[b]).last(chunk[b]) for b in group]
            rows = torch.cat([x[b][done[b] : done[b] + chunk[b]] for b in group])
            q, act = calls.input_product(rows, norm, packed, bias, table, dims.n_head, pool, asked, phase)
            out = calls.attention(q, dims.n_head, pool, asked, phase)
            for b, part in zip(group, torch.cat([q, act, out], dim=1).split(news)):
                parts[b].append(part)
                done[b] += chunk[b]
    return [torch.cat(part) for part in parts], pool.pages


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("kind", cases.WEIGHT_KINDS)
@pytest.mark.parametrize("dims", BLOCKS, ids=cases.by_name(BLOCKS))
def test_input_product_and_attention(isa, dims, kind, phase):
    dtype = torch.float32 if kind == "int8" else getattr(torch, kind)
    expected = expected_pages = None
    for chunks, groups, threads in RUNS:
        ops.set_num_threads(threads)
        got, pages = run_block(kind, dims, dtype, phase, chunks, groups)
        if expected is None:
            expected, expected_pages = got, pages
        for b in range(len(LENGTHS)):
            assert same_bits(got[b], expected[b]), f"sequence {b}, chunks {chunks}, groups {groups}"
        assert same_bits(pages, expected_pages), f"pages, chunks {chunks}, groups {groups}"
