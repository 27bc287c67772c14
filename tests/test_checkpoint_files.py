"""Opening checkpoints: every layout that the Hub holds, and every way in which files are broken or hostile."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from checkpoints import LAYOUTS, make_checkpoint, write_tensors
from safetensors.torch import save_file

from codegen_fast.config import CodeGenConfig
from codegen_fast.weights import StateDictSource, bin_places, checkpoint_dtype, open_checkpoint
from codegen_fast.weights.file_tensors import CheckpointFile

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.float16), "c": torch.zeros(2, 2)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path, layout):
    model = make_checkpoint(tmp_path, layout=layout)
    source = open_checkpoint(tmp_path)
    expected = model.state_dict()
    assert sorted(source.names()) == sorted(expected)
    for name, tensor in expected.items():
        assert source.shape(name) == tuple(tensor.shape) and source.dtype(name) == tensor.dtype
        assert torch.equal(source.get(name), tensor)
        assert str(tmp_path) in source.describe(name)


def test_safetensors_are_preferred(tmp_path):
    write_tensors(tmp_path, {"a": torch.zeros(1)}, "bin")
    write_tensors(tmp_path, {"a": torch.ones(1)}, "safetensors")
    assert open_checkpoint(tmp_path).get("a").item() == 1


def test_tensors_that_share_their_storage_are_read(tmp_path):
    whole = torch.arange(20.0).reshape(4, 5)
    tensors = {"whole": whole, "tied": whole, "part": whole[1:3, 1:], "turned": whole.T}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    source = open_checkpoint(tmp_path)
    for name, expected in tensors.items():
        assert torch.equal(source.get(name), expected)


@pytest.mark.parametrize("config_dtype, file_dtype, expected", [
    ("float16", torch.float32, torch.float16), (None, torch.bfloat16, torch.bfloat16),
    (None, torch.float64, torch.float32), (None, None, torch.float32)])
def test_the_type_that_auto_means(config_dtype, file_dtype, expected):
    config = CodeGenConfig.from_dict({"model_type": "codegen", "torch_dtype": config_dtype})
    tensors = {} if file_dtype is None else {"transformer.wte.weight": torch.zeros(1, 1, dtype=file_dtype)}
    assert checkpoint_dtype(StateDictSource(tensors), config) is expected


def expect(folder, error, message):
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + 2 * len(str(folder))
    return caught


# ---- Hostile files -------------------------------------------------------------------------------


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("old_format", [False, True])
def test_nothing_in_a_pickle_runs(tmp_path, old_format, monkeypatch):
    # The variable makes torch.load unsafe where the caller has not asked for safety explicitly.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    torch.save({"a": torch.zeros(2), "b": Payload(canary)}, tmp_path / "pytorch_model.bin",
               _use_new_zipfile_serialization=not old_format)
    message = r"format from before version 1\.6" if old_format else \
        r"pytorch_model\.bin holds something that is not a tensor, and nothing in it was run \(.*system.*\); get the"
    expect(tmp_path, OSError if old_format else ValueError, message)
    assert not canary.exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert canary.exists()  # the payload works; it was we who did not run it


def test_a_harmless_object_in_a_pickle_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2), "step": 17}, tmp_path / "pytorch_model.bin")
    expect(tmp_path, ValueError, r"holds a int under 'step'; expected tensors only")
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "pytorch_model.bin")
    expect(tmp_path, ValueError, r"holds a dict under 'state_dict'; expected tensors only")
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    expect(tmp_path, ValueError, r"holds a list; expected a dict of tensors by name")
    torch.save({3: torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    expect(tmp_path, ValueError, r"has the key 3; expected the names of tensors")
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "pytorch_model.bin")
    expect(tmp_path, ValueError, r"something that is not a tensor, and nothing in it was run \('GLOBAL .*_sparse_tensor'")


@pytest.mark.parametrize("layout", ["sharded", "sharded_bin"])
@pytest.mark.parametrize("outside", ["../elsewhere.bin", "/etc/passwd", "sub/shard.bin", "..", "", "a\\b"])
def test_an_index_cannot_name_a_file_outside_its_folder(tmp_path, layout, outside):
    write_tensors(tmp_path, TENSORS, layout)
    (tmp_path.parent / "elsewhere.bin").write_bytes(b"secret")
    index = next(tmp_path.glob("*.index.json"))
    content = json.loads(index.read_text())
    content["weight_map"]["b"] = outside
    index.write_text(json.dumps(content))
    expect(tmp_path, ValueError, r"index\.json names the shard '.*'; expected the name of a file in the same folder")


def test_a_shard_cannot_be_a_link_out_of_its_folder(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    write_tensors(folder, TENSORS, "sharded")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shutil.move(shard, outside / "shard")
    shard.symlink_to(outside / "shard")
    expect(folder, ValueError, r"00002-of-00003.safetensors links to .*outside/shard, outside its folder")


def test_links_within_the_cache_of_the_hub_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_tensors(snapshot, TENSORS, "sharded")
    for file in list(snapshot.iterdir()):
        shutil.move(file, blobs / f"hash-of-{file.name}")
        file.symlink_to(f"../../blobs/hash-of-{file.name}")
    assert torch.equal(open_checkpoint(snapshot).get("a"), TENSORS["a"])


# ---- Broken files --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage, message", [
    ("empty", r"is empty \(0 bytes\); download it again"),
    ("half", r"is cut off or (damaged|not a safetensors file) \(.*\); download it again"),
    ("text", r"is (not a checkpoint of torch.save|cut off or not a safetensors file)"),
    ("lfs", r"is only a Git LFS pointer to the weights; run `git lfs pull`"),
    ("gone", r"has no .*00002-of-00003.*, which .*index.json names; download it"),
    ("folder", r"is not a file; expected a regular one"),
])
def test_a_damaged_file_is_named(tmp_path, layout, damage, message):
    long = {name: torch.cat([tensor.float().flatten()] * 500) for name, tensor in TENSORS.items()}
    write_tensors(tmp_path, long, layout)
    files = sorted(f for f in tmp_path.iterdir() if f.suffix in (".bin", ".safetensors"))
    file = files[len(files) // 2]
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "gone":
        file.write_bytes({"empty": b"", "half": content[:len(content) // 2], "text": b"<html>Not found</html>" * 50,
                          "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"}[damage])
    if damage == "gone" and len(files) == 1:
        message = r"holds no weights; expected model\.safetensors, pytorch_model\.bin, or the \.index\.json of one of"
    assert file.name in str(expect(tmp_path, OSError, message).value) or damage == "gone"


def test_another_framework_s_weights_are_named(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    expect(tmp_path, OSError, r"holds no weights; its flax_model.msgpack is another framework's; expected model\.safe")


def test_the_old_format_of_torch_says_how_to_convert(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    expect(tmp_path, OSError, r"format from before version 1\.6, which cannot be memory-mapped; convert it once with "
                              r"torch\.save\(torch\.load\(path, weights_only=True\), path\)")
    path = tmp_path / "pytorch_model.bin"
    torch.save(torch.load(path, weights_only=True), path)
    assert torch.equal(open_checkpoint(tmp_path).get("a"), TENSORS["a"])


def test_a_compressed_zip_is_refused(tmp_path):
    """Mapped, torch would read the compressed bytes as numbers."""
    torch.save(TENSORS, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as plain, \
            zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    expect(tmp_path, OSError, r"is a compressed zip, which cannot be memory-mapped; write it with torch\.save")


def test_an_entry_that_lies_about_its_size_is_refused(tmp_path):
    """Its directory says that torch's identification unfolds to 160 MB: torch allocated that, and then could not read it."""
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path)
    with zipfile.ZipFile(path) as archive:
        (entry,) = [entry for entry in archive.infolist() if entry.filename.endswith("serialization_id")]
    content = path.read_bytes()
    at = content.rindex(entry.filename.encode()) - 46  # its place in the directory: sizes stand at bytes 20 and 24
    assert content[at:at + 4] == b"PK\1\2"
    path.write_bytes(content[:at + 24] + (160 << 20).to_bytes(4, "little") + content[at + 28:])
    with pytest.raises(OSError, match="serialization_id' has 40 bytes and would unfold to 167772160"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, layout):
    write_tensors(tmp_path, {"a": torch.zeros(300, 500), "b": torch.zeros(3)}, layout)
    source = open_checkpoint(tmp_path)
    file = next(tmp_path.iterdir())
    size = file.stat().st_size
    os.truncate(file, 5000)  # a mapped file would now kill the process
    for read in (lambda: source.get("a"), lambda: source.rows("a", 200, 100), lambda: source.get("b")):
        with pytest.raises(OSError, match=rf"{file.name} was changed while it was read \(it had {size} bytes and has 5000 now\); "
                                          r"load the model again when nothing writes to it"):
            read()


