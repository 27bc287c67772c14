"""One call of every op for tests: inputs between NaNs, outputs poisoned and fenced, scratch poisoned, results checked
for what must stay untouched. And ``Pool``, the paged cache as tests see it.

Tensors come and go on the CPU; for the call they lie where the device has them. Activations have the type of the
tensor that is given.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, replace

import fences
import pytest
import torch
from devices import CPU, Device
from torch import Tensor

from codegen_fast import ops

ROW_GAP = 7  # between the rows of a page table


def fenced(device: Device, shape, dtype, **options) -> fences.Fenced:
    return fences.Fenced(tuple(shape), dtype, memory=device.memory, **options)


def guarded(device: Device, values: Tensor, gap: int = 0) -> Tensor:
    return fences.guarded(values, gap, device.memory)


def scratch(device: Device, nbytes: int) -> fences.Scratch:
    return fences.Scratch(nbytes, device.memory)


def norm_of(device: Device, norm) -> ops.Norm:
    """norm: (weight, bias, eps)."""
    weight, bias, eps = norm
    return ops.Norm(guarded(device, weight), guarded(device, bias), eps)


def new_weight(device: Device, kind: str, sections, segments) -> ops.PackedWeight:
    return ops.new_packed_weight(kind, sections, segments, device.memory)


def pack(device: Device, parts: List[List[Tensor]], kind: str) -> ops.PackedWeight:
    """parts[section][segment] (rows, columns), packed as ``kind``."""
    sections = tuple(row_of_parts[0].shape[0] for row_of_parts in parts)
    weight = new_weight(device, kind, sections, tuple(part.shape[1] for part in parts[0]))
    status = ops.new_pack_status(device.memory)
    for section, row_of_parts in enumerate(parts):
        for segment, part in enumerate(row_of_parts):
            ops.pack(weight, part.to(device.memory), status, section=section, row=0, segment=segment)
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

    def __init__(
        self, dtype: torch.dtype, width: int, *, seed: int, tokens: List[int] = (96,) * 8, device: Device = CPU
    ):
        self.device = device
        self.page_size = ops.kv_page_size(device.memory.type)
        self.width = width
        num_pages = 3 + 2 * sum(self._pages_for(n) for n in tokens)
        shape = (num_pages, self.page_size, 2 * width)
        self.pages = torch.full(shape, float("nan"), dtype=dtype, device=device.memory)
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
        ids = (torch.tensor(pages, dtype=torch.int32, device=self.device.memory) for pages in (source, destination))
        ops.copy_pages(self.pages, *ids)


def make_batch(device: Device, sequences: List[Asked]) -> ops.Batch:
    """The batch of one call; entries of the page table behind a sequence's last page must not be looked at."""
    max_pages = max([len(s.pages) for s in sequences], default=0) + 2
    table = torch.full((len(sequences), max_pages), 2**30, dtype=torch.int32)
    start = [0]
    for b, sequence in enumerate(sequences):
        table[b, : len(sequence.pages)] = torch.tensor(sequence.pages, dtype=torch.int32)
        start.append(start[-1] + sequence.new)
    lengths = [sequence.length for sequence in sequences]
    return ops.Batch(
        guarded(device, torch.tensor(start, dtype=torch.int32)),
        guarded(device, torch.tensor(lengths, dtype=torch.int32)),
        guarded(device, table, ROW_GAP),
        start[-1],
        max(lengths, default=0),
    )


# ---- The ops -----------------------------------------------------------------------------------


def embed(device: Device, ids: Tensor, wte: Tensor, act: torch.dtype) -> Tensor:
    x = fenced(device, (len(ids), wte.shape[1]), act)
    ops.embed(x.tensor, guarded(device, ids), guarded(device, wte))
    return x.check().cpu()


def layer_norm(device: Device, x: Tensor, norm, *, gaps: tuple[int, int] = (0, 0)) -> Tensor:
    """gaps: between the rows of out and of x."""
    out = fenced(device, x.shape, x.dtype, gap=gaps[0])
    ops.layer_norm(out.tensor, guarded(device, x, gap=gaps[1]), norm_of(device, norm))
    return out.check().cpu()


# gaps, where an op takes them: between the rows of its outputs and of its activations


