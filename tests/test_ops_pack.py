"""pack, unpack and their quantised forms: what goes in comes out, rounded as the contract says."""

from __future__ import annotations

import math

import calls
import cases
import reference
import torch
from devices import CPUS, Device, Types, per_device

from codegen_fast import ops

SOURCES = (torch.float32, torch.float16, torch.bfloat16)
# sections, segments: W_in and W_out of an odd shape, one row, one column, more than any tile.
LAYOUTS = (
    ((64, 64, 64, 100), (64,)),
    ((80, 80, 80, 131), (80,)),
    ((64,), (64, 131)),
    ((33,), (20, 1)),
    ((1,), (1,)),
    ((257,), (1024,)),
    ((5, 7, 3, 1), (333, 65)),
)


def fill(device, weight, parts) -> torch.Tensor:
    """Packs parts[section][segment] and returns the status."""
    status = ops.new_pack_status(device.memory)
    for section, row_of_parts in enumerate(parts):
        for segment, source in enumerate(row_of_parts):
            ops.pack(weight, source.to(device.memory), status, section=section, row=0, segment=segment)
    return status


def random_parts(sections, segments, dtype=torch.float32):
    torch.manual_seed(len(sections))
    return [[torch.randn(rows, cols).to(dtype) for cols in segments] for rows in sections]


@per_device(kind=Device.kinds, source=SOURCES, layout=LAYOUTS)
def test_unpack_returns_what_was_packed(device, kind, source, layout):
    sections, segments = layout
    parts = random_parts(sections, segments, source)
    weight = calls.new_weight(device, kind, sections, segments)
    assert (weight.out_features, weight.in_features) == (sum(sections), sum(segments))
    assert fill(device, weight, parts).tolist() == [0, 0]
    for section, rows in enumerate(sections):
        for segment in range(len(segments)):
            original = parts[section][segment]
            for dtype in SOURCES:
                got = ops.unpack(weight, rows, dtype, section=section, row=0, segment=segment).cpu()
                if kind == "int4":
                    expected = reference.rounded(original, kind, torch.float32).to(dtype)
                elif kind == "int8":
                    # One float32 product, then the rounding to dtype.
                    codes, scale = reference.quantize_rows(original)
                    expected = (codes.float() * scale[:, None]).to(dtype)
                else:
                    expected = original.to(getattr(torch, kind)).float().to(dtype)
                assert got.dtype == dtype and torch.equal(got, expected)


@per_device(layout=LAYOUTS)
def test_quantised_codes_and_scales_are_those_of_the_reference(device, layout):
    sections, segments = layout
    parts = random_parts(sections, segments)
    parts[0][0][-1] = 0  # a row of zeros has scale 0
    weight = calls.new_weight(device, "int8", sections, segments)
    fill(device, weight, parts)
    again = calls.new_weight(device, "int8", sections, segments)
    for section, rows in enumerate(sections):
        for segment in range(len(segments)):
            codes, scales = ops.unpack_quantized(weight, rows, section=section, row=0, segment=segment)
            expected_codes, expected_scales = reference.quantize_rows(parts[section][segment])
            assert torch.equal(codes.cpu(), expected_codes) and torch.equal(scales.cpu(), expected_scales)
            ops.pack_quantized(again, codes, scales, section=section, row=0, segment=segment)
    assert torch.equal(again.data, weight.data) and torch.equal(again.scales, weight.scales)


@per_device(CPUS, kind=cases.INT4_KINDS, layout=LAYOUTS)
def test_int4_codes_and_scales_are_those_of_the_reference(device, kind, layout):
    sections, segments = layout
    parts = random_parts(sections, segments)
    parts[0][0][-1] = 0  # a group of zeros has scale 0
    weight, again = (calls.new_weight(device, kind, sections, segments) for _ in range(2))
    assert fill(device, weight, parts).tolist() == [0, 0]
    for section, rows in enumerate(sections):
        for segment in range(len(segments)):
            codes, scales = ops.unpack_quantized(weight, rows, section=section, row=0, segment=segment)
            expected = reference.quantize_int4(parts[section][segment], reference.INT4_GROUPS[kind])
            assert torch.equal(codes, expected[0]) and torch.equal(scales, expected[1])
            ops.pack_quantized(again, codes, scales, section=section, row=0, segment=segment)
    assert torch.equal(again.data, weight.data)


