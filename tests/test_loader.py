"""From files to packed weights: every value in its place, in its type, and every bad tensor named."""

import io
import json
import os
import sys

import pytest
import quantised
import torch
from checkpoints import LAYOUTS, make_checkpoint, make_model, write_tensors
from loaded_weights import DTYPES, check_weights, load, packed_parts
from safetensors.torch import load_file

from codegen_fast import memory, ops
from codegen_fast.config import CodeGenConfig
from codegen_fast.quantization import QUANTIZATIONS
from codegen_fast.weights import StateDictSource, convert_weights, load_weights, open_checkpoint

@pytest.mark.parametrize("model_type", ["codegen", "gptj"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_lands_in_its_place(tmp_path, layout, model_type):
    model = make_checkpoint(tmp_path, layout=layout, model_type=model_type, old_buffers=True, n_head=8, vocab_size=103)
    check_weights(load(tmp_path), model.state_dict(), model.config, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("file_dtype", DTYPES)
def test_types_are_changed_while_streaming(tmp_path, file_dtype, dtype):
    model = make_checkpoint(tmp_path, dtype=file_dtype, n_inner=48)
    weights = load(tmp_path, dtype)
    check_weights(weights, model.state_dict(), model.config, dtype)
    assert (weights.dtype, weights.quantization) == (dtype, None)


@pytest.mark.parametrize("file_dtype", DTYPES)
def test_int8_of_rows_is_the_contract_s(tmp_path, file_dtype):
    model = make_checkpoint(tmp_path, dtype=file_dtype, layout="bin")
    weights = load(tmp_path, torch.float16, quantization="int8-row")
    for packed, place, matrix in packed_parts(weights, model.state_dict(), model.config):
        matrix = matrix.float()
        amax = matrix.abs().amax(dim=1)
        values, scales = ops.unpack_quantized(packed, matrix.shape[0], **place)
        assert torch.equal(scales, amax / 127)
        # torch computes 127 / amax as 127 * (1 / amax), which rounds twice.
        inverse = torch.full_like(amax, 127) / amax
        assert torch.equal(values, torch.round(matrix * inverse[:, None]).to(torch.int8))
    assert (weights.dtype, weights.quantization, weights.embedding.dtype) == (torch.float16, "int8-row", torch.float16)


@pytest.mark.parametrize("quantization", ["int8", "int4", "int4-g64", "int4-g128"])
@pytest.mark.parametrize("file_dtype", DTYPES)
def test_quantised_groups_are_the_contract_s(tmp_path, file_dtype, quantization):
    """The layers; lm_head is int8."""
    model = make_checkpoint(tmp_path, dtype=file_dtype, n_inner=50)
    weights = load(tmp_path, torch.float16, quantization=quantization)
    assert (weights.dtype, weights.quantization, weights.embedding.dtype) == (torch.float16, quantization, torch.float16)
    kinds = set()
    for packed, place, matrix in packed_parts(weights, model.state_dict(), model.config):
        values, scales = ops.unpack_quantized(packed, matrix.shape[0], **place)
        expected = (quantised.quantize_int8(matrix) if packed is weights.lm_head or quantization == "int8"
                    else quantised.quantize_int4(matrix, quantised.INT4_GROUPS[quantization]))
        assert torch.equal(values, expected[0]) and torch.equal(scales, expected[1])
        kinds.add(packed.kind)
    assert weights.lm_head.kind == "int8-g32"
    assert kinds == ({"int8-g32"} if quantization == "int8" else {"int8-g32", quantization})


def test_the_long_name_of_the_default(tmp_path):
    make_checkpoint(tmp_path)
    assert load(tmp_path, quantization="int4-g32").quantization == "int4"


def test_chunks_of_any_size_give_the_same(tmp_path, monkeypatch):
    model = make_checkpoint(tmp_path)
    monkeypatch.setattr("codegen_fast.weights.loader.CHUNK_BYTES", 5 * 64 * 4 + 1)
    check_weights(load(tmp_path), model.state_dict(), model.config, torch.float32)


def test_a_state_dict_in_memory_is_a_source():
    model = make_model(dtype=torch.bfloat16)
    config = CodeGenConfig.from_dict(model.config.to_dict())
    weights = load_weights(config, StateDictSource(model.state_dict()), dtype=torch.bfloat16, progress=False)
    check_weights(weights, model.state_dict(), config, torch.bfloat16)


def test_matrices_that_lie_oddly_in_their_file_are_read(tmp_path):
    """Turned and strided ones in a .bin; elements off their alignment in a .safetensors whose header is not padded."""
    model = make_checkpoint(tmp_path, layout="bin")
    tensors = dict(torch.load(tmp_path / "pytorch_model.bin"))
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.contiguous().T
    tensors["transformer.wte.weight"] = torch.cat([tensors["transformer.wte.weight"]] * 2, dim=1)[:, :64]
    tensors[FC_IN] = tensors[FC_IN][:1].expand(256, 64)
    state = {**model.state_dict(), FC_IN: tensors[FC_IN]}
    write_tensors(tmp_path, tensors, "bin")
    check_weights(load(tmp_path), state, model.config, torch.float32)
    write_tensors(tmp_path, {name: tensor.contiguous() for name, tensor in tensors.items()})
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8:8 + length].rstrip() + b" "
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length:])
    check_weights(load(tmp_path), state, model.config, torch.float32)