@pytest.mark.parametrize("folder", ["a", "a  b\nc\\d"])
def test_a_mapping_is_known_by_its_path_too(tmp_path, monkeypatch, folder):
    """On btrfs and overlays the device that fstat tells is not that of the mapping."""
    (tmp_path / folder).mkdir()
    write_tensors(tmp_path / folder, TENSORS, "bin")
    monkeypatch.setattr(CheckpointFile, "identity", ((0, 0), 0))
    source = open_checkpoint(tmp_path / folder)
    assert not isinstance(source, StateDictSource)
    for name, tensor in TENSORS.items():
        assert torch.equal(source.get(name), tensor)


def test_a_file_whose_mapping_is_not_known_is_not_left_mapped(tmp_path, monkeypatch):
    """No /proc, or another file has the name by now. A mapped one would end the process here, with SIGBUS."""
    write_tensors(tmp_path, {"a": torch.arange(1e6)}, "bin")
    monkeypatch.setattr(bin_places, "_mappings", lambda file: iter(()))
    source = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "pytorch_model.bin", 100)
    assert torch.equal(source.get("a"), torch.arange(1e6))


def test_a_file_that_lost_its_name_is_not_known_by_it(tmp_path):
    write_tensors(tmp_path, TENSORS, "bin")
    path = tmp_path / "pytorch_model.bin"
    file = CheckpointFile(path, path)
    assert file.has_its_name()
    shutil.copy(path, tmp_path / "other")
    os.replace(tmp_path / "other", path)
    assert not file.has_its_name()


