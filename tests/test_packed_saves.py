"""Saves that hold weights as the kernels have them: loading is reading, and who cannot take them so is told."""

import json

import pytest
import torch
import transformers
from checkpoints import make_checkpoint, write_tensors
from loaded_weights import load, packed_parts
from safetensors.torch import load_file

from codegen_fast import AutoModelForCausalLM, accelerate, ops
from codegen_fast.config import CodeGenConfig
from codegen_fast.quantization import QUANTIZATIONS
from codegen_fast.weights import loader, save_checkpoint
from codegen_fast.weights.repack import packed_layout

IDS = torch.arange(3, 12)[None]
# A change here means that saves of earlier versions are refused: keep a reader of the old order, or say so in the notes of
# the version.
LAYOUTS = {"float32": "3ea721f421ad", "float16": "b6b27a216549", "bfloat16": "25af40b177bf", "int8": "d16451893617",
           "int8-g32": "2198a770b422", "int4": "bc7e388f4bd8", "int4-g64": "1c7f58fa4d8b", "int4-g128": "74a003a47bf0"}


def packed_save(folder, *, quantization=None, dtype=None, packed=True, **options):
    """Weights that were saved in the folder, and the model that they were made from."""
    model = make_checkpoint(folder / "in", **options)
    weights = load(folder / "in", dtype, quantization=quantization)
    save_checkpoint(folder / "out", CodeGenConfig.from_folder(folder / "in"), weights, packed=packed)
    return weights, model


@pytest.mark.parametrize("isa", ops.cpu_isas())
def test_the_layouts_are_those_of_earlier_versions_on_every_instruction_set(isa):
    with ops.forced_isa(isa):
        assert {kind: packed_layout(kind) for kind in ops.WEIGHT_KINDS} == LAYOUTS


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_nothing_is_packed_while_a_packed_save_is_loaded(tmp_path, monkeypatch, quantization):
    weights, _ = packed_save(tmp_path, quantization=quantization, packed=None)  # which is what a quantised model gets
    monkeypatch.setattr(loader, "_require_layout", lambda config, source: None)  # it packs a small weight
    for name in ("pack", "pack_quantized", "unpack", "unpack_quantized"):
        monkeypatch.setattr(ops, name, lambda *args, **place: pytest.fail("values were looked at"))
    again = load(tmp_path / "out")
    assert torch.equal(again.layers[1].w_out.data, weights.layers[1].w_out.data)
    assert torch.equal(again.lm_head.data, weights.lm_head.data)


@pytest.mark.parametrize("dtype, quantization", [(torch.float16, None), (torch.float32, None), (torch.bfloat16, "int8"),
                                                 (torch.float32, "int4")])
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True, "model_type": "gptj"}])
def test_an_unquantised_packed_save_becomes_what_the_original_becomes(tmp_path, dtype, quantization, options):
    packed_save(tmp_path, dtype=torch.float16, **options)
    make_checkpoint(tmp_path / "half", dtype=torch.float16, **options)
    ours, theirs = (load(tmp_path / name, dtype, quantization=quantization) for name in ("out", "half"))
    assert ours.quantization == theirs.quantization and ours.dtype == theirs.dtype
    for first, second in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(first.w_in.data, second.w_in.data) and torch.equal(first.w_out.data, second.w_out.data)
    assert torch.equal(ours.lm_head.data, theirs.lm_head.data) and ours.lm_head.kind == theirs.lm_head.kind


def test_values_that_a_narrower_type_cannot_hold_are_refused(tmp_path):
    make_checkpoint(tmp_path / "in")
    config, weights = CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in")
    ops.pack(weights.lm_head, torch.full((1, 64), 1e6), ops.new_pack_status(), row=5)
    save_checkpoint(tmp_path / "out", config, weights, packed=True)
    with pytest.raises(ValueError, match=r"'lm_head.weight' of .*: 64 values of a weight in float32 .* the range of float16"):
        load(tmp_path / "out", torch.float16)