def input_product(
    device, x, norm, w, bias, table, n_head, pool, sequences, phase, *, gaps: tuple[int, int] = (0, 0), cache_alone=False
) -> tuple[Tensor, Tensor]:
    """q (T, rows of q) and act (T, rows of fc_in), no rows of them for cache_alone; k and v go to the pool."""
    tokens, d, inner = len(x), w.sections[0], w.sections[3]
    made = 0 if cache_alone else tokens
    q, act = (fenced(device, (made, width), x.dtype, gap=gaps[0]) for width in (d, d + inner))
    workspace = scratch(device, ops.input_product_workspace(tokens, w))
    ops.input_product(
        q.tensor, act.tensor, pool.pages, guarded(device, x, gaps[1]), norm_of(device, norm), w, guarded(device, bias),
        guarded(device, table), n_head, make_batch(device, sequences), phase == "decode", workspace.tensor,
    )  # fmt: skip
    workspace.check()
    return q.check().cpu().clone(), act.check((..., slice(d, None)))[:, d:].cpu().clone()


def attention(
    device: Device, q: Tensor, n_head: int, pool: Pool, sequences, phase: str, inner: int = 3,
    *, gaps: tuple[int, int] = (0, 0),
) -> Tensor:  # fmt: skip
    """(T, d): the first d columns of act; the others stay as they are."""
    tokens, d = q.shape
    act = fenced(device, (tokens, d + inner), q.dtype, gap=gaps[0])
    batch = make_batch(device, sequences)
    nbytes = ops.attention_workspace(tokens, n_head, d // n_head, batch.max_seq_len, device.memory.type)
    workspace = scratch(device, nbytes)
    ops.attention(act.tensor, guarded(device, q, gaps[1]), pool.pages, n_head, batch, phase == "decode", workspace.tensor)
    workspace.check()
    return act.check((..., slice(0, d)))[:, :d].cpu().clone()


def output_product(
    device: Device, x: Tensor, act: Tensor, w: ops.PackedWeight, bias: Tensor, phase: str,
    *, gaps: tuple[int, int] = (0, 0),
) -> Tensor:  # fmt: skip
    out = fenced(device, x.shape, x.dtype, gap=gaps[0], values=x)
    workspace = scratch(device, ops.output_product_workspace(len(x), w))
    ops.output_product(
        out.tensor, guarded(device, act, gaps[1]), w, guarded(device, bias), phase == "decode", workspace.tensor
    )
    workspace.check()
    return out.check().cpu().clone()


def lm_head(
    device: Device, x: Tensor, rows: Tensor, norm, w: ops.PackedWeight, bias: Tensor, phase: str,
    *, gaps: tuple[int, int] = (0, 0),
) -> Tensor:  # fmt: skip
    logits = fenced(device, (len(rows), w.out_features), torch.float32, gap=gaps[0])
    workspace = scratch(device, ops.lm_head_workspace(len(rows), w))
    ops.lm_head(
        logits.tensor, guarded(device, x, gaps[1]), guarded(device, rows), norm_of(device, norm), w, guarded(device, bias),
        phase == "decode", workspace.tensor,
    )  # fmt: skip
    workspace.check()
    return logits.check().cpu().clone()


def sampling_params(device: Device, params: List[tuple[float, int, float, int, int, int]], **filters):
    """params: a row's (temperature, top_k, top_p, seed, sample_index, position). filters: further arguments of
    SamplingParams by name, an entry a row (min_tokens_to_keep: a number)."""
    dtypes = (torch.float32, torch.int32, torch.float32, torch.int64, torch.int32, torch.int32)
    columns = list(zip(*params)) or [()] * 6
    tensors = [guarded(device, torch.tensor(column, dtype=dtype)) for column, dtype in zip(columns, dtypes)]
    for name, values in filters.items():
        if name != "min_tokens_to_keep":
            filters[name] = guarded(device, torch.tensor(values, dtype=torch.float32))
    return ops.SamplingParams(*tensors, **filters)


def sample(device: Device, logits: Tensor, params, *, gap: int = 0, **filters) -> Tensor:
    """Of sampling_params. gap: between the rows of logits."""
    out = fenced(device, (len(logits),), torch.int64)
    workspace = scratch(device, ops.sample_workspace(*logits.shape, device.memory.type))
    made = sampling_params(device, params, **filters)
    ops.sample(out.tensor, guarded(device, logits, gap), made, workspace.tensor)
    workspace.check()
    return out.check().cpu().clone()


def filter_logits(device: Device, logits: Tensor, params, *, gap: int = 0, **filters) -> Tensor:
    """As sample."""
    out = fenced(device, logits.shape, torch.float32, gap=gap, values=logits)
    workspace = scratch(device, ops.sample_workspace(*logits.shape, device.memory.type))
    ops.filter_logits(out.tensor, sampling_params(device, params, **filters), workspace.tensor)
    workspace.check()
    return out.check().cpu().clone()


def sequence_list(device: Device, sequences: List[List[int]]) -> tuple[Tensor, Tensor]:
    """Sequences of tokens, one after another, and where they start and the last one ends."""
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + len(sequence))
    tokens = [token for sequence in sequences for token in sequence]
    return tuple(guarded(device, torch.tensor(values, dtype=torch.int32)) for values in (tokens, starts))