def safetensors_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("header, reason", [
    (b"[]", "its header is a list, expected an object"),
    (b"[" * 100_000, "its header is not valid JSON"),
    (b"\xff", "its header is not valid JSON"),
    (b'{"a": {}, "a": {}}', "its header is not valid JSON: the key .a. is there twice"),
    ({"a": {"dtype": "F32", "shape": [1]}}, "tensor 'a' lacks its dtype, shape or data_offsets"),
    ({"a": 3}, "tensor 'a' lacks its dtype, shape or data_offsets"),
    ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": {}, "data_offsets": [0, 4]}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": "", "data_offsets": [0, 4]}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": {"0": 0, "4": 4}}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "tensor 'a' has the dtype 'F32', shape "),
    ({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}, "tensor 'a' of type F32 and shape .* has 4 bytes"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "tensor 'a' begins at byte"),
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
     "tensor 'b' begins at byte"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "its tensors end at byte"),
    ({"a": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4 * 10**6]}}, "its tensors end at byte"),
])
def test_a_broken_header_is_refused(tmp_path, header, reason):
    safetensors_file(tmp_path / "model.safetensors", header, bytes(8))
    expect(tmp_path, OSError, rf"is cut off or not a safetensors file \({reason}.*\); download it again")


def test_a_header_that_would_be_huge_is_not_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    expect(tmp_path, OSError, r"\(its header would be 1099511627776 bytes long\)")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    expect(tmp_path, OSError, r"\(it has 3 bytes, expected 8 at least\)")


def edit_index(folder, change):
    index = next(folder.glob("*.index.json"))
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("layout", ["sharded", "sharded_bin"])
def test_an_index_that_contradicts_the_files_is_refused(tmp_path, layout):
    write_tensors(tmp_path, TENSORS, layout)
    first, second, _ = sorted(f.name for f in tmp_path.iterdir() if f.suffix != ".json")
    edit_index(tmp_path, lambda content: content["weight_map"].update(d=first))
    expect(tmp_path, ValueError, rf"index.json says that tensor 'd' is in {first}, which does not hold it; download")
    write_tensors(tmp_path, TENSORS, layout)
    edit_index(tmp_path, lambda content: content["weight_map"].update(a=second))
    edit_index(tmp_path, lambda content: content["weight_map"].update(b=first))
    expect(tmp_path, ValueError, rf"index.json says that tensor 'a' is in {second}; it is in .*{first}")


@pytest.mark.parametrize("layout", ["sharded", "sharded_bin"])
def test_a_tensor_in_two_shards_is_refused(tmp_path, layout):
    write_tensors(tmp_path, TENSORS, layout)
    second = sorted(f for f in tmp_path.iterdir() if f.suffix != ".json")[1]
    both = {"a": TENSORS["a"], "b": TENSORS["b"]}
    save_file(both, second) if layout == "sharded" else torch.save(both, second)
    message = r"tensor 'a' is in two shards, .*00001-of-00003.* and .*00002-of-00003.*; expected it in one"
    expect(tmp_path, ValueError, message)


def test_a_shard_with_a_tensor_that_the_index_lacks_is_refused(tmp_path):
    write_tensors(tmp_path, TENSORS, "sharded")
    edit_index(tmp_path, lambda content: content["weight_map"].update(z=content["weight_map"].pop("b")))
    expect(tmp_path, ValueError, r"00002-of-00003\.safetensors holds tensor 'b', which model\.safetensors\.index\.json "
                                 r"does not name; the files are of different checkpoints")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_an_index_without_a_map_is_refused(tmp_path, content):
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    expect(tmp_path, ValueError, r"index\.json has no weight_map of tensor names to file names")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{")
    expect(tmp_path, ValueError, r"index\.json is not valid JSON")
