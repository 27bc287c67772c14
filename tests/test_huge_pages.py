"""Weights and caches of a CPU lie on huge pages where they fill some (csrc/cpu/huge_pages.h)."""

import gc
import re
import resource
import sys

import pytest
import torch

from codegen_fast import ops
from codegen_fast.cache import PagedCache

HUGE_PAGE = 2 << 20


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux")


def mappings():
    """(first byte, end, name, whether the system was asked for huge pages) of this process's mappings."""
    with open("/proc/self/smaps") as lines:
        for line in lines:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)", line)
            if head:
                begin, end, name = int(head[1], 16), int(head[2], 16), head[3]
            elif line.startswith("VmFlags:"):
                yield begin, end, name, "hg" in line.split()


def advised(tensor: torch.Tensor) -> bool:
    """Whether the system was asked for huge pages where the middle of the tensor lies."""
    at = tensor.data_ptr() + tensor.nbytes // 2
    (found,) = (asked for begin, end, _, asked in mappings() if begin <= at < end)
    return found


@on_linux
@pytest.mark.parametrize("kind", ["int8", "int4", "float32"])
def test_a_weight_that_fills_huge_pages_lies_on_them(kind):
    weight = ops.new_packed_weight(kind, (4096,), (2048,))
    assert weight.data.data_ptr() % HUGE_PAGE == 0
    assert advised(weight.data)
    assert not weight.data.any()


def test_a_small_weight_asks_for_no_more_than_it_needs():
    weight = ops.new_packed_weight("int8", (64,), (64,))
    assert weight.data.data_ptr() % 64 == 0
    assert weight.data.untyped_storage().nbytes() < weight.data.nbytes + 64


@on_linux
def test_a_cache_lies_on_huge_pages():
    cache = PagedCache(2, 1024, torch.float16, "cpu", 1024)
    assert cache.storage.data_ptr() % HUGE_PAGE == 0
    assert advised(cache.storage)
    assert cache.storage.shape == (2, 1024 // cache.page_size, cache.page_size, 2048)


@on_linux
def test_what_is_let_go_is_the_systems_again():
    """The allocator would keep it, and with it the wish for huge pages, for whatever small things come next."""
    for _ in range(50):  # a freed block raises the size from which the allocator maps
        torch.empty(24 << 20, dtype=torch.uint8).fill_(1)
    kept = [PagedCache(2, 1024, torch.float16, "cpu", 512 * n) for n in range(1, 9)]
    for cache in kept:
        cache.storage.fill_(1.0)
    places = [cache.storage.data_ptr() for cache in kept]
    del kept, cache
    gc.collect()
    assert not [name for _, _, name, asked in mappings() if name == "[heap]" and asked]
    assert not any(begin <= place < end for begin, end, _, _ in mappings() for place in places)


@on_linux
def test_memory_that_is_not_to_be_had_is_a_memory_error():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, limits[1]))
        with pytest.raises(MemoryError, match="8589934592 bytes could not be mapped"):
            ops.new_pages((1, 1, 32, 1 << 26), torch.float32, torch.device("cpu"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