@per_device(CPUS, kind=cases.INT4_KINDS, scale=(1e30, 1e38, 1e-30, 1e-36, 1e-38, 1e-40, 1e-44))
def test_int4_of_very_large_and_very_small_values(device, kind, scale):
    x = torch.randn(5, 200) * (0.1 * scale)
    weight = calls.new_weight(device, kind, (5,), (200,))
    assert fill(device, weight, [[x]]).tolist() == [0, 0]
    codes, scales = ops.unpack_quantized(weight, 5)
    expected = reference.quantize_int4(x, reference.INT4_GROUPS[kind])
    assert torch.equal(codes, expected[0]) and torch.equal(scales, expected[1])


def test_int4_keeps_what_it_can_hold_and_errs_little_otherwise():
    """16 levels that are there come back; of normal weights less is lost than without a search (8.6%, 9.5%, 10.4%)."""
    torch.manual_seed(0)
    exact = torch.randint(-8, 8, (64, 256)).float()
    exact[:, ::32] = -8.0
    assert torch.equal(reference.rounded(exact, "int4", torch.float32), exact)
    w = torch.randn(64, 4096)
    for kind, most in (("int4", 0.084), ("int4-g64", 0.093), ("int4-g128", 0.1)):
        error = (reference.rounded(w, kind) - w).norm() / w.norm()
        print(f"{kind}: relative error {error:.4f}")
        assert error <= most


@per_device(kind=Device.kinds)
def test_rows_arrive_piece_by_piece_from_strided_sources(device, kind):
    sections, segments = (40, 70), (48, 35)
    parts = random_parts(sections, segments)
    whole, pieces = calls.new_weight(device, kind, sections, segments), calls.new_weight(device, kind, sections, segments)
    fill(device, whole, parts)
    status = ops.new_pack_status(device.memory)
    for section, segment in [(1, 1), (0, 0), (1, 0), (0, 1)]:
        source = calls.guarded(device, parts[section][segment], gap=5)
        row = 0
        for n in [1, 6, 0, 8, 13, sections[section]]:
            n = min(n, sections[section] - row)
            ops.pack(pieces, source[row : row + n], status, section=section, row=row, segment=segment)
            row += n
    assert torch.equal(pieces.data, whole.data)
    assert kind != "int8" or torch.equal(pieces.scales, whole.scales)
    part = ops.unpack(whole, 7, torch.float32, section=1, row=30, segment=1)
    assert torch.equal(part, ops.unpack(whole, 70, torch.float32, section=1, row=0, segment=1)[30:37])


@per_device(kind=Device.kinds)
def test_pack_touches_only_its_rows(device, kind):
    sections, segments = (10, 21), (30, 9)
    weight = calls.new_weight(device, kind, sections, segments)
    fill(device, weight, random_parts(sections, segments))
    places = [(section, segment) for section in range(2) for segment in range(2)]
    before = {
        p: ops.unpack(weight, sections[p[0]], torch.float32, section=p[0], row=0, segment=p[1]) for p in places
    }
    status = ops.new_pack_status(device.memory)
    ops.pack(weight, torch.full((3, 9), 2.0, device=device.memory), status, section=1, row=4, segment=1)
    before[1, 1][4:7] = 2.0
    for section, segment in places:
        got = ops.unpack(weight, sections[section], torch.float32, section=section, row=0, segment=segment)
        assert torch.equal(got, before[section, segment])


@per_device()
def test_rounding_is_to_nearest_even_also_among_subnormals(device):
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (64, 1024), dtype=torch.int64).to(torch.int32)
    source = bits.view(torch.float32)
    source = torch.where(source.isfinite(), source, 1.0)
    small = torch.randn(64, 1024) * 2.0 ** torch.randint(-30, -10, (64, 1024))  # the subnormal numbers of float16
    ties = torch.cat([1 + torch.arange(512) * 2.0**-11, 1 + torch.arange(512) * 2.0**-8])[None]
    for kind in ("float16", "bfloat16"):
        for values in (source, small, ties):
            weight = calls.new_weight(device, kind, (values.shape[0],), (1024,))
            fill(device, weight, [[values]])
            got = ops.unpack(weight, values.shape[0], torch.float32, section=0, row=0, segment=0)
            assert torch.equal(got.cpu(), values.to(getattr(torch, kind)).float())


@per_device(kind=Device.kinds)
def test_status_counts_bad_sources_and_overflow_and_adds_up(device, kind):
    source = torch.randn(6, 40)
    source[0, 0], source[1, 39], source[5, 20] = math.nan, math.inf, -math.inf
    source[2, 1], source[2, 2], source[3, 3] = 65520.0, -1e30, 65519.0  # 65519 rounds to 65504
    source[4, 4] = torch.finfo(torch.float32).max  # rounds to infinity in bfloat16
    source = source.to(device.memory)
    weight = calls.new_weight(device, kind, (6,), (40,))
    status = ops.new_pack_status(device.memory)
    overflow = {"float16": 3, "bfloat16": 1}.get(kind, 0)
    for times in (1, 2):
        ops.pack(weight, source, status, section=0, row=0, segment=0)
        assert status.tolist() == [3 * times, overflow * times]


