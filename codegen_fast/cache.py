"""The paged, ragged key/value cache (floor 5).

A sequence owns a list of pages of ``page_size`` tokens; pages are counted, so sequences with a common beginning share
the pages of that beginning, and a page is copied when one of its owners is about to write into it.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch

from . import ops
from .memory import gigabytes
from .transfer import to_device


class Sequence:
    """One token sequence's place in a cache: its length in tokens and its pages, in order."""

    __slots__ = ("length", "pages")

    def __init__(self) -> None:
        self.length = 0
        self.pages: list[int] = []


class PagedCache:
    """Pages for all layers: one tensor (n_layer, num_pages, page_size, 2 * n_embd), grown when it is full.

    Page ids are the same in every layer. On a CPU, memory is taken from the system page by page as it is first written.

    Args:
        n_layer, n_embd: the model's.
        dtype: float32, float16 or bfloat16, the type that keys and values are kept in.
        capacity_tokens: room to make beforehand, so that nothing is copied later.
    """

    def __init__(
        self, n_layer: int, n_embd: int, dtype: torch.dtype, device: torch.device | str = "cpu", capacity_tokens: int = 0
    ) -> None:
        device = torch.device(device)
        self.page_size = ops.kv_page_size(device.type)
        num_pages = max(1, self.pages_for(capacity_tokens))
        self.storage = _new_storage((n_layer, num_pages, self.page_size, 2 * n_embd), dtype, device)
        self.layers = list(self.storage)
        self._free = list(range(num_pages - 1, -1, -1))
        self._owners = [0] * num_pages
        # For caches that outlive a call: held by whoever takes, writes or gives back pages, for a step at a time.
        self.lock = threading.RLock()

    def pages_for(self, tokens: int) -> int:
        """Pages that ``tokens`` tokens of one sequence take."""
        return -(-tokens // self.page_size)

    @property
    def num_pages(self) -> int:
        return len(self._owners)

    @property
    def pages_in_use(self) -> int:
        return len(self._owners) - len(self._free)

    def new_sequence(self) -> Sequence:
        return Sequence()

    def fork(self, sequence: Sequence) -> Sequence:
        """A second sequence with the same tokens so far. It shares all pages; nothing is copied yet."""
        twin = Sequence()
        twin.length = sequence.length
        twin.pages = list(sequence.pages)
        for page in twin.pages:
            self._owners[page] += 1
        return twin

    def release(self, sequence: Sequence) -> None:
        """Gives the sequence's pages back; it is empty afterwards."""
        # First taken from the sequence: what interrupts this may lose pages, but gives none back twice.
        pages, sequence.pages, sequence.length = sequence.pages, [], 0
        self._give_back(pages)

    def reserve(self, sequences: list[Sequence], new_tokens: list[int]) -> None:
        """Makes room for new tokens at the end of each sequence, whose ``length`` stays as it is.

        Afterwards every page that those tokens fall on belongs to its sequence alone.
        """
        copies: list[tuple[Sequence, int, int, int]] = []  # whose page, which one of it, the page, and that of its own
        wanted = sum(
            max(0, self.pages_for(s.length + n) - len(s.pages)) + (n > 0 and self.is_shared(s))
            for s, n in zip(sequences, new_tokens, strict=True)
        )
        if wanted > len(self._free):
            self._grow(max(wanted - len(self._free), len(self._owners) // 2))
        for sequence, n in zip(sequences, new_tokens, strict=True):
            if n == 0:
                continue
            first = sequence.length // self.page_size  # the page that the first new token falls on
            if first < len(sequence.pages) and self._owners[sequence.pages[first]] > 1:
                shared = sequence.pages[first]
                own = self._take()
                copies.append((sequence, first, shared, own))
                self._owners[shared] -= 1
            while len(sequence.pages) < self.pages_for(sequence.length + n):
                sequence.pages.append(self._take())
        if not copies:
            return
        try:
            pages = np.array([[shared, own] for _, _, shared, own in copies], dtype=np.int32)
            source, destination = to_device(pages.T.copy(), self.storage.device)
            for layer in self.layers:
                ops.copy_pages(layer, source, destination)
        except BaseException:
            for _, _, shared, own in copies:
                self._owners[shared] += 1
                self._give_back([own])
            raise
        for sequence, first, _, own in copies:
            sequence.pages[first] = own

    def is_shared(self, sequence: Sequence) -> bool:
        """Whether the page that the sequence's next token falls on belongs to another sequence as well."""
        page = sequence.length // self.page_size
        return page < len(sequence.pages) and self._owners[sequence.pages[page]] > 1

    def crop(self, sequence: Sequence, length: int) -> None:
        """Forgets the tokens from position ``length`` on."""
        keep = self.pages_for(length)
        pages, sequence.pages, sequence.length = sequence.pages[keep:], sequence.pages[:keep], length
        self._give_back(pages)

    def _give_back(self, pages: list[int]) -> None:
        for page in pages:
            self._owners[page] -= 1
            if self._owners[page] == 0:
                self._free.append(page)

    def _take(self) -> int:
        page = self._free.pop()
        self._owners[page] = 1
        return page

    def grow_to(self, num_pages: int) -> None:
        """Makes room for this many pages in all, so that nothing is copied later."""
        if num_pages > len(self._owners):
            self._grow(num_pages - len(self._owners))

    def _grow(self, more: int) -> None:
        old = len(self._owners)
        new = old + more
        n_layer, _, page_size, width = self.storage.shape
        storage = _new_storage((n_layer, new, page_size, width), self.storage.dtype, self.storage.device)
        if self.pages_in_use == 0:
            pass  # nothing to keep
        elif storage.device.type == "cpu":
            # numpy copies on this thread alone: torch's pool would hang in a forked child
            np.copyto(storage.view(torch.uint8).numpy()[:, :old], self.storage.view(torch.uint8).numpy())
        else:
            storage[:, :old] = self.storage
        self.storage, self.layers = storage, list(storage)
        self._free = list(range(new - 1, old - 1, -1)) + self._free
        self._owners += [0] * (new - old)


def _new_storage(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    try:
        return ops.new_pages(shape, dtype, device)
    except torch.OutOfMemoryError as error:
        raise OSError(
            f"a key/value cache of {gigabytes(math.prod(shape) * dtype.itemsize)} does not fit the memory of {device}: "
            "ask for fewer rows or tokens at a time, or use device='cpu'"
        ) from error
