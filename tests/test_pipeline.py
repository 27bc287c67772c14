"""Other parts of transformers with our model: pipelines, streamers, and what docs/transformers.md says."""
from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers

import codegen_fast
from codegen_fast.demo import demo_model_path

PROMPT = "def add(a, b):"


@pytest.fixture(scope="module")
def models():
    """(transformers' model, ours)"""
    folder = demo_model_path()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return theirs, codegen_fast.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def their_tokenizer():
    return transformers.AutoTokenizer.from_pretrained(demo_model_path(), pad_token="<|endoftext|>", padding_side="left")


def our_tokenizer():
    return codegen_fast.AutoTokenizer.from_pretrained(demo_model_path(), pad_token="<|endoftext|>")


def pipeline(model, tokenizer, **arguments):
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device=model.device, **arguments)


@pytest.fixture(scope="module")
def pipes(models):
    """transformers' own, one of our model with their tokenizer, one with ours"""
    theirs, ours = models
    return pipeline(theirs, their_tokenizer()), pipeline(ours, their_tokenizer()), pipeline(ours, our_tokenizer())


CALLS = {
    "a prompt": (PROMPT, dict(max_new_tokens=12)),
    "a list": ([PROMPT, "import os\n"], dict(max_new_tokens=8)),
    "a batch": ([PROMPT, "import os\n", "x"], dict(max_new_tokens=8, batch_size=3)),
    "new text": (PROMPT, dict(max_new_tokens=12, return_full_text=False)),
    "ids": (PROMPT, dict(max_new_tokens=5, return_tensors=True)),
    "no prompt": ("", dict(max_new_tokens=5)),
    "max_length": (PROMPT, dict(max_length=20)),
    "beams": (PROMPT, dict(max_new_tokens=8, num_beams=3, num_return_sequences=2)),
    "penalties": (PROMPT, dict(max_new_tokens=12, repetition_penalty=1.4, no_repeat_ngram_size=2)),
    "stop": (PROMPT, dict(max_new_tokens=40, stop_sequence="return")),
    "a long prompt": ("x = [1, 2, 3]\n" * 400, dict(max_new_tokens=5, handle_long_generation="hole")),
    "their config": (PROMPT, dict(generation_config=transformers.GenerationConfig(
        max_new_tokens=9, min_new_tokens=4, do_sample=False))),
}


@pytest.mark.parametrize("name", CALLS)
def test_pipeline(pipes, name):
    inputs, knobs = CALLS[name]
    if "generation_config" not in knobs:
        knobs = {**knobs, "do_sample": False}
    expected, *got = (pipe(inputs, **knobs) for pipe in pipes)
    assert got == [expected] * 2


def test_our_own_arguments_go_through_a_pipeline(pipes):
    pipe = pipes[1]
    first = pipe(PROMPT, max_new_tokens=12, seed=7, num_return_sequences=3)
    assert first == pipe(PROMPT, max_new_tokens=12, seed=7, num_return_sequences=3)
    assert len({each["generated_text"] for each in first}) > 1
    ours = codegen_fast.GenerationConfig(max_new_tokens=6, do_sample=False)
    [whole] = pipe(PROMPT, generation_config=ours)
    assert ours.to_dict() == {"max_new_tokens": 6, "do_sample": False}
    assert whole == pipe(PROMPT, max_new_tokens=6, do_sample=False)[0]


def test_sampling_in_a_pipeline_follows_torch(pipes):
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(pipes[1](PROMPT, max_new_tokens=8))
    assert results[0] == results[1]


def test_a_pipeline_stream(pipes, capsys):
    printed = []
    for pipe in pipes:
        pipe(PROMPT, max_new_tokens=8, do_sample=False, streamer=transformers.TextStreamer(pipe.tokenizer))
        printed.append(capsys.readouterr().out)
    assert printed == [printed[0]] * 3 and PROMPT in printed[0]


def test_a_pipeline_says_what_it_holds(pipes):
    assert len({repr(pipe) for pipe in pipes}) == 1


def test_a_pipeline_with_an_assistant(pipes, models):
    helped = pipeline(models[1], their_tokenizer(), assistant_model=models[1])
    knobs = dict(max_new_tokens=12, do_sample=False)
    assert helped(PROMPT, **knobs) == pipes[1](PROMPT, **knobs)


# ---- Streamers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_text_streamer(models, capsys, skip_prompt):
    tokenizer = their_tokenizer()
    printed = []
    for model in models:
        model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=20, do_sample=False,
                       streamer=transformers.TextStreamer(tokenizer, skip_prompt=skip_prompt))  # fmt: skip
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and (PROMPT in printed[1]) != skip_prompt


def test_text_iterator_streamers(models):
    """Also the one for asyncio."""
    tokenizer = their_tokenizer()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    knobs = dict(max_new_tokens=20, do_sample=False)
    new = models[0].generate(**inputs, **knobs)[0, inputs["input_ids"].shape[1]:]
    expected = tokenizer.decode(new)

    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    worker = threading.Thread(target=models[1].generate, kwargs=dict(**inputs, **knobs, streamer=streamer))
    worker.start()
    assert "".join(streamer) == expected
    worker.join()

    async def collect():
        streamer = transformers.AsyncTextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        worker = threading.Thread(target=models[1].generate, kwargs=dict(**inputs, **knobs, streamer=streamer))
        worker.start()
        text = "".join([piece async for piece in streamer])
        worker.join()
        return text

    assert asyncio.run(collect()) == expected


# ---- The page, and transformers that is not asked for --------------------------------------------


def test_the_snippets_of_the_page_run(capsys):
    page = (Path(__file__).parents[1] / "docs" / "transformers.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 4
    names: dict[str, object] = {}
    for snippet in snippets:
        snippet = snippet.replace("Salesforce/codegen-350M-mono", str(demo_model_path()))
        exec(compile(snippet, "docs/transformers.md", "exec"), names)
    assert "def add(a, b):" in capsys.readouterr().out
    assert isinstance(names["fast"], codegen_fast.CodeGenForCausalLM)


NOT_ASKED_FOR = """
import sys
import codegen_fast
from codegen_fast.demo import demo_model_path
model = codegen_fast.AutoModelForCausalLM.from_pretrained(demo_model_path())
tokenizer = codegen_fast.AutoTokenizer.from_pretrained(demo_model_path())
ids = tokenizer("def f(s")["input_ids"]
model.generate([ids], max_new_tokens=2, token_healing=True)
model.generate([ids], max_new_tokens=2, num_beams=2)
with model.session() as session:
    session.generate([ids], max_new_tokens=2)
assert model.can_generate()
assert not [name for name in sys.modules if name.split(".")[0] == "transformers"]
"""


def test_transformers_is_not_imported():
    done = subprocess.run([sys.executable, "-c", NOT_ASKED_FOR], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