@pytest.mark.parametrize("shape", [(3000, 1000), (1, 3000, 1000)])
def test_a_turned_matrix_is_read_once(tmp_path, monkeypatch, shape):
    """Its rows lie all over it: chunk by chunk it would be read nearly whole for each, into buffers of its size."""
    turned = torch.rand(1000, 3000).t().reshape(shape[-2:]).view(shape)
    assert turned.stride(-1) == 3000
    write_tensors(tmp_path, {"a": turned, "b": torch.ones(4, 4)}, "bin")
    source = open_checkpoint(tmp_path)
    counts, read = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: counts.append(read(*arguments)) or counts[-1])
    parts = [source.rows("a", row, 500).clone() for row in range(0, 3000, 500)]
    assert torch.equal(torch.cat(parts), turned.reshape(shape[-2:]))
    assert sum(counts) == turned.nbytes
    assert source._file._turned is None and all(buffer.numel() == 0 for buffer in source._file._buffers)
    source.rows("a", 0, 500)
    assert source._file._turned is not None
    source.rows("b", 0, 4)
    assert source._file._turned is None  # no two at once


def test_tied_turned_matrices_are_compared_without_reading_them_again(tmp_path, monkeypatch):
    model = make_checkpoint(tmp_path, layout="bin", tie_word_embeddings=True, vocab_size=40_000, n_layer=1)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[name] = tensors[name].T.contiguous().T
    write_tensors(tmp_path, tensors, "bin")
    counts, read = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: counts.append(read(*arguments)) or counts[-1])
    check_weights(load(tmp_path), model.state_dict(), model.config, torch.float32)
    assert sum(counts) < sum(tensor.nbytes for tensor in tensors.values()) + 2 * tensors["lm_head.weight"].nbytes + 4096


# ---- Tied embeddings -----------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_tied_embeddings_serve_as_lm_head(tmp_path, quantization):
    model = make_checkpoint(tmp_path, tie_word_embeddings=True)
    weights = load(tmp_path, torch.float32, quantization=quantization)
    table = model.state_dict()["transformer.wte.weight"]
    rows = ops.unpack(weights.lm_head, table.shape[0], torch.float32)
    assert torch.allclose(rows, table, atol=0.0 if quantization is None else float(table.abs().max()) / 250)
    assert torch.equal(weights.lm_head_bias, model.state_dict()["lm_head.bias"])


def test_tied_embeddings_with_an_lm_head_of_their_own(tmp_path):
    model = make_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_tensors(tmp_path, tensors)
    load(tmp_path)  # both are there and equal
    tensors["lm_head.weight"][3, 5] += 1
    write_tensors(tmp_path, tensors)
    message = (r"the config says tie_word_embeddings, and tensor 'lm_head.weight' of .* differs from "
               r"transformer.wte.weight; set tie_word_embeddings to false, or remove one of the two")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


