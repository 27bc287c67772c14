"""Mixed requests, drawn by a seeded generator: all that a program may ask of a model, and what it may do wrong."""

from __future__ import annotations

import asyncio
import heapq
import json.decoder
import random
import textwrap
import threading
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from codegen_fast import AutoModelForCausalLM
from codegen_fast.demo import demo_model_path
from codegen_fast.model import CodeGenForCausalLM
from codegen_fast.past import PastKeyValues
from codegen_fast.session import Session

from .trials.callbacks import Broken
from .trials.interruptions import ctrl_c_after

QUANTIZATIONS = (None, "int8")  # of the models that requests go to


@dataclass
class Client:
    """Who asks: models of the same tokenizer, texts to draw prompts from, and what is held between requests."""

    models: list[CodeGenForCausalLM]
    chance: random.Random
    token_ids: list[int]  # of the texts
    session: Session | None = None
    turns: list[int] = field(default_factory=list)  # the conversation so far
    past: PastKeyValues | None = None
    past_ids: torch.Tensor | None = None
    past_model: CodeGenForCausalLM | None = None

    @classmethod
    def of_demo_models(cls, seed: int) -> Client:
        models = [AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, quantization=quantization)
                  for quantization in QUANTIZATIONS]  # fmt: skip
        sources = [Path(module.__file__).read_text() for module in (heapq, json.decoder, textwrap)]
        ids = [token for text in sources for token in models[0]._tokenizer(None)(text)["input_ids"]]
        return cls(models, random.Random(seed), ids)

    @property
    def held(self) -> list[Session | PastKeyValues]:
        return [holder for holder in (self.session, self.past) if holder is not None]

    def let_go(self) -> None:
        """Of all that is held."""
        if self.session is not None:
            self.session.close()
        self.session = self.past = self.past_ids = None

    def model(self) -> CodeGenForCausalLM:
        return self.chance.choice(self.models)

    def prompt(self, most: int = 300) -> list[int]:
        """Token ids: mostly short, now and then up to `most` tokens."""
        length = min(most, 1 + int(self.chance.expovariate(1 / 60)))
        begin = self.chance.randrange(len(self.token_ids) - length)
        return self.token_ids[begin : begin + length]

    def steps(self, most: int = 64) -> int:
        return self.chance.randrange(1, most)


# ---- What comes to its end -----------------------------------------------------------------------


def greedy(client: Client) -> None:
    client.model().generate([client.prompt()], max_new_tokens=client.steps())


def samples(client: Client) -> None:
    chance = client.chance
    knobs: dict[str, Any] = {"temperature": chance.uniform(0.2, 1.5)}
    for name, value in (("top_p", 0.9), ("top_k", 40), ("min_p", 0.05), ("typical_p", 0.9), ("eta_cutoff", 3e-4),
                        ("repetition_penalty", 1.1), ("no_repeat_ngram_size", 3), ("return_logprobs", 2)):  # fmt: skip
        if chance.random() < 0.25:
            knobs[name] = value
    rows = chance.randrange(1, 9)
    if chance.random() < 0.3:
        knobs["max_batch_size"] = chance.randrange(1, rows + 1)
    client.model().generate([client.prompt()], do_sample=True, seed=chance.randrange(2**64), num_return_sequences=rows,
                            max_new_tokens=client.steps(), **knobs)  # fmt: skip


def batches(client: Client) -> None:
    prompts = [client.prompt() for _ in range(client.chance.randrange(2, 9))]
    client.model().generate(prompts, max_new_tokens=client.steps(32))


def beams(client: Client) -> None:
    count = client.chance.randrange(2, 5)
    client.model().generate([client.prompt(100)], num_beams=count, num_return_sequences=client.chance.randrange(1, count),
                            max_new_tokens=client.steps(24), do_sample=client.chance.random() < 0.3, seed=1)  # fmt: skip


def drafts(client: Client) -> None:
    """From the prompt, or from the quantised model for the other."""
    repeated = client.prompt(60) * 3
    if client.chance.random() < 0.5:
        client.model().generate([repeated], max_new_tokens=client.steps(), prompt_lookup_num_tokens=8)
    else:
        client.models[0].generate([repeated], max_new_tokens=client.steps(), assistant_model=client.models[1])


