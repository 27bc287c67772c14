"""The CUDA kernels on a machine without a GPU: csrc/cuda built with g++ and run by an emulator. See README.md.

    with emulated(seed=1):
        ops.layer_norm(out, x, norm)  # CPU tensors, CUDA kernels
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from codegen_fast import ops

from .build import BuildError, emulated_module

__all__ = ["BuildError", "emulated", "emulated_module"]


class _Overlay:
    """The emulated extension, and the real one for what only it has (the CPU's instruction sets, threads ...)."""

    def __init__(self, emulated, real):
        self._extensions = (emulated, real)

    def __getattr__(self, name: str):
        for extension in self._extensions:
            if hasattr(extension, name):
                return getattr(extension, name)
        raise AttributeError(name)


@contextmanager
def emulated(
    seed: int = 0, multiprocessors: int = 3, arch: int = 90, partial: bool = False, module: ModuleType | None = None
) -> Iterator[None]:
    """In the block, the ops of ``codegen_fast.ops`` are CUDA's, emulated, and take tensors on the CPU.

    seed: the order of blocks, warps and lanes, and when asynchronous copies arrive; the same seed gives the same run.
    multiprocessors: 1 to 63; what kernels choose their grids by, and what no bit may depend on.
    arch: 80 for the paths that kernels take below Hopper. partial: build.link. module: another than emulated_module's.
    A fault in a kernel is a RuntimeError. Operands (PackedWeight, Norm, Batch ...) must be made in such a block.
    Blocks may be nested, for another seed or number of multiprocessors.
    """
    if not 1 <= multiprocessors <= 63:
        raise ValueError(f"multiprocessors: expected 1 to 63, got {multiprocessors}")
    module = module or emulated_module(arch, partial)
    real = ops._C
    names = [name for name, value in vars(ops).items() if hasattr(module, name) and getattr(real, name, None) is value]
    before = {name: getattr(ops, name) for name in names}
    settings = module.settings()
    module.set_settings(seed, multiprocessors)
    for name in names:
        setattr(ops, name, getattr(module, name))
    ops._C = _Overlay(module, real)
    try:
        yield
    finally:
        module.set_settings(*settings)
        ops._C = real
        for name, value in before.items():
            setattr(ops, name, value)
