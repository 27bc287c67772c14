"""Weights and caches of a CPU lie on huge pages where they fill some (csrc/cpu/huge_pages.h)."""

import re
import sys

import pytest
import torch

from codegen_fast import ops
from codegen_fast.cache import PagedCache

HUGE_PAGE = 2 << 20


def advised(tensor: torch.Tensor) -> bool:
    """Whether the system was asked for huge pages where the middle of the tensor lies."""
    at, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if bounds:
                inside = int(bounds[1], 16) <= at < int(bounds[2], 16)
            elif inside and line.startswith("VmFlags:"):
                return "hg" in line.split()
    raise AssertionError("the tensor lies in no mapping")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux")
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux")
def test_a_cache_lies_on_huge_pages():
    cache = PagedCache(2, 1024, torch.float16, "cpu", 1024)
    assert cache.storage.data_ptr() % HUGE_PAGE == 0
    assert advised(cache.storage)
    assert cache.storage.shape == (2, 1024 // cache.page_size, cache.page_size, 2048)