def stops(client: Client) -> None:
    rule = client.chance.choice(["function", "statement", "line", "truncation", [r"\n\n", r"#"]])
    out = client.model().generate([client.prompt()], stop=rule, do_sample=True, seed=client.steps(), num_return_sequences=3,
                                  max_new_tokens=client.steps(), return_dict_in_generate=True)  # fmt: skip
    assert len(out.completions) == 3


def streams(client: Client) -> None:
    text = client.models[0]._tokenizer(None).decode(client.prompt())
    last = None
    for last in client.model().stream(text, do_sample=True, seed=client.steps(), max_new_tokens=client.steps()):
        pass
    assert last is not None and last.finish_reason


def scores(client: Client) -> None:
    model, kind = client.model(), client.chance.randrange(3)
    if kind == 0:
        model.score(client.prompt(), [client.prompt(40) for _ in range(client.chance.randrange(1, 5))], top_k=3)
    elif kind == 1:
        model.perplexity(client.prompt() + client.prompt())
    else:
        model.embed([client.prompt() for _ in range(3)])


def records(client: Client) -> None:
    out = client.model().generate([client.prompt(80), client.prompt(80)], max_new_tokens=client.steps(12),
                                  return_dict_in_generate=True, output_scores=True, output_logits=True,
                                  output_hidden_states=True)  # fmt: skip
    assert len(out.scores) == len(out.logits) == len(out.hidden_states)


def threads(client: Client) -> None:
    """Two at once, on one model or on two."""
    models, jobs = [client.model(), client.model()], [(client.prompt(), client.steps()) for _ in range(2)]
    alone = [model.generate([ids], max_new_tokens=n) for model, (ids, n) in zip(models, jobs)]
    together: list[Any] = [None, None]

    def work(i: int) -> None:
        together[i] = models[i].generate([jobs[i][0]], max_new_tokens=jobs[i][1])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(map(torch.equal, alone, together)), "two threads at once got other tokens than one after another"


def loads(client: Client) -> None:
    """Another copy, used once and dropped."""
    index = client.chance.randrange(len(client.models))
    copy = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, quantization=QUANTIZATIONS[index])
    ids, n = client.prompt(), client.steps(16)
    same = torch.equal(copy.generate([ids], max_new_tokens=n), client.models[index].generate([ids], max_new_tokens=n))
    assert same, "a fresh copy of the model gives other tokens"


# ---- What is held between requests ---------------------------------------------------------------


def chat(client: Client) -> None:
    """A turn of a conversation, in a session that lives for some turns."""
    if client.session is not None and (client.chance.random() < 0.08 or len(client.turns) > 700):
        client.session.close()
        client.session = None
    if client.session is None:
        client.session = client.model().session(max_tokens=1500, exact=client.chance.random() < 0.5)
        client.turns = []
    client.turns += client.prompt(60)
    # The mask, because the end of a text, which also pads, may stand between turns.
    reply = client.session.generate([client.turns], [[1] * len(client.turns)], max_new_tokens=client.steps(32))
    client.turns = reply[0].tolist()


def continued(client: Client) -> None:
    """past_key_values handed on for some calls."""
    if client.past is not None and (client.chance.random() < 0.2 or client.past_ids.shape[1] > 500):
        client.past = client.past_ids = None
    if client.past is None:
        client.past_model, client.past_ids = client.model(), torch.tensor([client.prompt()])
    out = client.past_model.generate(client.past_ids, torch.ones_like(client.past_ids), past_key_values=client.past,
                                     max_new_tokens=client.steps(24), eos_token_id=None, return_dict_in_generate=True)
    client.past, client.past_ids = out.past_key_values, out.sequences


# ---- What is left early, or breaks ---------------------------------------------------------------


def left_streams(client: Client) -> None:
    pieces = client.model().stream([client.prompt(), client.prompt()], max_new_tokens=64, eos_token_id=None)
    for _, _ in zip(range(client.chance.randrange(5)), pieces):
        pass
    pieces.close()


