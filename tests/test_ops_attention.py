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
import exact_cache
import oracle
import reference
import torch
from devices import Device, Types, per_device
from fences import bits
from reference import Arithmetic

from codegen_fast import ops

HEADS = {16: 4, 20: 4, 64: 2, 80: 2, 256: 2}  # head_dim -> heads: one more dimension would only repeat
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 65, 129, 257)


def storage(device: Device) -> list[tuple[torch.dtype, torch.dtype]]:
    """Every pair of types (of activations, of the cache) that the backend takes."""
    return [(act, cache) for act in device.acts for cache in device.cache_dtypes(act)]


def own(device: Device) -> tuple[torch.dtype, torch.dtype]:
    """The pair of types that a test takes that does not need all."""
    return device.act, device.act


@functools.lru_cache(maxsize=None)
def exact_values(head_dim: int, lengths: tuple[int, ...]):
    return exact_cache.values(HEADS[head_dim], head_dim, lengths)


@functools.lru_cache(maxsize=4)
def filled_cache(store: Device, head_dim: int, dtypes: tuple[torch.dtype, torch.dtype], lengths: tuple[int, ...]):
    """(pool, sequences) that hold the keys and values of ``exact_values``."""
    return exact_cache.filled(store, HEADS[head_dim], exact_values(head_dim, lengths), lengths, dtypes, seed=head_dim)


@functools.lru_cache(maxsize=None)
def attention_case(head_dim: int, lengths: tuple[int, ...], new: tuple[int, ...], sharpness: float, act: torch.dtype):
    """(q, expected, bound), each (T, H, D), for the last ``new[b]`` tokens of every sequence."""
    _, _, k, v = exact_values(head_dim, lengths)
    torch.manual_seed(sum(new))
    q = [(sharpness * torch.randn(n, HEADS[head_dim], head_dim)).to(act) for n in new]
    expected = reference.attention(q, k, v)
    bound = [bounds.attention(*qkv, act=act) for qkv in zip(q, k, v)]
    return torch.cat(q), torch.cat(expected), torch.cat(bound)


def check_attention(device, head_dim, dtypes, new, phase, sharpness=1.0, lengths=LENGTHS):
    pool, sequences = filled_cache(device.store, head_dim, dtypes, lengths)
    q, expected, bound = attention_case(head_dim, lengths, tuple(new), sharpness, dtypes[0])
    asked = [sequence.last(n) for sequence, n in zip(sequences, new)]
    got = calls.attention(device, q.flatten(1), HEADS[head_dim], pool, asked, phase)
    bounds.assert_within(got.reshape(q.shape), expected, bound, f"attention of {new} tokens, sharpness {sharpness}")


@per_device(head_dim=tuple(HEADS), dtypes=storage, phase=cases.PHASES)
def test_attention(device, head_dim, dtypes, phase):
    # Flat (every key counts) and sharp (one key wins: a wrong order of keys shows).
    for sharpness in (0.1, 1.0, 8.0):
        check_attention(device, head_dim, dtypes, [1] * len(LENGTHS), phase, sharpness)
    check_attention(device, head_dim, dtypes, [min(n, 19) for n in LENGTHS], phase)
    check_attention(device, head_dim, dtypes, [n % 3 for n in range(len(LENGTHS))], phase)


@per_device(phase=cases.PHASES)
def test_whole_prompts(device, phase):
    check_attention(device, 16, own(device), LENGTHS, phase)


@per_device(phase=cases.PHASES)
def test_last_position_of_a_full_context(device, phase):
    check_attention(device, 16, own(device), [5], phase, lengths=(2048,))


@per_device(phase=cases.PHASES)
def test_no_tokens(device, phase):
    pool, sequences = filled_cache(device.store, 16, own(device), LENGTHS)
    nothing = torch.empty(0, 64, dtype=device.act)
    assert calls.attention(device, nothing, 4, pool, [], phase).shape == (0, 64)
    assert calls.attention(device, nothing, 4, pool, [s.last(0) for s in sequences], phase).shape == (0, 64)