# ---- Bad tensors ---------------------------------------------------------------------------------

FC_IN, NORM = "transformer.h.1.mlp.fc_in.weight", "transformer.h.0.ln_1.weight"


def expect_refusal(tmp_path, change, message, layout="safetensors", **options):
    make_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    change(tensors)
    write_tensors(tmp_path, tensors, layout)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, **options)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop(FC_IN), rf"lacks tensor '{FC_IN}' of shape \(256, 64\), which the config asks for"),
    (lambda t: t.pop("lm_head.weight"), r"lacks tensor 'lm_head.weight' of shape \(101, 64\)"),
    (lambda t: t.update({"transformer.h.2.ln_1.bias": torch.zeros(64)}),
     r"holds tensor 'transformer.h.2.ln_1.bias', which a codegen model of this config does not have"),
    (lambda t: t.update(x=torch.zeros(1), y=torch.zeros(1)), r"holds tensor 'x' and 1 more, which a codegen model"),
    (lambda t: t.update({FC_IN: torch.zeros(255, 64)}),
     rf"tensor '{FC_IN}' of .* has shape \(255, 64\); expected \(256, 64\) by the config"),
    (lambda t: t.update({NORM: torch.zeros(1, 64)}), rf"tensor '{NORM}' of .* has shape \(1, 64\); expected \(64,\)"),
    (lambda t: t.update({FC_IN: t[FC_IN].double()}),
     rf"tensor '{FC_IN}' of .* is float64; expected float32 or float16 or bfloat16"),
    (lambda t: t.update({NORM: t[NORM].to(torch.int32)}), rf"tensor '{NORM}' of .* is int32; expected float32 or"),
    (lambda t: t.update({FC_IN: t[FC_IN].to(torch.float8_e4m3fn)}),
     rf"tensor '{FC_IN}' of .* is (F8_E4M3|float8_e4m3fn); expected float32"),
])
def test_a_tensor_that_does_not_fit_is_named(tmp_path, layout, change, message):
    expect_refusal(tmp_path, change, message, layout)


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.attn.qkv_proj.weight",
                                  "transformer.h.0.mlp.fc_out.weight", "lm_head.weight", NORM, "lm_head.bias"])
def test_a_value_that_is_not_finite_is_refused(tmp_path, name, value, quantization):
    expect_refusal(tmp_path, lambda t: t[name].view(-1)[-7].fill_(value),
                   rf"tensor '{name}' of .* holds 1 values that are NaN or infinite; the checkpoint is broken",
                   quantization=quantization)


@pytest.mark.parametrize("name", ["transformer.wte.weight", FC_IN])
def test_a_value_beyond_float16_proposes_another_type(tmp_path, name):
    def enlarge(tensors):
        tensors[name].view(-1)[5] = 70000.0

    message = (rf"tensor '{name}' of .* holds 1 values beyond the range of float16; load it with dtype='bfloat16' or "
               r"dtype='float32'")
    expect_refusal(tmp_path, enlarge, message, dtype=torch.float16)
    load(tmp_path, torch.bfloat16)
    load(tmp_path, torch.float32)
    if name == FC_IN:
        load(tmp_path, torch.float16, quantization="int8")  # the row's scale takes it


def test_a_bias_beyond_float16_is_kept(tmp_path):
    model = make_checkpoint(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["lm_head.bias"][0] = -1e9  # forbids a token, as some fine-tuned models do
    write_tensors(tmp_path, tensors)
    assert load(tmp_path, torch.float16).lm_head_bias[0] == -1e9


def test_a_checkpoint_of_the_other_architecture_is_refused(tmp_path):
    make_checkpoint(tmp_path, model_type="gptj")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "model_type": "codegen"}))
    with pytest.raises(ValueError, match=r"lacks tensor 'transformer.h.0.attn.qkv_proj.weight' of shape \(192, 64\)"):
        load(tmp_path)


