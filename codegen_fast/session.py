"""Sessions: a cache that is kept across calls and rewound to what the next prompt has in common with earlier ones."""
from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache import PagedCache, Sequence
from .decoder import Decoder
from .generation.checks import as_int

if TYPE_CHECKING:
    from torch import Tensor

    from .generation.text import Piece
    from .model import CodeGenForCausalLM
    from .outputs import GenerateOutput

_DEFAULT_CONTEXTS = 2  # of the model's context: tokens that are kept where the caller names no bound


@dataclass(frozen=True)
class SessionStats:
    """What a session has saved, and what it holds.

    reused_tokens, computed_tokens: tokens of prompts that were in the cache, and those that went through prefill.
    entries: token sequences that are kept. tokens, bytes: what their pages hold; a page that several share counts once.
    reserved_bytes: of the storage behind them, which also had room for the largest call.
    """

    reused_tokens: int
    computed_tokens: int
    entries: int
    tokens: int
    bytes: int
    reserved_bytes: int


@dataclass(frozen=True, eq=False)
class _Entry:
    token_ids: np.ndarray  # (n,) int64: the tokens that `sequence` holds
    sequence: Sequence  # never written to: calls continue forks of it


class Session:
    """The cache of one model, kept from call to call: a prompt is computed from where it differs from earlier ones.

    For an editor that sends a file again after each keystroke, and for the turns of a conversation. Made by
    `model.session()`; `generate`, `stream` and `astream` are the model's. Threads may share a session; one of them
    works at a time.

    max_tokens, max_bytes: what is kept between calls, in whole pages; where there is more, the sequences that were not
    used for the longest time go. Neither: twice the model's context. What a call itself needs comes on top while it
    runs, and the storage doesn't shrink before `close`: it stays as large as the largest call needed it.
    exact: reuse only what prefill computed, so that every call gives the tokens of a call without a session, to the
    last bit. Otherwise generated tokens are reused too; they went through decode steps, which differ from prefill by
    the rounding of the model's type, so that a near tie may fall otherwise.

    A session ends with its last reference, `close()` or a `with` block. After `model.to(...)` that changed the model it
    raises ValueError: make a new one.
    Raises ValueError for bounds that hold no page.
    """

    def __init__(self, model: CodeGenForCausalLM, *, max_tokens: int | None = None, max_bytes: int | None = None,
                 exact: bool = False):
        decoder = model._decoder
        self._model = model
        # The weights that a model leaves behind when it changes its type must not live on here.
        self._decoder = weakref.ref(decoder)
        self._cache: PagedCache | None = decoder.new_cache()
        self._exact = bool(exact)
        self._max_pages = _page_bound(self._cache, max_tokens, max_bytes, _DEFAULT_CONTEXTS * model.config.n_positions)
        self._entries: list[_Entry] = []  # the least recently used first
        self._owners: Counter[int] = Counter()  # entries that hold a page
        self._reused = self._computed = 0
        # Held by whoever takes, writes or gives back pages of the cache, for a step at a time and never across a
        # yield: an iterator may be continued, closed or forgotten in any thread.
        self.lock = self._cache.lock

    # ---- What users call -------------------------------------------------------------------------

    def generate(self, input_ids: Any = None, attention_mask: Any = None, **arguments: Any) -> Tensor | GenerateOutput:
        """model.generate with this session; see CodeGenForCausalLM.generate."""
        return self._model.generate(input_ids, attention_mask, session=self, **arguments)

    def stream(self, prompt: Any, attention_mask: Any = None, **arguments: Any) -> Iterator[Piece]:
        """model.stream with this session; see CodeGenForCausalLM.stream."""
        return self._model.stream(prompt, attention_mask, session=self, **arguments)

    def astream(self, prompt: Any, attention_mask: Any = None, **arguments: Any) -> AsyncIterator[Piece]:
        """model.astream with this session; see CodeGenForCausalLM.astream."""
        return self._model.astream(prompt, attention_mask, session=self, **arguments)

    @property
    def stats(self) -> SessionStats:
        with self.lock:
            cache = self._cache
            page_bytes = 0 if cache is None else _page_bytes(cache)
            pages = len(self._owners)
            return SessionStats(
                reused_tokens=self._reused, computed_tokens=self._computed, entries=len(self._entries),
                tokens=0 if cache is None else pages * cache.page_size, bytes=pages * page_bytes,
                reserved_bytes=0 if cache is None else cache.num_pages * page_bytes)

    def close(self) -> None:
        """Frees the memory, that of calls which still run when they end. New calls are refused with a ValueError."""
        with self.lock:
            while self._entries:
                self._forget(self._entries[0])
            self._cache = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._cache is None:
            return "Session(closed)"
        stats = self.stats
        return (f"Session(entries={stats.entries}, tokens={stats.tokens}, bytes={stats.bytes}, "
                f"reused_tokens={stats.reused_tokens}, computed_tokens={stats.computed_tokens})")

    def __reduce__(self) -> Any:
        raise TypeError("a Session can be neither copied nor pickled: it belongs to a loaded model; make another with "
                        "model.session()")

    # ---- What generation calls, holding `lock` ---------------------------------------------------

    @property
    def cache(self) -> PagedCache:
        """Where the sequences live. Raises ValueError once the session is closed."""
        if self._cache is None:
            raise ValueError("session is closed: make a new one with model.session()")
        return self._cache

    def require(self, decoder: Decoder) -> None:
        """ValueError unless the session is open and of this decoder."""
        if self.cache is not None and self._decoder() is not decoder:
            raise ValueError("session belongs to another model, or was made before this one changed its dtype or "
                             "device: make a new one with model.session()")

    def begin(self, token_ids: Tensor | np.ndarray) -> Sequence:
        """A sequence of `cache` with as much as is known of the prompt token_ids (n,), n >= 1; the caller's.

        It holds at most n - 1 tokens, since the logits of the last one are wanted.
        """
        ids = _as_array(token_ids)
        with self.lock:
            best, reused = None, 0
            for entry in reversed(self._entries):
                common = min(_common_length(entry.token_ids, ids), len(ids) - 1)
                if common > reused:
                    best, reused = entry, common
            self._reused += reused
            self._computed += len(ids) - reused
            if best is None:
                return Sequence()
            self._touch(best)
            sequence = self.cache.fork(best.sequence)
            self.cache.crop(sequence, reused)
            return sequence

    def keep(self, token_ids: Tensor | np.ndarray, sequence: Sequence, prompt_len: int) -> None:
        """Takes over a sequence of `cache` that began with `begin`.

        token_ids: (n,), of which the cache holds the first sequence.length; the first prompt_len went through prefill.
        """
        with self.lock:
            cache = self._cache
            if cache is None:  # closed while the call was running, with which the storage goes
                return
            length = min(sequence.length, self._max_pages * cache.page_size)
            if self._exact:
                length = min(length, prompt_len)
            cache.crop(sequence, length)
            ids = _as_array(token_ids)[:length].copy()
            for entry in list(self._entries):
                common = _common_length(entry.token_ids, ids)
                if common == len(ids):  # nothing new
                    cache.release(sequence)
                    self._touch(entry)
                    return
                if common == len(entry.token_ids):
                    self._forget(entry)
            self._owners.update(sequence.pages)
            self._entries.append(_Entry(ids, sequence))
            while self._entries and len(self._owners) > self._max_pages:
                self._forget(self._entries[0])

    def _touch(self, entry: _Entry) -> None:
        self._entries = [other for other in self._entries if other is not entry] + [entry]

    def _forget(self, entry: _Entry) -> None:
        self._entries = [other for other in self._entries if other is not entry]
        for page in entry.sequence.pages:
            self._owners[page] -= 1
            if self._owners[page] == 0:
                del self._owners[page]
        self._cache.release(entry.sequence)


def _common_length(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two arrays (n,), (m,) have in common from the first on."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    first = int(differs.argmax()) if shorter else 0
    return first if shorter and differs[first] else shorter


def _as_array(token_ids: Any) -> np.ndarray:
    return np.asarray(token_ids, dtype=np.int64)


def _page_bytes(cache: PagedCache) -> int:
    return cache.storage.nbytes // cache.num_pages


def _page_bound(cache: PagedCache, max_tokens: Any, max_bytes: Any, default_tokens: int) -> int:
    """Pages that both bounds allow."""
    if max_tokens is None and max_bytes is None:
        max_tokens = default_tokens
    bounds = []
    for name, value, unit, page in (("max_tokens", max_tokens, "tokens", cache.page_size),
                                    ("max_bytes", max_bytes, "bytes", _page_bytes(cache))):
        if value is None:
            continue
        number = as_int(value)
        if number is None or number < page:
            raise ValueError(f"{name}={value!r} is not allowed: expected a number of {unit} of at least {page}, which "
                             "one page of the cache takes")
        bounds.append(number // page)
    return min(bounds)
