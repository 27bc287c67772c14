"""Where a step of generation happens: a cache, fixed buffers, and the graphs recorded on them (floor 6).

A step is embed -> layers -> lm_head -> sample -> advance: it takes every row's last token and leaves the next one, all
on the device. It is recorded once for each number of rows and each bound of their lengths, and replayed: on CUDA as a
graph, on a CPU as a list of calls, between which Python has nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from . import ops, transfer
from .cache import PagedCache
from .decoder import Decoder, Scratch
from .memory import available_bytes, cache_bytes
from .sampling import choosing_workspace

_MAX_AHEAD = 8  # steps that are enqueued before their tokens are read
_AHEAD_BYTES = 4 << 30  # of weights that those steps read: a millisecond of a fast GPU, and the host is late by less
RING_SLOTS = 16
_FIRST_TOKENS = 64  # new tokens a row that a cache has room for from the start, if not for all
_SMALLEST_SEQ_LEN = 128
_KEPT = 2  # workplaces that a decoder keeps for calls to come
_SHARE = 0.9  # of the memory that is free, for a cache that need not grow
_KEPT_STEPS = 8  # numbers of rows whose steps are kept on a CPU, where they have no buckets
FILTERS = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")  # of sampling; each costs passes over the vocabulary


# ---- Sizes that steps are recorded for ---------------------------------------------------------


def rows_bucket(rows: int) -> int:
    """The number of rows that a recorded step has: 1, 2, 4 ... 64, then multiples of 64."""
    return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64


def seq_len_bucket(length: int, n_positions: int) -> int:
    """The upper bound of lengths that a step is told: a power of two from 128, at most the model's context."""
    return min(max(_SMALLEST_SEQ_LEN, 1 << (length - 1).bit_length()), n_positions)


# ---- Buffers -----------------------------------------------------------------------------------


class _RowState:
    """What every row of a step brings along, one array after another in one piece of memory: one copy moves it."""

    _FIELDS = (("tokens", np.int64), ("seeds", np.int64), ("seq_lens", np.int32), ("remaining", np.int32),
               ("sample_indices", np.int32), ("prompt_lens", np.int32), ("top_k", np.int32),
               ("temperature", np.float32), ("top_p", np.float32),
               *((name, np.float32) for name in FILTERS))  # fmt: skip

    def __init__(self, rows: int, eos_slots: int, device: torch.device) -> None:
        fields = [(name, np.dtype(dtype), rows) for name, dtype in self._FIELDS]
        fields.append(("eos", np.dtype(np.int64), eos_slots))
        fields.sort(key=lambda field: -field[1].itemsize)  # so that all are aligned
        nbytes = sum(dtype.itemsize * count for _, dtype, count in fields)
        self._bytes = np.zeros(nbytes, dtype=np.uint8)
        self._on_host = transfer.is_host(device)  # then both are one memory
        self._on_device = (
            torch.from_numpy(self._bytes) if self._on_host else torch.zeros(nbytes, dtype=torch.uint8, device=device)
        )
        self.host: dict[str, np.ndarray] = {}
        self.device: dict[str, torch.Tensor] = {}
        end = 0
        for name, dtype, count in fields:
            begin, end = end, end + dtype.itemsize * count
            self.host[name] = self._bytes[begin:end].view(dtype)
            torch_dtype = getattr(torch, dtype.name)
            self.device[name] = self._on_device[begin:end].view(torch_dtype)

    def upload(self) -> None:
        """The device gets what the host's arrays hold; no step may be under way."""
        if not self._on_host:
            transfer.write(self._on_device, self._bytes)


