"""Files by a stranger's hand. Every case in here once crashed, hung, took memory, left its folder, or was refused without
advice; most were found by `python -m reliability.hostile`, which docs/reliability.md tells of.
"""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import reference
import torch
from checkpoints import make_checkpoint, write_tensors
from strange_files import HOLE, LONG, little_memory, new_folder, put, refused
from tokenizers_small import write_tokenizer

from codegen_fast import AutoModelForCausalLM, AutoTokenizer
from codegen_fast.config import CodeGenConfig
from codegen_fast.decoder import _rotary_table as rotary_table
from codegen_fast.evaluation.run_folder import model_fingerprint
from codegen_fast.generation.config import GenerationConfig
from codegen_fast.generation.knobs import KNOBS
from codegen_fast.strangers import parse_json, regular_file
from codegen_fast.weights import open_checkpoint

CONFIG = {"model_type": "codegen", "n_embd": 64, "n_head": 4, "rotary_dim": 8, "n_positions": 64}


# ---- What is no file of the folder ---------------------------------------------------------------

ODD = [("pipe", OSError, "is not a file"), ("socket", OSError, "is not a file"), ("folder", OSError, "is not a file"),
       ("circle", OSError, "leads nowhere"), ("nowhere", OSError, "leads nowhere"), ("/dev/zero", ValueError, "outside its folder"),
       ("/etc/passwd", ValueError, "outside its folder"), ("../outside", ValueError, "outside its folder")]
TEXT_HOLE = ("hole", OSError, f"has {HOLE} bytes; expected at most")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def small_model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def folder(tmp_path):
    return new_folder(tmp_path)


@pytest.mark.parametrize("kind, error, message", [*ODD, TEXT_HOLE])
@pytest.mark.parametrize("name, read", [("config.json", CodeGenConfig.from_folder),
                                        ("generation_config.json", lambda folder: GenerationConfig.from_folder(folder, {})),
                                        ("model.safetensors.index.json", open_checkpoint)])
def test_a_configuration_that_is_no_file(folder, name, read, kind, error, message):
    put(kind, folder / name)
    refused(error, message, read, folder)


@pytest.mark.parametrize("kind, error, message", [*ODD, ("hole", OSError, "not a safetensors file|not a checkpoint")])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_no_file(folder, name, kind, error, message):
    put(kind, folder / name)
    refused(error, message, open_checkpoint, folder)


@pytest.mark.parametrize("kind, error, message", [*ODD, TEXT_HOLE])
@pytest.mark.parametrize("layout, name", [("json", "tokenizer.json"), ("json", "tokenizer_config.json"), ("files", "vocab.json"),
                                          ("files", "merges.txt"), ("files", "added_tokens.json"),
                                          ("files", "special_tokens_map.json")])
def test_a_tokenizer_file_that_is_none(folder, layout, name, kind, error, message):
    write_tokenizer(folder, layout=layout)
    put(kind, folder / name)
    refused(error, message, AutoTokenizer.from_pretrained, folder)


@pytest.mark.parametrize("kind, error, message", ODD)
def test_a_fingerprint_of_what_is_no_file(folder, kind, error, message):
    put(kind, folder / "other.bin")
    refused(error, message, model_fingerprint, folder)


def test_links_that_are_meant(tmp_path):
    """Within the folder, to the whole folder, and into the Hub's cache, also from elsewhere (--local-dir once did so)."""
    folder, blobs = tmp_path / "folder", tmp_path / "hub" / "models--a--b" / "blobs"
    (folder / "inner").mkdir(parents=True)
    blobs.mkdir(parents=True)
    (folder / "inner" / "a").write_text("a")
    (folder / "b").symlink_to("inner/a")
    (blobs / "c0ffee").write_text("c")
    (folder / "c").symlink_to(blobs / "c0ffee")
    (tmp_path / "other").symlink_to(folder)
    assert regular_file(tmp_path / "other" / "b").read_text() == "a"
    assert regular_file(folder / "c").read_text() == "c"


# ---- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, message", [
    ("[" * 100_000 + "]" * 100_000, "nested too deeply"), ('{"a":' * 100 + "1" + "}" * 100, "more than 64 levels"),
    ('{"a": 1, "a": 2}', "'a' is there twice"), ('{"a": "\\ud800"}', "lone surrogate"), ('{"\\ud800": 1}', "lone surrogate"),
    ('{"a": ' + "9" * 5000 + "}", "4300 digits"), ("", "Expecting value"), ("{} {}", "Extra data"), (b"\xff", "no UTF-8"),
])
def test_json_that_nobody_means(text, message):
    refused(ValueError, message, parse_json, text)


