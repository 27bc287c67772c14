"""past_key_values of generate: they hold what the result says, whatever ended the rows, and nothing stays behind."""
from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers

import codegen_fast
from codegen_fast.demo import demo_model_path

TEXT = "def f(x):\n    a = 1\n    b = 2\n    c = 3\n    d = 4\n\n\ndef f(x):\n    a = 1\n"


@pytest.fixture(scope="module")
def model():
    return codegen_fast.AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return codegen_fast.AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def ids(tokenizer):
    return tokenizer(TEXT, return_tensors="pt").input_ids


def started(model, ids, **knobs):
    return model.generate(ids, max_new_tokens=12, return_dict_in_generate=True, eos_token_id=None, **knobs)


def continued(model, out, past):
    return model.generate(out.sequences, past_key_values=past, max_new_tokens=8, eos_token_id=None)


@pytest.mark.parametrize("knobs", [
    {}, dict(prompt_lookup_num_tokens=8, num_assistant_tokens_schedule="constant"), dict(use_cache=True, top_k=5),
    dict(prompt_lookup_num_tokens=8, num_assistant_tokens_schedule="constant", stop_strings=["= 2", "c ="]),
    dict(stop_strings=["= 2"])])  # fmt: skip
def test_a_generation_continues(model, tokenizer, ids, knobs):
    """Also where drafts that were accepted reached past the text that ended the row."""
    out = started(model, ids, tokenizer=tokenizer, **knobs)
    past = out.past_key_values
    held = out.sequences.shape[1] - 1
    assert past.get_seq_length() == held and [sequence.length for sequence in past.sequences] == [held]
    cold = model.generate(out.sequences, max_new_tokens=8, eos_token_id=None)
    again = copy.deepcopy(past)
    assert torch.equal(continued(model, out, past), cold)
    assert past.get_seq_length() == cold.shape[1] - 1
    assert torch.equal(continued(model, out, again), cold)


def test_a_stream_over_a_cache_settles_it(model, tokenizer, ids):
    past = started(model, ids).past_key_values
    whole = started(model, ids).sequences
    for _ in range(3):
        text = "".join(piece.text for piece in model.stream(whole, tokenizer=tokenizer, past_key_values=past,
                                                            max_new_tokens=6, eos_token_id=None))
        assert past.cache.pages_in_use == len(past.sequences[0].pages)
        whole = torch.cat([whole, torch.tensor([tokenizer(text)["input_ids"]])], 1)[:, :past.get_seq_length() + 1]
        if whole.shape[1] <= past.get_seq_length():
            break
    stream = model.stream(model.generate(whole, max_new_tokens=2, eos_token_id=None), tokenizer=tokenizer,
                          past_key_values=past, max_new_tokens=6)
    before = past.get_seq_length()
    next(stream)
    stream.close()
    assert past.get_seq_length() == before and past.cache.pages_in_use == len(past.sequences[0].pages)


def test_copies_of_a_cache_in_threads(model, ids):
    out = started(model, ids)
    expected = model.generate(out.sequences, past_key_values=copy.deepcopy(out.past_key_values), max_new_tokens=60,
                              eos_token_id=None)

    def go_on(past):
        return model.generate(out.sequences, past_key_values=past, max_new_tokens=60, eos_token_id=None)

    copies = [copy.deepcopy(out.past_key_values) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(got, expected) for got in pool.map(go_on, copies))


def test_completions_are_no_reason_to_keep_all_caches(model, tokenizer, ids):
    knobs = dict(do_sample=True, num_return_sequences=6, max_new_tokens=9, seed=1, return_dict_in_generate=True)
    whole = model.generate(ids, stop="line", tokenizer=tokenizer, **knobs)
    waved = model.generate(ids, stop="line", tokenizer=tokenizer, max_batch_size=2, **knobs)
    assert whole.completions == waved.completions and waved.past_key_values is None
    assert model.generate(ids, max_batch_size=2, **knobs).past_key_values is None
    assert model.generate(ids, **knobs).past_key_values.get_seq_length() == ids.shape[1] + 8
    assert [len(row) for row in waved.new_tokens] == [len(row) for row in whole.new_tokens]


def test_an_empty_cache_of_transformers_is_none(model, ids):
    with pytest.warns(UserWarning, match="stays empty"):
        got = model.generate(ids, past_key_values=transformers.DynamicCache(), max_new_tokens=3)
    assert torch.equal(got, model.generate(ids, max_new_tokens=3))
    filled = transformers.DynamicCache()
    filled.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    with pytest.raises(TypeError, match="leave it out in the first call"):
        model.generate(ids, past_key_values=filled, max_new_tokens=3)