def logits_rules(
    device: Device, histories: List[List[int]], prompt_lens: List[int], *, bias=(), banned=(), put=None, **rules
) -> ops.LogitsRules:
    """Rules over rows that follow these tokens. The histories lie in another order than the rows, between two spare
    ones, in columns for 3 more tokens; behind a history are tokens that must not count.

    bias: (sequence, value); banned: sequences. put: (name, row, value), an entry of history_row or history_len to
    write over. rules: as of ops.LogitsRules, lists as Python's.
    """
    rows, columns = len(histories), max(map(len, histories), default=0) + 3
    order = torch.randperm(rows + 2, generator=torch.Generator().manual_seed(rows))[:rows]
    store = torch.arange((rows + 2) * columns, dtype=torch.int32).reshape(rows + 2, columns) % 64
    for row, history in zip(order, histories):
        store[row, : len(history)] = torch.tensor(history, dtype=torch.int32)
    per_row = {"history_row": order.int(), "history_len": torch.tensor([len(h) for h in histories], dtype=torch.int32),
               "prompt_len": torch.tensor(prompt_lens, dtype=torch.int32)}  # fmt: skip
    if put is not None:
        name, row, value = put
        per_row[name][row] = value
    for name, value in rules.items():
        if isinstance(value, List):
            rules[name] = guarded(device, torch.tensor(value, dtype=torch.int32))
    if bias:
        rules["bias_tokens"], rules["bias_starts"] = sequence_list(device, [sequence for sequence, _ in bias])
        rules["biases"] = guarded(device, torch.tensor([value for _, value in bias], dtype=torch.float32))
    if banned:
        rules["banned_tokens"], rules["banned_starts"] = sequence_list(device, banned)
    per_row = {name: guarded(device, values) for name, values in per_row.items()}
    return ops.LogitsRules(guarded(device, store, ROW_GAP), **per_row, **rules)


def edit_logits(device: Device, logits: Tensor, rules: ops.LogitsRules, *, gap: int = 0) -> Tensor:
    """gap: between the rows of logits."""
    out = fenced(device, logits.shape, torch.float32, gap=gap, values=logits)
    workspace = scratch(device, ops.edit_logits_workspace(*logits.shape, device.memory.type))
    ops.edit_logits(out.tensor, rules, workspace.tensor)
    workspace.check()
    return out.check().cpu().clone()


def refuses_wrong_logits(device: Device, op, of_rows, shape: tuple[int, int], workspace: Tensor) -> None:
    """Of an op that changes logits in place: their type and their rows, and a workspace that is too small.

    of_rows: its valid argument between logits of this shape and the workspace.
    """
    own = dict(device=device.memory)
    for dtype, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        with pytest.raises(TypeError, match=f"^logits: expected dtype float32, got {name}"):
            op(torch.zeros(shape, dtype=dtype, **own), of_rows, workspace)
    with pytest.raises(ValueError, match="^logits: .*overlap"):
        op(torch.zeros(1, shape[1], **own).expand(shape), of_rows, workspace)
    if len(workspace):
        with pytest.raises(ValueError, match="^workspace: "):
            op(torch.zeros(shape, **own), of_rows, workspace[:-1])
