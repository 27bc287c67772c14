"""Tensors that lie in files, read when they are wanted and never mapped.

Touching a mapped page of a file that somebody has shortened kills the process (SIGBUS). A read says that bytes are
missing, and after each one the file is looked at: what was loaded is one state of it, or an error.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    dtype: torch.dtype | str  # a str where torch has no such type; it cannot be read then
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    offset: int  # bytes from the beginning of the file to the first element


def span_of(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a tensor, gaps included; 0 for an empty one."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides)) if math.prod(shape) else 0


class CheckpointFile:
    """An open file of tensors. What is read lies in one of two buffers, in turns: one is filled while the other is used.

    Rows of a turned matrix lie all over it: it is read once, and kept until its last rows or another tensor are asked for.
    """

    def __init__(self, path: Path, real: Path) -> None:
        """real: the file that path leads to. What has the name now may have become a link or a pipe."""
        self.path, self.real = path, real
        self._descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        weakref.finalize(self, os.close, self._descriptor)
        self._first = os.fstat(self._descriptor)
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]
        self._turned: tuple[StoredTensor, torch.Tensor] | None = None

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return self._first.st_size

    @property
    def identity(self) -> tuple[tuple[int, int], int]:
        """((major, minor) of its device, inode), as /proc names it."""
        return (os.major(self._first.st_dev), os.minor(self._first.st_dev)), self._first.st_ino

    def has_its_name(self) -> bool:
        """Whether what has the file's name is still this file."""
        try:
            now = os.stat(self.real, follow_symlinks=False)
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (self._first.st_dev, self._first.st_ino)

    def read(self, offset: int, count: int, *, keep: bool = False) -> torch.Tensor:
        """(count,) uint8 from `offset` on; overwritten by the second read after this one, unless `keep`.

        Raises OSError if the file ends before that, or is not what it was when it was opened.
        """
        if keep:
            out = torch.empty(count, dtype=torch.uint8)
        else:
            self._buffers.reverse()
            if self._buffers[0].numel() < count:
                self._buffers[0] = torch.empty(0, dtype=torch.uint8)  # first: never the old and the new at once
                self._buffers[0] = torch.empty(count, dtype=torch.uint8)
            out = self._buffers[0][:count]
        self.read_into(out, offset)
        return out

    def read_into(self, out: torch.Tensor, offset: int) -> None:
        """out (count,) uint8 <- the bytes from `offset` on. Raises as `read`."""
        view, done = memoryview(out.numpy()), 0
        while done < len(view):
            more = os.preadv(self._descriptor, [view[done:]], offset + done)
            if more == 0:
                break
            done += more
        self.require_unchanged()
        if done < len(view):
            raise OSError(f"{self.path} is cut off: it has {self.size} bytes, and a tensor of it reaches to byte "
                          f"{offset + len(view)}; download it again")

    def rows(self, tensor: StoredTensor, start: int, count: int) -> torch.Tensor:
        """(count, columns) of a matrix (rows, columns) or (1, rows, columns), with the strides that it has in the file;
        overwritten by the second read after this one."""
        if self._turned is not None and self._turned[0] != tensor:
            self._turned = None  # first: never the old and the new at once
        shape, strides = (count, tensor.shape[-1]), tensor.strides[-2:]
        if strides[1] != 1 and shape[1] > 1:
            if self._turned is None:
                self._turned = tensor, self.whole(tensor).view(tensor.shape[-2:])
            rows = self._turned[1][start:start + count]
            if start + count == tensor.shape[-2]:
                self._turned = None  # of each file of a checkpoint one would stay else
            return rows
        return self._view(tensor, tensor.offset + start * strides[0] * tensor.dtype.itemsize, shape, strides)

    def whole(self, tensor: StoredTensor) -> torch.Tensor:
        """A copy of a tensor."""
        return self._view(tensor, tensor.offset, tensor.shape, tensor.strides, keep=True)

    def _view(self, tensor: StoredTensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *,
              keep: bool = False) -> torch.Tensor:  # fmt: skip
        data = self.read(offset, span_of(shape, strides) * tensor.dtype.itemsize, keep=keep)
        return data.view(tensor.dtype).as_strided(shape, strides)

    def require_unchanged(self) -> None:
        """OSError if somebody has written to the file since it was opened."""
        now, first = os.fstat(self._descriptor), self._first
        if (now.st_size, now.st_mtime_ns) != (first.st_size, first.st_mtime_ns):
            raise OSError(f"{self.path} was changed while it was read (it had {first.st_size} bytes and has "
                          f"{now.st_size} now); load the model again when nothing writes to it")
