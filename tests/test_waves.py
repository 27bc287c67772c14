"""Rows that wait for a place: the tokens do not depend on how many run at once, nor on what else is asked for."""
from __future__ import annotations

import pytest
import torch
from checkpoints import make_model
from devices import CPU, EMULATED, per_device
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import codegen_fast
from codegen_fast.generation import waves
from codegen_fast.sampling import mix_seed

SHAPE = dict(n_embd=32, n_head=4, rotary_dim=8, n_layer=2, vocab_size=67, n_positions=300, seed=5)
EOS = list(range(3, 12))  # likely enough that rows end at different times


@pytest.fixture(scope="module")
def model():
    return codegen_fast.accelerate(make_model(**SHAPE))


def prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(12, SHAPE["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


def without_padding(result, columns):
    """New tokens of every row, up to and with its eos token."""
    rows = []
    for row in result[:, columns:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in EOS), len(row))
        assert set(row[end:]) <= {0}
        rows.append(row[:end])
    return rows


CALLS = st.fixed_dictionaries({
    "lengths": st.lists(st.integers(1, 40), min_size=1, max_size=4),
    "samples": st.integers(1, 5),
    "steps": st.integers(1, 24),
    "seed": st.integers(0, 2**64 - 1),
    "knobs": st.fixed_dictionaries({}, optional={
        "temperature": st.floats(0.3, 2.0), "top_k": st.integers(0, 70), "top_p": st.floats(0.1, 1.0),
        "min_p": st.floats(0.0, 0.3), "typical_p": st.floats(0.2, 0.95), "epsilon_cutoff": st.floats(1e-4, 0.05),
        "repetition_penalty": st.floats(0.5, 2.0), "no_repeat_ngram_size": st.integers(1, 3),
        "min_new_tokens": st.integers(1, 8), "suppress_tokens": st.lists(st.integers(0, 66), min_size=1, max_size=9)}),
    "at_once": st.integers(1, 7)})  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=CALLS)
def test_tokens_do_not_depend_on_company(model, call):
    """All at once = in waves = prompt by prompt = one row alone."""
    ids = prompts(call["lengths"])
    knobs = dict(do_sample=True, max_new_tokens=call["steps"], eos_token_id=EOS, pad_token_id=0, **call["knobs"])
    columns, samples = max(call["lengths"]), call["samples"]
    whole = without_padding(model.generate(ids, seed=call["seed"], num_return_sequences=samples, **knobs), columns)
    waved = model.generate(ids, seed=call["seed"], num_return_sequences=samples, max_batch_size=call["at_once"], **knobs)
    assert without_padding(waved, columns) == whole
    prompt = call["at_once"] % len(ids)
    own = mix_seed(call["seed"], prompt)
    alone = model.generate([ids[prompt]], seed=own, num_return_sequences=samples, **knobs)
    assert without_padding(alone, len(ids[prompt])) == whole[prompt * samples : (prompt + 1) * samples]
    last = model.generate([ids[prompt]], seed=own, sample_offset=samples - 1, **knobs)
    assert without_padding(last, len(ids[prompt])) == [whole[(prompt + 1) * samples - 1]]


@per_device((CPU, EMULATED))
def test_rows_replace_those_that_ended(device, monkeypatch):
    """No more run than may, a prompt is computed once, when its first row begins, and no place stays empty."""
    hf = make_model(dtype=torch.float32 if device.backend == "cpu" else torch.float16, **SHAPE)
    model = codegen_fast.accelerate(hf)
    if device.memory.type == "cuda":
        model = model.to(device.memory)
    decoder = model._decoder
    ids = prompts([5, 9, 7])
    knobs = dict(do_sample=True, max_new_tokens=9, eos_token_id=EOS, pad_token_id=0, num_return_sequences=4, seed=7)
    whole = model.generate(ids, **knobs)
    computed, sizes = decoder.prefilled_tokens, []
    from codegen_fast.stepping import SteppingBatch

    step = SteppingBatch.step
    monkeypatch.setattr(SteppingBatch, "step", lambda batch, **how: sizes.append(len(batch)) or step(batch, **how))
    assert torch.equal(model.generate(ids, max_batch_size=3, **knobs), whole)
    assert decoder.prefilled_tokens - computed == 5 + 9 + 7
    ends = without_padding(whole, 9)
    assert max(sizes) == 3 and len({len(row) for row in ends}) > 1
    # A row begins with the token that follows its prompt, so n tokens take n - 1 steps.
    assert sum(sizes) >= sum(len(row) - 1 for row in ends)
    if device.backend == "cpu":
        assert sum(sizes) == sum(len(row) - 1 for row in ends)
        assert sizes.count(3) >= len(sizes) - 3 * 9


def test_waves_fit_the_memory(model, monkeypatch):
    """As many rows as the memory takes, and the same tokens."""
    knobs = dict(do_sample=True, max_new_tokens=6, eos_token_id=None, num_return_sequences=20, seed=1)
    ids = prompts([8])
    whole = model.generate(ids, **knobs)
    needed = []
    for free in (2**21, 2**18):
        monkeypatch.setattr(waves, "available_bytes", lambda device, free=free: free)
        needed.append(waves.rows_at_once(model.config, model.dtype, [8], 20, 6, model.device, limit=None, together=False))
        assert torch.equal(model.generate(ids, **knobs), whole)
    assert 1 <= needed[1] < needed[0] <= 20


def test_who_looks_at_all_rows_gets_them_together(model):
    knobs = dict(do_sample=True, max_new_tokens=3, num_return_sequences=5, eos_token_id=None, seed=1)
    with pytest.raises(ValueError, match="max_batch_size=2 is less than the 5 rows of this call"):
        model.generate(prompts([4]), max_batch_size=2, logits_processor=[lambda ids, scores: scores], **knobs)
    for wrong in (0, -1, 1.5, "4", True):
        with pytest.raises(ValueError, match="max_batch_size"):
            model.generate(prompts([4]), max_batch_size=wrong, **knobs)


def test_prompts_of_different_lengths_need_no_padding(model):
    ids = prompts([3, 7, 5])
    padded = torch.tensor([[0] * (7 - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (7 - len(row)) + [1] * len(row) for row in ids])
    knobs = dict(max_new_tokens=5, eos_token_id=None, pad_token_id=0)
    assert torch.equal(model.generate(ids, **knobs), model.generate(padded, attention_mask=mask, **knobs))
    assert torch.equal(model.generate([torch.tensor(row) for row in ids], **knobs), model.generate(ids, **knobs))
    with pytest.raises(ValueError, match="attention_mask was given with prompts of different lengths"):
        model.generate(ids, attention_mask=mask, **knobs)
    with pytest.raises(ValueError, match="at least one token"):
        model.generate([[5, 6], []], **knobs)
