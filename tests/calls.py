"""One call of every op for tests: inputs between NaNs, outputs poisoned and fenced, scratch poisoned, results checked
for what must stay untouched. And ``Pool``, the paged cache as tests see it."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, replace

import pytest
import torch
from fences import Fenced, Scratch, guarded
from torch import Tensor

from codegen_fast import ops

CPU = torch.device("cpu")
ROW_GAP = 7  # between the rows of a page table


@pytest.fixture(params=ops.cpu_isas())
def isa(request):
    """Runs a test once for every instruction set that this machine has, the ops on two threads.

    The reference runs on one: torch's waiting threads would take the cores of a busy machine.
    """
    torch.set_num_threads(1)
    before = ops.num_threads()
    ops.set_num_threads(2)
    with ops.forced_isa(request.param):
        yield request.param
    ops.set_num_threads(before)


def pack(parts: List[List[Tensor]], kind: str) -> ops.PackedWeight:
    """parts[section][segment] (rows, columns), packed as ``kind``."""
    sections = tuple(row_of_parts[0].shape[0] for row_of_parts in parts)
    weight = ops.new_packed_weight(kind, sections, tuple(part.shape[1] for part in parts[0]), CPU)
    status = ops.new_pack_status(CPU)
    for section, row_of_parts in enumerate(parts):
        for segment, part in enumerate(row_of_parts):
            ops.pack(weight, part, status, section=section, row=0, segment=segment)
    assert status.tolist() == [0, 0]
    return weight


# ---- Sequences and their pages -----------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A sequence as one call sees it: ``length`` tokens of which the last ``new`` are the call's."""

    pages: tuple[int, ...]
    length: int
    new: int

    def last(self, new: int) -> Asked:
        return replace(self, new=new)

    def up_to(self, length: int) -> Asked:
        return replace(self, length=length, new=min(self.new, length))


class Pool:
    """Pages (num_pages, page_size, 2 d) full of NaN, handed out in shuffled order.

    tokens: the lengths there must be room for, twice over.
    """

    def __init__(self, dtype: torch.dtype, width: int, *, seed: int, tokens: List[int] = (96,) * 8):
        self.page_size = ops.kv_page_size()
        self.width = width
        num_pages = 3 + 2 * sum(self._pages_for(n) for n in tokens)
        self.pages = torch.full((num_pages, self.page_size, 2 * width), float("nan"), dtype=dtype)
        self._free = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).tolist()

    def _pages_for(self, length: int) -> int:
        return -(-length // self.page_size)

    def sequences(self, past_and_new: List[tuple[int, int]]) -> list[Asked]:
        sequences = []
        for past, new in past_and_new:
            pages = tuple(self._free.pop() for _ in range(self._pages_for(past + new)))
            sequences.append(Asked(pages, past + new, new))
        return sequences

    def give_back(self, sequences: List[Asked]) -> None:
        for sequence in sequences:
            self._free.extend(sequence.pages)

    def copy_pages(self, source: List[int], destination: List[int]) -> None:
        ops.copy_pages(
            self.pages, torch.tensor(source, dtype=torch.int32), torch.tensor(destination, dtype=torch.int32)
        )


def make_batch(sequences: List[Asked]) -> ops.Batch:
    """The batch of one call; entries of the page table behind a sequence's last page must not be looked at."""
    max_pages = max([len(s.pages) for s in sequences], default=0) + 2
    table = torch.full((len(sequences), max_pages + ROW_GAP), 2**30, dtype=torch.int32)
    start = [0]
    for b, sequence in enumerate(sequences):
        table[b, : len(sequence.pages)] = torch.tensor(sequence.pages, dtype=torch.int32)
        start.append(start[-1] + sequence.new)
    lengths = [sequence.length for sequence in sequences]
    return ops.Batch(
        guarded(torch.tensor(start, dtype=torch.int32)),
        guarded(torch.tensor(lengths, dtype=torch.int32)),
        table[:, :max_pages],
        start[-1],
        max(lengths, default=0),
    )


# ---- The ops -----------------------------------------------------------------------------------


def embed(ids: Tensor, wte: Tensor) -> Tensor:
    x = Fenced((len(ids), wte.shape[1]), torch.float32)
    ops.embed(x.tensor, guarded(ids), guarded(wte))
    return x.check()


def layer_norm(x: Tensor, norm) -> Tensor:
    out = Fenced(tuple(x.shape), torch.float32)
    ops.layer_norm(out.tensor, guarded(x), ops.Norm(*norm))
    return out.check()


def input_product(x, norm, w, bias, table, n_head, pool, sequences, phase) -> tuple[Tensor, Tensor]:
    """q (T, rows of q) and act (T, rows of fc_in); k and v go to the pool."""
    tokens, d, inner = len(x), w.sections[0], w.sections[3]
    q, act = Fenced((tokens, d), torch.float32), Fenced((tokens, d + inner), torch.float32)
    workspace = Scratch(ops.input_product_workspace(tokens, w))
    ops.input_product(
        q.tensor, act.tensor, pool.pages, guarded(x), ops.Norm(*norm), w, guarded(bias), guarded(table), n_head,
        make_batch(sequences), phase == "decode", workspace.tensor,
    )  # fmt: skip
    workspace.check()
    return q.check().clone(), act.check((..., slice(d, None)))[:, d:].clone()


def attention(q: Tensor, n_head: int, pool: Pool, sequences, phase: str, inner: int = 3) -> Tensor:
    """(T, d): the first d columns of act; the others stay as they are."""
    tokens, d = q.shape
    act = Fenced((tokens, d + inner), torch.float32)
    batch = make_batch(sequences)
    workspace = Scratch(ops.attention_workspace(tokens, n_head, d // n_head, batch.max_seq_len))
    ops.attention(act.tensor, guarded(q), pool.pages, n_head, batch, phase == "decode", workspace.tensor)
    workspace.check()
    return act.check((..., slice(0, d)))[:, :d].clone()


def output_product(x: Tensor, act: Tensor, w: ops.PackedWeight, bias: Tensor, phase: str) -> Tensor:
    out = Fenced(tuple(x.shape), torch.float32, values=x)
    workspace = Scratch(ops.output_product_workspace(len(x), w))
    ops.output_product(out.tensor, guarded(act), w, guarded(bias), phase == "decode", workspace.tensor)
    workspace.check()
    return out.check().clone()


def lm_head(x: Tensor, rows: Tensor, norm, w: ops.PackedWeight, bias: Tensor, phase: str) -> Tensor:
    logits = Fenced((len(rows), w.out_features), torch.float32)
    workspace = Scratch(ops.lm_head_workspace(len(rows), w))
    ops.lm_head(
        logits.tensor, guarded(x), guarded(rows), ops.Norm(*norm), w, guarded(bias), phase == "decode", workspace.tensor
    )
    workspace.check()
    return logits.check().clone()


def sample(logits: Tensor, params: List[tuple[float, int, float, int, int, int]]) -> Tensor:
    """params: a row's (temperature, top_k, top_p, seed, sample_index, position)."""
    dtypes = (torch.float32, torch.int32, torch.float32, torch.int64, torch.int32, torch.int32)
    columns = list(zip(*params)) or [()] * 6
    tensors = [guarded(torch.tensor(column, dtype=dtype)) for column, dtype in zip(columns, dtypes)]
    out = Fenced((len(logits),), torch.int64)
    workspace = Scratch(ops.sample_workspace(*logits.shape))
    ops.sample(out.tensor, guarded(logits), ops.SamplingParams(*tensors), workspace.tensor)
    workspace.check()
    return out.check().clone()
