"""JSON by its meaning: values, keys, nesting, numbers that no parser likes, and keys that stand there twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

from .names import KEYS, PATHS


@dataclass(frozen=True)
class Raw:
    """Text that stands in the file as it is."""

    text: str


class Pairs(list):
    """An object as (key, value) pairs, so that a key can stand there twice."""


@dataclass
class Slot:
    """A place of the document: holder[index], or the value of the pair holder[index]."""

    holder: list
    index: int

    @property
    def value(self) -> Any:
        return self.holder[self.index][1] if isinstance(self.holder, Pairs) else self.holder[self.index]

    @value.setter
    def value(self, new: Any) -> None:
        self.holder[self.index] = (self.holder[self.index][0], new) if isinstance(self.holder, Pairs) else new


_NUMBERS = (0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e308, 255, 256, 2**15, 2**20, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32,
            2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 10**30, 10**400, Raw("NaN"), Raw("Infinity"),
            Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("-0"), Raw("1E5"), Raw("0.1e-9999"))
_TEXTS = ("", " ", "\x00", "a" * 100_000, Raw('"\\ud800"'), Raw('"\\udc00x"'), "\u202e", "\ufeff", "\U0001f600", "true", "null",
          "1", "auto", "cuda", "{", "%s%n", "{x}", "{0.__class__}", "\n\n", "<|endoftext|>", "(a+)+$", *PATHS)
_SHORT: tuple[Callable[[Random], Any], ...] = (
    lambda rng: rng.choice(_NUMBERS), lambda rng: rng.choice(_TEXTS), lambda rng: rng.choice((True, False, None)),
    lambda rng: [], lambda rng: Pairs(), lambda rng: [rng.choice(_NUMBERS) for _ in range(rng.choice((1, 3, 2000)))],
    lambda rng: [rng.choice(_TEXTS)], lambda rng: Pairs([(rng.choice(KEYS), rng.choice(_NUMBERS))]),
    lambda rng: Pairs([("content", rng.choice(_TEXTS))]), lambda rng: nested(rng),
)


def parse(data: bytes) -> Any:
    """The document, objects as Pairs. ValueError for what is no JSON."""
    return json.loads(data, object_pairs_hook=Pairs)


def write(value: Any) -> bytes:
    return "".join(_pieces(value)).encode("utf-8", "surrogatepass")


def odd_value(rng: Random) -> Any:
    return rng.choice(_SHORT)(rng)


def nested(rng: Random) -> Any:
    """Brackets in brackets: as deep as a careless parser follows, or deeper."""
    depth = rng.choice((20, 100, 400, 900, 2000, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    return Raw(opening * depth + "1" + closing * depth)


def mutate_json(rng: Random, data: bytes) -> bytes:
    root = [parse(data)]
    mutate_document(rng, root)
    return write(root[0])


def mutate_document(rng: Random, root: list) -> None:
    """Changes a few places of the document root[0]."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        slots = list(_slots(root))
        # Outer places are few and matter most; inner ones are many.
        slot = rng.choice(slots[:30]) if rng.random() < 0.5 else rng.choice(slots)
        _change(rng, slot, slots)


def _change(rng: Random, slot: Slot, slots: list[Slot]) -> None:
    holder, index = slot.holder, slot.index
    match rng.randrange(9):
        case 0 | 1 | 2:
            slot.value = odd_value(rng)
        case 3 if isinstance(slot.value, (int, float)) and not isinstance(slot.value, bool):
            slot.value = rng.choice((slot.value + 1, slot.value - 1, -slot.value, slot.value * 2, str(slot.value),
                                     float(slot.value), slot.value * 2**16, [slot.value]))
        case 3 if isinstance(slot.value, str):
            text = slot.value
            slot.value = rng.choice((text + "x", text[1:], text.upper(), text * 3, [text], text[::-1]))
        case 4:
            slot.value = deepcopy(rng.choice(slots).value)  # perhaps what it stands in
        case 5 if isinstance(holder, Pairs):
            holder.insert(rng.randrange(len(holder) + 1), (holder[index][0], odd_value(rng)))  # the key twice
        case 6 if isinstance(holder, Pairs):
            name = rng.choice((rng.choice(KEYS), rng.choice(_TEXTS), holder[index][0]))
            holder[index] = (name, slot.value)
        case 7 if isinstance(holder, Pairs):
            holder.append((rng.choice(KEYS), odd_value(rng)))
        case 8 if len(holder) > 1:
            del holder[index]


def _slots(holder: list) -> Iterator[Slot]:
    """Places, outer ones first; no more than a careless mutation may have made of them."""
    waiting, found = [holder], 0
    while waiting and found < 5000:
        current = waiting.pop(0)
        for index in range(len(current)):
            slot = Slot(current, index)
            found += 1
            yield slot
            if isinstance(slot.value, list) and found < 5000:
                waiting.append(slot.value)


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, Raw):
        yield value.text
    elif isinstance(value, Pairs):
        yield "{"
        for index, (key, each) in enumerate(value):
            yield f"{', ' if index else ''}{key.text if isinstance(key, Raw) else json.dumps(key, ensure_ascii=False)}: "
            yield from _pieces(each)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, each in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(each)
        yield "]"
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**4000:
        yield "9" * 5000
    else:
        yield json.dumps(value, ensure_ascii=False)