@per_device(act=Device.acts, phase=cases.PHASES)
def test_scores_as_large_as_the_type_allows_do_not_overflow(device, act, phase):
    pool, sequences = filled_cache(device.store, 64, (act, act), LENGTHS)
    _, _, _, v = exact_values(64, LENGTHS)
    q = torch.full((len(LENGTHS), 128), min(1e30, torch.finfo(act).max), dtype=act)
    got = calls.attention(device, q, 2, pool, [s.last(1) for s in sequences], phase)
    assert got.isfinite().all()
    largest = torch.stack([part.abs().amax(0).flatten() for part in v])
    # Each of a row's weights may be rounded, and what is stored.
    room = 1e-5 if act == torch.float32 else 3 * bounds.ROUNDING[act]
    assert (got.abs() <= largest * (1 + room)).all()


@per_device(dtypes=storage)
def test_copied_pages_serve_as_well(device, dtypes):
    pool, sequences = filled_cache(device.store, 20, dtypes, LENGTHS)
    q = torch.randn(len(LENGTHS), 80).to(dtypes[0])
    expected = calls.attention(device, q, 4, pool, [s.last(1) for s in sequences], "decode")
    copies = [s.last(1) for s in pool.sequences([(0, n) for n in LENGTHS])]
    before = pool.pages.clone()
    source = [page for s in sequences for page in s.pages]
    destination = [page for s in copies for page in s.pages]
    assert not set(source) & set(destination)
    pool.copy_pages(source, destination)
    assert torch.equal(bits(pool.pages[destination]), bits(before[source]))
    others = [page for page in range(len(before)) if page not in set(destination)]
    assert torch.equal(bits(pool.pages[others]), bits(before[others]))
    assert torch.equal(bits(calls.attention(device, q, 4, pool, copies, "decode")), bits(expected))
    pool.pages[destination] = math.nan
    pool.give_back(copies)
    pool.copy_pages([], [])


def appended(device: Device) -> list[tuple[cases.Dims, Types, torch.dtype]]:
    """On the smallest shape every pair of weight and cache types; on the others each type once, in the emulator one."""
    pairs = [(types, cache) for types in device.types for cache in device.cache_dtypes(types.act)]
    taken = {dims: pairs for dims in cases.ODD}
    for i, dims in enumerate(cases.ODD[1:]):
        if device.emulated:
            taken[dims] = pairs[i % 4 :][:1]
        elif device.backend == "cpu":
            once = {"float32": torch.float32, "float16": torch.float16, "int8": torch.bfloat16}
            taken[dims] = [(types, cache) for types, cache in pairs if once.get(types.kind) == cache]
    return [(dims, *pair) for dims in cases.ODD for pair in taken[dims]]


PAST, NEW = (17, 0, 16, 45), (4, 3, 1, 2)


@functools.lru_cache(maxsize=None)
def appended_case(dims: cases.Dims, types: Types, cache: torch.dtype, how: Arithmetic):
    """What the cache is filled from, queries for all positions, and what attention must give for them."""
    torch.manual_seed(dims.n_embd)
    d, n_head = dims.n_embd, dims.n_head
    sections = (*(torch.randn(3, d, d) / math.sqrt(d)), torch.randn(dims.inner, d))
    norm = (1 + 0.3 * torch.randn(d), 0.3 * torch.randn(d), 1e-5)
    table = reference.rotary_table(dims.n_positions, dims.rotary_dim, torch.float32)
    x = [torch.randn(past + new, d).to(types.act) for past, new in zip(PAST, NEW)]
    q, expected, bound = [], [], []
    for x_b in x:
        positions = torch.arange(len(x_b))
        made, error = oracle.input_product(
            x_b, norm, sections, torch.zeros(dims.inner), table, n_head, positions, types.kind, how
        )
        errors = bounds.rounding_error(made.k, error.k, cache), bounds.rounding_error(made.v, error.v, cache)
        k, v = made.k.to(cache).double(), made.v.to(cache).double()
        q.append(torch.randn(made.q.shape).to(types.act))
        expected += reference.attention(q[-1:], [k], [v])
        bound.append(bounds.attention(q[-1], k, v, *errors, act=types.act))
    return x, sections, norm, table, torch.cat(q), torch.cat(expected), torch.cat(bound)