class _Buffers:
    """Memory for the steps of up to ``rows`` rows of at most ``max_seq_len`` tokens."""

    def __init__(self, decoder: Decoder, rows: int, max_seq_len: int, page_size: int) -> None:
        config, device = decoder.config, decoder.device
        self.scratch = Scratch(decoder, rows, rows, max_seq_len)
        self.logits = torch.empty(rows, config.vocab_size, dtype=torch.float32, device=device)
        self.sampled = torch.empty(rows, dtype=torch.int64, device=device)
        self.sample_workspace = choosing_workspace(rows, config.vocab_size, device)
        self.page_table = torch.zeros(rows, -(-max_seq_len // page_size), dtype=torch.int32, device=device)
        self.history: torch.Tensor | None = None  # (rows, max_seq_len) int32, where a call needs the tokens so far
        self.step = torch.zeros(1, dtype=torch.int64, device=device)  # steps so far, of all that used these buffers

    def nbytes(self) -> int:
        scratch = self.scratch
        large = (scratch.x, scratch.q, scratch.act, scratch.workspace, self.logits, self.sample_workspace)
        return sum(tensor.nbytes for tensor in large)


class BoundRules(Protocol):
    """What changes logits before a token is chosen; see ``LogitsRules`` in csrc/ops.h."""

    def operands(self, history: torch.Tensor, history_row: torch.Tensor, history_len: torch.Tensor,
                 prompt_len: torch.Tensor) -> ops.LogitsRules: ...  # fmt: skip


@dataclass(frozen=True, eq=False)
class StepKind:
    """What a step does besides the model: the filters of its sampling, and rules for its logits.

    history: the tokens so far are kept beside the rows. Rules need them, and whoever edits the logits on the host.
    """

    filters: tuple[str, ...] = ()  # of FILTERS
    rules: BoundRules | None = None
    history: bool = False

    def key(self) -> tuple[object, ...]:
        return (self.filters, None if self.rules is None else id(self.rules), self.history)


class Step:
    """A step of exactly ``rows`` rows: views of the buffers, the operands of the ops, and the graphs recorded."""

    def __init__(self, decoder: Decoder, buffers: _Buffers, rows: int, eos_slots: int, kind: StepKind) -> None:
        device, scratch = decoder.device, buffers.scratch
        self.rows = rows
        self.kind = kind
        self.state = _RowState(rows, eos_slots, device)
        self.page_table = buffers.page_table[:rows]
        self.logits = buffers.logits[:rows]
        self.ring = ops.new_host_ring(RING_SLOTS, rows, device)
        self.slots = self.ring.slots.numpy()
        self._x, self._q, self._act = scratch.x[:rows], scratch.q[:rows], scratch.act[:rows]
        self._workspace, self._sample_workspace = scratch.workspace, buffers.sample_workspace
        self._sampled, self._count = buffers.sampled[:rows], buffers.step
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(rows, dtype=torch.int32, device=device)
        own = self.state.device
        self._tokens, self._seq_lens, self._remaining, self._eos = (
            own[name] for name in ("tokens", "seq_lens", "remaining", "eos")
        )
        # The token that is sampled after a row's first n tokens has position n.
        self._params = ops.SamplingParams(
            own["temperature"], own["top_k"], own["top_p"], own["seeds"], own["sample_indices"], self._seq_lens,
            **{name: own[name] for name in kind.filters},
        )  # fmt: skip
        self.history = buffers.history[:rows] if kind.history else buffers.page_table[:rows, :0]
        # Whose tokens a row of logits follows, how many they are, and how many of them are the prompt's.
        self.followed = (self.history, self._rows, self._seq_lens, own["prompt_lens"])
        self._rules = kind.rules.operands(*self.followed) if kind.rules is not None else None
        self._batches: dict[int, ops.Batch] = {}
        self._graphs: dict[tuple[int, bool], ops.Graph] = {}

    def forget_graphs(self) -> None:
        self._graphs.clear()

    def run(self, decoder: Decoder, cache: PagedCache, max_seq_len: int, *, choose: bool) -> None:
        """Enqueues a step of sequences that have at most ``max_seq_len`` tokens with their new ones.

        choose: to the end; else only the logits, for the host to look at before ``choose``.
        """
        graph = self._graphs.get((max_seq_len, choose))
        if graph is not None:
            graph.replay()
        else:
            self._compute(decoder, cache, max_seq_len, choose)

    def is_recorded(self, max_seq_len: int, choose: bool) -> bool:
        return (max_seq_len, choose) in self._graphs

    def has_run(self, max_seq_len: int) -> bool:
        return max_seq_len in self._batches

    def record(self, decoder: Decoder, cache: PagedCache, max_seq_len: int, choose: bool) -> None:
        """From now on ``run`` replays a graph for this length."""
        graph = ops.new_graph(self._count)
        with ops.recorded(graph):
            self._compute(decoder, cache, max_seq_len, choose)
        self._graphs[max_seq_len, choose] = graph

    def run_with_states(self, decoder: Decoder, cache: PagedCache, max_seq_len: int) -> list[torch.Tensor]:
        """The logits, and the hidden states on the way: n_layer + 1 tensors (rows, d) of the type of activations."""
        states = [torch.empty_like(self._x) for _ in range(decoder.config.n_layer + 1)]
        self._compute(decoder, cache, max_seq_len, False, states)
        return states

    def choose(self) -> None:
        """The end of a step: every row's next token from ``logits``."""
        if self._rules is not None:
            ops.edit_logits(self.logits, self._rules, self._sample_workspace)
        ops.sample(self._sampled, self.logits, self._params, self._sample_workspace)
        ops.advance(self._tokens, self._seq_lens, self._remaining, self._count, self.history, self.ring, self._sampled,
                    self._eos)  # fmt: skip

    def filter(self, logits: torch.Tensor) -> None:
        """Logits like ``logits``, in place -> the scores that tokens are drawn from; see ``filter_logits``."""
        ops.filter_logits(logits, self._params, self._sample_workspace)

    def _compute(self, decoder: Decoder, cache: PagedCache, max_seq_len: int, choose: bool,
                 states: list[torch.Tensor] | None = None) -> None:  # fmt: skip
        batch = self._batches.get(max_seq_len)
        if batch is None:
            batch = ops.Batch(self._starts, self._seq_lens, self.page_table, self.rows, max_seq_len)
            self._batches[max_seq_len] = batch
        ops.embed(self._x, self._tokens, decoder.weights.embedding)
        decoder.run_layers(self._x, self._q, self._act, cache, batch, True, self._workspace, states)
        decoder.run_lm_head(self.logits, self._x, self._rows, True, self._workspace)
        if choose:
            self.choose()


# ---- Workplaces --------------------------------------------------------------------------------


class Workplace:
    """A cache and the buffers of one call of generation at a time, and what was recorded on them.

    cache: somebody's that outlives the call; without one, a new one.
    """

    def __init__(self, decoder: Decoder, rows: int, max_seq_len: int, cache: PagedCache | None = None) -> None:
        self.cache = decoder.new_cache() if cache is None else cache
        self.lent = cache is not None  # the cache belongs to others, so that later calls must not use it
        self.rows = rows
        self.max_seq_len = max_seq_len
        self.number = 0  # of the last step that was enqueued, as `step` on the device counts
        self.on_gpu = decoder.backend == "cuda"
        self.ahead = 1
        if self.on_gpu:
            self.ahead = max(2, min(_MAX_AHEAD, _AHEAD_BYTES // decoder.weights.nbytes()))
        self._buffers = _Buffers(decoder, rows, max_seq_len, self.cache.page_size)
        self._recorded_pages = self.cache.num_pages  # a cache that has grown lies elsewhere
        self._steps: dict[tuple[object, ...], Step] = {}

    def nbytes(self) -> int:
        return self.cache.storage.nbytes + self._buffers.nbytes()

    def bucket(self, rows: int) -> int:
        return rows_bucket(rows) if self.on_gpu else rows

    def step(self, decoder: Decoder, rows: int, eos_slots: int, kind: StepKind) -> Step:
        """The step of exactly this many rows."""
        step = self._steps.get((rows, eos_slots, *kind.key()))
        if step is None:
            if not self.on_gpu and len(self._steps) >= _KEPT_STEPS:
                self._steps.clear()
            if kind.history and self._buffers.history is None:
                shape = (self.rows, self.max_seq_len)
                self._buffers.history = torch.zeros(shape, dtype=torch.int32, device=decoder.device)
            step = Step(decoder, self._buffers, rows, eos_slots, kind)
            if self.on_gpu:
                # Once with every row idle, unrecorded: kernels are loaded, and errors show, outside a recording.
                self.number += 1
                step.run(decoder, self.cache, self.max_seq_len, choose=True)
            self._steps[(rows, eos_slots, *kind.key())] = step
        return step

    def run(self, decoder: Decoder, step: Step, length: int, *, choose: bool = True) -> None:
        """Enqueues a step after which no sequence has more than ``length`` tokens in the cache.

        choose: to its end; else up to the logits, and ``choose`` must follow.
        """
        bound = seq_len_bucket(length, self.max_seq_len)
        if not self.on_gpu:
            ops.set_num_threads(torch.get_num_threads())
        if self.cache.num_pages != self._recorded_pages:
            for other in self._steps.values():
                other.forget_graphs()
            self._recorded_pages = self.cache.num_pages
        # On a CPU from the second step on: recording takes what Python takes of a step.
        if not step.is_recorded(bound, choose) and (self.on_gpu or step.has_run(bound)):
            step.record(decoder, self.cache, bound, choose)
        if choose:
            self.number += 1  # first: an interruption in between must not leave a step that nobody knows of
        step.run(decoder, self.cache, bound, choose=choose)

    def choose(self, step: Step) -> None:
        self.number += 1
        step.choose()

    def forget_rules(self) -> None:
        """Steps with rules belong to the call that made them."""
        self._steps = {key: step for key, step in self._steps.items() if step.kind.rules is None}


@dataclass(frozen=True)
class Room:
    """What a call of generation needs: how many rows at once, and for which prompts there must be pages from the start.

    rows: at once; prompt_lens: of the prompts that these belong to; longest: tokens of the longest sequence of all.
    """

    rows: int
    prompt_lens: list[int]
    steps: int
    longest: int


@contextmanager
def workplace(decoder: Decoder, room: Room, cache: PagedCache | None = None) -> Iterator[Workplace]:
    """A workplace for the block, its cache with room for what is to come.

    On CUDA it is kept for later calls, unless the block ends with an exception, the cache belongs to somebody, or it
    takes too much memory.
    """
    if decoder.backend != "cuda" or cache is not None:
        rows = rows_bucket(room.rows) if decoder.backend == "cuda" else room.rows
        place = Workplace(decoder, rows, room.longest, cache)
        _make_room(decoder, place.cache, room)
        try:
            yield place
        finally:
            transfer.wait_for(decoder.device)  # its memory is given back
        return
    place = _kept_workplace(decoder, room.rows)
    spare = place is not None or len(decoder.kept) > 0
    try:
        place = place or Workplace(decoder, rows_bucket(room.rows), decoder.config.n_positions)
        _make_room(decoder, place.cache, room)
    except (OSError, torch.OutOfMemoryError):
        if not spare:
            raise
        place = None
    if place is None:  # once more, in the memory of what nobody uses
        decoder.kept.clear()
        place = Workplace(decoder, rows_bucket(room.rows), decoder.config.n_positions)
        _make_room(decoder, place.cache, room)
    try:
        yield place
    except BaseException:
        transfer.wait_for(decoder.device)  # its memory is given back
        raise
    if transfer.wait_for(decoder.device) and not place.lent and place.nbytes() <= _kept_bytes(decoder.device):
        place.forget_rules()
        with decoder.kept_lock:
            decoder.kept = [place, *decoder.kept][:_KEPT]


def _kept_workplace(decoder: Decoder, rows: int) -> Workplace | None:
    """The smallest for this many rows that was kept; it is the caller's now."""
    with decoder.kept_lock:
        place = min((place for place in decoder.kept if place.rows >= rows), key=lambda place: place.rows, default=None)
        if place is not None:
            decoder.kept.remove(place)
    return place


def _make_room(decoder: Decoder, cache: PagedCache, room: Room) -> None:
    """Pages for all tokens of every row where there is memory for them; else for the prompts and the first new tokens.

    Growing later costs a copy, and the old and the new memory at once; on a GPU new recordings too. A system's memory is
    taken when it is written, so that completions which end early cost nothing there.
    """
    prompts = sum(cache.pages_for(n) for n in room.prompt_lens)
    first, whole = (
        # One page more for the one that a sample shares with its prompt, one because pages are taken ahead.
        cache.pages_in_use + prompts + room.rows * (cache.pages_for(n) + 2)
        for n in (min(room.steps, _FIRST_TOKENS), room.steps)
    )
    page = cache_bytes(decoder.config, cache.storage.dtype, cache.page_size)
    available = available_bytes(decoder.device)
    fits = available is None or (whole - cache.num_pages) * page <= _SHARE * available
    cache.grow_to(whole if fits else first)


def _kept_bytes(device: torch.device) -> int:
    """What a workplace may take that nobody uses."""
    return torch.cuda.get_device_properties(device).total_memory // 8 if device.type == "cuda" else 1 << 30
