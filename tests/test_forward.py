"""model(...) against transformers': logits, loss, hidden states, stepwise use, padding on both sides."""
from __future__ import annotations

import pytest
import torch
import transformers
from checkpoints import make_checkpoint
from devices import CUDA, per_device

from codegen_fast import AutoModelForCausalLM

IDS = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25], [31, 32, 33, 34, 35]])
LEFT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
RIGHT = LEFT.flip(1)
NO_LABEL = -100


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs = make_checkpoint(folder, seed=5)
    return theirs, AutoModelForCausalLM.from_pretrained(folder)


def assert_close(got, expected, bound=2e-5):
    """Relative to the largest value, as the logits' bound is stated."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert float(error) <= bound


@torch.no_grad()
def test_logits_loss_and_hidden_states(pair):
    theirs, ours = pair
    labels = IDS.clone()
    labels[1, :3] = NO_LABEL
    expected = theirs(IDS, labels=labels, output_hidden_states=True)
    got = ours(IDS, labels=labels, output_hidden_states=True)
    assert got.logits.dtype == torch.float32 and not got.logits.requires_grad
    assert_close(got.logits, expected.logits)
    assert_close(got.loss, expected.loss)
    assert len(got.hidden_states) == 3 == len(expected.hidden_states)
    for ours_layer, theirs_layer in zip(got.hidden_states, expected.hidden_states):
        assert_close(ours_layer, theirs_layer)


@torch.no_grad()
@pytest.mark.parametrize("mask", [LEFT, RIGHT, LEFT.bool(), LEFT.float()])
def test_padding(pair, mask):
    """At real tokens as transformers; zeros elsewhere; each row as it is alone."""
    theirs, ours = pair
    real = mask != 0
    # A label after padding is one that transformers predicts from the padding, and that does not count here.
    predicted = real & torch.cat([torch.ones(3, 1, dtype=torch.bool), real[:, :-1]], 1)
    labels = IDS.masked_fill(~predicted, NO_LABEL)
    expected = theirs(IDS, attention_mask=mask.long(), labels=labels, output_hidden_states=True)
    got = ours(IDS, attention_mask=mask, labels=labels, output_hidden_states=True)
    assert_close(got.logits[real], expected.logits[real])
    assert_close(got.loss, expected.loss)
    assert torch.equal(ours(IDS, attention_mask=mask, labels=IDS.masked_fill(~real, NO_LABEL)).loss, got.loss)
    assert got.logits[~real].abs().max() == 0
    for ours_layer, theirs_layer in zip(got.hidden_states, expected.hidden_states):
        assert_close(ours_layer[real], theirs_layer[real])
        assert ours_layer[~real].abs().max() == 0
    for row in range(3):
        alone = ours(IDS[row, real[row]][None])
        assert torch.equal(alone.logits[0], got.logits[row, real[row]])


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, LEFT])
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1), (3, 1, 1), (2, 3)])
def test_stepwise(pair, mask, cuts):
    theirs, ours = pair
    if mask is not None and cuts[0] < 5:
        cuts = (5, 2, 1)
    ids = torch.cat([IDS, IDS + 40], 1)[:, :sum(cuts)]
    mask = torch.cat([mask, torch.ones_like(IDS)], 1)[:, :sum(cuts)] if mask is not None else None
    whole = ours(ids, attention_mask=mask).logits
    past, pieces, at = None, [], 0
    for count in cuts:
        at += count
        out = ours(ids[:, at - count:at], attention_mask=None if mask is None else mask[:, :at], past_key_values=past,
                   use_cache=True)
        past = out.past_key_values
        assert past.get_seq_length() == at
        pieces.append(out.logits)
    assert_close(torch.cat(pieces, 1), whole)
    expected = theirs(ids, attention_mask=mask).logits
    real = mask.bool() if mask is not None else torch.ones_like(ids, dtype=torch.bool)
    assert_close(torch.cat(pieces, 1)[real], expected[real])


@torch.no_grad()
def test_greedy_steps_by_hand_are_generate(pair):
    ours = pair[1]
    expected = ours.generate(IDS, max_new_tokens=8, eos_token_id=None)
    out = ours(IDS)
    tokens = [out.logits[:, -1].argmax(-1, keepdim=True)]
    for _ in range(7):
        out = ours(tokens[-1], past_key_values=out.past_key_values)
        tokens.append(out.logits[:, -1].argmax(-1, keepdim=True))
    assert torch.equal(torch.cat([IDS, *tokens], 1), expected)


@torch.no_grad()
def test_logits_to_keep(pair):
    theirs, ours = pair
    whole = ours(IDS).logits
    for keep in (1, 3, 99, torch.tensor([0, 4])):
        got = ours(IDS, logits_to_keep=keep).logits
        assert_close(got, theirs(IDS, logits_to_keep=keep).logits)
        assert_close(got, whole[:, keep] if isinstance(keep, torch.Tensor) else whole[:, -keep:])
    assert_close(ours(IDS, attention_mask=LEFT, logits_to_keep=1).logits[:, 0],
                 theirs(IDS, attention_mask=LEFT, logits_to_keep=1).logits[:, 0])
    assert ours(IDS, attention_mask=RIGHT, logits_to_keep=1).logits[1:].abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(dtype, tmp_path):
    """No worse than 1.25 times what transformers errs in that type, against float32."""
    theirs = make_checkpoint(tmp_path, seed=5, dtype=dtype)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path)
    got = ours(IDS, output_hidden_states=True)
    assert got.logits.dtype == torch.float32
    assert {states.dtype for states in got.hidden_states} == {dtype} == {ours.dtype}
    narrow = theirs(IDS).logits.double()
    exact = theirs.double()(IDS).logits
    assert (got.logits - exact).norm() <= 1.25 * (narrow - exact).norm()


@per_device(CUDA, dtype=(torch.float16, torch.bfloat16))
@torch.no_grad()
def test_on_cuda(device, dtype, tmp_path):
    """Padded on either side: the error of narrow types, zeros elsewhere, each row as it is alone; and step by step."""
    theirs = make_checkpoint(tmp_path, seed=5, dtype=dtype)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, device=device.memory)
    narrow = theirs(IDS).logits.double()
    exact = theirs.double()
    error = float((narrow - exact(IDS).logits).norm() / exact(IDS).logits.norm())
    for mask in (LEFT, RIGHT):
        real = mask.bool()
        out = ours(IDS.to(device.memory), attention_mask=mask.to(device.memory), output_hidden_states=True)
        logits = out.logits.cpu()
        expected = exact(IDS, attention_mask=mask).logits
        assert out.logits.device == ours.device and logits.dtype == torch.float32
        assert {states.dtype for states in out.hidden_states} == {dtype}
        assert float((logits - expected)[real].norm() / expected[real].norm()) <= 1.25 * error
        assert logits[~real].abs().max() == 0
        for row in range(3):
            alone = ours(IDS[row, real[row]][None].to(device.memory)).logits.cpu()
            assert torch.equal(alone[0], logits[row, real[row]])
    past, pieces = None, []
    for piece in IDS.split((2, 2, 1), dim=1):
        out = ours(piece.to(device.memory), past_key_values=past)
        past = out.past_key_values
        pieces.append(out.logits.cpu())
    expected = exact(IDS).logits
    assert float((torch.cat(pieces, 1) - expected).norm() / expected.norm()) <= 1.25 * error


@torch.no_grad()
def test_the_output_reads_like_transformers(pair):
    theirs, ours = pair
    arguments = dict(labels=IDS, output_hidden_states=True)
    out, expected = ours(IDS, **arguments), theirs(IDS, **arguments)
    assert list(out) == list(expected.keys()) and list(out.keys()) == list(expected.keys())
    assert out["logits"] is out.logits is out[1] and out[0] is out.loss
    assert len(out) == len(expected) and out[:2] == (out.loss, out.logits)
    assert "attentions" not in out and "logits" in out
    with pytest.raises(KeyError):
        out["attentions"]
    as_tuple = ours(IDS, return_dict=False, use_cache=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    assert torch.equal(as_tuple[0], out.logits)
    loss, logits, past, hidden = ours(IDS, return_dict=False, **arguments)
    assert torch.equal(loss, out.loss) and len(hidden) == 3 and past.get_seq_length() == 5
    assert out == out and out != ours(IDS)


def test_use_cache(pair):
    ours = pair[1]
    assert ours(IDS).past_key_values.get_seq_length() == 5
    assert ours(IDS, use_cache=False).past_key_values is None
    assert "batch=3" in repr(ours(IDS).past_key_values)
    past = ours(IDS).past_key_values
    assert ours(IDS[:, :1], past_key_values=past, use_cache=False).past_key_values is past


def test_arguments_that_change_nothing(pair):
    ours = pair[1]
    expected = ours(IDS).logits
    positions = torch.arange(5)[None]
    got = ours(input_ids=IDS.tolist(), position_ids=positions, output_attentions=False, token_type_ids=None,
               inputs_embeds=None, return_dict=True)
    assert torch.equal(got.logits, expected)
    past = ours(IDS).past_key_values
    ours(IDS, past_key_values=past, position_ids=positions + 5)
    left = (LEFT.cumsum(1) - 1).masked_fill(LEFT == 0, 1)  # padded positions hold anything
    ours(IDS, attention_mask=LEFT, position_ids=left)


def other_cache():
    cache = transformers.DynamicCache()
    cache.update(torch.zeros(3, 1, 2, 4), torch.zeros(3, 1, 2, 4), 0)
    return cache


@pytest.mark.parametrize("arguments, kind, words", [
    (dict(output_attentions=True), NotImplementedError, ["output_attentions"]),
    (dict(inputs_embeds=torch.ones(1)), NotImplementedError, ["inputs_embeds", "input_ids"]),
    (dict(token_type_ids=torch.zeros(3, 5)), NotImplementedError, ["token_type_ids"]),
    (dict(position_ids=torch.tensor([[0, 2, 4, 6, 8]])), ValueError, ["position_ids"]),
    (dict(position_ids=torch.arange(5)), ValueError, ["position_ids", "(3, 5)"]),
    (dict(lables=IDS), TypeError, ["'lables'", "'labels'"]),
    (dict(attention_masks=LEFT), TypeError, ["'attention_masks'", "'attention_mask'"]),
    (dict(past_key_values=other_cache()), TypeError, ["past_key_values", "DynamicCache"]),
    (dict(past_key_values=((1, 2),)), TypeError, ["past_key_values", "tuple"]),
    (dict(attention_mask=LEFT[:, 1:]), ValueError, ["(3, 4)", "(3, 5)"]),
    (dict(attention_mask=torch.tensor([[1, 1, 0, 1, 1]] * 3)), ValueError, ["column 2 of row 0"]),
    (dict(attention_mask=LEFT * 0), ValueError, ["all of row 0"]),
    (dict(attention_mask=torch.ones(3, 1, 5, 5)), ValueError, ["(3, 1, 5, 5)"]),
    (dict(labels=IDS[:, 1:]), ValueError, ["labels", "(3, 4)", "(3, 5)"]),
    (dict(labels=IDS + 80), ValueError, ["labels[1, 0] is 101", "0 to 100"]),
    (dict(labels=IDS - 200), ValueError, ["labels[0, 0] is -189"]),
    (dict(labels=IDS.float()), TypeError, ["labels", "float32"]),
    (dict(labels=IDS, logits_to_keep=1), ValueError, ["logits_to_keep"]),
    (dict(logits_to_keep=-1), ValueError, ["logits_to_keep=-1"]),
    (dict(logits_to_keep=True), ValueError, ["logits_to_keep=True"]),
])
def test_bad_arguments(pair, arguments, kind, words):
    with pytest.raises(kind) as caught:
        pair[1](IDS, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("ids, kind, words", [
    (None, ValueError, ["needs input_ids"]),
    (torch.tensor([[5, 101]]), ValueError, ["input_ids[0, 1] is 101"]),
    (torch.zeros(2, 0, dtype=torch.long), ValueError, ["empty"]),
    (torch.zeros(1, 65, dtype=torch.long), ValueError, ["65 tokens", "64 tokens"]),
    (torch.tensor([[5.0]]), TypeError, ["integers"]),
])
def test_bad_ids(pair, ids, kind, words):
    with pytest.raises(kind) as caught:
        pair[1](ids)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_cache_that_does_not_fit(pair, tmp_path):
    ours = pair[1]
    past = ours(IDS).past_key_values
    with pytest.raises(ValueError, match="batch of 3, input_ids one of 1"):
        ours(IDS[:1], past_key_values=past)
    with pytest.raises(ValueError, match=r"\(3, 3\), expected \(3, 10\)"):
        ours(IDS, past_key_values=past, attention_mask=LEFT[:, :3])
    with pytest.raises(ValueError, match="first 5 columns"):
        ours(IDS, past_key_values=past, attention_mask=torch.cat([LEFT, torch.ones_like(IDS)], 1))
    with pytest.raises(ValueError, match="65 tokens"):
        ours(torch.ones(3, 60, dtype=torch.long), past_key_values=past)
    make_checkpoint(tmp_path, seed=6)
    with pytest.raises(ValueError, match="another model"):
        AutoModelForCausalLM.from_pretrained(tmp_path)(IDS, past_key_values=past)
    right = ours(IDS, attention_mask=RIGHT).past_key_values
    with pytest.raises(ValueError, match="column 3 of row 1"):
        ours(IDS, past_key_values=right)
    with pytest.raises(ValueError, match="masks every token"):
        ours(IDS, past_key_values=past, attention_mask=torch.cat([torch.ones_like(IDS), IDS * 0], 1))
    assert past.get_seq_length() == 5  # a refused call leaves the cache as it was
    ours(IDS, past_key_values=past)


def test_an_interrupted_step_leaves_the_cache_as_it_was(pair, monkeypatch):
    ours = pair[1]
    past, other = ours(IDS).past_key_values, ours(IDS).past_key_values
    expected = ours(IDS + 40, past_key_values=other).logits
    decoder = ours._decoder
    chunked = decoder.prefill

    def interrupted(*args, **kwargs):
        chunked(*args, **kwargs)  # some tokens are in the cache already
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "prefill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours(IDS + 40, past_key_values=past)
    assert past.get_seq_length() == 5
    assert torch.equal(ours(IDS + 40, past_key_values=past).logits, expected)
