"""What tests of speculative decoding share: a small decoder, its rows with drafts and without, and an oracle that drafts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import make_model
from devices import CPU, Device

import codegen_fast
from codegen_fast.generation.speculation import Speculation, SpeculativeBatch
from codegen_fast.sampling import Sampling
from codegen_fast.stepping import Row, SteppingBatch
from codegen_fast.workplace import Room, workplace

SHAPE = dict(n_embd=48, n_head=4, rotary_dim=8, n_layer=2, vocab_size=67, n_positions=300, seed=5)
KINDS = {"float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None), "float16": (torch.float16, None),
         "int8": (torch.float32, "int8"), "int4": (torch.float32, "int4")}  # fmt: skip
GREEDY = Sampling(0.0, 0, 1.0, ())
HOT = Sampling(1.2, 20, 0.9, ())


def decoder_on(device: Device, kind: str = "float32", **shape):
    dtype, quantization = KINDS[kind]
    if device.backend == "cuda" and dtype == torch.float32:
        dtype = torch.float16
    model = codegen_fast.accelerate(make_model(dtype=dtype, **{**SHAPE, **shape}), quantization=quantization)
    return (model.to(device.memory) if device.memory.type == "cuda" else model)._decoder


@pytest.fixture(scope="module")
def decoder():
    return decoder_on(CPU)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, SHAPE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def repetitive(length: int, period: int = 7) -> list[int]:
    return (prompt(period, 11) * length)[:length]


class Run:
    """Rows that go on from prompts, in a batch that ``make(place, on_end)`` gives; ``samples`` of each prompt."""

    def __init__(self, decoder, prompts, make, steps, *, samples=1, seed=9, stop_after=None, at_once=None):
        self.decoder, self.prompts, self.steps = decoder, prompts, steps
        rows = len(prompts) * samples
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.events: list[tuple[list[int], list[int]]] = []
        self.fed: dict[int, int] = {}  # of rows that ended, tokens in their pages
        waiting = list(range(rows))
        at_once = at_once or rows
        room = Room(at_once, [len(p) for p in prompts], steps, max(map(len, prompts)) + steps)
        with workplace(decoder, room) as place:
            self.place, cache = place, place.cache
            held = [cache.new_sequence() for _ in prompts]
            ids = [torch.tensor(p) for p in prompts]
            logits = decoder.prefill(cache, held, ids).logits
            batch = self.batch = make(place, self.ended)
            try:
                while waiting or len(batch):
                    free = at_once - len(batch) if waiting else 0
                    if free and batch.settled:
                        joining = [waiting.pop(0) for _ in range(min(free, len(waiting)))]
                        sources = [row // samples for row in joining]
                        news = [Row(row, np.array(prompts[source], dtype=np.int32), cache.fork(held[source]),
                                    seed + source, row % samples) for row, source in zip(joining, sources)]  # fmt: skip
                        event = batch.start(news, logits, sources)
                    else:
                        event = batch.step(hold=free > 0)
                    self.events.append(event)
                    for row, token in zip(*event):
                        self.tokens[row].append(token)
                    if stop_after is not None:
                        batch.finish([row for row, own in enumerate(self.tokens) if len(own) >= stop_after[row]])
            finally:
                batch.close()
                for sequence in held:
                    cache.release(sequence)
            assert cache.pages_in_use == 0
        self.report = getattr(batch, "report", None)

    def ended(self, row: Row) -> None:
        self.fed[row.index] = row.sequence.length
        self.place.cache.release(row.sequence)


def plain(decoder, prompts, sampling, steps, *, rules=None, **more) -> Run:
    return Run(decoder, prompts, lambda place, on_end: SteppingBatch(
        decoder, place, sampling, steps, rules=rules, on_end=on_end), steps, **more)  # fmt: skip


def speculative(decoder, prompts, sampling, steps, how=Speculation(), *, rules=None, drafter=None, **more) -> Run:
    return Run(decoder, prompts, lambda place, on_end: SpeculativeBatch(
        decoder, place, sampling, steps, how, rules=rules, on_end=on_end,
        drafter=drafter(place) if drafter else None), steps, **more)  # fmt: skip


def same(decoder, prompts, sampling, steps, how, **more) -> Run:
    """A speculative run whose tokens are those of the plain one."""
    expected = plain(decoder, prompts, sampling, steps, **{k: v for k, v in more.items() if k != "drafter"})
    got = speculative(decoder, prompts, sampling, steps, how, **more)
    assert got.tokens == expected.tokens
    assert got.fed == expected.fed
    return got


class Oracle:
    """Drafts what plain decoding gives, every token wrong with a probability."""

    probed = False

    def __init__(self, answers: list[list[int]], wrong: float = 0.0, most_tokens: int = 6, seed: int = 0):
        self.answers, self.wrong, self.most_tokens = answers, wrong, most_tokens
        self.random = np.random.default_rng(seed)
        self.calls = 0

    def seconds_a_token(self, step):
        return 0.0

    def outlook(self, track, limit):
        return limit, 1 - self.wrong

    def prepare(self, tracks):
        pass

    def draft(self, tracks, lengths):
        self.calls += 1
        drafts = []
        for track, length in zip(tracks, lengths):
            done = len(track.row.tokens)
            right = self.answers[track.row.index][done : done + length]
            drafts.append([(token + (self.random.random() < self.wrong)) % SHAPE["vocab_size"] for token in right])
        return drafts

    def verified(self, track, draft, tokens):
        pass

    def stepped(self, track, tokens):
        pass

    def forget(self, track):
        pass

    def close(self):
        pass


FIXED = Speculation(fixed=True)
