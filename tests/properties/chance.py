"""What a random case draws: sizes around the edges of vectors, tiles and pages, tensors, gaps; all from one text."""

from __future__ import annotations

import random
from collections.abc import Sequence as List

import torch
from devices import Device, Types
from torch import Tensor

# Vectors, panels, groups and tiles of the kernels are of these sizes.
EDGES = (4, 8, 16, 32, 64, 128, 256)


class Chance(random.Random):
    """small: sizes that the emulator can afford. What was drawn under a name is told where the case fails."""

    def __init__(self, seed: str, *, small: bool = False):
        super().__init__(seed)
        self.small = small
        self._drawn: dict[str, object] = {}
        self._numbers = torch.Generator().manual_seed(self.getrandbits(63))
        torch.manual_seed(self.getrandbits(63))

    def note(self, **drawn):
        """Remembers what was drawn; gives the only one, or all."""
        self._drawn |= drawn
        values = tuple(drawn.values())
        return values[0] if len(values) == 1 else values

    def drawn(self) -> dict[str, str]:
        return {name: str(value).removeprefix("torch.") for name, value in self._drawn.items()}

    def told(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.drawn().items())

    def size(self, most: int) -> int:
        """1 to most: small ones, those at an edge, and any."""
        kind = self.randrange(3)
        if kind == 0:
            return self.randint(1, min(most, 9))
        edge = self.choice(EDGES) * self.randint(1, 4) + self.randint(-1, 1)
        return edge if kind == 1 and edge <= most else self.randint(1, most)

    def columns(self) -> int:
        return self.size(130 if self.small else 400)

    def tokens(self) -> int:
        """Often none or one, seldom more than a product holds at once."""
        if self.random() < 0.08:
            return 0
        return self.size(12) if self.small or self.random() < 0.8 else self.size(90)

    def gaps(self) -> tuple[int, int]:
        """Between the rows of outputs and of activations."""
        return self.note(gaps=tuple(self.choice((0, 0, 1, 3, 8, 61)) for _ in range(2)))

    def phase(self) -> str:
        return self.note(phase=self.choice(("prefill", "decode")))

    def types(self, device: Device) -> Types:
        return self.note(types=self.choice(device.every_type))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._numbers)

    def activations(self, rows: int, columns: int, act: torch.dtype) -> Tensor:
        """(rows, columns): normal ones, shifted ones, and what gelu leaves, of different sizes; now and then a row of
        zeros."""
        x = self.normal(rows, columns)
        kind = self.note(activations=self.choice(("normal", "normal", "shifted", "after gelu")))
        if kind == "shifted":
            x = x + self.uniform(-3, 3)
        elif kind == "after gelu":
            x = torch.nn.functional.gelu(x, approximate="tanh")
        x = x * 2.0 ** self.randint(-3, 3)
        if rows and self.random() < 0.2:
            x[self.randrange(rows)] = 0
        return x.to(act)

    def norm(self, width: int) -> tuple[Tensor, Tensor, float]:
        return 1 + 0.3 * self.normal(width), 0.3 * self.normal(width), self.choice((1e-5, 1e-5, 1e-6, 1e-3))

    def some(self, count: int) -> list[int]:
        """A few of 0 .. count, in any order, some of them twice."""
        return [self.randrange(count) for _ in range(self.randint(1, min(count, 7)))] if count else []

    def cut(self, total: int, parts: int) -> list[int]:
        """Lengths, of which some may be 0, that add up to total."""
        edges = sorted(self.randint(0, total) for _ in range(parts - 1))
        return [b - a for a, b in zip([0, *edges], [*edges, total])]

    def lengths(self) -> List[int]:
        """Of the sequences of a batch: around the edges of pages, seldom around those of splits of the keys."""
        most = 70 if self.small else 150 if self.random() < 0.85 else 600
        return self.note(lengths=[self.size(most) for _ in range(self.randint(1, 3 if self.small else 5))])
