"""What every property asks of an op beside right numbers: inputs that stay, and bits that depend on nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from devices import Device, threads
from fences import bits, unchanged
from torch import Tensor

from .chance import Chance


def everywhere(device: Device, chance: Chance, call: Callable[[], tuple[Tensor, ...]], *inputs: Tensor):
    """What ``call`` gives: the same bits in all surroundings, and no input changed; ``inputs``: those that are not
    made by the call."""
    surroundings = device.variations()
    if device.backend == "cpu":
        surroundings += [functools.partial(threads, chance.randint(3, 6))]
    elif device.emulated:
        surroundings = [chance.choice(surroundings)]
    first = None
    for surrounding in (nullcontext, *surroundings):
        with surrounding(), unchanged(*inputs):
            got = call()
        if first is None:
            first = got
        for a, b in zip(got, first, strict=True):
            assert torch.equal(bits(a), bits(b)), f"other bits in {surrounding}"
    return first


def rows_alone(chance: Chance, op: Callable[[list[int]], tuple[Tensor, ...]], whole: tuple[Tensor, ...]) -> None:
    """Some rows in a call of their own have the bits that they have among all of them."""
    part = chance.note(part=chance.some(len(whole[0])))
    for own, of_all in zip(op(part), whole, strict=True):
        assert torch.equal(bits(own), bits(of_all[part])), f"rows {part} differ from those of the whole"


def kept(device: Device, weight) -> list[Tensor]:
    """The memory of a packed weight."""
    return [t for t in (weight.data, weight.scales) if t is not None]
