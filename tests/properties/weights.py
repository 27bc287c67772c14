"""pack, unpack, their quantised forms, and quantize_activations."""

from __future__ import annotations

import calls
import quantised
import reference
import torch
from devices import Device
from fences import bits
from test_ops_pack import SOURCES, expected_activations, in_groups, int8_kinds, quantized_activations

from codegen_fast import ops

from .bitwise import everywhere, rows_alone
from .chance import Chance


class FencedWeight:
    """An empty weight whose memory lies between fences."""

    def __init__(self, device: Device, kind: str, sections, segments):
        data, scales = ops.packed_weight_sizes(kind, sections, segments, device.memory)
        self._memory = [calls.scratch(device, data)]
        if scales:
            self._memory.append(calls.scratch(device, 4 * scales))
        self.weight = packed_in(self._views(), kind, sections, segments)
        ops._C.clear_packed(self.weight)

    def _views(self) -> tuple[torch.Tensor, ...]:
        return self._memory[0].tensor, *(part.tensor.view(torch.float32) for part in self._memory[1:])

    def check(self) -> tuple[torch.Tensor, ...]:
        """The weight's memory, for packed_in, once its fences have been looked at."""
        for part in self._memory:
            part.check()
        return self._views()


def packed_in(memory: tuple[torch.Tensor, ...], kind: str, sections, segments) -> ops.PackedWeight:
    return ops.PackedWeight(kind, sections, segments, *memory, *[None] * (2 - len(memory)))


def unpacked(device: Device, weight: ops.PackedWeight, n: int, dtype: torch.dtype, **place: int) -> torch.Tensor:
    """ops.unpack into an output between fences."""
    out = calls.fenced(device, (n, weight.segments[place["segment"]]), dtype)
    ops._C.unpack(out.tensor, out.tensor.new_empty(0, dtype=torch.float32), weight, *_in_order(place))
    return out.check().cpu()


def unpacked_quantized(device: Device, weight: ops.PackedWeight, n: int, **place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ops.unpack_quantized into outputs between fences."""
    columns, group = weight.segments[place["segment"]], ops.GROUPS.get(weight.kind)
    codes = calls.fenced(device, (n, columns), torch.int8)
    scales = calls.fenced(device, (n,) if group is None else (n, -(-columns // group)), torch.float32)
    ops._C.unpack(codes.tensor, scales.tensor, weight, *_in_order(place))
    return codes.check().cpu(), scales.check().cpu()


def _in_order(place: dict[str, int]) -> tuple[int, int, int]:
    return place["section"], place["row"], place["segment"]


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
    places = [(section, segment) for section in range(len(sections)) for segment in range(len(segments))]
    chance.shuffle(places)
    sources = {(section, segment): source_of(chance, sections[section], segments[segment], kind)
               for section, segment in places}  # fmt: skip
    gaps = {place: chance.choice((0, 5)) for place in places}
    pieces = {place: chance.cut(len(sources[place]), chance.randint(1, 4)) for place in places}

    def packed():
        fenced, status = FencedWeight(device, kind, sections, segments), new_status(device)
        for section, segment in places:
            given, row = calls.guarded(device, sources[section, segment], gap=gaps[section, segment]), 0
            for n in pieces[section, segment]:
                ops.pack(fenced.weight, given[row : row + n], status.tensor, section=section, row=row, segment=segment)
                row += n
        assert status.check().tolist() == [0, 0]
        return fenced.check()

    memory = everywhere(device, chance, packed)
    weight = packed_in(memory, kind, sections, segments)
    for (section, segment), source in sources.items():
        first = chance.randrange(sections[section])
        n, dtype = chance.randint(0, sections[section] - first), chance.choice(SOURCES)
        place = dict(section=section, row=first, segment=segment)
        got = everywhere(device, chance, lambda: (unpacked(device, weight, n, dtype, **place),), *memory)
        expected = as_stored(source, kind, dtype)[first : first + n]
        assert torch.equal(got[0], expected), f"section {section}, segment {segment}"

    section = chance.randrange(len(sections))

    def op(part):
        fenced, status = FencedWeight(device, kind, (len(part),), segments), new_status(device)
        for segment in range(len(segments)):
            ops.pack(fenced.weight, calls.guarded(device, sources[section, segment][part]), status.tensor, segment=segment)
        return rows_of(packed_in(fenced.check(), kind, (len(part),), segments), len(part), 0)

    def rows_of(weight, n, section):
        return tuple(unpacked(device, weight, n, torch.float32, section=section, row=0, segment=segment)
                     for segment in range(len(segments)))  # fmt: skip

    rows_alone(chance, op, rows_of(weight, sections[section], section))


def new_status(device: Device):
    return calls.fenced(device, (2,), torch.int32, values=torch.zeros(2, dtype=torch.int32))


def pack_quantized(device: Device, chance: Chance) -> None:
    """Codes and scales are the reference's, and put back they make the same weight."""
    kind = chance.note(kind=chance.choice([t.kind for t in device.every_type if t.kind.startswith("int")]))
    sections, segments = layout(chance)
    places = [(section, segment) for section in range(len(sections)) for segment in range(len(segments))]
    packed, status = FencedWeight(device, kind, sections, segments), new_status(device)
    quantized = {}
    for section, segment in places:
        place = dict(section=section, row=0, segment=segment)
        source = source_of(chance, sections[section], segments[segment], kind)
        ops.pack(packed.weight, calls.guarded(device, source), status.tensor, **place)
        codes, scales = quantized[section, segment] = everywhere(
            device, chance, lambda: unpacked_quantized(device, packed.weight, len(source), **place), *packed.check()
        )
        expected = quantised.quantize_rows(source) if kind == "int8" else in_groups(source, kind)
        assert torch.equal(codes, expected[0]), f"codes of section {section}, segment {segment}"
        assert torch.equal(scales, expected[1]), f"scales of section {section}, segment {segment}"

    def put_back():
        again = FencedWeight(device, kind, sections, segments)
        for section, segment in places:
            given = [calls.guarded(device, part) for part in quantized[section, segment]]
            ops.pack_quantized(again.weight, *given, section=section, row=0, segment=segment)
        return again.check()

    for put, was in zip(everywhere(device, chance, put_back), packed.check(), strict=True):
        assert torch.equal(bits(put), bits(was)), "codes and scales that are put back make another weight"
    section = chance.randrange(len(sections))

    def op(part):
        alone, found = FencedWeight(device, kind, (len(part),), segments), []
        for segment in range(len(segments)):
            place = dict(section=0, row=0, segment=segment)
            given = [calls.guarded(device, whole[part]) for whole in quantized[section, segment]]
            ops.pack_quantized(alone.weight, *given, **place)
            found += unpacked_quantized(device, alone.weight, len(part), **place)
        alone.check()
        return tuple(found)

    rows_alone(chance, op, tuple(part for segment in range(len(segments)) for part in quantized[section, segment]))


def quantize_activations(device: Device, chance: Chance) -> None:
    segments = chance.note(segments=tuple(chance.columns() for _ in range(chance.choice((1, 2)))))
    act, tokens = chance.note(act=chance.choice(device.acts), tokens=chance.tokens())
    x = chance.activations(tokens, sum(segments), act)
    for kind in int8_kinds(device):
        expected = expected_activations(device, kind, x, segments)

        def op(part):
            return quantized_activations(device, kind, x[part], segments, [whole.shape[1] for whole in expected])

        got = everywhere(device, chance, lambda: op(list(range(tokens))))
        for mine, wanted in zip(got, expected, strict=True):
            assert torch.equal(mine, wanted), kind
        rows_alone(chance, op, got)
