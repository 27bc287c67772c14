"""config.json: what is read, what is refused and with which words."""

import json

import pytest
import torch
import transformers

from codegen_fast.config import CodeGenConfig

SMALL = {"model_type": "codegen", "vocab_size": 101, "n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8}


@pytest.mark.parametrize("model_type, theirs", [
    ("codegen", transformers.CodeGenConfig), ("gptj", transformers.GPTJConfig)])
def test_missing_keys_take_the_defaults_of_transformers(model_type, theirs):
    ours, theirs = CodeGenConfig.from_dict({"model_type": model_type}), theirs()
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner", "use_cache",
                 "layer_norm_epsilon", "activation_function", "bos_token_id", "eos_token_id", "tie_word_embeddings",
                 "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_a_config_of_2022_is_read_and_written_back_whole(tmp_path):
    values = {
        "activation_function": "gelu_new", "architectures": ["CodeGenForCausalLM"], "attn_pdrop": 0.0,
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 50256, "gradient_checkpointing": False,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "codegen", "n_ctx": 2048, "n_embd": 1024,
        "n_head": 16, "n_inner": None, "n_layer": 20, "n_positions": 2048, "resid_pdrop": 0.0, "rotary_dim": 32,
        "scale_attn_weights": True, "summary_activation": None, "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
        "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer", "torch_dtype": "float16",
        "transformers_version": "4.21.0.dev0", "use_cache": True, "vocab_size": 51200,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = CodeGenConfig.from_folder(tmp_path)
    assert (config.head_dim, config.inner, config.dtype, config.torch_dtype) == (64, 4096, torch.float16, torch.float16)
    assert config.quantization is None
    assert config.to_dict() == {**values, "pad_token_id": None}


def test_the_other_names_of_the_sizes_are_read():
    config = CodeGenConfig.from_dict({"model_type": "codegen", "hidden_size": 64, "num_attention_heads": 4,
                                      "num_hidden_layers": 3, "max_position_embeddings": 32, "rotary_dim": 8,
                                      "dtype": "bfloat16", "n_inner": 96})
    assert (config.n_embd, config.n_head, config.n_layer, config.n_positions, config.inner) == (64, 4, 3, 32, 96)
    assert config.dtype is torch.bfloat16


def test_what_the_weights_are_laid_out_by_cannot_be_changed():
    config = CodeGenConfig.from_dict(SMALL)
    config.pad_token_id = 7
    assert config.pad_token_id == 7 and config.to_dict()["pad_token_id"] == 7
    with pytest.raises(AttributeError, match=r"config.n_head is 4 and cannot be changed"):
        config.n_head = 8


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "llama"}, r"model_type is 'llama', so this is not a CodeGen model; expected 'codegen' or 'gptj'"),
    ({"model_type": None}, r"model_type is None, so this is not a CodeGen model"),
    ({"n_embd": 60}, r"n_embd is 60 and n_head is 4: heads of 15 dimensions; expected an even number of at most 1024"),
    ({"n_embd": 4104}, r"n_embd is 4104 and n_head is 4: heads of 1026 dimensions; expected an even number of at most 1024"),
    ({"n_embd": 66}, r"n_embd is 66 and n_head is 4; n_embd must be divisible by n_head"),
    ({"n_head": 2}, r"n_head is 2; CodeGen stores its heads in 4 blocks, so it must be a multiple of 4"),
    ({"rotary_dim": 7}, r"rotary_dim is 7; expected an even number from 2 to the head's 16"),
    ({"rotary_dim": 18}, r"rotary_dim is 18; expected an even number from 2 to the head's 16"),
    ({"rotary_dim": 0}, r"rotary_dim is 0; expected an even number"),
    ({"rotary_dim": None}, r"rotary_dim is None; expected an even integer .*a model without rotary_dim is not"),
    ({"model_type": "gptj", "rotary_dim": None}, r"rotary_dim is None"),
    ({"rotary_dim": True}, r"rotary_dim is True"),
    ({"activation_function": "relu"}, r"activation_function is 'relu'; CodeGen's kernels compute 'gelu_new' only"),
    ({"n_layer": -1}, r"n_layer is -1; expected 1 to"),
    ({"vocab_size": 0}, r"vocab_size is 0; expected 1 to"),
    ({"n_embd": 2**40}, r"n_embd is 1099511627776; expected 1 to 16777216"),
    ({"n_embd": "64"}, r"n_embd is '64' \(str\); expected an integer"),
    ({"n_head": 4.0}, r"n_head is 4.0 \(float\); expected an integer"),
    ({"n_layer": True}, r"n_layer is True \(bool\); expected an integer"),
    ({"n_inner": 0}, r"n_inner is 0; expected 1 to"),
    ({"n_positions": None}, r"n_positions is None \(NoneType\); expected an integer"),
    ({"hidden_size": 128}, r"hidden_size is 128 and n_embd is 64; they are two names of one size and must agree"),
    ({"layer_norm_epsilon": 0}, r"layer_norm_epsilon is 0; expected a positive number"),
    ({"layer_norm_epsilon": float("nan")}, r"layer_norm_epsilon is nan"),
    ({"layer_norm_epsilon": "1e-5"}, r"layer_norm_epsilon is '1e-5'"),
    ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings is 'yes'; expected true or false"),
    ({"torch_dtype": "float64"}, r"torch_dtype is 'float64'; expected float32, float16, bfloat16"),
    ({"eos_token_id": "</s>"}, r"eos_token_id is '</s>'; expected an integer, a list of integers or null"),
    ({"eos_token_id": [1, None]}, r"eos_token_id is \[1, None\]"),
    ({"bos_token_id": [1]}, r"bos_token_id is \[1\]; expected an integer or null"),
    ({"quantization_config": {"quant_method": "gptq"}},
     r"quantization_config is {'quant_method': 'gptq'}; of quantised checkpoints only this package's own are read"),
])
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=r"the config: " + message) as caught:
        CodeGenConfig.from_dict({**SMALL, **changes})
    assert "\n" not in str(caught.value)


def test_gptj_needs_no_four_blocks():
    assert CodeGenConfig.from_dict({**SMALL, "model_type": "gptj", "n_head": 2}).head_dim == 32


@pytest.mark.parametrize("content, error, message", [
    (None, OSError, r"has no config\.json; a folder of a CodeGen checkpoint holds one"),
    (b"{\"n_embd\": ", ValueError, r"config\.json is not valid JSON \(Expecting value.*\); download it again"),
    (b"", ValueError, r"config\.json is not valid JSON"),
    (b"[1, 2]", ValueError, r"config\.json holds a list; expected a JSON object"),
    (b"\xff\xfe\x00", ValueError, r"config\.json is not UTF-8 text"),
    (b"[" * 100_000, ValueError, r"config\.json is not valid JSON"),
    (b"{}", ValueError, r"config\.json: model_type is None, so this is not a CodeGen model"),
])
def test_a_broken_file_is_refused(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=message):
        CodeGenConfig.from_folder(tmp_path)
