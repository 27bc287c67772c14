"""What chooses a token and ends a step: sample, filter_logits, edit_logits, advance."""

from __future__ import annotations

import math

import calls
import reference
import torch
from devices import Device
from fences import FENCE, Fenced, bits, same
from filters import FILTERS, arguments, check, expected, rounded
from test_advance_op import expected as advanced

from codegen_fast import ops

from .bitwise import everywhere, rows_alone
from .chance import Chance

EDGE = 2e-6  # how far, relative to a threshold, a float32 sum of probabilities may be off


def logits_of(chance: Chance, rows: int, vocab: int) -> torch.Tensor:
    """Usual, sharp, flat and coarse rows (many equals), some with logits of minus infinity or far from 0."""
    logits = chance.normal(rows, vocab)
    for row in logits:
        row *= chance.choice((0.05, 1.0, 3.0, 12.0))
        kind = chance.randrange(6)
        if kind == 0:
            row.copy_(row.round())
        elif kind == 1:
            row[: vocab // 2] = -math.inf
        elif kind == 2:
            row += 1000
    return logits


def filters_of(chance: Chance) -> dict:
    """Some filters, in NEUTRAL's order, of any strength."""
    ranges = {
        "top_k": lambda: chance.randint(0, 60), "top_p": lambda: chance.choice((chance.random(), 0.95, 1e-6)),
        "min_p": lambda: chance.choice((chance.random(), 0.02)), "typical_p": lambda: chance.uniform(0.01, 1),
        "epsilon_cutoff": lambda: chance.uniform(1e-4, 0.1), "eta_cutoff": lambda: chance.uniform(1e-4, 0.1),
    }  # fmt: skip
    return {name: draw() for name, draw in ranges.items() if chance.random() < 0.35}


def vocabulary(chance: Chance) -> int:
    return chance.size(300 if chance.small else 1500)


def kept_near_edges(row: torch.Tensor, temperature: float, knobs: dict, at_least: int) -> list[torch.Tensor]:
    """Scores by the reference, with every threshold as it is and a rounding higher and lower: where they differ in what
    they keep, the kernel's float32 may decide."""
    found = [expected(row, temperature, knobs, at_least)]
    for name in knobs:
        if name != "top_k":
            found += [expected(row, temperature, knobs | {name: rounded(knobs[name]) * factor}, at_least)
                      for factor in (1 - EDGE, 1 + EDGE)]  # fmt: skip
    return found


def chosen(chance: Chance, rows: int):
    """(temperatures, knobs, at_least, params, filters) for so many rows."""
    temperatures = [chance.choice((0.0, 0.3, 0.8, 1.0, 1.7)) for _ in range(rows)]
    knobs = [filters_of(chance) for _ in range(rows)]
    at_least = chance.choice((1, 1, 1, 2, 5))
    chance.note(temperatures=temperatures, knobs=knobs, at_least=at_least)
    params, filters = arguments(temperatures, knobs, at_least)
    params = [
        (t, k, p, chance.randint(-(2**63), 2**63 - 1), chance.randrange(50), chance.randrange(2048))
        for t, k, p, *_ in params
    ]
    return temperatures, knobs, at_least, params, filters


def of_every_row(device: Device, chance: Chance, call, logits: torch.Tensor, gap: int, params, filters) -> torch.Tensor:
    """What ``call``, one of calls.sample and calls.filter_logits, gives for all rows."""

    def op(part):
        own = {name: [values[i] for i in part] if name in FILTERS else values for name, values in filters.items()}
        return (call(device, logits[part], [params[i] for i in part], gap=gap, **own),)

    got = everywhere(device, chance, lambda: op(list(range(len(logits)))))
    rows_alone(chance, op, got)
    return got[0]


def filter_logits(device: Device, chance: Chance) -> None:
    rows, vocab = chance.note(rows=min(chance.tokens(), 12), vocab=vocabulary(chance))
    logits, gap = logits_of(chance, rows, vocab), chance.gaps()[0]
    temperatures, knobs, at_least, params, filters = chosen(chance, rows)

    got = of_every_row(device, chance, calls.filter_logits, logits, gap, params, filters)
    for i, (row, scores) in enumerate(zip(logits, got)):
        if temperatures[i] == 0:
            assert torch.equal(bits(scores), bits(row)), f"row {i} of temperature 0 changed"
            continue
        nominal, *near = kept_near_edges(row, temperatures[i], knobs[i], at_least)
        kept = [wanted > -math.inf for wanted in (nominal, *near)]
        if all(torch.equal(kept[0], other) for other in kept):
            check(scores, nominal)
        else:
            # What every one keeps is kept, what none keeps is dropped.
            mine, all_keep = scores > -math.inf, torch.stack(kept)
            assert (mine >= all_keep.all(0)).all() and (mine <= all_keep.any(0)).all(), f"row {i} keeps other tokens"


def sample(device: Device, chance: Chance) -> None:
    """The token is the reference's draw from what filter_logits leaves; where the draw falls on an edge, either."""
    rows, vocab = chance.note(rows=chance.tokens(), vocab=vocabulary(chance))
    logits, gap = logits_of(chance, rows, vocab), chance.gaps()[0]
    if rows and chance.random() < 0.3:
        logits[chance.randrange(rows)] = chance.choice((-math.inf, math.nan, math.inf))
    _, _, _, params, filters = chosen(chance, rows)

    got = of_every_row(device, chance, calls.sample, logits, gap, params, filters)
    scores = calls.filter_logits(device, logits, params, **filters)
    for i, (row, token, (temperature, _, _, *place)) in enumerate(zip(scores, got.tolist(), params)):
        if logits[i].max() == math.inf:
            assert token == -1, f"row {i} with an infinite logit"
            continue
        expected, margin = reference.sample(row, float(temperature > 0), 0, 1.0, *place)
        assert token == expected or margin < EDGE, f"row {i} gives {token}, expected {expected} (margin {margin:.2g})"


def edit_logits(device: Device, chance: Chance) -> None:
    rows, vocab, gap = min(chance.tokens(), 12), 1 + vocabulary(chance), chance.gaps()[0]
    chance.note(rows=rows, vocab=vocab)
    few = [chance.randrange(vocab) for _ in range(3)] + [-1, vocab]  # of few tokens, so that n-grams repeat
    histories = [[chance.choice(few) for _ in range(chance.size(40))] for _ in range(rows)]
    prompt_lens = [chance.randint(0, len(history)) for history in histories]
    logits = 3 * chance.normal(rows, vocab)
    if chance.random() < 0.3:
        logits[:, :: chance.randint(1, 9)] = chance.choice((math.inf, -math.inf, math.nan))

    def some_tokens():
        return [chance.choice(few) for _ in range(chance.randint(1, 4))]

    every = {
        # Biases are multiples of 1/4: any order gives their sum.
        "bias": lambda: [(some_tokens(), chance.randint(-20, 20) / 4) for _ in range(chance.randint(1, 12))],
        "repetition_penalty": lambda: chance.uniform(0.5, 2),
        "no_repeat_ngram_size": lambda: chance.choice((1, 2, 3, 5, 100)),
        "banned": lambda: [some_tokens() for _ in range(chance.randint(1, 12))],
        "min_new_tokens": lambda: chance.randint(0, 20),
        "forced_eos_after": lambda: chance.randint(0, 5), "forced_eos": some_tokens,
        "remove_invalid_values": lambda: True,
        "decay_start": lambda: chance.randint(0, 5), "decay_factor": lambda: chance.uniform(0.9, 1.3),
        "suppressed": some_tokens, "suppressed_at_begin": some_tokens, "eos": some_tokens,
    }  # fmt: skip
    rules = {name: draw() for name, draw in every.items() if chance.random() < 0.35}
    chance.note(rules=rules)

    def op(part):
        made = calls.logits_rules(device, [histories[i] for i in part], [prompt_lens[i] for i in part], **rules)
        return (calls.edit_logits(device, logits[part], made, gap=gap),)

    got = everywhere(device, chance, lambda: op(list(range(rows))))
    rows_alone(chance, op, got)
    for row, history, prompt_len, result in zip(logits, histories, prompt_lens, got[0]):
        assert same(result, reference.edit_logits(row, history, prompt_len, **rules)), "edit_logits"


def advance(device: Device, chance: Chance) -> None:
    rows, columns = chance.note(rows=chance.size(70), columns=chance.choice((0, 1, 3, 9)))
    slots, gap = chance.note(slots=chance.randint(1, 4)), chance.gaps()[0]

    def numbers(low, high):
        return [chance.randint(low, high) for _ in range(rows)]

    start = chance.choice((0, 1, 5, 2**40))
    lists = [numbers(0, 50), numbers(0, 6), numbers(1, 4),
             [[chance.randint(0, 99) for _ in range(columns)] for _ in range(rows)]]  # fmt: skip
    dtypes = (torch.int64, torch.int32, torch.int32, torch.int32)
    begin = [torch.tensor(values, dtype=dtype) for values, dtype in zip(lists, dtypes)]
    begin[3] = begin[3].reshape(rows, columns)
    eos = [chance.randint(0, 12) for _ in range(chance.choice((0, 1, 3)))]
    steps = [[value if chance.random() < 0.9 else chance.choice((-1, 2**40)) for value in numbers(0, 12)]
             for _ in range(chance.randint(1, 4))]  # fmt: skip

    def op(part):
        state = [Fenced(tuple(values[part].shape), values.dtype, gap=gap if values.dim() > 1 else 0, values=values[part],
                        memory=device.memory) for values in begin]  # fmt: skip
        step = Fenced((1,), torch.int64, values=torch.tensor([start]), memory=device.memory)
        ring, memory = fenced_ring(device, slots, len(part))
        told = []
        for number, sampled in enumerate(steps, start):
            given = [calls.guarded(device, torch.tensor(values, dtype=torch.int64))
                     for values in ([sampled[row] for row in part], eos)]  # fmt: skip
            before = memory.clone()
            ops.advance(*(one.tensor for one in state[:3]), step.tensor, state[3].tensor, ring, *given)
            assert ring.wait(number + 1, given[0])
            slot = ring.slots[number % slots].clone()
            ring.slots[number % slots] = before[FENCE:-FENCE].view(ring.slots.shape)[number % slots]
            assert torch.equal(memory, before), "memory beside the slot was written"
            ring.slots[number % slots] = slot
            assert slot[0] == number + 1 == step.check().item()
            told.append(slot[1:])
        return *(one.check().cpu() for one in state), torch.stack(told, 1)

    got = everywhere(device, chance, lambda: op(list(range(rows))))
    expected = [advanced(*lists, sampled, eos) for sampled in steps]
    for mine, values in zip(got, (*lists, [list(told) for told in zip(*expected)]), strict=True):
        assert mine.tolist() == values
    rows_alone(chance, op, got)


def fenced_ring(device: Device, slots: int, rows: int) -> tuple[ops.HostRing, torch.Tensor]:
    """A ring, and the host's memory that it lies in the middle of."""
    memory = torch.full((FENCE + slots * (1 + rows) + FENCE,), -7, dtype=torch.int64,
                        pin_memory=device.memory.type == "cuda")  # fmt: skip
    return ops.HostRing(memory[FENCE:-FENCE].view(slots, 1 + rows)), memory