def cancelled_tasks(client: Client) -> None:
    model, ids, after = client.model(), client.prompt(), client.chance.uniform(0, 0.05)

    async def listen() -> None:
        async with aclosing(model.astream([ids], max_new_tokens=200, eos_token_id=None)) as pieces:
            async for _ in pieces:
                pass

    async def cancel() -> None:
        task = asyncio.create_task(listen())
        await asyncio.sleep(after)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass

    asyncio.run(cancel())


def breaking_callbacks(client: Client) -> None:
    left = client.chance.randrange(12)

    def count_down(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Broken("the callback's own error")

    class Streamer:
        put = staticmethod(count_down)

        def end(self) -> None:
            pass

    def processor(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        count_down()
        return logits

    def criterion(ids: torch.Tensor, logits: Any, **_: Any) -> bool:
        count_down()
        return False

    broken = client.chance.choice([{"streamer": Streamer()}, {"logits_processor": [processor]},
                                   {"stopping_criteria": [criterion]}])  # fmt: skip
    if client.session is not None and client.chance.random() < 0.3:
        where, ids = client.session, client.turns or client.prompt()
    else:
        where, ids = client.model(), client.prompt()
    try:
        where.generate([ids], [[1] * len(ids)], max_new_tokens=40, eos_token_id=None, **broken)
    except Broken:
        return
    raise AssertionError("an error of a callback did not reach the caller")


def interrupts(client: Client) -> None:
    """Ctrl-C at a random moment."""
    where = client.session if client.session is not None and client.chance.random() < 0.5 else client.model()
    ids, knobs = client.prompt(), {"max_new_tokens": 64, "do_sample": True, "seed": 1, "num_return_sequences": 2}
    try:
        with ctrl_c_after(client.chance.uniform(0.0005, 0.15)):
            where.generate([ids], **knobs)
    except KeyboardInterrupt:
        pass


# A bad argument, and a part of the sentence that must say so.
_BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"input_ids": [[1, 2, 10**6]]}, "outside the vocabulary"),
    ({"input_ids": [[]]}, "a prompt needs at least one token"),
    ({"input_ids": "def f():"}, "must be a tensor of token ids"),
    ({"max_new_tokens": -1}, "max_new_tokens=-1"),
    ({"max_new_tokens": 5000}, "past the model's context"),
    ({"temperature": 0, "do_sample": True}, "temperature=0 is not allowed"),
    ({"max_new_token": 3}, "unknown knob 'max_new_token'"),
    ({"seed": -1, "do_sample": True}, "seed=-1 is not allowed"),
    ({"stop": "paragraph"}, "paragraph"),
    ({"num_return_sequences": 3}, "needs do_sample=True or num_beams"),
    ({"logits_processor": [lambda ids, scores: scores * float("nan")]}, "holds NaN"),
    ({"logits_processor": [lambda ids, scores: None]}, "logits_processor"),
    ({"past_key_values": object()}, "past_key_values must be"),
)


def mistakes(client: Client) -> None:
    arguments, sentence = client.chance.choice(_BAD)
    try:
        client.model().generate(**{"input_ids": [client.prompt()], "max_new_tokens": 8, **arguments})
    except (ValueError, TypeError) as error:
        assert sentence in str(error), f"{arguments}: {error}"
        return
    raise AssertionError(f"{arguments} was taken")


# Every kind with its share of the requests.
KINDS: dict[Callable[[Client], None], int] = {
    greedy: 4, samples: 4, batches: 3, beams: 3, drafts: 3, stops: 3, streams: 3, scores: 3, records: 2, threads: 2,
    loads: 1, chat: 6, continued: 4, left_streams: 3, cancelled_tasks: 2, breaking_callbacks: 3, interrupts: 3,
    mistakes: 4,
}  # fmt: skip
# Pages of a call's own cache may stay behind in it, because it goes with the call.
INTERRUPTED = (interrupts,)


def draw(chance: random.Random) -> Callable[[Client], None]:
    return chance.choices(list(KINDS), weights=list(KINDS.values()))[0]
