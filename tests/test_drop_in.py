"""What programs written for transformers also do, and what went wrong when a new user tried it."""

import copy
import pickle
import threading

import pytest
import torch
from checkpoints import make_checkpoint, make_model
from transformers import CodeGenForCausalLM as TheirModel
from transformers import TextIteratorStreamer

import codegen_fast
from codegen_fast.cache import PagedCache
from codegen_fast.generation import waves


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drop_in")
    make_checkpoint(folder, n_positions=512)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return codegen_fast.AutoModelForCausalLM.from_pretrained(folder)


IDS = torch.arange(3, 20)[None]


def generate(model, **knobs):
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), pad_token_id=0, eos_token_id=None, **knobs)


def test_a_refused_call_ends_the_stream(model):
    class Tokenizer:
        def decode(self, ids, **_):
            return "x" * len(ids)

    streamer = TextIteratorStreamer(Tokenizer(), timeout=30)
    raised = []

    def work():
        try:
            generate(model, max_new_tokens=1000, streamer=streamer)
        except ValueError as error:
            raised.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    assert "".join(streamer) == ""  # and does not wait for ever
    worker.join()
    assert "context of 512 tokens" in raised[0]


@pytest.mark.parametrize("knobs", [dict(max_new_tokens=60), dict(do_sample=True, num_return_sequences=20, max_new_tokens=64)],
                         ids=["greedy", "samples"])  # fmt: skip
def test_the_cache_of_a_usual_call_is_made_once(model, monkeypatch, knobs):
    grown = []
    grow = PagedCache._grow

    def counted(cache, more):
        grown.append(cache.pages_in_use)
        grow(cache, more)

    monkeypatch.setattr(PagedCache, "_grow", counted)
    generate(model, **knobs)
    assert grown == [0]  # before anything was in it


def test_a_cache_can_be_copied_to_score_several_continuations(model):
    first = model(IDS, use_cache=True)
    for token in (5, 9, 30):
        past = copy.deepcopy(first.past_key_values)
        out = model(torch.tensor([[token]]), past_key_values=past)
        whole = model(torch.cat([IDS, torch.tensor([[token]])], 1)).logits[:, -1]
        assert torch.equal(out.logits[:, -1], whole)
    cache = first.past_key_values.cache
    assert first.past_key_values.get_seq_length() == IDS.shape[1]
    del past, out
    assert cache.pages_in_use == cache.pages_for(IDS.shape[1])
    with pytest.raises(TypeError, match="can be copied .* not pickled"):
        pickle.dumps(first.past_key_values)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_transformers_refuses_a_saved_quantised_model(folder, tmp_path, quantization):
    ours = codegen_fast.AutoModelForCausalLM.from_pretrained(folder, quantization=quantization)
    ours.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="1GB")
    with pytest.raises(Exception, match="mismatched|shape"):
        TheirModel.from_pretrained(tmp_path)
    again = codegen_fast.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.quantization == quantization and torch.equal(again(IDS).logits, ours(IDS).logits)


def test_arguments_of_save_pretrained(model, tmp_path):
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    assert torch.equal(codegen_fast.AutoModelForCausalLM.from_pretrained(tmp_path / "parts")(IDS).logits, model(IDS).logits)
    with pytest.raises(NotImplementedError, match="safe_serialization=False would write a pickle"):
        model.save_pretrained(tmp_path / "other", safe_serialization=False)
    for size in ("5 parsecs", "0GB", -1, True):
        with pytest.raises(ValueError, match="max_shard_size="):
            model.save_pretrained(tmp_path / "other", max_shard_size=size)
    assert not (tmp_path / "other").exists()


def test_arguments_that_would_be_ignored_with_harm(folder):
    load = codegen_fast.AutoModelForCausalLM.from_pretrained
    with pytest.raises(NotImplementedError, match="output_loading_info"):
        load(folder, output_loading_info=True)
    with pytest.raises(NotImplementedError, match="use_safetensors=False"):
        load(folder, use_safetensors=False)
    with pytest.raises(ValueError, match="token and use_auth_token differ"):
        load(folder, token="a", use_auth_token="b")
    assert load(folder, use_safetensors=True, use_auth_token=None).dtype == torch.float32


def test_torch_defaults_do_not_matter(folder, model):
    expected, logits = generate(model, max_new_tokens=8), model(IDS).logits
    torch.set_default_dtype(torch.float64)
    try:
        fresh = codegen_fast.AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(generate(fresh, max_new_tokens=8), expected)
        assert torch.equal(fresh(IDS).logits, logits)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(model.generate(IDS.tolist(), max_new_tokens=8, pad_token_id=0, eos_token_id=None), expected)
        sampled = model.generate(IDS.tolist(), max_new_tokens=8, do_sample=True, pad_token_id=0, eos_token_id=None,
                                 num_return_sequences=3)  # fmt: skip
    assert sampled.device.type == "cpu" and sampled.shape == (3, IDS.shape[1] + 8)


def test_more_rows_than_memory_holds_are_refused(model, monkeypatch):
    monkeypatch.setattr(waves, "available_bytes", lambda device: 10**6)
    with pytest.raises(OSError, match=r"^10000 rows need .* to begin with and .* are free: ask for fewer rows"):
        generate(model, do_sample=True, num_return_sequences=10000, max_new_tokens=2, return_dict_in_generate=True,
                 output_scores=True)  # fmt: skip
    monkeypatch.setattr(waves, "available_bytes", lambda device: 10**3)
    with pytest.raises(OSError, match=r"^1 row needs .* to begin with and .* are free: shorten the prompt"):
        generate(model, max_new_tokens=2)
    monkeypatch.undo()
    assert generate(model, max_new_tokens=2).shape == (1, IDS.shape[1] + 2)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantised_model_changes_the_type_of_the_rest(model, quantization):
    ours = codegen_fast.accelerate(make_model(), quantization=quantization)
    before = ours(IDS).logits
    half = ours.half()
    assert half is ours and half.dtype == torch.float16 and half.quantization == quantization
    assert float((half(IDS).logits - before).norm() / before.norm()) < 2e-2
