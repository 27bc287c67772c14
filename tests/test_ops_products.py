"""The three products against float64, for every weight type, with the true numbers of columns of the four models.

The cache that input_product appends to is read back in test_ops_attention.py.
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
from fences import Fenced, Scratch, bits, guarded

from codegen_fast import ops

DIMS = (*cases.MODELS, *cases.ODD)


def random_norm(width: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    return 1 + 0.3 * torch.randn(width), 0.3 * torch.randn(width), 1e-5


@functools.lru_cache(maxsize=2)
def output_weights(dims: cases.Dims, kind: str):
    """(packed, segments, bias) of W_out with the true columns."""
    torch.manual_seed(dims.inner)
    rows = dims.test_rows(dims.n_embd)
    segments = tuple(torch.randn(rows, cols) for cols in (dims.n_embd, dims.inner))
    return calls.pack((segments,), kind), segments, torch.randn(rows)


@functools.lru_cache(maxsize=None)
def output_case(dims: cases.Dims, kind: str, tokens: int, mode: str):
    """(x, act, expected, bound)."""
    _, segments, bias = output_weights(dims, kind)
    torch.manual_seed(tokens)
    act, x = torch.randn(tokens, dims.n_embd + dims.inner), torch.randn(tokens, len(bias))
    expected = reference.output_product(x, act, as_given(segments, kind, mode), bias, mode)
    whole = torch.cat([reference.rounded(w, kind) for w in segments], dim=1)
    n = torch.sqrt(bounds.norm_of_products(act, whole) ** 2 + x.double() ** 2 + bias.double() ** 2)
    # Each segment's sums round apart; x and the bias are two terms more.
    bound = bounds.SUM * bounds.U * n * (sum(bounds.terms(w.shape[1], kind) for w in segments) + 2) ** 0.5
    return x, act, expected, bound


def as_given(sections, kind: str, mode: str):
    """Weights for the reference: rounded to their type here, or quantised by the reference itself."""
    return sections if mode != "exact" else tuple(reference.rounded(w, kind) for w in sections)


def product_mode(kind: str, phase: str) -> str:
    """How the CPU computes a product: int8 is w8a8 in both phases."""
    return "w8a8" if kind == "int8" else "exact"


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("kind", cases.WEIGHT_KINDS)
@pytest.mark.parametrize("dims", DIMS, ids=cases.by_name(DIMS))
def test_output_product(isa, dims, kind, phase):
    packed, _, bias = output_weights(dims, kind)
    for tokens in cases.TOKENS if dims.n_embd <= 1024 else (3, 17):
        x, act, expected, bound = output_case(dims, kind, tokens, product_mode(kind, phase))
        got = calls.output_product(x, act, packed, bias, phase)
        bounds.assert_within(got, expected, bound, f"output_product of {tokens} tokens")


@functools.lru_cache(maxsize=2)
def head_weights(dims: cases.Dims, kind: str):
    """(packed, weights, bias, norm)."""
    torch.manual_seed(dims.vocab)
    w = torch.randn(dims.test_rows(dims.vocab), dims.n_embd)
    return calls.pack(((w,),), kind), w, torch.randn(len(w)), random_norm(dims.n_embd)


@functools.lru_cache(maxsize=None)
def head_case(dims: cases.Dims, kind: str, mode: str):
    """(x, expected, bound): every row of x."""
    _, w, bias, norm = head_weights(dims, kind)
    torch.manual_seed(19)
    x = torch.randn(19, dims.n_embd) + 0.5
    expected = reference.lm_head(x, torch.arange(19), norm, as_given((w,), kind, mode)[0], bias, mode)
    bound = bounds.normed_product(x, norm, reference.rounded(w, kind), kind)
    return x, expected, bound + bounds.U * (expected.abs() + bias.abs())


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("kind", cases.WEIGHT_KINDS)
@pytest.mark.parametrize("dims", DIMS, ids=cases.by_name(DIMS))
def test_lm_head(isa, dims, kind, phase):
    packed, _, bias, norm = head_weights(dims, kind)
    x, expected, bound = head_case(dims, kind, product_mode(kind, phase))
    for rows in ([], [18], [4, 0, 4], list(range(19))):
        got = calls.lm_head(x, torch.tensor(rows, dtype=torch.int32), norm, packed, bias, phase)
        bounds.assert_within(got, expected[rows], bound[rows], f"lm_head of {len(rows)} rows")


def test_lm_head_gives_nan_for_rows_outside_of_x(isa):
    packed, _, bias, norm = head_weights(cases.ODD[0], "float32")
    x, _, _ = head_case(cases.ODD[0], "float32", "exact")
    rows = torch.tensor([18, 19, -1, 0, 2**31 - 1, -(2**31)], dtype=torch.int32)
    for phase in cases.PHASES:
        got = calls.lm_head(x, rows, norm, packed, bias, phase)
        assert got.isnan().all(1).tolist() == [False, True, True, False, True, True]
        assert not got[[0, 3]].isnan().any()


def filled_heads(dims: cases.Dims) -> list[int]:
    """The heads whose weights are not zero: of the large models only the first and the last, to save time."""
    return list(range(dims.n_head)) if dims.n_embd <= 512 else [0, dims.n_head - 1]


@functools.lru_cache(maxsize=1)
def input_weights(dims: cases.Dims, kind: str):
    """(packed, (q, k, v, fc_in) of the filled heads, bias, norm, table)."""
    torch.manual_seed(dims.n_embd)
    d, width = dims.n_embd, dims.head_dim
    inner = dims.test_rows(dims.inner)
    heads = filled_heads(dims)
    sections = tuple(torch.randn(n, d) for n in (*[len(heads) * width] * 3, inner))
    packed, status = ops.new_packed_weight(kind, (d, d, d, inner), (d,)), ops.new_pack_status()
    for section in range(3):
        for i, head in enumerate(heads):
            rows = sections[section][i * width : (i + 1) * width]
            ops.pack(packed, rows, status, section=section, row=head * width)
    ops.pack(packed, sections[3], status, section=3)
    table = reference.rotary_table(dims.n_positions, dims.rotary_dim, torch.float32)
    return packed, sections, torch.randn(inner), random_norm(d), table


@functools.lru_cache(maxsize=None)
def input_case(dims: cases.Dims, kind: str, batch: cases.Ragged, mode: str):
    """(x, expected q, its bound, expected act, its bound)."""
    _, sections, bias, norm, table = input_weights(dims, kind)
    torch.manual_seed(batch.num_tokens)
    x = torch.randn(batch.num_tokens, dims.n_embd) - 0.5
    positions = torch.tensor([p for past, new in batch.sequences for p in range(past, past + new)])
    if not batch.num_tokens:
        nothing = torch.empty(0, dims.n_embd), torch.empty(0, len(bias))
        return x, nothing[0], nothing[0], nothing[1], nothing[1]
    heads = filled_heads(dims)
    made = reference.input_product(
        x, norm, as_given(sections, kind, mode), bias, table, len(heads), positions, mode
    )
    bound = bounds.normed_product(x, norm, reference.rounded(sections[0], kind), kind).reshape(made.q.shape)
    q, bound_q = torch.zeros(2, len(x), dims.n_head, dims.head_dim, dtype=torch.float64)  # other heads: exactly 0
    q[:, heads], bound_q[:, heads] = made.q, bounds.rotated(bound, made.q)
    w = reference.rounded(sections[3], kind)
    size = bias.double().abs() + 4 * bounds.norm_of_products(reference.layer_norm(x, *norm), w)
    bound_act = bounds.gelu(bounds.normed_product(x, norm, w, kind), size)
    return x, q.flatten(1), bound_q.flatten(1), made.act, bound_act


@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("kind", cases.WEIGHT_KINDS)
@pytest.mark.parametrize("dims", DIMS, ids=cases.by_name(DIMS))
def test_input_product(isa, dims, kind, phase):
    packed, _, bias, norm, table = input_weights(dims, kind)
    chosen = {1024: ("seventeen", "eighty"), 2560: ("seventeen",)}.get(dims.n_embd, ("three_steps",))
    batches = [batch for batch in cases.BATCHES if dims.n_embd <= 512 or batch.name in chosen]
    for batch in batches:
        x, q, bound_q, act, bound_act = input_case(dims, kind, batch, product_mode(kind, phase))
        pool = calls.Pool(torch.float32, dims.n_embd, seed=1, tokens=batch.lengths)
        sequences = pool.sequences(batch.sequences)
        got_q, got_act = calls.input_product(x, norm, packed, bias, table, dims.n_head, pool, sequences, phase)
        bounds.assert_within(got_q, q, bound_q, f"q of {batch.name}")
        bounds.assert_within(got_act, act, bound_act, f"act of {batch.name}")


def same_or_refused(call, make_output, expected: torch.Tensor, name: str) -> None:
    """With strided rows an op gives the same bits and keeps off the gaps, or refuses the tensor by its name."""
    out = make_output()
    try:
        call(out.tensor)
    except ValueError as error:
        assert str(error).startswith(f"{name}: ") and "strides" in str(error)
    else:
        assert torch.equal(bits(out.check()), bits(expected))


@pytest.mark.parametrize("phase", cases.PHASES)
def test_strided_rows(isa, phase):
    dims, decode = cases.ODD[0], phase == "decode"
    packed, _, bias = output_weights(dims, "float32")
    x, act, _, _ = output_case(dims, "float32", 3, "exact")
    expected = calls.output_product(x, act, packed, bias, phase)
    workspace = Scratch(ops.output_product_workspace(3, packed)).tensor
    same_or_refused(
        lambda out: ops.output_product(out, guarded(act), packed, bias, decode, workspace),
        lambda: Fenced(tuple(x.shape), torch.float32, gap=5, values=x), expected, "x",
    )  # fmt: skip
    same_or_refused(
        lambda out: ops.output_product(out, guarded(act, gap=3), packed, bias, decode, workspace),
        lambda: Fenced(tuple(x.shape), torch.float32, values=x), expected, "act",
    )  # fmt: skip
    packed, _, bias, norm = head_weights(dims, "float32")
    x, _, _ = head_case(dims, "float32", "exact")
    rows = torch.arange(19, dtype=torch.int32)
    expected = calls.lm_head(x, rows, norm, packed, bias, phase)
    workspace = Scratch(ops.lm_head_workspace(19, packed)).tensor
    for name, gaps in (("logits", (5, 0)), ("x", (0, 5))):
        source = guarded(x, gap=gaps[1])
        same_or_refused(
            lambda out: ops.lm_head(out, source, rows, ops.Norm(*norm), packed, bias, decode, workspace),
            lambda: Fenced(tuple(expected.shape), torch.float32, gap=gaps[0]), expected, name,
        )  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("phase", cases.PHASES)
@pytest.mark.parametrize("kind", cases.WEIGHT_KINDS)
def test_a_value_that_is_not_finite_spoils_its_own_row_and_is_never_lost(isa, kind, phase, value):
    """int8 too must not turn it into a number: the sampler finds broken models by their NaN."""
    dims = cases.ODD[0]
    packed, _, bias = output_weights(dims, kind)
    x, act, _, _ = output_case(dims, kind, 17, product_mode(kind, phase))
    expected = calls.output_product(x, act, packed, bias, phase)
    act = act.clone()
    act[5, dims.n_embd + 3] = value
    got = calls.output_product(x, act, packed, bias, phase)
    others = [row for row in range(17) if row != 5]
    assert not got[5].isfinite().any()
    assert torch.equal(bits(got[others]), bits(expected[others]))
    packed, _, bias, norm = head_weights(dims, kind)
    x, _, _ = head_case(dims, kind, product_mode(kind, phase))
    rows = torch.arange(19, dtype=torch.int32)
    expected = calls.lm_head(x, rows, norm, packed, bias, phase)
    x = x.clone()
    x[5, 3] = value
    got = calls.lm_head(x, rows, norm, packed, bias, phase)
    assert got[5].isnan().all() and torch.equal(bits(got[others]), bits(expected[others]))
