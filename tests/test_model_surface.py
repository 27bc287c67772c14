"""The model class: loading arguments, what programs write on a transformers model, and independence of transformers."""
from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from checkpoints import make_checkpoint

import codegen_fast
from codegen_fast import AutoModelForCausalLM, CodeGenForCausalLM, GenerationConfig

IDS = torch.tensor([[11, 12, 13, 14]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, seed=4)
    return path


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def tokens(model):
    return model.generate(IDS, max_new_tokens=10)


# ---- from_pretrained -----------------------------------------------------------------------------


def test_what_a_loaded_model_says(folder):
    for loader in (AutoModelForCausalLM, CodeGenForCausalLM):
        model = loader.from_pretrained(str(folder))
        assert type(model) is CodeGenForCausalLM
        assert (model.dtype, model.device, model.quantization) == (torch.float32, torch.device("cpu"), None)
        assert model.config.n_layer == 2 and model.config.vocab_size == 101 and model.training is False
        assert model.generation_config.eos_token_id == 2
    assert repr(model) == ("CodeGenForCausalLM(n_layer=2, n_head=4, n_embd=64, vocab_size=101, dtype=torch.float32, "
                           "quantization=None, device='cpu')")


@pytest.mark.parametrize("arguments", [
    dict(dtype=torch.float32), dict(dtype="float32"), dict(dtype="torch.float32"), dict(torch_dtype=torch.float32),
    dict(torch_dtype="auto"), dict(dtype=None), dict(dtype=torch.float32, torch_dtype="float32"),
    dict(device="cpu"), dict(device=torch.device("cpu")), dict(device="cpu:0"), dict(device=None),
    dict(device_map="auto"), dict(device_map="cpu"), dict(device_map={"": "cpu"}), dict(device_map=torch.device("cpu")),
    dict(device_map={"transformer": "cpu", "lm_head": torch.device("cpu")}), dict(device="cpu", device_map="cpu"),
    dict(low_cpu_mem_usage=True, trust_remote_code=True, attn_implementation="sdpa", use_safetensors=True),
    dict(local_files_only=True, revision="main", token=None, cache_dir=None),
    dict(load_in_8bit=False, quantization_config=None),
])
def test_arguments_that_mean_the_same(folder, arguments):
    model = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")


@pytest.mark.parametrize("name, dtype", [("float16", torch.float16), ("half", torch.float16),
                                         ("bfloat16", torch.bfloat16), (torch.bfloat16, torch.bfloat16)])
def test_dtype(folder, name, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=name)
    assert model.dtype == dtype and tokens(model).shape == (1, 14)


def test_quantization(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, quantization="int8")
    assert model.quantization == "int8" and model.dtype == torch.float32 and "quantization='int8'" in repr(model)
    assert tokens(model).shape == (1, 14)


@pytest.mark.parametrize("arguments, kind, words", [
    (dict(dtype="float64"), ValueError, ["dtype='float64'", "torch.float16"]),
    (dict(dtype=torch.int8), ValueError, ["dtype=torch.int8"]),
    (dict(dtype=16), ValueError, ["dtype=16"]),
    (dict(torch_dtype="fp8"), ValueError, ["torch_dtype='fp8'"]),
    (dict(dtype="float16", torch_dtype="float32"), ValueError, ["dtype='float16'", "torch_dtype='float32'", "differ"]),
    (dict(device="gpu"), ValueError, ["device='gpu'", "'cuda:0'"]),
    (dict(device="meta"), ValueError, ["device='meta'"]),
    (dict(device=1.5), ValueError, ["device=1.5"]),
    (dict(device_map="spread"), ValueError, ["device_map='spread'"]),
    (dict(quantization="int3"), ValueError, ["quantization='int3'", "None or 'int8', 'int8-row', 'int4', 'int4-g64' or"]),
    (dict(quantization=8), ValueError, ["quantization=8"]),
    (dict(quantisation="int8"), TypeError, ["'quantisation'", "'quantization'"]),
    (dict(torch_type="auto"), TypeError, ["'torch_type'", "'torch_dtype'"]),
    (dict(load_in_8bit=True), NotImplementedError, ["load_in_8bit", "quantization='int8'"]),
    (dict(load_in_4bit=True), NotImplementedError, ["load_in_4bit", "quantization='int4'"]),
    (dict(subfolder="x"), NotImplementedError, ["subfolder"]),
])
def test_bad_arguments(folder, arguments, kind, words):
    with pytest.raises(kind) as caught:
        AutoModelForCausalLM.from_pretrained(folder, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("arguments", [dict(device="cuda"), dict(device="cuda:1"), dict(device=0),
                                       dict(device_map={"": 0})])
def test_a_device_that_is_not_there(folder, arguments, monkeypatch):
    monkeypatch.setattr(codegen_fast.ops, "cuda_devices", lambda: ([], "built without CUDA: no nvcc"))
    with pytest.raises(ValueError, match="cannot be used: built without CUDA: no nvcc; use device='cpu'"):
        AutoModelForCausalLM.from_pretrained(folder, **arguments)


def test_several_devices(folder, monkeypatch):
    monkeypatch.setattr(codegen_fast.loading, "parse_device", lambda device, name="": torch.device(device))
    with pytest.raises(NotImplementedError, match="spreads the model"):
        AutoModelForCausalLM.from_pretrained(folder, device_map={"transformer": "cuda:0", "lm_head": "cuda:1"})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="no folder"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(OSError, match="from_pretrained"):
        AutoModelForCausalLM()


# ---- What programs write -------------------------------------------------------------------------


def test_moves_that_change_nothing(model):
    for moved in (model.eval(), model.train(False), model.cpu(), model.to("cpu"), model.to(torch.device("cpu")),
                  model.to(torch.float32), model.to("cpu", torch.float32), model.to(dtype=torch.float32), model.float(),
                  model.to(torch.ones(1)), model.to(device="cpu", dtype=torch.float32, non_blocking=True),
                  model.to("cpu", torch.float32, True), model.requires_grad_(False)):
        assert moved is model


def test_conversions(folder, model):
    wide = tokens(model)
    for convert, dtype in ((CodeGenForCausalLM.half, torch.float16), (CodeGenForCausalLM.bfloat16, torch.bfloat16),
                           (lambda m: m.to("cpu", torch.float16), torch.float16),
                           (lambda m: m.to(torch.ones(1, dtype=torch.bfloat16)), torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        bytes_before = model.memory_footprint()
        assert convert(model) is model and model.dtype == dtype and model.memory_footprint() < 0.6 * bytes_before
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        assert torch.equal(model(IDS).logits, loaded(IDS).logits)
        assert model.float() is model and model.dtype == torch.float32
    past = model(IDS).past_key_values
    with pytest.raises(ValueError, match="changed its dtype"):
        model.half()(IDS, past_key_values=past)
    assert tokens(model).shape == wide.shape


@pytest.mark.parametrize("action, kind, words", [
    (lambda m: m.train(), NotImplementedError, ["inference", "transformers"]),
    (lambda m: m.requires_grad_(), NotImplementedError, ["inference"]),
    (lambda m: m.to(torch.float64), ValueError, ["torch.float64"]),
    (lambda m: m.to(torch.int8), ValueError, ["torch.int8"]),
    (lambda m: m.to("gpu"), ValueError, ["'gpu'"]),
    (lambda m: m.to([1]), ValueError, ["[1]"]),
    (lambda m: copy.deepcopy(m), TypeError, ["copied", "save_pretrained"]),
    (lambda m: copy.copy(m), TypeError, ["copied"]),
    (lambda m: pickle.dumps(m), TypeError, ["pickled"]),
    (lambda m: m.parameters(), AttributeError, ["'parameters'", "num_parameters"]),
    (lambda m: m.state_dict(), AttributeError, ["'state_dict'", "save_pretrained"]),
    (lambda m: m.nonsense, AttributeError, ["'nonsense'"]),
    (lambda m: setattr(m, "generation_config", 3), TypeError, ["model.generation_config", "int"]),
    (lambda m: setattr(m, "generation_config", {"top_kk": 3}), TypeError, ["'top_kk'", "'top_k'"]),
    (lambda m: m.save_pretrained("/dev/null/x"), OSError, ["/dev/null/x"]),
])
def test_what_it_refuses(model, action, kind, words):
    with pytest.raises(kind) as caught:
        action(model)
    assert all(word in str(caught.value) for word in words), caught.value
    assert tokens(model).shape == (1, 14)


def test_cuda_without_cuda(model, monkeypatch):
    monkeypatch.setattr(codegen_fast.ops, "cuda_devices", lambda: ([], "built without CUDA: no nvcc"))
    for move in (model.cuda, lambda: model.cuda(1), lambda: model.to("cuda"), lambda: model.to(0)):
        with pytest.raises(ValueError, match="built without CUDA"):
            move()


def test_num_parameters_and_memory(folder, model):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == theirs.num_parameters()
    assert theirs.num_parameters() * 4 <= model.memory_footprint() <= theirs.num_parameters() * 4 * 1.2


def test_the_generation_config_can_be_set(model):
    model.generation_config = {"max_new_tokens": 3}
    assert model.generate(IDS).shape == (1, 7) and isinstance(model.generation_config, GenerationConfig)
    theirs = transformers.GenerationConfig(max_new_tokens=4)
    model.generation_config = theirs
    assert model.generation_config is theirs and model.generate(IDS).shape == (1, 8)
    model.generation_config = None
    with pytest.warns(UserWarning, match="20 new tokens"):
        assert model.generate(IDS).shape == (1, 24)


def test_a_checkpoints_generation_config_counts(tmp_path):
    make_checkpoint(tmp_path, seed=4)
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 5, "eos_token_id": 50256, "unknown": 1}')
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.generate(IDS).shape == (1, 9)
    (tmp_path / "generation_config.json").unlink()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == 2


def test_save_pretrained(model, tmp_path):
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.generation_config.pad_token_id == 0 and torch.equal(tokens(again), tokens(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert theirs.dtype == torch.float32 and theirs.generation_config.pad_token_id == 0
    assert torch.equal(theirs.generate(IDS, max_new_tokens=10), tokens(model))
    model.half().save_pretrained(tmp_path / "half")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float16


WITHOUT = """
import sys
sys.modules["transformers"] = None
import torch, codegen_fast
model = codegen_fast.AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor([[11, 12, 13, 14]])
print(model.generate(ids, max_new_tokens=10, generation_config=codegen_fast.GenerationConfig(eos_token_id=2)).tolist())
model(ids, labels=ids, output_hidden_states=True)
model.generate(ids, do_sample=True, num_return_sequences=2, seed=1, max_new_tokens=2)
model.half().save_pretrained(sys.argv[2])
codegen_fast.AutoModelForCausalLM.from_pretrained(sys.argv[2], quantization="int8").generate(ids, max_new_tokens=2)
assert codegen_fast.accelerate
from codegen_fast.cli import main
from codegen_fast.demo import demo_model_path
tokenizer = codegen_fast.AutoTokenizer.from_pretrained(demo_model_path())
assert tokenizer.decode(tokenizer("def f(x):", return_tensors="pt").input_ids[0]) == "def f(x):"
assert main(["generate", "def f(x):", "--max-new-tokens", "4"]) == 0 and main(["info", "--model", "demo"]) == 0
"""


def test_everything_works_without_transformers(folder, model, tmp_path, without_gpus):
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(folder), str(tmp_path / "saved")], capture_output=True,
                          text=True, timeout=120, env=without_gpus)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(tokens(model).tolist())
