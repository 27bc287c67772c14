"""Memory that is not to be had in the middle of a generation."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from codegen_fast import ops

from .subject import Subject, require_error

FULL = "memory, or what this process may have of it, is full: ask for fewer rows or tokens at a time"
_ROOM = 200 << 20  # bytes of address space, more than the calls below need
# As numpy and pybind11 raise it, and torch.
ERRORS = (MemoryError, partial(RuntimeError, "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))


def pages(subject: Subject, times: int) -> str:
    """The page allocator fails when a cache grows in the middle of a generation: a call's own, a session's, one of
    past_key_values, one with shared pages."""
    for i in range(times):
        with subject.model.session() as session:
            past = subject.past()
            kinds = subject.calls(session, past)
            kind = list(kinds)[i % len(kinds)]
            tokens, length = past.cache.pages_in_use, past.get_seq_length()
            with little_memory_is_foretold(), failing_pages(i // len(kinds) % 2, ERRORS[i % 2]) as refused:
                require_error(lambda: kinds[kind](max_new_tokens=500), OSError, FULL)
            assert refused, "no page was asked for"
            assert (past.cache.pages_in_use, past.get_seq_length()) == (tokens, length), "past_key_values has changed"
            subject.require_usable(session, past)
    return "OSError, the caches of callers as they were"


@contextmanager
def little_memory_is_foretold() -> Iterator[None]:
    """A cache then begins with room for the first tokens, and grows."""
    with mock.patch("codegen_fast.workplace.available_bytes", lambda device: 1), \
            mock.patch("codegen_fast.workplace._FIRST_TOKENS", 1):  # fmt: skip
        yield


@contextmanager
def failing_pages(after: int, error: Callable[[], Exception]) -> Iterator[list[int]]:
    """Storage for pages can be had so many times in the block, and not again. The list counts what was refused."""
    make, refused, left = ops.new_pages, [], after

    def limited(*arguments: Any) -> torch.Tensor:
        nonlocal left
        # The smallest storage is of an empty cache: it is growing that fails.
        if arguments[0][1] > 1:
            left -= 1
            if left < 0:
                refused.append(arguments[0][1])
                raise error()
        return make(*arguments)

    with mock.patch.object(ops, "new_pages", limited):
        yield refused


def address_space(subject: Subject, times: int) -> str:
    """A limit on the process's address space, a little wider each time: whatever allocates next fails, ours or torch's, and
    threads that are to be started are not."""
    outcomes: Counter[str] = Counter()
    before, threads = resource.getrlimit(resource.RLIMIT_AS), torch.get_num_threads()
    columns = len(subject.ids) + 2
    torch.set_num_threads(3)
    torch.ones(1 << 22).add_(1)  # torch's threads are there: libgomp ends the process where it gets none
    for i in range(times):
        room = i * _ROOM // times
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + room, before[1]))
            torch.set_num_threads(1 + i % 3)
            subject.model.generate([subject.ids] * 16, max_new_tokens=900, eos_token_id=None, return_dict_in_generate=i % 2 == 0,
                                   stopping_criteria=[lambda ids, scores, **_: ids.shape[1] >= columns])  # fmt: skip
            outcomes["generated"] += 1
        except OSError as error:
            assert FULL in str(error), str(error)
            outcomes["OSError"] += 1
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
            torch.set_num_threads(threads)
        subject.require_returned()
    assert outcomes["OSError"], f"no allocation failed in {times} calls"
    subject.require_usable()
    return f"OSError {outcomes['OSError']} times, {outcomes['generated']} calls went through"


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()
