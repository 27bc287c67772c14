"""accelerate(): a fast model from one that transformers has loaded."""
from __future__ import annotations

import pytest
import torch
import transformers
from checkpoints import make_model

import codegen_fast
from codegen_fast import accelerate

IDS = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])


def greedy(model):
    mask = torch.ones_like(IDS)
    return model.generate(IDS, attention_mask=mask, max_new_tokens=12, eos_token_id=None, pad_token_id=0)


@pytest.mark.parametrize("model_type", ["codegen", "gptj"])
def test_it_gives_the_same_tokens(model_type):
    theirs = make_model(model_type=model_type, seed=2)
    ours = accelerate(theirs)
    assert isinstance(ours, codegen_fast.CodeGenForCausalLM)
    assert ours.config.model_type == model_type and ours.device == torch.device("cpu") and ours.dtype == torch.float32
    assert torch.equal(greedy(ours), greedy(theirs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_keeps_the_dtype(dtype):
    ours = accelerate(make_model(dtype=dtype, seed=2))
    assert ours.dtype == dtype and greedy(ours).shape == (2, 16)


def test_it_copies():
    theirs = make_model(seed=2)
    before = greedy(theirs)
    ours = accelerate(theirs)
    assert torch.equal(greedy(theirs), before)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert torch.equal(greedy(ours), before)
    ours.half()
    assert theirs.dtype == torch.float32


def test_it_takes_the_generation_config():
    theirs = make_model(seed=2)
    theirs.generation_config.max_new_tokens = 3
    theirs.generation_config.pad_token_id = 7
    theirs.generation_config.update(an_entry_of_its_own=1, allow_custom_entries=True)
    ours = accelerate(theirs)
    assert ours.generate(IDS[:1]).shape == theirs.generate(IDS[:1]).shape == (1, 7)
    assert ours.generation_config.pad_token_id == 7


@pytest.mark.parametrize("quantization", ["int8", "int4", "int4-g128"])
def test_quantised(tmp_path, quantization):
    theirs = make_model(seed=2)
    ours = accelerate(theirs, quantization=quantization)
    assert ours.quantization == quantization and ours.memory_footprint() < accelerate(theirs).memory_footprint()
    ours.save_pretrained(tmp_path)
    again = codegen_fast.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.quantization == quantization and torch.equal(greedy(again), greedy(ours))


def quantised():
    model = make_model(seed=2)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


def another_architecture():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))


def spoiled():
    model = make_model(seed=2)
    with torch.no_grad():
        model.transformer.h[1].mlp.fc_in.weight[3, 3] = torch.nan
    return model


@pytest.mark.parametrize("make, kind, words", [
    (lambda: "Salesforce/codegen-350M-mono", TypeError, ["str", "from_pretrained"]),
    (lambda: make_model(seed=2).transformer, TypeError, ["CodeGenModel", "CodeGenForCausalLM"]),
    (another_architecture, TypeError, ["GPT2LMHeadModel"]),
    (lambda: torch.nn.DataParallel(make_model(seed=2)), TypeError, ["DataParallel"]),
    (lambda: accelerate(make_model(seed=2)), TypeError, ["fast already"]),
    (quantised, TypeError, ["quantised", "quantization='int8'"]),
    (spoiled, ValueError, ["transformer.h.1.mlp.fc_in.weight", "NaN"]),
    (lambda: make_model(seed=2).double(), ValueError, ["torch.float64", "torch.float32"]),
    (lambda: make_model(seed=2).to("meta"), ValueError, ["meta"]),
])
def test_what_it_refuses(make, kind, words):
    model = make()
    with pytest.raises(kind) as caught:
        accelerate(model)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_unknown_quantization():
    with pytest.raises(ValueError, match="quantization='int3' is not allowed: expected None or 'int8', 'int8-row', 'int4', 'int4-g64' or"):
        accelerate(make_model(seed=2), quantization="int3")
