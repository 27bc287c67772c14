"""Saving: transformers reads what we write, int8 comes back bit for bit, and a failure leaves nothing behind."""

import json
import math
import subprocess
import sys
import textwrap

import pytest
import quantised
import torch
import transformers
from checkpoints import make_checkpoint, make_model, write_tensors
from loaded_weights import DTYPES, check_weights, load, packed_parts
from safetensors import safe_open
from safetensors.torch import load_file

from codegen_fast import ops
from codegen_fast.config import CodeGenConfig
from codegen_fast.quantization import QUANTIZATIONS
from codegen_fast.weights import StateDictSource, load_weights, save_checkpoint, saver


def files(folder):
    return sorted(f.name for f in folder.iterdir())


@pytest.mark.parametrize("options", [{}, {"model_type": "gptj"}, {"tie_word_embeddings": True}, {"n_inner": 48},
                                     {"eos_token_id": [2, 3]}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_reads_what_we_save(tmp_path, dtype, options):
    model = make_checkpoint(tmp_path / "in", dtype=dtype, **options)
    save_checkpoint(tmp_path / "out", CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in"), {"top_k": 7})
    assert files(tmp_path / "out") == ["config.json", "generation_config.json", "model.safetensors"]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(again) is type(model) and again.dtype == dtype and again.generation_config.top_k == 7
    assert again.config.eos_token_id == model.config.eos_token_id
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    check_weights(load(tmp_path / "out"), model.state_dict(), model.config, dtype)


def test_shards_hold_each_tensor_once_and_load(tmp_path):
    model = make_checkpoint(tmp_path / "in")
    config, out = CodeGenConfig.from_folder(tmp_path / "in"), tmp_path / "out"
    save_checkpoint(out, config, load(tmp_path / "in"), max_shard_bytes=100_000)
    names = [f"model-{i:05}-of-00006.safetensors" for i in range(1, 7)]
    assert files(out) == ["config.json", *names, "model.safetensors.index.json"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    assert sorted(index["weight_map"]) == sorted(model.state_dict())
    check_weights(load(out), model.state_dict(), model.config, torch.float32)
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_second_save_leaves_nothing_of_the_first(tmp_path):
    make_checkpoint(tmp_path / "in")
    config, weights, out = CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("mine")
    save_checkpoint(out, config, weights, max_shard_bytes=100_000)
    save_checkpoint(out, config, weights)
    assert files(out) == ["config.json", "model.safetensors", "tokenizer.json"]
    save_checkpoint(out, config, weights, max_shard_bytes=300_000)
    assert files(out) == ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                          "model.safetensors.index.json", "tokenizer.json"]


def test_vectors_that_the_type_would_round_stay_float32(tmp_path):
    model = make_checkpoint(tmp_path / "in")
    weights = load(tmp_path / "in", torch.float16)
    save_checkpoint(tmp_path / "out", CodeGenConfig.from_folder(tmp_path / "in"), weights)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("lm_head.bias").dtype == torch.float32
        assert file.get_tensor("lm_head.weight").dtype == torch.float16
    check_weights(load(tmp_path / "out"), model.state_dict(), model.config, torch.float16)


# ---- Quantised -----------------------------------------------------------------------------------

INT4 = {"quant_method": "codegen_fast", "weights": "int4", "bits": 4, "zero_point": False,
        "lm_head": "int8-g32"}
INT8 = {"quant_method": "codegen_fast", "weights": "int8"}
WRITTEN = {"int8": {**INT8, "bits": 8, "group_size": 32, "zero_point": False}, "int8-row": INT8,
           "int4": {**INT4, "group_size": 32}, "int4-g64": {**INT4, "group_size": 64}, "int4-g128": {**INT4, "group_size": 128}}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("options", [{}, {"model_type": "gptj"}, {"tie_word_embeddings": True}, {"n_inner": 77}])
def test_quantised_models_come_back_bit_for_bit(tmp_path, options, quantization, packed):
    model = make_checkpoint(tmp_path / "in", **options)
    weights = load(tmp_path / "in", torch.bfloat16, quantization=quantization)
    save_checkpoint(tmp_path / "out", CodeGenConfig.from_folder(tmp_path / "in"), weights, packed=packed)
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    layout = content["quantization_config"].pop("packed", None)
    assert content["quantization_config"] == WRITTEN[quantization] and (layout is not None) == packed
    assert content["torch_dtype"] == "bfloat16"
    again = load(tmp_path / "out")
    assert (again.dtype, again.quantization) == (torch.bfloat16, quantization)
    pairs = zip(packed_parts(weights, model.state_dict(), model.config),
                packed_parts(again, model.state_dict(), model.config), strict=True)
    for (first, place, matrix), (second, _, _) in pairs:
        for a, b in zip(ops.unpack_quantized(first, matrix.shape[0], **place),
                        ops.unpack_quantized(second, matrix.shape[0], **place), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(first.data, second.data)
        assert first.scales is None or torch.equal(first.scales, second.scales)
    assert torch.equal(weights.embedding, again.embedding) and torch.equal(weights.lm_head_bias, again.lm_head_bias)


@pytest.mark.parametrize("name, value, message", [
    ("lm_head.weight", -128, r"tensor 'lm_head.weight' of .* holds -128; expected int8 values from -127 to 127"),
    ("lm_head.weight.scale", -1.0, r"tensor 'lm_head.weight.scale' of .* holds a negative scale; int8 has positive ones"),
    ("lm_head.weight.scale", float("nan"), r"tensor 'lm_head.weight.scale' of .* holds 1 values that are NaN or inf"),
    ("transformer.h.0.attn.qkv_proj.weight.scale", None, r"lacks tensor 'transformer.h.0.attn.qkv_proj.weight.scale'"),
])
def test_bad_int8_checkpoints_are_refused(tmp_path, name, value, message):
    make_checkpoint(tmp_path / "in")
    weights = load(tmp_path / "in", quantization="int8")
    save_checkpoint(tmp_path, CodeGenConfig.from_folder(tmp_path / "in"), weights, packed=False)
    tensors = load_file(tmp_path / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name].view(-1)[3] = value
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("quantization", ["int4", "int4-g128"])
def test_int4_files_take_the_bytes_of_the_model(tmp_path, quantization):
    make_checkpoint(tmp_path / "in")
    weights = load(tmp_path / "in", quantization=quantization)
    save_checkpoint(tmp_path, CodeGenConfig.from_folder(tmp_path / "in"), weights, packed=False)
    tensors = load_file(tmp_path / "model.safetensors")
    codes, scales = (tensors[f"transformer.h.0.mlp.fc_in.weight{end}"] for end in ("", ".scale"))
    rows, columns = weights.layers[0].w_in.sections[3], weights.layers[0].w_in.segments[0]
    assert (codes.dtype, codes.shape) == (torch.uint8, (1, rows, columns // 2))
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (rows, -(-columns // quantised.INT4_GROUPS[quantization])))
    # The first column stands in the low half of the first byte, the second in the high, both plus 8.
    values, _ = ops.unpack_quantized(weights.layers[0].w_in, rows, section=3)
    assert torch.equal(codes[0, :, 0] & 15, values[:, 0] + 8) and torch.equal(codes[0, :, 0] >> 4, values[:, 1] + 8)


@pytest.mark.parametrize("name, change, message", [
    ("transformer.h.0.mlp.fc_out.weight.scale", lambda t: t.view(-1)[3].fill_(math.nan), "holds 1 values that are NaN or"),
    ("transformer.h.0.mlp.fc_out.weight.scale", lambda t: t.float(), "is float32; expected bfloat16"),
    ("transformer.h.0.mlp.fc_out.weight", lambda t: t.view(torch.int8), "is int8; expected uint8"),
    ("transformer.h.0.mlp.fc_out.weight", lambda t: t[:, :, 1:], r"has shape .*; expected \(1, 64, 128\) by the config"),
])
def test_bad_int4_checkpoints_are_refused(tmp_path, name, change, message):
    make_checkpoint(tmp_path / "in", n_layer=1)
    weights = load(tmp_path / "in", quantization="int4")
    save_checkpoint(tmp_path, CodeGenConfig.from_folder(tmp_path / "in"), weights, packed=False)
    tensors = load_file(tmp_path / "model.safetensors")
    changed = change(tensors[name])
    tensors[name] = (tensors[name] if changed.dim() == 0 else changed).contiguous()
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=f"tensor '{name}' of .* {message}"):
        load(tmp_path)


def test_another_quantisation_of_a_quantised_checkpoint_is_refused(tmp_path):
    make_checkpoint(tmp_path / "in")
    save_checkpoint(tmp_path, CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in", quantization="int4"))
    assert load(tmp_path, quantization="int4").quantization == "int4"
    for other in ("int8", "int4-g64"):
        with pytest.raises(ValueError, match=f"quantization='{other}' was asked for, and .* holds a model in int4: load"):
            load(tmp_path, quantization=other)


def test_int8_of_rows_stays_so_when_int8_is_asked_for(tmp_path):
    make_checkpoint(tmp_path / "in")
    save_checkpoint(tmp_path, CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in", quantization="int8-row"))
    again = load(tmp_path, quantization="int8")
    assert again.quantization == "int8-row" and again.layers[0].w_in.kind == "int8"


# ---- Failures ------------------------------------------------------------------------------------


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "in")
    weights, out = load(tmp_path / "in"), tmp_path / "out"
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"the model was not saved in .*out: it takes 0\.00 GB and 0\.00 GB are free on"):
        save_checkpoint(out, CodeGenConfig.from_folder(tmp_path / "in"), weights)
    assert not out.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_the_old_files(tmp_path, monkeypatch, error):
    make_checkpoint(tmp_path / "in")
    config, weights = CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in")
    write, calls = saver.write_safetensors, []

    def fail_at_the_second(path, entries):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise error
        write(path, entries)

    monkeypatch.setattr(saver, "write_safetensors", fail_at_the_second)
    before = {f.name: f.read_bytes() for f in (tmp_path / "in").iterdir()}
    for folder in (tmp_path / "in", tmp_path / "new"):
        calls.clear()
        with pytest.raises(type(error)) as caught:
            save_checkpoint(folder, config, weights, {}, max_shard_bytes=100_000)
        if isinstance(error, OSError):
            assert str(caught.value) == f"the model was not saved in {folder}: No space left on device"
    assert {f.name: f.read_bytes() for f in (tmp_path / "in").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_folder_s_place_is_refused(tmp_path):
    make_checkpoint(tmp_path / "in")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match=r"out is a file; expected a folder to save the model in"):
        save_checkpoint(tmp_path / "out", CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in"))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_real_limit_of_the_system_leaves_nothing_half_written(tmp_path):
    """The kernel refuses the bytes half-way: a limit on the size of files stands for a full disk."""
    make_checkpoint(tmp_path / "in")
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import torch
        from codegen_fast.config import CodeGenConfig
        from codegen_fast.weights import load_weights, open_checkpoint, save_checkpoint
        folder = Path(sys.argv[1])
        config = CodeGenConfig.from_folder(folder / "in")
        weights = load_weights(config, open_checkpoint(folder / "in"), dtype=torch.float32, progress=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            save_checkpoint(folder / "out", config, weights)
        except OSError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == f"the model was not saved in {tmp_path / 'out'}: File too large\n"
    assert not (tmp_path / "out").exists()


def test_saving_takes_little_memory_beside_the_model(tmp_path, monkeypatch):
    """No piece that is written is larger than a chunk, whatever the tensor."""
    model = make_model(vocab_size=2003)
    config = CodeGenConfig.from_dict(model.config.to_dict())
    weights = load_weights(config, StateDictSource(model.state_dict()), dtype=torch.float32, progress=False)
    monkeypatch.setattr(saver, "CHUNK_BYTES", 10_000)
    pieces = [(entry.name, piece.nbytes) for entry in saver._entries(config, weights, packed=False) for piece in entry.pieces()]
    assert max(size for _, size in pieces) <= 10_000
    total = {}
    for name, size in pieces:
        total[name] = total.get(name, 0) + size
    assert total == {name: tensor.nbytes for name, tensor in model.state_dict().items()}
