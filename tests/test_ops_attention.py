"""attention and copy_pages over a paged cache whose keys and values are known exactly, and the cache that
input_product fills, read back through attention.

Every cache starts as NaN, pages are handed out shuffled, rows of the page table are strided and filled up with ids
that must not be looked at.
"""

from __future__ import annotations

import functools
import math

import bounds
import calls
import cases
import pytest
import reference
import torch
from calls import isa  # noqa: F401 (a fixture)
from fences import bits
from test_ops_products import as_given, product_mode

from codegen_fast import ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADS = {16: 4, 20: 4, 64: 2, 80: 2, 256: 2}  # head_dim -> heads: one more dimension would only repeat
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 65, 129, 257)


@functools.lru_cache(maxsize=None)
def exact_values(head_dim: int, lengths: tuple[int, ...]):
    """(x, w, k, v): k and v (length, H, D) of every sequence hold in every type exactly.

    Rows of +-1 with as many of either sign are their own LayerNorm; a row of the weights adds three of them with
    weights 1, 1/2 and 1/4 and a power of two for scale, so that every value has 4 significant bits.
    """
    width = HEADS[head_dim] * head_dim
    torch.manual_seed(width)
    half = torch.cat([torch.ones(width // 2), -torch.ones(width // 2)])
    x = torch.stack([half[torch.randperm(width)] for _ in range(sum(lengths))])
    w = torch.zeros(3, width, width)
    for section in w:
        for row in section:
            row[torch.randperm(width)[:3]] = torch.tensor([1.0, 0.5, 0.25]) * 2.0 ** torch.randint(-2, 2, ())
    k, v = (list((x @ part.T).reshape(-1, HEADS[head_dim], head_dim).split(lengths)) for part in w[1:])
    return x, w, k, v


@functools.lru_cache(maxsize=4)
def exact_cache(head_dim: int, dtype: torch.dtype, lengths: tuple[int, ...] = LENGTHS):
    """(pool, sequences) that hold the keys and values of ``exact_values``."""
    x, w, _, _ = exact_values(head_dim, lengths)
    width = x.shape[1]
    packed = calls.pack([[section] for section in (*w, torch.ones(1, width))], "float32")
    still = torch.cat([torch.ones(max(lengths), 1), torch.zeros(max(lengths), 1)], dim=1)  # angle 0 everywhere
    pool = calls.Pool(dtype, width, seed=head_dim, tokens=lengths)
    sequences = pool.sequences([(0, length) for length in lengths])
    norm = (torch.ones(width), torch.zeros(width), 1e-12)
    n_head = HEADS[head_dim]
    calls.input_product(x, norm, packed, torch.zeros(1), still, n_head, pool, sequences, "prefill")
    return pool, sequences


@functools.lru_cache(maxsize=None)
def attention_case(head_dim: int, lengths: tuple[int, ...], new: tuple[int, ...], sharpness: float):
    """(q, expected, bound), each (T, H, D), for the last ``new[b]`` tokens of every sequence."""
    _, _, k, v = exact_values(head_dim, lengths)
    torch.manual_seed(sum(new))
    q = [sharpness * torch.randn(n, HEADS[head_dim], head_dim) for n in new]
    expected = reference.attention(q, k, v)
    bound = [bounds.attention(*qkv) for qkv in zip(q, k, v)]
    return torch.cat(q), torch.cat(expected), torch.cat(bound)


def check_attention(head_dim, dtype, new, phase, sharpness=1.0, lengths=LENGTHS):
    pool, sequences = exact_cache(head_dim, dtype, lengths)
    q, expected, bound = attention_case(head_dim, lengths, tuple(new), sharpness)
    asked = [sequence.last(n) for sequence, n in zip(sequences, new)]
    got = calls.attention(q.flatten(1), HEADS[head_dim], pool, asked, phase)
    bounds.assert_within(got.reshape(q.shape), expected, bound, f"attention of {new} tokens, sharpness {sharpness}")


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", HEADS)
def test_attention(isa, head_dim, dtype, phase):
    # Flat (every key counts) and sharp (one key wins: a wrong order of keys shows).
    for sharpness in (0.1, 1.0, 8.0):
        check_attention(head_dim, dtype, [1] * len(LENGTHS), phase, sharpness)
    check_attention(head_dim, dtype, [min(n, 19) for n in LENGTHS], phase)
    check_attention(head_dim, dtype, [n % 3 for n in range(len(LENGTHS))], phase)


@pytest.mark.parametrize("phase", cases.PHASES)
def test_whole_prompts(isa, phase):
    check_attention(16, torch.float32, LENGTHS, phase)


@pytest.mark.parametrize("phase", cases.PHASES)
def test_last_position_of_a_full_context(isa, phase):
    check_attention(16, torch.float32, [5], phase, lengths=(2048,))


@pytest.mark.parametrize("phase", cases.PHASES)
def test_no_tokens(isa, phase):
    pool, sequences = exact_cache(16, torch.float32)
    assert calls.attention(torch.empty(0, 64), 4, pool, [], phase).shape == (0, 64)
    assert calls.attention(torch.empty(0, 64), 4, pool, [s.last(0) for s in sequences], phase).shape == (0, 64)


@pytest.mark.parametrize("phase", cases.PHASES)
def test_scores_as_large_as_float32_allows_do_not_overflow(isa, phase):
    pool, sequences = exact_cache(64, torch.float32)
    _, _, _, v = exact_values(64, LENGTHS)
    q = torch.full((len(LENGTHS), 128), 1e30)
    got = calls.attention(q, 2, pool, [s.last(1) for s in sequences], phase)
    assert got.isfinite().all()
    largest = torch.stack([part.abs().amax(0).flatten() for part in v])
    assert (got.abs() <= largest * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copied_pages_serve_as_well(isa, dtype):
    pool, sequences = exact_cache(20, dtype)
    q = torch.randn(len(LENGTHS), 80)
    expected = calls.attention(q, 4, pool, [s.last(1) for s in sequences], "decode")
    copies = [s.last(1) for s in pool.sequences([(0, n) for n in LENGTHS])]
    before = pool.pages.clone()
    source = [page for s in sequences for page in s.pages]
    destination = [page for s in copies for page in s.pages]
    assert not set(source) & set(destination)
    pool.copy_pages(source, destination)
    assert torch.equal(bits(pool.pages[destination]), bits(before[source]))
    others = [page for page in range(len(before)) if page not in set(destination)]
    assert torch.equal(bits(pool.pages[others]), bits(before[others]))
    assert torch.equal(bits(calls.attention(q, 4, pool, copies, "decode")), bits(expected))
    pool.pages[destination] = math.nan
    pool.give_back(copies)
    pool.copy_pages([], [])


def rounding_error(value: torch.Tensor, error: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How far dtype(value +- error) can be from dtype(value): rounding is monotone."""
    middle = value.to(dtype).double()
    return torch.maximum((value + error).to(dtype).double() - middle, middle - (value - error).to(dtype).double())


# Every pair of weight and cache types on the smallest shape, each type once on the others.
APPENDED = [
    *((cases.ODD[0], kind, dtype) for kind in cases.WEIGHT_KINDS for dtype in DTYPES),
    *((dims, kind, dtype) for dims in cases.ODD[1:] for kind, dtype in zip(("float32", "float16", "int8"), DTYPES)),
]


PAST, NEW = (17, 0, 16, 45), (4, 3, 1, 2)


@functools.lru_cache(maxsize=None)
def appended_case(dims: cases.Dims, kind: str, dtype: torch.dtype, mode: str):
    """What the cache is filled from, queries for all positions, and what attention must give for them."""
    torch.manual_seed(dims.n_embd)
    d, n_head = dims.n_embd, dims.n_head
    sections = (*(torch.randn(3, d, d) / math.sqrt(d)), torch.randn(dims.inner, d))
    norm = (1 + 0.3 * torch.randn(d), 0.3 * torch.randn(d), 1e-5)
    table = reference.rotary_table(dims.n_positions, dims.rotary_dim, torch.float32)
    x = [torch.randn(past + new, d) for past, new in zip(PAST, NEW)]
    q, expected, bound = [], [], []
    for x_b in x:
        positions = torch.arange(len(x_b))
        weights = as_given(sections, kind, mode)
        made = reference.input_product(x_b, norm, weights, torch.zeros(dims.inner), table, n_head, positions, mode)
        bound_k, bound_v = (
            bounds.normed_product(x_b, norm, reference.rounded(w, kind), kind).reshape(made.k.shape)
            for w in sections[1:3]
        )
        errors = rounding_error(made.k, bounds.rotated(bound_k, made.k), dtype), rounding_error(made.v, bound_v, dtype)
        k, v = made.k.to(dtype).double(), made.v.to(dtype).double()
        q.append(torch.randn(made.q.shape))
        expected += reference.attention(q[-1:], [k], [v])
        bound.append(bounds.attention(q[-1], k, v, *errors))
    return x, sections, norm, table, torch.cat(q), torch.cat(expected), torch.cat(bound)


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize(("dims", "kind", "dtype"), APPENDED, ids=[f"{d.name}-{k}-{t}" for d, k, t in APPENDED])
def test_input_product_fills_the_cache(isa, dims, kind, dtype, phase):
    """Keys and values, appended in two calls, decide what attention gives for random queries."""
    d, n_head = dims.n_embd, dims.n_head
    x, sections, norm, table, q, expected, bound = appended_case(dims, kind, dtype, product_mode(kind, phase))
    packed = calls.pack([[part] for part in sections], kind)
    pool = calls.Pool(dtype, d, seed=1, tokens=[len(x_b) for x_b in x])
    sequences = pool.sequences([(0, len(x_b)) for x_b in x])
    for asked, rows in (
        ([s.up_to(past).last(past) for s, past in zip(sequences, PAST)], [x_b[:past] for x_b, past in zip(x, PAST)]),
        ([s.last(new) for s, new in zip(sequences, NEW)], [x_b[past:] for x_b, past in zip(x, PAST)]),
    ):
        before = pool.pages.clone()
        bias = torch.zeros(dims.inner)
        calls.input_product(torch.cat(rows), norm, packed, bias, table, n_head, pool, asked, phase)
        # Each token fills 2 d elements that were NaN, wherever they stand in a page, and no other changes.
        changed = (bits(pool.pages) != bits(before)).reshape(before.numel(), -1).any(1)
        assert int(changed.sum()) == 2 * d * sum(len(part) for part in rows)
        assert before.flatten()[changed].isnan().all()
    got = calls.attention(q.flatten(1), n_head, pool, [s.last(s.length) for s in sequences], phase)
    bounds.assert_within(got.reshape(q.shape), expected, bound, "attention over what was appended")


@pytest.mark.parametrize("phase", cases.PHASES)
def test_pages_of_others_and_unused_slots_never_matter(isa, phase):
    """The same bits whatever stands in the rest of the pool, and in the rest of the last page."""
    pool, sequences = exact_cache(80, torch.float16)
    q = torch.randn(len(LENGTHS), 160)
    asked = [s.last(1) for s in sequences]
    expected = calls.attention(q, 2, pool, asked, phase)
    unused = pool.pages.isnan()
    assert unused.any()
    for value in (0.0, math.inf, 65504.0):
        pool.pages[unused] = value
        got = calls.attention(q, 2, pool, asked, phase)
        pool.pages[unused] = math.nan
        assert torch.equal(bits(got), bits(expected))


def test_page_size_is_a_property_of_the_backend():
    assert ops.kv_page_size() >= 1
