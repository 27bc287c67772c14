"""The one table of op cases, shared by the op tests and the microbenchmarks.

Dimensions of the four models and of odd ones, and batches of ragged sequences. Tests take ``test_rows`` of a large
map's rows (a row's arithmetic knows nothing of its neighbours) and keep the true number of columns and head
dimension, which decide the arithmetic; benchmarks take everything.
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT_KINDS = ("float32", "float16", "bfloat16", "int8", "int8-g32", "int4")
FLOAT_KINDS = WEIGHT_KINDS[:3]
INT4_KINDS = ("int4", "int4-g64", "int4-g128")
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Dims:
    """Dimensions of a model: d = n_embd = n_head * head_dim, R = rotary_dim, F = inner, V = vocab."""

    name: str
    n_layer: int
    n_head: int
    head_dim: int
    rotary_dim: int
    inner: int
    vocab: int
    n_positions: int = 2048

    @property
    def n_embd(self) -> int:
        return self.n_head * self.head_dim

    def test_rows(self, rows: int) -> int:
        """How many of a map's rows a test computes: all of a small model's; of a large one's 257, an odd number."""
        return rows if self.n_embd <= 512 else min(rows, 257)


MODELS = (
    Dims("350M", 20, 16, 64, 32, 4096, 51200),
    Dims("2B", 32, 32, 80, 64, 10240, 51200),
    Dims("6B", 33, 16, 256, 64, 16384, 51200),
    Dims("16B", 34, 24, 256, 64, 24576, 51200),
)

# Small shapes that kernels built for the four models get wrong: n_inner and vocabularies that are odd or no multiple
# of a vector or tile, head dims 16 and 20, rotary over the whole head and over one pair, 2 to 32 heads.
ODD = (
    Dims("odd_16", 2, 4, 16, 8, 100, 1003, 96),
    Dims("odd_20", 1, 4, 20, 20, 131, 77, 96),
    Dims("odd_64", 1, 8, 64, 32, 1, 257, 96),
    Dims("odd_80", 1, 4, 80, 2, 333, 50, 96),
    Dims("odd_256", 1, 2, 256, 64, 97, 31, 96),
    Dims("odd_32_heads", 1, 32, 16, 16, 513, 129, 96),
)

TOKENS = (0, 1, 3, 17, 80)


@dataclass(frozen=True)
class Ragged:
    """A batch: for every sequence (tokens already in the cache, new tokens)."""

    name: str
    sequences: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        return sum(new for _, new in self.sequences)

    @property
    def lengths(self) -> list[int]:
        return [past + new for past, new in self.sequences]


# Lengths stand around the edges of pages of 16, 32 or 64 tokens; 96 is the last position of the odd shapes.
BATCHES = (
    Ragged("empty", ()),
    Ragged("one_at_0", ((0, 1),)),
    Ragged("one_at_last", ((95, 1),)),
    Ragged("three_steps", ((0, 1), (15, 1), (64, 1))),
    Ragged("seventeen", ((0, 10), (30, 7))),
    Ragged("eighty", ((0, 33), (16, 1), (31, 1), (33, 3), (0, 1), (55, 41))),
    Ragged("with_an_idle_sequence", ((7, 0), (3, 2), (1, 0))),
)


def by_name(items):
    """Ids for pytest.mark.parametrize."""
    return [item.name for item in items]