def test_json_that_somebody_means():
    assert parse_json('{"a": [{"b": "\\ud83d\\ude00"}, 1e3, null]}') == {"a": [{"b": "\U0001f600"}, 1000.0, None]}


@pytest.mark.parametrize("changed", [
    {name: value} for name in ("model_type", "n_embd", "n_positions", "rotary_dim", "layer_norm_epsilon", "activation_function",
                               "tie_word_embeddings", "eos_token_id", "torch_dtype", "quantization_config")
    for value in (LONG, [LONG], 10**4000)] + [{"hidden_size": 10**4000}, {"n_positions": 2**20}])
def test_a_configuration_of_odd_values(folder, changed):
    """n_positions: a table of as many rows would be made, which no file backs."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    refused(ValueError, "config.json: .* is ", CodeGenConfig.from_folder, folder)


def test_the_largest_table_of_angles_is_made_once():
    """Of what no file backs there is one, and never a second beside it; its values do not depend on how it is made."""
    size = 2**22 // 8
    with little_memory(26):
        table = rotary_table(size, 8, torch.device("cpu"))
    assert table.nbytes == 16 << 20
    for places in (slice(0, 5000), slice(size - 5000, size)):
        torch.testing.assert_close(table[places], reference.rotary_table(size, 8, torch.float32)[places], rtol=0, atol=2**-23)


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_a_file_does_not_ask_for_rows_by_thousands(folder, name):
    refused(ValueError, f"config.json: {name} is 65536; expected at most", GenerationConfig.from_folder, folder, {name: 65536})
    (folder / "generation_config.json").write_text(json.dumps({name: 65536}))
    refused(ValueError, f"generation_config.json: {name} is 65536; expected", GenerationConfig.from_folder, folder, {})


ODD_VALUES = [-1, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**30, 10**400, -(10**400), float("nan"), float("inf"), 1e308, 1e-320,
              [10**30], [[10**30]], [[[10**30], 1.0]], [[[1], 10**400]], {"a": 1}, LONG, [None]]


@pytest.mark.parametrize("knob", [name for name, knob in KNOBS.items() if knob.check is not None])
def test_knobs_of_odd_values(small_model, knob):
    """A generation_config.json may say anything: it does nothing, or is refused when it would act."""
    for value in ODD_VALUES:
        if knob in ("num_beams", "num_return_sequences") and isinstance(value, int):
            continue  # a file does not ask for so many, see above
        for others in ({}, {"do_sample": True}, {"num_beams": 2}):
            small_model.generation_config = GenerationConfig.from_dict({"max_length": 4, **others, knob: value})
            try:
                small_model.generate([[4, 5]], seed=0)
            except (ValueError, TypeError, NotImplementedError) as error:
                assert any(word in str(error) for word in ("expected", "needs", "has no effect", "not supported", ";", ":")), error
                assert len(str(error)) < 800


# ---- .bin ------------------------------------------------------------------------------------------


def write_pickle(folder, data):
    """A .bin whose data.pkl is given."""
    write_tensors(folder, {"a": torch.zeros(4)}, "bin")
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, data if name.endswith("data.pkl") else content)


ENDLESS = b"K\x01" + b"q\x01h\x01\x86" * 30  # a pair of a pair of a pair ... of numbers


@pytest.mark.parametrize("data, named", [
    (b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "GLOBAL __builtin__ bytearray"),  # 2 GB of zeros
    (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "SHORT_BINUNICODE"),
    (b"\x80\x02(U\x04trueiposix\nsystem\n.", "INST"), (b"\x80\x02\x82\x01.", "EXT1"),
    (b"\x80\x02ctorch.storage\n_load_from_bytes\nU\x01.\x85R.", "GLOBAL torch.storage _load_from_bytes"),
    (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.", "GLOBAL torch._utils _rebuild_qtensor"),
    (b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.", "REDUCE"),  # 8 GB of zeros
    # Told whole in torch's error, where an expression then takes the square of the length:
    (b"\x80\x02X\x40\x0d\x03\x00" + b"a" * 200_000 + b")R.", "REDUCE"),
    (b"\x80\x02" + ENDLESS + b")R.", "REDUCE"),  # 2^30 numbers, if somebody prints it
    (b"\x80\x02}" + ENDLESS + b"K\x01s.", "SETITEM"),  # or hashes it
    (b"\x80\x02ccollections\nOrderedDict\n" + ENDLESS + b"\x85R.", "REDUCE"),
    (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + ENDLESS + b"\x85R.", "REDUCE"),
    (b"\x80\x02(U\x07storage" + ENDLESS * 4 + b"tQ.", "BINPERSID"),
])
def test_a_pickle_that_names_more_than_tensors(folder, data, named):
    write_pickle(folder, data)
    refused(ValueError, f"not a tensor, and nothing in it was run \\('{named}'", open_checkpoint, folder)


@pytest.mark.parametrize("data", [b"", b".", b"\x80\x02", b"\x80\x02a.",
                                  b"\x80\x02X\x04\x00\x00\x00\xe9\x80\x81\x61", b"\x80\x02c\xe9", b"\x80\x02h\x09.",
                                  b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR.", b"\x80\x02X\xff\xff\xff\x7fa.",
                                  b"\x80\x02}U\x01aN", pickle.dumps({"a": 1}, 2)[:-2]])
def test_a_broken_pickle(folder, data):
    write_pickle(folder, data)
    refused((OSError, ValueError), "is cut off or damaged", open_checkpoint, folder)


@pytest.mark.parametrize("tensors, message", [
    ({"a": torch.zeros(1).expand(2**15, 2**15)}, r"tensor 'a' of .* has shape \(32768, 32768\) over 4 bytes"),
    ({"a": torch.zeros(4).as_strided((64, 16), (0, 0))}, "over 16 bytes of values"),
    (dict.fromkeys(map(str, range(100)), torch.zeros(2**14)), "shared by at most 8 tensors"),
    ({"a": torch.zeros(2**15).as_strided((2, 2), (2**14, 1))}, r"strides \(16384, 1\); expected its values within 8 times"),
])
def test_a_small_file_does_not_stand_for_a_large_model(folder, tensors, message):
    torch.save(tensors, folder / "pytorch_model.bin")
    assert (folder / "pytorch_model.bin").stat().st_size < 1 << 18
    refused(ValueError, message, open_checkpoint, folder)


def test_a_zip_with_two_pickles_or_a_bomb(folder):
    """Two readers of one zip may take different ones of two entries."""
    write_tensors(folder, {"a": torch.zeros(4)}, "bin")
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        content = archive.read(name)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content)
    refused(OSError, "has 2 entries named data.pkl", open_checkpoint, folder)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\x00" * (300 << 20))
    refused(OSError, "is a compressed zip", open_checkpoint, folder)


@pytest.mark.parametrize("place, number", [(46, b"\xff\xfe"), (42, b"\xff\xff\xff\x7f"), (20, b"\xff\xff\xff\xff"),
                                           (28, b"\xff\xff"), (8, b"\x01\x00"), (10, b"\x63\x00")])
def test_a_directory_that_lies(folder, place, number):
    """Of a zip: names that are no text, offsets and sizes beyond the file, methods that are none, encryption."""
    write_tensors(folder, {"a": torch.zeros(4)}, "bin")
    path = folder / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    if place == 46:
        data[at + 8:at + 10] = b"\x00\x08"  # the name is said to be UTF-8
    data[at + place:at + place + len(number)] = number
    path.write_bytes(data)
    with little_memory():
        try:
            open_checkpoint(folder)
        except (OSError, ValueError) as error:
            assert str(path) in str(error) and len(str(error)) < 800


# ---- Tokenizers --------------------------------------------------------------------------------------


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize("changed, message", [
    ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 60}}, "has 60 stages in its normalizer"),
    ({"normalizer": REPLACE}, "'Replace' in its normalizer, which a byte-level BPE does not have"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
     "'Split' in its pre_tokenizer"),
    ({"decoder": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}, "'Replace' in its decoder"),
    ({"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}}, "gives the token 'a' the id 4000000000"),
    ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "gives the token 'a' the id -1"),
    ({"model": {"type": "BPE", "vocab": [], "merges": []}}, "its model has no vocab"),
    ({"model": None}, "holds a 'NoneType' tokenizer"),
    *(({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], name: "##"}}, f"has {name} = '##'; expected none")
      for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout")),
])
def test_stages_that_a_stranger_could_use(folder, changed, message):
    """Replacements in a row double a text sixty times; such a regular expression never ends."""
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    refused(ValueError, message, AutoTokenizer.from_pretrained, folder)


@pytest.mark.parametrize("changed", [{"eos_token": [LONG]}, {"tokenizer_class": [LONG]}, {"extra_special_tokens": 3},
                                     {"extra_special_tokens": [[LONG]]}, {"added_tokens_decoder": {"5": [LONG]}},
                                     {"padding_side": LONG}, {"model_max_length": [LONG]}])
def test_a_tokenizer_configuration_of_odd_values(folder, changed):
    write_tokenizer(folder, **changed)
    refused(ValueError, "must be|is not a CodeGen tokenizer|expected", AutoTokenizer.from_pretrained, folder)


# ---- Whole models ------------------------------------------------------------------------------------


def test_a_safetensors_header_that_lies(folder, checkpoint):
    """Offsets beyond the file, on each other, or a shape whose product wraps around."""
    data = (checkpoint / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    name = "transformer.wte.weight"
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    for changed in ({"data_offsets": [0, 2**63]}, {"data_offsets": [2**64 - 1, 2**64 - 1]}, {"shape": [2**62, 4, 4]},
                    {"shape": [2**63, 2]}, {"data_offsets": header["lm_head.weight"]["data_offsets"]}, {"dtype": "F4"},
                    {"dtype": LONG}, {"dtype": "\x1b[2J"}):
        text = json.dumps({**header, name: {**header[name], **changed}}).encode()
        stream = io.BytesIO()
        stream.write(struct.pack("<Q", len(text)) + text + data[8 + length:])
        (folder / "model.safetensors").write_bytes(stream.getvalue())
        refused((OSError, ValueError), "model.safetensors", AutoModelForCausalLM.from_pretrained, folder)


NAMES = [LONG, "\n\x1b[2J", "\udc00" * 100]


def write_header(folder, header, data=b""):
    """header: text, as JSON escapes of what is no text must come through."""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


@pytest.mark.parametrize("odd", NAMES)
@pytest.mark.parametrize("header", ['{%s: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
                                    '{"a": {"dtype": %s, "shape": [1], "data_offsets": [0, 4]}}',
                                    '{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, 4]}}',
                                    '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}',
                                    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [%s, 4]}}'])
def test_a_message_quotes_no_more_of_a_header_than_can_be_read(folder, checkpoint, header, odd):
    write_header(folder, header % json.dumps(odd), bytes(4))
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    refused((OSError, ValueError), "model.safetensors", AutoModelForCausalLM.from_pretrained, folder)


def spoiled(checkpoint, **changes):
    """Tensors of a checkpoint, all but the changed ones empty: shapes are looked at before values."""
    source = open_checkpoint(checkpoint)
    return {**{name: source.get(name) for name in source.names()}, **changes}


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("changes", [{LONG: torch.zeros(1)}, {"\n\x1b[2J" * 20: torch.zeros(1)},
                                     {"transformer.wte.weight": torch.zeros([1] * 60)}])
def test_a_message_quotes_no_more_of_a_tensor_than_can_be_read(folder, checkpoint, layout, changes):
    write_tensors(folder, spoiled(checkpoint, **changes), layout)
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    refused(ValueError, "holds tensor|has shape", AutoModelForCausalLM.from_pretrained, folder)


@pytest.mark.parametrize("name", ["a\nb.safetensors", "\x1b[2J.safetensors", "a" * 200 + ".safetensors"])
def test_a_shard_whose_name_cannot_be_told(folder, name):
    write_tensors(folder, {"a": torch.zeros(4)}, "safetensors")
    (folder / "model.safetensors").rename(folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": name}}))
    refused(ValueError, "names the shard .* expected the name of a file", open_checkpoint, folder)


def test_a_link_whose_target_cannot_be_told(folder):
    (folder / "config.json").symlink_to(folder.parent / "a\nb")
    (folder.parent / "a\nb").write_text("{}")
    refused(ValueError, "outside its folder", CodeGenConfig.from_folder, folder)


def test_a_fingerprint_of_a_name_that_is_no_text(folder):
    (folder / os.fsdecode(b"\xff.bin")).write_bytes(b"a")
    assert len(model_fingerprint(folder)) == 16


def test_a_packed_checkpoint_of_an_odd_version(folder, small_model, checkpoint):
    small_model.save_pretrained(folder, packed=True)
    config = json.loads((folder / "config.json").read_text())
    packed = config["quantization_config"]["packed"]
    packed.update(layout=dict.fromkeys(packed["layout"], "\n" * 9), version="\x1b[2J\n" * 9)
    (folder / "config.json").write_text(json.dumps(config))
    refused(ValueError, "packed in layout", AutoModelForCausalLM.from_pretrained, folder)