@pytest.mark.parametrize("packed, quantization", [(True, None), (None, "int8"), (False, "int8"), (None, "int4")])
def test_every_state_is_loaded_without_the_original(tmp_path, packed, quantization):
    model = accelerate(make_checkpoint(tmp_path / "in"), quantization=quantization).half()
    model.save_pretrained(tmp_path / "out", packed=packed, max_shard_size="100KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (again.dtype, again.quantization) == (model.dtype, quantization)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    again.save_pretrained(tmp_path / "plain", packed=False)  # the way back
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")(IDS).logits, model(IDS).logits)
    if packed is not False:
        with pytest.raises(Exception, match="mismatched|shape"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_another_layout_is_refused_and_the_way_out_named(tmp_path, monkeypatch):
    packed_save(tmp_path, quantization="int8")
    monkeypatch.setattr(loader, "packed_layout", lambda kind: "another")
    with pytest.raises(ValueError, match=r"int8-g32 weights packed in layout '2198a770b422', and the CPU kernels here have "
                                         r"'another': load it with codegen_fast 0\.1\.0, which wrote it, and save it with "
                                         r"save_pretrained\(folder, packed=False\), or quantise the original again"):
        load(tmp_path / "out")


@pytest.mark.parametrize("packed", [True, {}, {"layout": {"int8-g32": 5}, "version": "0"}, {"layout": [], "version": "0"},
                                    {"layout": {}, "version": "0", "more": 1}])
def test_a_broken_description_is_refused(tmp_path, packed):
    packed_save(tmp_path, quantization="int8")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["packed"] = packed
    with pytest.raises(ValueError, match="quantization_config has packed=.*; expected the layout of each kind of weight"):
        CodeGenConfig.from_dict(config)


def test_an_unquantised_config_without_the_layout_is_refused(tmp_path):
    packed_save(tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["quantization_config"]["packed"]
    with pytest.raises(ValueError, match="of quantised checkpoints only this package's own are read"):
        CodeGenConfig.from_dict(config)


@pytest.mark.parametrize("name, change, message", [
    ("lm_head.weight", lambda t: t[:-1], r"tensor 'lm_head.weight' of .* has shape \(\d+,\); expected \(\d+,\) by the config"),
    ("lm_head.weight", lambda t: t.view(torch.int8), r"'lm_head.weight' of .* is int8; expected uint8"),
    ("lm_head.weight.scale", lambda t: t.fill_(float("nan")), r"'lm_head.weight.scale' of .* holds \d+ values that are NaN"),
    ("transformer.h.1.mlp.fc_in.weight", None, r"lacks tensor 'transformer.h.1.mlp.fc_in.weight'"),
])
def test_broken_packed_files_are_refused(tmp_path, name, change, message):
    packed_save(tmp_path, quantization="int8-row")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous().clone()
    write_tensors(tmp_path / "out", tensors)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "out")


@pytest.mark.parametrize("name", ["transformer.h.0.mlp.fc_in.weight", "transformer.h.1.mlp.fc_out.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [0x7F80, 0x7FC0])
def test_scales_among_the_codes_that_are_no_numbers_are_found_by_a_token(tmp_path, name, value):
    """Infinity and NaN as bfloat16, in the first group of a panel; they are not looked at while they are read."""
    packed_save(tmp_path, quantization="int4")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors[name][:2].view(torch.int16)[0] = value
    write_tensors(tmp_path / "out", tensors)
    with pytest.raises(ValueError, match="model.safetensors holds packed weights with values that are NaN or infinite"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_packed_needs_the_cpu(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "in")
    config, weights = CodeGenConfig.from_folder(tmp_path / "in"), load(tmp_path / "in", quantization="int8-row")
    monkeypatch.setattr(ops, "backend", lambda device: "cuda")
    with pytest.raises(ValueError, match="packed=True stores the CPU kernels' layout, and the model lies on cpu; save it with"):
        save_checkpoint(tmp_path / "out", config, weights, packed=True)
    assert not (tmp_path / "out").exists()


def test_packed_parts_are_those_of_the_model(tmp_path):
    """The file holds the bytes of memory: nothing else would make reading enough."""
    weights, model = packed_save(tmp_path, quantization="int8")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(tensors["transformer.h.1.mlp.fc_in.weight"], weights.layers[1].w_in.data)
    assert torch.equal(tensors["transformer.h.1.mlp.fc_out.weight"], weights.layers[1].w_out.data)
    assert "transformer.h.1.attn.qkv_proj.weight" not in tensors
    again = load(tmp_path / "out")
    for (first, place, matrix), (second, _, _) in zip(packed_parts(weights, model.state_dict(), model.config),
                                                      packed_parts(again, model.state_dict(), model.config), strict=True):
        for a, b in zip(ops.unpack_quantized(first, matrix.shape[0], **place),
                        ops.unpack_quantized(second, matrix.shape[0], **place), strict=True):
            assert torch.equal(a, b)
