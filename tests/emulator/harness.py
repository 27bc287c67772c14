"""Builds and runs kernels that are not ops: those of the emulator's own tests."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from .build import BINDING, COMMON, HERE, KERNELS, ROOT, engine_sources, link


class Kernels:
    """The kernels of a .cu file that defines kKernels (kernels/harness.h)."""

    def __init__(self, source: Path, arch: int = 90, keep: Path | None = None):
        """keep: build.link"""
        module = f"-DCODEGEN_FAST_EMULATED_SM={arch}"
        sources = [(source, (*COMMON, module, f"-I{HERE / 'kernels'}", *KERNELS))]
        sources += [(HERE / "kernels" / "harness.cpp", (*COMMON, module, *BINDING))]
        sources += [(ROOT / "csrc" / "cuda" / "launch.cpp", (*COMMON, *BINDING))]
        self._library = ctypes.CDLL(str(link("emulated_kernels", sources + engine_sources(), keep=keep)))
        self._library.run.restype = self._library.replay.restype = ctypes.c_char_p

    def run(self, kernel: str, buffers: dict[str, np.ndarray], numbers=(), *, grid=1, threads=32, shared=0, seed=0,
            writable=(), weights=(), captured=False) -> None:  # fmt: skip
        """Runs a kernel over buffers (in their order), of which it may write those named in ``writable``.

        RuntimeError with the message of a fault. captured: records the launch, for replay().
        """
        n = len(buffers)
        blocks = (grid, 1, 1) if isinstance(grid, int) else grid
        message = self._library.run(
            kernel.encode(), ctypes.c_uint64(seed), (ctypes.c_int * 3)(*blocks), threads, ctypes.c_size_t(shared), n,
            (ctypes.c_char_p * n)(*(name.encode() for name in buffers)),
            (ctypes.c_void_p * n)(*(b.ctypes.data for b in buffers.values())),
            (ctypes.c_size_t * n)(*(b.nbytes for b in buffers.values())),
            (ctypes.c_int * n)(*((name in writable) + 2 * (name in weights) for name in buffers)),
            (ctypes.c_int * 6)(*numbers), captured,
        )  # fmt: skip
        if message is not None:
            raise RuntimeError(message.decode())

    def replay(self) -> None:
        message = self._library.replay()
        if message is not None:
            raise RuntimeError(message.decode())