@per_device(case=appended, phase=cases.PHASES)
def test_input_product_fills_the_cache(device, case, phase):
    """Keys and values, appended in two calls, decide what attention gives for random queries."""
    dims, types, cache = case
    d, n_head = dims.n_embd, dims.n_head
    x, sections, norm, table, q, expected, bound = appended_case(*case, device.arithmetic(types, phase))
    packed = calls.pack(device, [[part] for part in sections], types.kind)
    pool = calls.Pool(cache, d, seed=1, tokens=[len(x_b) for x_b in x], device=device)
    sequences = pool.sequences([(0, len(x_b)) for x_b in x])
    for asked, rows in (
        ([s.up_to(past).last(past) for s, past in zip(sequences, PAST)], [x_b[:past] for x_b, past in zip(x, PAST)]),
        ([s.last(new) for s, new in zip(sequences, NEW)], [x_b[past:] for x_b, past in zip(x, PAST)]),
    ):
        before = pool.pages.clone()
        bias = torch.zeros(dims.inner)
        calls.input_product(device, torch.cat(rows), norm, packed, bias, table, n_head, pool, asked, phase)
        # Each token fills 2 d elements that were NaN, wherever they stand in a page, and no other changes.
        changed = (bits(pool.pages) != bits(before)).reshape(before.numel(), -1).any(1)
        assert int(changed.sum()) == 2 * d * sum(len(part) for part in rows)
        assert before.flatten()[changed].isnan().all()
    got = calls.attention(device, q.flatten(1), n_head, pool, [s.last(s.length) for s in sequences], phase)
    bounds.assert_within(got.reshape(q.shape), expected, bound, "attention over what was appended")


@per_device(case=appended)
def test_keys_and_values_alone_are_the_same(device, case):
    """Without rows of q and act, a prefill leaves the same bits in the cache, and writes nothing else (calls.py looks)."""
    dims, types, cache = case
    x, sections, norm, table, *_ = appended_case(*case, device.arithmetic(types, "prefill"))
    packed = calls.pack(device, [[part] for part in sections], types.kind)

    def pages(cache_alone):
        pool = calls.Pool(cache, dims.n_embd, seed=1, tokens=[len(x_b) for x_b in x], device=device)
        sequences = [s.last(s.length) for s in pool.sequences([(0, len(x_b)) for x_b in x])]
        calls.input_product(device, torch.cat(x), norm, packed, torch.zeros(dims.inner), table, dims.n_head, pool, sequences,
                            "prefill", cache_alone=cache_alone)  # fmt: skip
        return pool.pages

    whole = pages(False)
    assert not whole.isnan().all()
    assert torch.equal(bits(pages(True)), bits(whole))


@per_device(phase=cases.PHASES)
def test_pages_of_others_and_unused_slots_never_matter(device, phase):
    """The same bits whatever stands in the rest of the pool, and in the rest of the last page."""
    pool, sequences = filled_cache(device.store, 80, (device.act, torch.float16), LENGTHS)
    q = torch.randn(len(LENGTHS), 160).to(device.act)
    asked = [s.last(1) for s in sequences]
    expected = calls.attention(device, q, 2, pool, asked, phase)
    unused = pool.pages.isnan()
    assert unused.any()
    for value in (0.0, math.inf, 65504.0):
        pool.pages[unused] = value
        got = calls.attention(device, q, 2, pool, asked, phase)
        pool.pages[unused] = math.nan
        assert torch.equal(bits(got), bits(expected))


@per_device()
def test_page_size_is_a_property_of_the_backend(device):
    assert ops.kv_page_size(device.memory.type) >= 1
