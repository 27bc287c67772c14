"""What must come back after a request: the pages of every cache, and the memory of the process."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from codegen_fast.cache import PagedCache
from codegen_fast.past import PastKeyValues
from codegen_fast.session import Session


def resident_bytes() -> int:
    """Memory of this process that nothing but swap could take back: anonymous and shared, not mapped files."""
    with open("/proc/self/status") as status:
        return sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem"))) * 1024


def retained_bytes() -> int:
    """resident_bytes() after glibc's allocator, where it is there, has given back what nobody uses."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return resident_bytes()


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]  # fmt: skip


def allocated_bytes() -> int:
    """What the allocator has given out and not got back, however much more it keeps: glibc from 2.33 on, else 0."""
    info = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if info is None:
        return 0
    info.restype = _MallocInfo
    found = info()
    return found.uordblks + found.hblkhd


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class CacheAccounts:
    """Knows every cache that is made while it is open, and which of their pages somebody may still hold.

    Caches of a call end with it; those of sessions and of past_key_values live on, with the pages of what they hold.
    """

    def __init__(self) -> None:
        self.made = 0
        self.collected = 0  # times that a cache was found alive which only Python's collector of cycles could free
        self._alive: weakref.WeakSet[PagedCache] = weakref.WeakSet()
        self._recent: list[PagedCache] = []  # of requests since the last look: their pages must be back, too

    @contextmanager
    def opened(self) -> Iterator[CacheAccounts]:
        make = PagedCache.__init__

        def noted(cache: PagedCache, *arguments: object, **named: object) -> None:
            make(cache, *arguments, **named)
            self._alive.add(cache)
            self._recent.append(cache)
            self.made += 1

        PagedCache.__init__ = noted
        try:
            yield self
        finally:
            PagedCache.__init__ = make

    def faults(self, holders: list[Session | PastKeyValues], *, interrupted: bool = False) -> list[str]:
        """What is not as it must be; [] if all came back. To be called when no request is under way.

        holders: the sessions and caches that are still held. interrupted: Ctrl-C fell into a request, which may leave
        pages behind in a cache that is the call's own, because the cache itself goes.
        """
        held: dict[int, set[int]] = {}  # pages, by their cache
        for holder in holders:
            pages = held.setdefault(id(holder.cache), set())
            sequences = [entry.sequence for entry in holder._entries] if isinstance(holder, Session) else holder.sequences
            pages.update(page for sequence in sequences for page in sequence.pages)
        # Comprehensions: a variable of a loop would keep the last cache alive.
        found = [f"{cache.pages_in_use} of {cache.num_pages} pages of a call's cache were not returned"
                 for cache in self._recent if not interrupted and id(cache) not in held and cache.pages_in_use]
        self._recent.clear()
        if len(self._alive) > len(held):
            self.collected += 1
            gc.collect()
        for cache in self._alive:
            if id(cache) not in held:
                found.append(f"a cache of {cache.storage.nbytes} bytes outlives its call")
            elif cache.pages_in_use != len(held[id(cache)]):
                found.append(f"{cache.pages_in_use} pages are in use, {len(held[id(cache)])} are held")
        return found
