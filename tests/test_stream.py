"""model.stream and model.astream: pieces of text while they come, whole characters, and what closing them leaves."""
from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codegen_fast
from codegen_fast import workplace
from codegen_fast.demo import demo_model_path

PROMPT = "def fibonacci(n):\n"


@pytest.fixture(scope="module")
def model():
    return codegen_fast.AutoModelForCausalLM.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def tokenizer():
    return codegen_fast.AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture
def caches(model, monkeypatch):
    """The caches that calls make, to see that their pages come back."""
    made = []
    decoder = model._decoder
    new_cache = decoder.new_cache
    monkeypatch.setattr(decoder, "new_cache", lambda *args: made.append(new_cache(*args)) or made[-1])
    yield made
    assert made and all(cache.pages_in_use == 0 for cache in made)


def completion(model, tokenizer, prompt=PROMPT, **knobs):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    return tokenizer.decode(model.generate(ids, **knobs)[0, ids.shape[1]:], skip_special_tokens=True)


def test_pieces_are_the_completion(model, tokenizer, caches):
    knobs = dict(max_new_tokens=60, do_sample=True, temperature=0.6, seed=3,
                 suppress_tokens=[tokenizer.eos_token_id])
    pieces = list(model.stream(PROMPT, **knobs))
    assert "".join(piece.text for piece in pieces) == completion(model, tokenizer, **knobs)
    assert len(pieces) > 20 and all(piece.finish_reason is None for piece in pieces[:-1])
    assert pieces[-1].finish_reason == "length" and sum(len(piece.token_ids) for piece in pieces) == 60


def test_a_piece_never_splits_a_character(model, tokenizer):
    """A model that is made to write emoji and accents, whose bytes are spread over tokens."""
    text = "s = 'Grüße 🙂👩‍👩‍👧 漢字 \U0010ffff'"
    wanted = tokenizer(text)["input_ids"]
    prompt = tokenizer("# ")["input_ids"]

    def dictate(ids, scores):
        at = ids.shape[1] - len(prompt)
        forced = torch.full_like(scores, -float("inf"))
        forced[:, wanted[at]] = 0.0
        return forced

    pieces = list(model.stream([prompt], max_new_tokens=len(wanted), logits_processor=[dictate]))
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces) and len(pieces) < len(wanted)


def test_many_rows_and_their_reasons(model, tokenizer, caches):
    knobs = dict(max_new_tokens=90, do_sample=True, temperature=0.8, seed=5, num_return_sequences=6,
                 suppress_tokens=[tokenizer.eos_token_id])
    texts, reasons = [""] * 6, [None] * 6
    for piece in model.stream(PROMPT, stop="function", max_batch_size=2, **knobs):
        assert reasons[piece.row] is None
        texts[piece.row] += piece.text
        reasons[piece.row] = piece.finish_reason
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    whole = model.generate(ids, **knobs)[:, ids.shape[1]:]
    for row in range(6):
        free = tokenizer.decode(whole[row], skip_special_tokens=True)
        assert texts[row] == codegen_fast.truncate(free, "function", prompt=PROMPT)
        assert reasons[row] in ("stop", "length", "eos")
    assert "stop" in reasons


STOPS = ["function", "statement", "line", "truncation", [r"^\s*return", r"\n\n"]]


@settings(max_examples=40, deadline=None)
@given(stop=st.sampled_from(STOPS), seed=st.integers(0, 2**64 - 1), samples=st.integers(1, 4), at_once=st.integers(1, 4),
       prompts=st.lists(st.sampled_from([PROMPT, "class Stack:\n    def push(self, x):\n", "x = [", "import os\n# "]),
                        min_size=1, max_size=3))  # fmt: skip
def test_streams_stops_and_waves_give_the_same_text(model, tokenizer, stop, seed, samples, at_once, prompts):
    """What is streamed = what is kept = the free completion, truncated afterwards; whatever runs beside it."""
    knobs = dict(max_new_tokens=40, do_sample=True, temperature=1.0, seed=seed, num_return_sequences=samples,
                 pad_token_id=tokenizer.eos_token_id)  # fmt: skip
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    free = model.generate(ids, **knobs)[:, max(map(len, ids)):]
    texts = [""] * len(free)
    for piece in model.stream(prompts, stop=stop, max_batch_size=at_once, **knobs):
        texts[piece.row] += piece.text
    kept = model.generate(ids, stop=stop, tokenizer=tokenizer, return_dict_in_generate=True, **knobs)
    for row, text in enumerate(texts):
        whole = free[row].tolist()
        end = whole.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in whole else len(whole)
        whole = tokenizer.decode(whole[:end])
        assert text == codegen_fast.truncate(whole, stop, prompt=prompts[row // samples]) == kept.completions[row]


def test_closing_stops_the_work(model, caches, monkeypatch):
    steps, run = [], workplace.Step.run
    monkeypatch.setattr(workplace.Step, "run", lambda step, *args, **how: steps.append(1) or run(step, *args, **how))
    for _ in (stream := model.stream(PROMPT, max_new_tokens=200)):
        if steps:
            break
    stream.close()
    assert 0 < len(steps) < 10
    before = len(steps)
    time.sleep(0.05)
    assert len(steps) == before
    never_started = model.stream(PROMPT, max_new_tokens=5)
    never_started.close()


def test_a_consumer_that_forgets_the_stream_leaks_nothing(model, caches):
    stream = model.stream(PROMPT, max_new_tokens=100)
    next(stream)
    assert caches[-1].pages_in_use > 0
    del stream
    assert caches[-1].pages_in_use == 0


def test_for_asyncio(model, tokenizer, caches):
    async def collect():
        return [piece async for piece in model.astream(PROMPT, max_new_tokens=30)]

    pieces = asyncio.run(collect())
    assert "".join(piece.text for piece in pieces) == completion(model, tokenizer, max_new_tokens=30)
    assert pieces[-1].finish_reason in ("length", "eos")


def test_asyncio_stays_responsive_and_cancels(model, caches):
    async def scenario():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        async def consume():
            async with aclosing(model.astream(PROMPT, max_new_tokens=1000)) as stream:
                async for piece in stream:
                    pass

        ticker = asyncio.create_task(tick())
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ticker.cancel()
        return ticks

    assert asyncio.run(scenario()) > 5
    deadline = time.monotonic() + 5
    while any(cache.pages_in_use for cache in caches) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if "codegen_fast-stream" in thread.name and thread.is_alive()] \
        or time.monotonic() < deadline


def test_errors(model, tokenizer):
    nameless = codegen_fast.CodeGenForCausalLM(model.config, model._decoder)
    with pytest.raises(ValueError, match="stream needs the tokenizer"):
        nameless.stream("x = 1")
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.stream("x = 1", max_new_tokens=0)
    with pytest.raises(ValueError, match="num_beams=2 cannot be streamed"):
        model.stream("x = 1", num_beams=2)
    with pytest.raises(ValueError, match="at least one token"):
        model.stream("")
    assert "".join(piece.text for piece in nameless.stream("x = 1", tokenizer=tokenizer, max_new_tokens=3))
