"""pack, unpack, their quantised forms, and quantize_activations."""

from __future__ import annotations

import calls
import quantised
import reference
import torch
from devices import Device
from test_ops_pack import SOURCES, check_quantized_activations, in_groups

from codegen_fast import ops

from .chance import Chance


def layout(chance: Chance) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(sections, segments)"""
    sections = tuple(chance.size(100) for _ in range(chance.choice((1, 1, 2, 4))))
    return chance.note(sections=sections, segments=tuple(chance.columns() for _ in range(chance.choice((1, 2)))))


def source_of(chance: Chance, rows: int, columns: int, kind: str) -> torch.Tensor:
    """Values of any size the type has, some rows of zeros."""
    scale = 2.0 ** chance.randint(-10, 8) if "float16" in kind else 2.0 ** chance.randint(-60, 60)
    values = chance.normal(rows, columns) * scale
    if chance.random() < 0.3:
        values[chance.randrange(rows)] = 0
    return values.to(chance.choice(SOURCES) if abs(scale) < 2**9 and scale > 2**-11 else torch.float32)


def as_stored(values: torch.Tensor, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """What unpack must give: one float32 product in quantised types, then the rounding to dtype."""
    if kind == "int8":
        codes, scale = quantised.quantize_rows(values)
        return (codes.float() * scale[:, None]).to(dtype)
    return reference.rounded(values, kind, torch.float32).to(dtype)


def pack(device: Device, chance: Chance) -> None:
    """Rows arrive in pieces, in any order, from strided sources; what comes out is what each of them became."""
    kind = chance.types(device).kind
    sections, segments = layout(chance)
    weight = calls.new_weight(device, kind, sections, segments)
    places = [(section, segment) for section in range(len(sections)) for segment in range(len(segments))]
    chance.shuffle(places)
    status, sources = ops.new_pack_status(device.memory), {}
    for section, segment in places:
        source = sources[section, segment] = source_of(chance, sections[section], segments[segment], kind)
        given, row = calls.guarded(device, source, gap=chance.choice((0, 5))), 0
        for n in chance.cut(len(source), chance.randint(1, 4)):
            ops.pack(weight, given[row : row + n], status, section=section, row=row, segment=segment)
            row += n
    assert status.tolist() == [0, 0]
    for (section, segment), source in sources.items():
        first = chance.randrange(sections[section])
        n = chance.randint(0, sections[section] - first)
        dtype = chance.choice(SOURCES)
        got = ops.unpack(weight, n, dtype, section=section, row=first, segment=segment).cpu()
        expected = as_stored(source, kind, dtype)[first : first + n]
        assert torch.equal(got, expected), f"section {section}, segment {segment}"


def pack_quantized(device: Device, chance: Chance) -> None:
    """Codes and scales are the reference's, and put back they make the same weight."""
    kind = chance.note(kind=chance.choice([t.kind for t in device.every_type if t.kind.startswith("int")]))
    sections, segments = layout(chance)
    weight, again = (calls.new_weight(device, kind, sections, segments) for _ in range(2))
    status = ops.new_pack_status(device.memory)
    for section, rows in enumerate(sections):
        for segment, columns in enumerate(segments):
            place = dict(section=section, row=0, segment=segment)
            source = source_of(chance, rows, columns, kind)
            ops.pack(weight, source.to(device.memory), status, **place)
            codes, scales = ops.unpack_quantized(weight, rows, **place)
            expected = quantised.quantize_rows(source) if kind == "int8" else in_groups(source, kind)
            assert torch.equal(codes.cpu(), expected[0]), f"codes of section {section}, segment {segment}"
            assert torch.equal(scales.cpu(), expected[1]), f"scales of section {section}, segment {segment}"
            ops.pack_quantized(again, codes, scales, **place)
    assert torch.equal(again.data, weight.data)
    assert not kind.startswith("int8") or torch.equal(again.scales, weight.scales)


def quantize_activations(device: Device, chance: Chance) -> None:
    segments = chance.note(segments=tuple(chance.columns() for _ in range(chance.choice((1, 2)))))
    act, tokens = chance.note(act=chance.choice(device.acts), tokens=chance.tokens())
    check_quantized_activations(device, chance.activations(tokens, sum(segments), act), segments)
