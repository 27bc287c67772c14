"""The three products against float64, for every weight type, with the true numbers of columns of the four models.

The cache that input_product appends to is read back in test_ops_attention.py.
"""

from __future__ import annotations

import functools
import math

import bounds
import calls
import cases
import oracle
import reference
import torch
from devices import CPUS, Device, Types, per_device
from fences import aligned, bits
from reference import Arithmetic

from codegen_fast import ops

DIMS = (*cases.MODELS, *cases.ODD)
VALUES = (math.nan, math.inf, -math.inf)


def wanted(device: Device, dims: cases.Dims, types: Types, phase: str) -> bool:
    """The emulator takes a half of the odd shapes' cases and a quarter of the models', with every shape, every pair of
    types and both phases among them."""
    turn = DIMS.index(dims) + device.types.index(types) + cases.PHASES.index(phase)
    return not device.emulated or turn % (2 if dims in cases.ODD else 4) == 0


def random_norm(width: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    return 1 + 0.3 * torch.randn(width), 0.3 * torch.randn(width), 1e-5


def check_aligned(device: Device, call, expected: torch.Tensor) -> None:
    """CUDA kernels take 16 bytes at a time where memory allows it: the same bits as element by element."""
    if device.backend == "cuda":
        with aligned():
            assert torch.equal(bits(call()), bits(expected))


# ---- output_product ----------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def output_weights(dims: cases.Dims, rows: int):
    """(segments, bias) of W_out with the true columns."""
    torch.manual_seed(dims.inner)
    return tuple(torch.randn(rows, cols) for cols in (dims.n_embd, dims.inner)), torch.randn(rows)


@functools.lru_cache(maxsize=2)
def packed_output(store: Device, dims: cases.Dims, rows: int, kind: str):
    return calls.pack(store, (output_weights(dims, rows)[0],), kind)


@functools.lru_cache(maxsize=None)
def output_case(dims: cases.Dims, rows: int, types: Types, tokens: int, how: Arithmetic):
    """(x, act, expected, bound)."""
    segments, bias = output_weights(dims, rows)
    torch.manual_seed(tokens)
    act, x = torch.randn(tokens, dims.n_embd + dims.inner).to(types.act), torch.randn(tokens, rows).to(types.act)
    return x, act, *oracle.output_product(x, act, segments, bias, types.kind, how)


def output_arguments(device: Device, dims: cases.Dims, types: Types, tokens: int, phase: str):
    """(x, act, packed, bias, expected, bound)."""
    rows = device.rows(dims, dims.n_embd)
    packed = packed_output(device.store, dims, rows, types.kind)
    x, act, expected, bound = output_case(dims, rows, types, tokens, device.arithmetic(types, phase))
    return x, act, packed, output_weights(dims, rows)[1], expected, bound


@per_device(dims=DIMS, types=Device.types, phase=cases.PHASES, where=wanted)
def test_output_product(device, dims, types, phase):
    for tokens in cases.TOKENS if dims.n_embd <= (512 if device.emulated else 1024) else (3, 17):
        x, act, packed, bias, expected, bound = output_arguments(device, dims, types, tokens, phase)
        got = calls.output_product(device, x, act, packed, bias, phase)
        bounds.assert_within(got, expected, bound, f"output_product of {tokens} tokens")
        if tokens == 17:
            check_aligned(device, lambda: calls.output_product(device, x, act, packed, bias, phase), got)


@per_device(CPUS, dims=(cases.MODELS[0], *cases.ODD), kind=cases.INT4_KINDS[1:])
def test_output_product_in_larger_groups_of_int4(device, dims, kind):
    types = Types(torch.float32, kind)
    for tokens in (1, 3, 17, 80):
        x, act, packed, bias, expected, bound = output_arguments(device, dims, types, tokens, "decode")
        got = calls.output_product(device, x, act, packed, bias, "decode")
        bounds.assert_within(got, expected, bound, f"output_product of {tokens} tokens")


# ---- lm_head -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def head_weights(dims: cases.Dims, rows: int):
    """(weights, bias, norm)."""
    torch.manual_seed(dims.vocab)
    return torch.randn(rows, dims.n_embd), torch.randn(rows), random_norm(dims.n_embd)


@functools.lru_cache(maxsize=2)
def packed_head(store: Device, dims: cases.Dims, rows: int, kind: str):
    return calls.pack(store, ((head_weights(dims, rows)[0],),), kind)


@functools.lru_cache(maxsize=None)
def head_case(dims: cases.Dims, rows: int, types: Types, how: Arithmetic):
    """(x, expected, bound): every row of x."""
    w, bias, norm = head_weights(dims, rows)
    torch.manual_seed(19)
    x = (torch.randn(19, dims.n_embd) + 0.5).to(types.act)
    return x, *oracle.lm_head(x, norm, w, bias, types.kind, how)


def head_arguments(device: Device, dims: cases.Dims, types: Types, phase: str):
    """(x, norm, packed, bias, expected, bound)."""
    rows = device.rows(dims, dims.vocab)
    packed = packed_head(device.store, dims, rows, types.kind)
    x, expected, bound = head_case(dims, rows, types, device.arithmetic(types, phase))
    _, bias, norm = head_weights(dims, rows)
    return x, norm, packed, bias, expected, bound


@per_device(dims=DIMS, types=Device.types, phase=cases.PHASES, where=wanted)
def test_lm_head(device, dims, types, phase):
    x, norm, packed, bias, expected, bound = head_arguments(device, dims, types, phase)
    for rows in ([], [18], [4, 0, 4], list(range(19))):
        index = torch.tensor(rows, dtype=torch.int32)
        got = calls.lm_head(device, x, index, norm, packed, bias, phase)
        bounds.assert_within(got, expected[rows], bound[rows], f"lm_head of {len(rows)} rows")
        if len(rows) == 3:
            check_aligned(device, lambda: calls.lm_head(device, x, index, norm, packed, bias, phase), got)


@per_device(phase=cases.PHASES)
def test_lm_head_gives_nan_for_rows_outside_of_x(device, phase):
    x, norm, packed, bias, _, _ = head_arguments(device, cases.ODD[0], device.types[0], phase)
    rows = torch.tensor([18, 19, -1, 0, 2**31 - 1, -(2**31)], dtype=torch.int32)
    got = calls.lm_head(device, x, rows, norm, packed, bias, phase)
    assert got.isnan().all(1).tolist() == [False, True, True, False, True, True]
    assert not got[[0, 3]].isnan().any()


# ---- input_product -----------------------------------------------------------------------------


def filled_heads(dims: cases.Dims) -> list[int]:
    """The heads whose weights are not zero: of the large models only the first and the last, to save time."""
    return list(range(dims.n_head)) if dims.n_embd <= 512 else [0, dims.n_head - 1]


@functools.lru_cache(maxsize=1)
def input_weights(dims: cases.Dims, inner: int):
    """((q, k, v, fc_in) of the filled heads, bias, norm, table)."""
    torch.manual_seed(dims.n_embd)
    d = dims.n_embd
    sections = tuple(torch.randn(n, d) for n in (*[len(filled_heads(dims)) * dims.head_dim] * 3, inner))
    table = reference.rotary_table(dims.n_positions, dims.rotary_dim, torch.float32)
    return sections, torch.randn(inner), random_norm(d), table


@functools.lru_cache(maxsize=1)
def packed_input(store: Device, dims: cases.Dims, inner: int, kind: str):
    sections, d, width = input_weights(dims, inner)[0], dims.n_embd, dims.head_dim
    packed = calls.new_weight(store, kind, (d, d, d, inner), (d,))
    status = ops.new_pack_status(store.memory)
    for section in range(3):
        for i, head in enumerate(filled_heads(dims)):
            rows = sections[section][i * width : (i + 1) * width].to(store.memory)
            ops.pack(packed, rows, status, section=section, row=head * width)
    ops.pack(packed, sections[3].to(store.memory), status, section=3)
    return packed


@functools.lru_cache(maxsize=None)
def input_case(dims: cases.Dims, inner: int, types: Types, batch: cases.Ragged, how: Arithmetic):
    """(x, expected q, its bound, expected act, its bound)."""
    sections, bias, norm, table = input_weights(dims, inner)
    torch.manual_seed(batch.num_tokens)
    x = (torch.randn(batch.num_tokens, dims.n_embd) - 0.5).to(types.act)
    positions = torch.tensor([p for past, new in batch.sequences for p in range(past, past + new)])
    if not batch.num_tokens:
        nothing = torch.empty(0, dims.n_embd), torch.empty(0, len(bias))
        return x, nothing[0], nothing[0], nothing[1], nothing[1]
    heads = filled_heads(dims)
    made, bound = oracle.input_product(x, norm, sections, bias, table, len(heads), positions, types.kind, how)
    q, bound_q = torch.zeros(2, len(x), dims.n_head, dims.head_dim, dtype=torch.float64)  # other heads: exactly 0
    q[:, heads], bound_q[:, heads] = made.q, bound.q
    return x, q.flatten(1), bound_q.flatten(1), made.act, bound.act


def wanted_input(device: Device, dims: cases.Dims, types: Types, phase: str) -> bool:
    """W_in has 3 d rows at least: more than the emulator multiplies for the larger models."""
    return wanted(device, dims, types, phase) and not (device.emulated and dims.n_embd > 1024)


@per_device(dims=DIMS, types=Device.types, phase=cases.PHASES, where=wanted_input)
def test_input_product(device, dims, types, phase):
    inner = device.rows(dims, dims.inner)
    packed = packed_input(device.store, dims, inner, types.kind)
    _, bias, norm, table = input_weights(dims, inner)
    chosen = {1024: ("seventeen", "eighty"), 2560: ("seventeen",)}.get(dims.n_embd, ("three_steps",))
    if device.emulated:
        chosen = ("seventeen",)
    batches = [batch for batch in cases.BATCHES if dims.n_embd <= 512 or batch.name in chosen]
    for batch in batches:
        case = input_case(dims, inner, types, batch, device.arithmetic(types, phase))
        x, q, bound_q, act, bound_act = case
        cache = device.cache_dtypes(types.act)[0]
        pool = calls.Pool(cache, dims.n_embd, seed=1, tokens=batch.lengths, device=device)
        sequences = pool.sequences(batch.sequences)

        def call():
            return calls.input_product(
                device, x, norm, packed, bias, table, dims.n_head, pool, sequences, phase
            )

        got_q, got_act = call()
        bounds.assert_within(got_q, q, bound_q, f"q of {batch.name}")
        bounds.assert_within(got_act, act, bound_act, f"act of {batch.name}")
        if batch.name == "seventeen":
            check_aligned(device, lambda: torch.cat(call(), 1), torch.cat([got_q, got_act], 1))


# ---- Strides, and values that are not finite ---------------------------------------------------


def same_or_refused(call, out, expected: torch.Tensor, name: str) -> None:
    """With strided rows an op gives the same bits and keeps off the gaps, or refuses the tensor by its name."""
    try:
        call(out.tensor)
    except ValueError as error:
        assert str(error).startswith(f"{name}: ") and "strides" in str(error)
    else:
        assert torch.equal(bits(out.check().cpu()), bits(expected))


@per_device(phase=cases.PHASES)
def test_strided_rows(device, phase):
    dims, decode, types = cases.ODD[0], phase == "decode", device.types[0]
    x, act, packed, bias, _, _ = output_arguments(device, dims, types, 3, phase)
    expected = calls.output_product(device, x, act, packed, bias, phase)
    workspace = calls.scratch(device, ops.output_product_workspace(3, packed)).tensor
    for name, gaps in (("x", (5, 0)), ("act", (0, 3))):
        source, added = calls.guarded(device, act, gap=gaps[1]), calls.guarded(device, bias)
        same_or_refused(
            lambda out: ops.output_product(out, source, packed, added, decode, workspace),
            calls.fenced(device, x.shape, x.dtype, gap=gaps[0], values=x), expected, name,
        )  # fmt: skip
    x, norm, packed, bias, _, _ = head_arguments(device, dims, types, phase)
    rows = torch.arange(19, dtype=torch.int32)
    expected = calls.lm_head(device, x, rows, norm, packed, bias, phase)
    workspace = calls.scratch(device, ops.lm_head_workspace(19, packed)).tensor
    index, normed, added = calls.guarded(device, rows), calls.norm_of(device, norm), calls.guarded(device, bias)
    for name, gaps in (("logits", (5, 0)), ("x", (0, 5))):
        source = calls.guarded(device, x, gap=gaps[1])
        same_or_refused(
            lambda out: ops.lm_head(out, source, index, normed, packed, added, decode, workspace),
            calls.fenced(device, expected.shape, torch.float32, gap=gaps[0]), expected, name,
        )  # fmt: skip


@per_device(types=Device.types, phase=cases.PHASES, value=VALUES)
def test_a_value_that_is_not_finite_spoils_its_own_row_and_is_never_lost(device, types, phase, value):
    """int8 too must not turn it into a number: the sampler finds broken models by their NaN."""
    dims = cases.ODD[0]
    x, act, packed, bias, _, _ = output_arguments(device, dims, types, 17, phase)
    expected = calls.output_product(device, x, act, packed, bias, phase)
    act = act.clone()
    act[5, dims.n_embd + 3] = value
    got = calls.output_product(device, x, act, packed, bias, phase)
    others = [row for row in range(17) if row != 5]
    assert not got[5].isfinite().any()
    assert torch.equal(bits(got[others]), bits(expected[others]))
    x, norm, packed, bias, _, _ = head_arguments(device, dims, types, phase)
    rows = torch.arange(19, dtype=torch.int32)
    expected = calls.lm_head(device, x, rows, norm, packed, bias, phase)
    x = x.clone()
    x[5, 3] = value
    got = calls.lm_head(device, x, rows, norm, packed, bias, phase)
    assert got[5].isnan().all() and torch.equal(bits(got[others]), bits(expected[others]))
