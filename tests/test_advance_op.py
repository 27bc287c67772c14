"""advance: the end of a decode step against csrc/ops.h in plain Python."""

from __future__ import annotations

import pytest
import torch
from devices import CPU, CUDA, per_device
from fences import Fenced

from codegen_fast import ops


def expected(tokens, seq_lens, remaining, history, sampled, eos):
    """The lists after a step, and what the slot gets."""
    slot = []
    for b, token in enumerate(sampled):
        if seq_lens[b] <= 0:
            slot.append(-2)
            continue
        tokens[b] = token
        slot.append(token)
        if seq_lens[b] < len(history[b]):
            history[b][seq_lens[b]] = (token + 2**31) % 2**32 - 2**31  # its low 32 bits
        remaining[b] -= 1
        ended = token < 0 or token in eos or remaining[b] == 0
        seq_lens[b] = 0 if ended else seq_lens[b] + 1
    return slot


@per_device((CPU, *CUDA), rows=(1, 7, 300), columns=(0, 3, 9))
def test_rows_take_their_tokens(device, rows, columns):
    generator = torch.Generator().manual_seed(rows)

    def random(low, high):
        return torch.randint(low, high, (rows,), generator=generator)

    def fenced(values, dtype):
        return Fenced((len(values),), dtype, values=torch.as_tensor(values), memory=device.memory)

    eos, slots = [3, 9, 2**40], 3
    tokens, lens = random(0, 50), random(-1, 6).clamp(min=0)
    remaining, start = random(1, 4), 5
    state = {"tokens": fenced(tokens, torch.int64), "seq_lens": fenced(lens, torch.int32),
             "remaining": fenced(remaining, torch.int32), "step": fenced([start], torch.int64),
             "history": Fenced((rows, columns), torch.int32, gap=5, values=random(0, 99)[:, None].int(),
                               memory=device.memory)}  # fmt: skip
    lists = [state[name].tensor.tolist() for name in ("tokens", "seq_lens", "remaining", "history")]
    ring = ops.new_host_ring(slots, rows, device.memory)
    ring.slots.fill_(-7)
    for step in range(start, start + 5):
        sampled = random(-1, 12)
        sampled[rows // 2] = 2**40 if step == start + 1 else 5
        slot = expected(*lists, sampled.tolist(), eos)
        before = ring.slots.clone()
        given = [fenced(sampled, torch.int64), fenced(eos, torch.int64)]
        ops.advance(*(part.tensor for part in state.values()), ring, *(part.tensor for part in given))
        assert ring.wait(step + 1, given[0].tensor)
        assert ring.slots[step % slots].tolist() == [step + 1, *slot]
        others = [i for i in range(slots) if i != step % slots]
        assert torch.equal(ring.slots[others], before[others])
        for part, values in zip(state.values(), (*lists[:3], [step + 1], lists[3])):
            assert part.check().tolist() == values
        for part in given:
            part.check(slice(0, 0))


@per_device((CPU, *CUDA))
def test_no_eos_tokens(device):
    own = dict(device=device.memory)
    lens, ring = torch.tensor([4, 4], dtype=torch.int32, **own), ops.new_host_ring(1, 2, device.memory)
    tokens, remaining = torch.zeros(2, dtype=torch.int64, **own), torch.tensor([1, 2], dtype=torch.int32, **own)
    sampled, step = torch.tensor([5, 6], **own), torch.zeros(1, dtype=torch.int64, **own)
    history = torch.zeros(2, 0, dtype=torch.int32, **own)
    ops.advance(tokens, lens, remaining, step, history, ring, sampled, torch.zeros(0, dtype=torch.int64, **own))
    assert lens.tolist() == [0, 5] and tokens.tolist() == [5, 6] and ring.slots.tolist() == [[1, 5, 6]]


@per_device((CPU, *CUDA))
def test_counts_at_their_ends(device):
    most, least = 2**31 - 1, -(2**31)
    own = dict(device=device.memory)
    lens, remaining = (torch.tensor(values, dtype=torch.int32, **own) for values in ([most, most - 1], [9, least]))
    tokens, sampled = torch.zeros(2, dtype=torch.int64, **own), torch.tensor([5, 6], **own)
    history, eos = torch.zeros(2, 3, dtype=torch.int32, **own), torch.zeros(0, dtype=torch.int64, **own)
    step, ring = torch.tensor([2**63 - 1], **own), ops.new_host_ring(1, 2, device.memory)
    ops.advance(tokens, lens, remaining, step, history, ring, sampled, eos)
    assert step.tolist() == [-(2**63)] and lens.tolist() == [0, most] and remaining.tolist() == [8, most]
    assert ring.slots.tolist() == [[-(2**63), 5, 6]] and not history.any()
    if device.backend == "cpu":
        with pytest.raises(ValueError, match="step: expected at least 0, got -9223372036854775808"):
            ops.advance(tokens, lens, remaining, step, history, ring, sampled, eos)


def tensors(device):
    own = dict(device=device.memory)
    return {"tokens": torch.zeros(2, dtype=torch.int64, **own), "seq_lens": torch.zeros(2, dtype=torch.int32, **own),
            "remaining": torch.zeros(2, dtype=torch.int32, **own), "step": torch.zeros(1, dtype=torch.int64, **own),
            "history": torch.zeros(2, 8, dtype=torch.int32, **own),
            "ring": ops.new_host_ring(4, 2, device.memory), "sampled": torch.zeros(2, dtype=torch.int64, **own),
            "eos": torch.zeros(3, dtype=torch.int64, **own)}  # fmt: skip


WRONG = {
    "tokens": (lambda t: t["tokens"].int(), TypeError, "tokens: .*int64"),
    "seq_lens": (lambda t: t["seq_lens"][:1], ValueError, r"seq_lens: .*\(1,\)"),
    "remaining": (lambda t: t["remaining"].long(), TypeError, "remaining: .*int32"),
    "step": (lambda t: t["tokens"], ValueError, r"step: .*\(2,\)"),
    "history": (lambda t: t["history"].long(), TypeError, "history: .*int32"),
    "ring": (lambda t: ops.HostRing(t["ring"].slots[:, :2].contiguous()), ValueError, r"slots: .*\(4, 2\)"),
    "sampled": (lambda t: t["sampled"].repeat(2)[::2], ValueError, "sampled"),
    "eos": (lambda t: t["eos"].int(), TypeError, "eos: .*int64"),
}


@per_device((CPU, *CUDA), name=tuple(WRONG))
def test_wrong_arguments(device, name):
    arguments = tensors(device)
    change, kind, words = WRONG[name]
    arguments[name] = change(arguments)
    with pytest.raises(kind, match=words):
        ops.advance(**arguments)


@per_device((CPU, *CUDA))
def test_a_ring_without_slots(device):
    arguments = tensors(device) | {"ring": ops.HostRing(torch.zeros(0, 3, dtype=torch.int64))}
    with pytest.raises(ValueError, match="slots: expected at least one"):
        ops.advance(**arguments)


@per_device((CPU, *CUDA))
def test_histories_of_other_shapes(device):
    arguments = tensors(device)
    for history, words in ((arguments["history"][:1], r"history: expected shape \(2, any\), got \(1, 8\)"),
                           (arguments["history"][:1].expand(2, 8), "history: .*overlap"),
                           (arguments["history"][:, ::2], "history: .*contiguous")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            ops.advance(**arguments | {"history": history})
    ops.advance(**arguments | {"history": arguments["history"][:, :5]})