def test_wrong_arguments_are_refused(tmp_path):
    make_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"dtype is torch.float64; expected torch.float32, torch.float16 or torch.bfl"):
        load(tmp_path, torch.float64)
    with pytest.raises(ValueError, match=r"quantization='int3' is not allowed: expected None or 'int8', 'int8-row', 'int4', 'in"):
        load(tmp_path, quantization="int3")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_on_a_terminal_s_standard_error_and_can_be_off(tmp_path, capfd, monkeypatch):
    make_checkpoint(tmp_path)
    config, source = CodeGenConfig.from_folder(tmp_path), open_checkpoint(tmp_path)
    for progress in (False, True):  # True: but a load of under a second stays silent
        load_weights(config, source, dtype=torch.float32, progress=progress)
        assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("codegen_fast.weights.loader.PROGRESS_AFTER_SECONDS", 0)
    load_weights(config, source, dtype=torch.float32, progress=True)
    assert capfd.readouterr() == ("", "")  # no terminal, no bar
    monkeypatch.setattr(sys, "stderr", Terminal())
    load_weights(config, source, dtype=torch.float32, progress=True)
    assert capfd.readouterr().out == "" and "Loading weights" in sys.stderr.getvalue()


# ---- Other types afterwards ----------------------------------------------------------------------


@pytest.mark.parametrize("new", DTYPES)
@pytest.mark.parametrize("old", DTYPES)
def test_converted_weights_are_those_of_the_type(tmp_path, old, new):
    model = make_checkpoint(tmp_path, n_inner=48, model_type="gptj")
    weights = load(tmp_path, old)
    biases = weights.lm_head_bias.clone()
    assert convert_weights(CodeGenConfig.from_folder(tmp_path), weights, new) is weights
    state = {name: t.to(old) if t.dim() == 2 else t for name, t in model.state_dict().items()}
    check_weights(weights, state, model.config, new)
    assert weights.dtype == new and torch.equal(weights.lm_head_bias, biases)


@pytest.mark.parametrize("quantization", ["int8", "int4-g64"])
def test_quantised_weights_stay_as_they_are_when_converted(tmp_path, quantization):
    make_checkpoint(tmp_path)
    weights = load(tmp_path, torch.float32, quantization=quantization)
    before = weights.layers[0].w_in
    convert_weights(CodeGenConfig.from_folder(tmp_path), weights, torch.bfloat16)
    assert weights.layers[0].w_in is before and weights.embedding.dtype == torch.bfloat16
    assert (weights.dtype, weights.quantization) == (torch.bfloat16, quantization)


@pytest.mark.parametrize("name, part", [("transformer.wte.weight", "embedding"), ("lm_head.weight", "lm_head"),
                                        (FC_IN, "attention input or fc_in of layer 1")])
def test_a_conversion_that_overflows_changes_nothing(tmp_path, name, part):
    model = make_checkpoint(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors[name].view(-1)[5] = 1e6
    write_tensors(tmp_path, tensors)
    weights = load(tmp_path, torch.float32)
    with pytest.raises(ValueError, match=rf"the {part} holds values beyond the range of float16; the model stays"):
        convert_weights(CodeGenConfig.from_folder(tmp_path), weights, torch.float16)
    check_weights(weights, tensors, model.config, torch.float32)


def test_a_conversion_that_does_not_fit_is_refused_first(tmp_path, monkeypatch):
    make_checkpoint(tmp_path)
    weights = load(tmp_path, torch.float16)
    monkeypatch.setattr("codegen_fast.weights.convert.available_bytes", lambda device: 1000)
    with pytest.raises(OSError, match=r"converting the model to float32 needs .* GB more memory and 0\.00 GB are free"):
        convert_weights(CodeGenConfig.from_folder(tmp_path), weights, torch.float32)


# ---- Memory, foretold ----------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forecast_is_what_the_weights_take(tmp_path, dtype, quantization):
    make_checkpoint(tmp_path, n_inner=48)
    weights = load(tmp_path, dtype, quantization=quantization)
    assert memory.model_bytes(CodeGenConfig.from_folder(tmp_path), dtype, quantization) == weights.nbytes()
