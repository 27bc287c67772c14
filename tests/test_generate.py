"""generate() against transformers': tokens, shapes, padding, samples, and what it refuses."""
from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import transformers
from checkpoints import make_checkpoint
from pairs import pair, quiet  # noqa: F401  (fixtures)

from codegen_fast import AutoModelForCausalLM, ops
from codegen_fast.sampling import mix_seed

PROMPTS = [[11, 12, 13, 14, 15], [21, 22, 23], [31]]


def left_padded(prompts, pad=0):
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def assert_same(pair, *args, **knobs):
    theirs, ours = pair
    torch.set_num_threads(1)  # on a busy machine torch's own products wait for the second thread, 40 times as long
    expected = theirs.generate(*args, **knobs)
    torch.set_num_threads(2)
    got = ours.generate(*args, **knobs)
    assert got.dtype == torch.int64 and got.device == ours.device
    assert torch.equal(got, expected), f"\n{got.tolist()}\n{expected.tolist()}"
    return got


# ---- Greedy tokens -------------------------------------------------------------------------------

SHAPES = {
    "head 16": dict(vocab_size=97, n_embd=64, n_head=4, rotary_dim=16, n_layer=3),
    "head 64": dict(layout="sharded", vocab_size=131, n_embd=256, n_head=4, rotary_dim=32, n_layer=2),
    "head 80": dict(layout="bin", vocab_size=113, n_embd=320, n_head=4, rotary_dim=64, n_layer=2),
    "head 256": dict(layout="sharded_bin", vocab_size=127, n_embd=1024, n_head=4, rotary_dim=64, n_layer=1),
    "32 heads": dict(vocab_size=101, n_embd=512, n_head=32, rotary_dim=8, n_layer=5, n_inner=96),
    "gptj": dict(model_type="gptj", vocab_size=103, n_embd=96, n_head=6, rotary_dim=8, n_layer=2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_greedy_tokens_are_those_of_transformers(shape, tmp_path):
    theirs = make_checkpoint(tmp_path, seed=7, **SHAPES[shape])
    ours = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids, mask = left_padded(PROMPTS)
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = theirs.double()(ids, attention_mask=mask).logits[mask.bool()]
    torch.set_num_threads(2)
    logits = ours(ids, attention_mask=mask).logits[mask.bool()]
    assert float((logits - expected).norm() / expected.norm()) <= 2e-5
    theirs.float()
    got = assert_same((theirs, ours), ids, attention_mask=mask, max_new_tokens=40, eos_token_id=None)
    assert got.shape == (3, 45)
    for row, prompt in zip(got, PROMPTS):
        alone = ours.generate(torch.tensor([prompt]), max_new_tokens=40, eos_token_id=None)
        assert torch.equal(alone[0], row[5 - len(prompt):])


def test_every_kind_of_ids(pair):
    expected = assert_same(pair, torch.tensor([[5, 6, 7]]), max_new_tokens=4)
    batch = transformers.BatchEncoding({"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3)})
    ours = pair[1]
    for ids in ([[5, 6, 7]], ((5, 6, 7),), np.array([[5, 6, 7]]), np.array([[5, 6, 7]], dtype=np.uint8),
                torch.tensor([[5, 6, 7]], dtype=torch.int32), [torch.tensor([5, 6, 7])]):
        assert torch.equal(ours.generate(ids, max_new_tokens=4), expected)
    assert torch.equal(ours.generate(**batch, max_new_tokens=4), expected)
    assert torch.equal(ours.generate(inputs=torch.tensor([[5, 6, 7]]), max_new_tokens=4), expected)
    assert torch.equal(ours.generate([[5, 6, 7]], [[1, 1, 1]], max_new_tokens=4), expected)
    assert_same(pair, max_new_tokens=4)  # from bos_token_id


def test_lengths(pair):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert assert_same(pair, ids).shape == (2, 23)
    assert assert_same(pair, ids, max_length=9).shape == (2, 9)
    assert assert_same(pair, ids, max_length=4, max_new_tokens=6).shape == (2, 9)
    assert assert_same(pair, torch.arange(50)[None]).shape == (1, 64)
    assert assert_same(pair, torch.arange(50)[None], max_length=64).shape == (1, 64)
    assert assert_same(pair, ids, max_new_tokens=1).shape == (2, 4)


def test_padding_is_inferred_as_transformers_does(pair):
    ids, mask = left_padded(PROMPTS)
    with_mask = assert_same(pair, ids, attention_mask=mask, max_new_tokens=6, pad_token_id=0)
    assert torch.equal(assert_same(pair, ids, max_new_tokens=6, pad_token_id=0), with_mask)
    # pad = eos says nothing about the prompt, and neither does a pad token that nobody named
    ids, mask = left_padded(PROMPTS, pad=2)
    assert not torch.equal(assert_same(pair, ids, max_new_tokens=6, pad_token_id=2),
                           assert_same(pair, ids, attention_mask=mask, max_new_tokens=6, pad_token_id=2))
    assert_same(pair, ids, max_new_tokens=6)


def test_padding_may_hold_any_id(pair):
    ids, mask = left_padded(PROMPTS)
    expected = pair[1].generate(ids, attention_mask=mask, max_new_tokens=5)
    strange = ids.masked_fill(mask == 0, -100)
    got = pair[1].generate(strange, attention_mask=mask.bool(), max_new_tokens=5)
    assert torch.equal(got[:, 5:], expected[:, 5:]) and torch.equal(got[:, :5], strange)


def test_rows_end_at_an_eos_token(pair):
    ids, mask = left_padded(PROMPTS)
    free = assert_same(pair, ids, attention_mask=mask, max_new_tokens=24, eos_token_id=None)
    new = free[:, 5:].tolist()
    for knobs in (dict(eos_token_id=new[0][3]), dict(eos_token_id=new[1][6], pad_token_id=4),
                  dict(eos_token_id=[new[0][9], new[1][2], new[2][5]]),
                  dict(eos_token_id=[new[0][9], new[1][2], new[2][5]], pad_token_id=99),
                  dict(eos_token_id=[row[0] for row in new], pad_token_id=3),
                  dict(eos_token_id=50256, pad_token_id=50256)):
        assert_same(pair, ids, attention_mask=mask, max_new_tokens=24, **knobs)
    # every row has ended: the result is as long as the last of them
    got = assert_same(pair, ids, attention_mask=mask, max_new_tokens=24, eos_token_id=[row[0] for row in new])
    assert got.shape == (3, 6)


def test_generation_config(pair):
    ids = torch.tensor([[5, 6, 7]])
    config = transformers.GenerationConfig(max_new_tokens=7, eos_token_id=2)
    assert assert_same(pair, ids, generation_config=config).shape == (1, 10)
    assert torch.equal(pair[1].generate(ids, generation_config={"max_new_tokens": 7}),
                       pair[1].generate(ids, max_length=10))
    for model in pair:
        model.generation_config.max_new_tokens = 3
    try:
        assert assert_same(pair, ids).shape == (1, 6)
        assert assert_same(pair, ids, max_new_tokens=5).shape == (1, 8)
    finally:
        for model in pair:
            model.generation_config.max_new_tokens = None


def test_warnings_reach_the_caller(pair):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair[1].generate([[5, 6]], max_new_tokens=2, temperature=0.7)
    assert [str(w.message).startswith("do_sample is not True, so temperature=0.7") for w in caught] == [True]
    assert caught[0].filename == __file__


# ---- Samples -------------------------------------------------------------------------------------

HOT = dict(do_sample=True, temperature=1.5, max_new_tokens=12, eos_token_id=None, top_k=0)


def test_any_row_comes_again_alone(pair):
    ours = pair[1]
    ids, mask = left_padded(PROMPTS)
    rows = ours.generate(ids, attention_mask=mask, num_return_sequences=4, seed=77, **HOT)
    assert rows.shape == (12, 17) and torch.equal(rows[:, :5], ids.repeat_interleave(4, 0))
    assert len({tuple(row) for row in rows.tolist()}) == 12
    for row in range(12):
        prompt = torch.tensor([PROMPTS[row // 4]])
        alone = ours.generate(prompt, seed=mix_seed(77, row // 4), sample_offset=row % 4, **HOT)
        assert torch.equal(alone[0, prompt.shape[1]:], rows[row, 5:])
    by_prompt = ours.generate(ids, attention_mask=mask, num_return_sequences=4, **HOT,
                              seed=[mix_seed(77, prompt) for prompt in range(3)])
    assert torch.equal(by_prompt, rows)


def test_every_draw_has_its_own_position(pair, monkeypatch):
    """The position that a token will have among its row's own tokens keys the draw (and nothing of the batch does)."""
    seen, positions = [], {}
    make, sample = ops.SamplingParams, ops.sample

    def made(*tensors):
        params = make(*tensors)
        positions[params] = tensors[-1]
        return params

    def sampled(out, logits, params, workspace):
        seen.append(positions[params].tolist())
        sample(out, logits, params, workspace)

    monkeypatch.setattr(ops, "SamplingParams", made)
    monkeypatch.setattr(ops, "sample", sampled)
    ids, mask = left_padded(PROMPTS)
    pair[1].generate(ids, attention_mask=mask, num_return_sequences=2, seed=1, **{**HOT, "max_new_tokens": 3})
    assert seen == [[5, 5, 3, 3, 1, 1], [6, 6, 4, 4, 2, 2], [7, 7, 5, 5, 3, 3]]


def test_torch_manual_seed_reproduces(pair):
    def draw():
        return pair[1].generate([[5, 6, 7]], num_return_sequences=3, **HOT)

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first) and not torch.equal(first, second)


def test_rows_that_leave_early_do_not_disturb_the_others(pair):
    ours = pair[1]
    free = ours.generate([[5, 6, 7]], num_return_sequences=8, seed=5, **HOT)
    eos = [int(free[1, 3]), int(free[4, 6]), int(free[6, 9])]
    knobs = {**HOT, "eos_token_id": eos, "pad_token_id": 100}
    rows = ours.generate([[5, 6, 7]], num_return_sequences=8, seed=5, **knobs)
    ended = 0
    for row, whole in zip(rows[:, 3:].tolist(), free[:, 3:].tolist()):
        end = next((i + 1 for i, token in enumerate(whole) if token in eos), 12)
        assert row == whole[:end] + [100] * (rows.shape[1] - 3 - end)
        ended += end < 12
    assert ended >= 3


@pytest.mark.parametrize("knobs", [dict(temperature=1.3, top_k=0), dict(temperature=0.9), dict(top_k=7),
                                   dict(top_p=0.8), dict(temperature=2.0, top_k=12, top_p=0.7)])
def test_samples_follow_the_distribution_of_transformers(pair, knobs):
    """The first token of 4000 samples against transformers' own filtered scores: chi-square."""
    theirs, ours = pair
    ids = torch.tensor([[5, 6, 7]])
    scores = theirs.generate(ids, do_sample=True, max_new_tokens=1, return_dict_in_generate=True, output_scores=True,
                             **knobs).scores[0][0]
    expected = 4000 * scores.double().softmax(0)
    drawn = ours.generate(ids, do_sample=True, max_new_tokens=1, num_return_sequences=4000, seed=9, **knobs)[:, 3]
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    large = expected >= 5
    pooled = torch.cat([expected[large], expected[~large].sum()[None]])
    seen = torch.cat([counts[large], counts[~large].sum()[None]])
    keep = pooled > 0
    statistic = float(((seen - pooled)[keep] ** 2 / pooled[keep]).sum())
    freedom = int(keep.sum()) - 1
    # The statistic has mean `freedom` and variance 2 * freedom; 5 deviations is a chance of about 1e-6.
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_a_prompt_is_computed_once_for_all_its_samples(pair):
    decoder = pair[1]._decoder
    ids, mask = left_padded(PROMPTS)
    before = decoder.prefilled_tokens
    pair[1].generate(ids, attention_mask=mask, num_return_sequences=6, seed=1, **HOT)
    assert decoder.prefilled_tokens - before == sum(map(len, PROMPTS))


# ---- Bad prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ids, kind, words", [
    ([[5, 101]], ValueError, ["input_ids[0, 1] is 101", "0 to 100"]),
    ([[5, 6], [-1, 7]], ValueError, ["input_ids[1, 0] is -1"]),
    ([[5, 2**70]], ValueError, ["input_ids[0][1]"]),
    (torch.zeros(1, 0, dtype=torch.long), ValueError, ["empty", "(1, 0)"]),
    ([], ValueError, ["empty"]),
    ([[]], ValueError, ["empty", "at least one token"]),
    (torch.tensor([5, 6]), ValueError, ["(2,)", "unsqueeze(0)"]),
    ([5, 6], ValueError, ["list of lists"]),
    (torch.zeros(1, 2, 3, dtype=torch.long), ValueError, ["(1, 2, 3)"]),
    (torch.tensor(5), ValueError, ["()"]),
    (torch.tensor([[5.0]]), TypeError, ["integers", "torch.float32"]),
    (torch.tensor([[True]]), TypeError, ["torch.bool"]),
    (np.array([[5.0]]), TypeError, ["float64"]),
    ([[5, 6.0]], TypeError, ["input_ids[0][1] is 6.0"]),
    ([[5, True]], TypeError, ["input_ids[0][1] is True"]),
    ([[5, 6], []], ValueError, ["different lengths", "0 to 2", "at least one token"]),
    ("def f():", TypeError, ["str", "tokenize"]),
    ({"input_ids": torch.tensor([[5]])}, TypeError, ["**inputs"]),
    (transformers.BatchEncoding({"input_ids": [[5]]}), TypeError, ["**inputs"]),
])
def test_bad_ids(pair, ids, kind, words):
    with pytest.raises(kind) as caught:
        pair[1].generate(ids, max_new_tokens=2)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("knobs, kind, words", [
    (dict(attention_mask=torch.ones(1, 3)), ValueError, ["attention_mask", "(1, 3)", "(2, 3)"]),
    (dict(attention_mask=torch.ones(2, 1, 3)), ValueError, ["(2, 1, 3)"]),
    (dict(attention_mask=[[1, 1, 1], [1, 1]]), TypeError, ["attention_mask"]),
    (dict(attention_mask="111"), TypeError, ["attention_mask", "str"]),
    (dict(attention_mask=[[1, 1, 1], [0, 2, 1]]), ValueError, ["attention_mask[1, 1] is 2"]),
    (dict(attention_mask=torch.tensor([[1, 1, 1], [0, float("nan"), 1]])), ValueError, ["attention_mask[1, 1] is nan"]),
    (dict(attention_mask=[[1, 1, 1], [1, 0, 1]]), ValueError, ["column 1 of row 1", "left"]),
    (dict(attention_mask=[[1, 1, 0], [1, 1, 1]]), ValueError, ["row 0", "right padding", "padding_side='left'"]),
    (dict(attention_mask=[[1, 1, 1], [0, 0, 0]]), ValueError, ["all of row 1"]),
    (dict(pad_token_id=6), ValueError, ["pad_token_id", "column 1 of row 0", "pass attention_mask"]),
    (dict(pad_token_id=10), ValueError, ["pad_token_id", "row 1", "padding_side='left'"]),
    (dict(inputs=torch.tensor([[5]])), ValueError, ["both input_ids and inputs"]),
    (dict(token_type_ids=torch.zeros(2, 3)), NotImplementedError, ["token_type_ids"]),
    (dict(position_ids=torch.tensor([[0, 1, 5]])), ValueError, ["position_ids"]),
    (dict(streamer=print), TypeError, ["streamer", "put", "end"]),
    (dict(max_new_tokens=62), ValueError, ["65", "64"]),
])
def test_bad_arguments(pair, knobs, kind, words):
    with pytest.raises(kind) as caught:
        pair[1].generate(torch.tensor([[5, 6, 7], [8, 9, 10]]), **{"max_new_tokens": 2, **knobs})
    assert all(word in str(caught.value) for word in words), caught.value


def test_position_ids_that_say_what_happens_anyway(pair):
    ids, mask = left_padded(PROMPTS)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    assert_same(pair, ids, attention_mask=mask, position_ids=positions, max_new_tokens=5)


def test_no_prompt_and_no_bos(pair):
    with pytest.raises(ValueError, match="no bos_token_id"):
        pair[1].generate(bos_token_id=None, max_new_tokens=2)
