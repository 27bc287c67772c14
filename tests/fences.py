"""Poison and fences: tensors inside larger buffers, where a read or write out of bounds shows.

An output starts as NaN (integers: a value that no op writes) and lies between fences; after the call everything
that the op was not allowed to write must hold the bits it held before. An input lies between NaNs, so that a read
past its end spoils the result. Buffers start 61 elements in: kernels may rely on no alignment of activations. Inside
``aligned`` they start on a multiple of 64 bytes, as a decoder's own do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

FENCE = 61  # elements on either side
_lead = FENCE  # elements before a tensor that is made now
_inputs: list[tuple[Tensor, Tensor]] = []  # buffers of inputs and what they hold, where they are watched
_watching = False


@contextmanager
def aligned() -> Iterator[None]:
    """Tensors made in the block start on a multiple of 64 bytes."""
    global _lead
    _lead = 64
    try:
        yield
    finally:
        _lead = FENCE


@contextmanager
def unchanged(*others: Tensor) -> Iterator[None]:
    """Asserts that the block changes no bit of the ``guarded`` inputs made in it, of what surrounds them, and of
    ``others``."""
    global _watching
    _watching = True
    _inputs[:] = [(other, other.clone()) for other in others]
    try:
        yield
        for buffer, before in _inputs:
            assert torch.equal(bits(buffer), bits(before)), f"an input of {tuple(buffer.shape)} elements was written"
    finally:
        _watching = False
        _inputs.clear()


def _strided(buffer: Tensor, shape: tuple[int, ...], gap: int, before: int) -> Tensor:
    """The tensor inside a buffer: dense, but for ``gap`` elements after every row."""
    strides, step = [1], shape[-1] + gap
    for length in reversed(shape[1:-1]):
        strides.insert(0, step)
        step *= length
    if len(shape) > 1:
        strides.insert(0, step)
    return buffer.as_strided(shape, strides, before)


def _buffer(shape: tuple[int, ...], dtype: torch.dtype, gap: int, memory: torch.device | str) -> Tensor:
    rows = 1
    for length in shape[:-1]:
        rows *= length
    return torch.empty(_lead + rows * (shape[-1] + gap) + FENCE, dtype=dtype, device=memory)


class Fenced:
    """An output of ``shape`` in ``.tensor``, poisoned, or holding ``values`` where the op updates in place.

    gap: elements between rows (they belong to the fence). memory: torch's device.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        gap: int = 0,
        values: Tensor | None = None,
        memory: torch.device | str = "cpu",
    ):
        self._buffer = _buffer(shape, dtype, gap, memory)
        # 0xFF..FF is a NaN in float32, float16 and bfloat16, and not the NaN that arithmetic makes.
        self._buffer.view(torch.uint8).fill_(0xFF if dtype.is_floating_point else 0x80)
        self._layout = (shape, gap, _lead)
        self.tensor = _strided(self._buffer, *self._layout)
        if values is not None:
            self.tensor.copy_(values)
        self._before = self._buffer.clone()

    def check(self, *written) -> Tensor:
        """Asserts that nothing but the ``written`` parts (indices; default: all) changed; returns the tensor."""
        after = self._buffer.clone()
        before_view = _strided(self._before, *self._layout)
        after_view = _strided(after, *self._layout)
        for index in written or (...,):
            after_view[index] = before_view[index]
        if not torch.equal(after.view(torch.uint8), self._before.view(torch.uint8)):
            shape, gap, before = self._layout
            first = torch.nonzero(after.view(torch.uint8) != self._before.view(torch.uint8))[0].item()
            first = first // after.element_size() - before
            raise AssertionError(f"element {first} (rows of {shape[-1]} + {gap}) was written and must not be")
        return self.tensor


class Scratch:
    """A workspace of ``nbytes`` in ``.tensor``: every float in it is NaN, fences on both sides, aligned as torch's."""

    def __init__(self, nbytes: int, memory: torch.device | str = "cpu"):
        self._buffer = torch.full((64 + nbytes + 64,), 0xFF, dtype=torch.uint8, device=memory)
        self.tensor = self._buffer[64 : 64 + nbytes]

    def check(self) -> None:
        ends = torch.cat([self._buffer[:64], self._buffer[64 + len(self.tensor) :]])
        assert (ends == 0xFF).all(), "bytes outside of the workspace were written"


def guarded(values: Tensor, gap: int = 0, memory: torch.device | str = "cpu") -> Tensor:
    """A copy of an input between NaNs (integers: -128), its rows ``gap`` elements apart."""
    buffer = _buffer(tuple(values.shape), values.dtype, gap, memory)
    poison = float("nan") if values.dtype.is_floating_point else -128
    for part in (buffer,) if gap else (buffer[:_lead], buffer[-FENCE:]):
        part.fill_(poison)
    inside = _strided(buffer, tuple(values.shape), gap, _lead)
    inside.copy_(values)
    if _watching:
        _inputs.append((buffer, buffer.clone()))
    return inside


def bits(t: Tensor) -> Tensor:
    """The bytes of a tensor, for comparisons where NaN equals NaN and 0.0 differs from -0.0."""
    return t.contiguous().view(torch.uint8)


def same(got: Tensor, wanted: Tensor) -> bool:
    """Equal values; NaN equals NaN."""
    return torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.nan_to_num(nan=0.5), wanted.nan_to_num(nan=0.5))