@per_device(kind=Device.kinds)
def test_memory_is_that_of_the_type(device, kind):
    for dims in cases.MODELS:
        for sections, segments in [
            ((dims.n_embd,) * 3 + (dims.inner,), (dims.n_embd,)),
            ((dims.n_embd,), (dims.n_embd, dims.inner)),
            ((dims.vocab,), (dims.n_embd,)),
        ]:
            size = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int4": 4.5 / 8}[kind]
            elements = sum(sections) * sum(segments)
            nbytes = ops.packed_weight_nbytes(kind, sections, segments, device.memory.type)
            assert elements * size <= nbytes <= elements * size * 1.01
    weight = calls.new_weight(device, kind, (64, 64, 64, 100), (64,))
    assert weight.nbytes == ops.packed_weight_nbytes(kind, (64, 64, 64, 100), (64,), device.memory.type)
    assert weight.data.data_ptr() % 64 == 0


@per_device(
    act=Device.acts,
    segments=((64,), (80,), (64, 100), (80, 131), (20, 1), (1024, 4096)),
    tokens=cases.TOKENS,
    where=lambda device, _, segments, tokens: not device.emulated or tokens < 80 or sum(segments) < 1024,
)
def test_quantized_activations_have_the_codes_of_the_reference(device, act, segments, tokens):
    torch.manual_seed(tokens)
    x = torch.randn(tokens, sum(segments))
    if tokens > 1:
        x[1] = 0
        x[0, :64] = torch.randint(-254, 255, (min(64, x.shape[1]),)) / 2  # halves: to the even code
        x[0, 0] = 127.0
    check_quantized_activations(device, x.to(act), segments)


def check_quantized_activations(device, x, segments):
    how = device.arithmetic(Types(x.dtype, "int8"), "prefill")
    padding = ops.activation_padding(device.memory.type)
    expected_q, expected_scales = reference.quantize_activations(x, segments, how.group, padding)
    assert ops.activation_group(device.memory.type) == (how.group or 0)
    q = calls.fenced(device, expected_q.shape, torch.int8)
    scales = calls.fenced(device, expected_scales.shape, torch.float32)
    weight = calls.new_weight(device, "int8", (3,), segments)
    ops.quantize_activations(q.tensor, scales.tensor, calls.guarded(device, x), weight)
    assert torch.equal(q.check().cpu(), expected_q)
    assert torch.equal(scales.check().cpu(), expected_scales)


@per_device(act=Device.acts)
def test_an_activation_that_is_not_finite_makes_the_scale_of_its_group_nan(device, act):
    x = torch.randn(4, 64 + 131).to(act)
    x[1, 3], x[2, 64], x[3, 100] = math.nan, math.inf, -math.inf
    weight = calls.new_weight(device, "int8", (3,), (64, 131))
    padding, group = ops.activation_padding(device.memory.type), ops.activation_group(device.memory.type)
    groups = 2 if group == 0 else 1 + 3
    columns = 64 + -(-131 // padding) * padding
    q, scales = calls.fenced(device, (4, columns), torch.int8), calls.fenced(device, (4, groups), torch.float32)
    ops.quantize_activations(q.tensor, scales.tensor, calls.guarded(device, x), weight)
    q.check()
    expected = torch.zeros(4, groups, dtype=torch.bool)
    expected[1, 0] = expected[2, 1] = expected[3, 1] = True
    assert torch.equal(scales.check().cpu().isnan(), expected)


# float16 ends at 65504 and at 2^-24.
@per_device(
    act=Device.acts, scale=(1e30, 1e4, 1e-6, 1e-30, 1e-36, 1e-37, 1e-39, 1e-44),
    where=lambda _, act, scale: act != torch.float16 or 1e-7 < scale < 1e5,
)  # fmt: skip
def test_codes_of_very_large_and_very_small_values(device, act, scale):
    torch.manual_seed(0)
    x = torch.randn(5, 200) * scale
    weight = calls.new_weight(device, "int8", (5,), (200,))
    fill(device, weight, [[x]])
    codes, scales = ops.unpack_quantized(weight, 5)
    expected = reference.quantize_rows(x)
    assert torch.equal(codes.cpu(), expected[0]) and torch.equal(scales.cpu(), expected[1])
    check_quantized_activations(device, x.to(act), (200,))
