"""Tokenizer folders: what their files and from_pretrained's settings choose, saving, Hub ids, corrupt files."""

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import processors
from tokenizers_small import END_OF_TEXT, TEXT, build_backend, make_texts, write_tokenizer

from codegen_fast.tokenizer import AutoTokenizer, CodeGenTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), layout="hub")


@pytest.mark.parametrize("layout", ["json", "files"])
def test_settings(tmp_path, layout):
    folder = write_tokenizer(tmp_path, layout=layout, add_prefix_space=True, padding_side="right",
                             pad_token=END_OF_TEXT, truncation_side="left", model_max_length=77)
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = transformers.CodeGenTokenizer.from_pretrained(folder)
    assert ours.add_prefix_space and (ours.padding_side, ours.truncation_side) == ("right", "left")
    assert ours.model_max_length == 77 and ours.pad_token == END_OF_TEXT
    for text in make_texts(50, seed=7):
        assert ours.encode(text, truncation=True) == theirs.encode(text, truncation=True)
    changed = AutoTokenizer.from_pretrained(
        str(folder), add_prefix_space=False, padding_side="left", truncation_side="right", model_max_length=5,
        pad_token="<pad>", eos_token="def", extra_special_tokens=["<extra>"], revision="main", cache_dir="unused",
        token=None, local_files_only=True, trust_remote_code=True, use_fast=False)
    assert not changed.add_prefix_space and changed.padding_side == "left" and changed.truncation_side == "right"
    assert len(changed.encode(TEXT, truncation=True)) == 5
    assert changed.pad_token_id == len(ours) and changed.eos_token_id == ours.get_vocab()["def"]
    assert changed.all_special_tokens == [END_OF_TEXT, "def", "<pad>", "<extra>"]


@pytest.mark.parametrize("named", ["CodeGenTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast",
                                   "PreTrainedTokenizerFast", None])
def test_tokenizer_classes_of_hub_folders(tmp_path, named):
    token = {"__type": "AddedToken", "content": END_OF_TEXT, "lstrip": False, "normalized": True, "rstrip": False,
             "single_word": False}
    folder = write_tokenizer(tmp_path, layout="hub", tokenizer_class=named, name_or_path="gpt2", errors="replace",
                             special_tokens_map_file=None, bos_token=token, eos_token=token, unk_token=token,
                             add_bos_token=False, pad_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": END_OF_TEXT}}))
    ours = CodeGenTokenizer.from_pretrained(folder)
    assert ours.eos_token == ours.bos_token == ours.unk_token == END_OF_TEXT and ours.pad_token is None
    assert ours.get_vocab() == build_backend().get_vocab()


def test_what_a_call_left_in_tokenizer_json(tmp_path):
    """A tokenizer.json written after a padded call holds that call's padding and truncation."""
    folder = write_tokenizer(tmp_path)
    backend = build_backend()
    backend.enable_padding(pad_id=backend.token_to_id(END_OF_TEXT), pad_token=END_OF_TEXT, length=50)
    backend.enable_truncation(2)
    backend.save(str(folder / "tokenizer.json"))
    ours = AutoTokenizer.from_pretrained(folder)
    assert ours.pad_token == END_OF_TEXT and ours.padding_side == "left"
    assert ours.decode(ours.encode(TEXT)) == TEXT


def test_tokens_around_a_text_leave_room(tmp_path):
    """A fine-tuned model's tokenizer.json may put a token before every text."""
    folder = write_tokenizer(tmp_path)
    backend = build_backend()
    eos_id = backend.token_to_id(END_OF_TEXT)
    backend.post_processor = processors.TemplateProcessing(f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, eos_id)])
    backend.save(str(folder / "tokenizer.json"))
    ours, theirs = AutoTokenizer.from_pretrained(folder), transformers.CodeGenTokenizer.from_pretrained(folder)
    for arguments in ({}, {"max_length": 4}, {"max_length": 1}, {"max_length": 4, "add_special_tokens": False}):
        arguments = {**arguments, "return_special_tokens_mask": True}
        assert dict(ours([TEXT, ""], **arguments)) == dict(theirs([TEXT, ""], **arguments))
    with pytest.raises(ValueError, match="max_length is 0, but the tokenizer adds 1 tokens"):
        ours("x", max_length=0)


def test_save_and_load(folder, tmp_path):
    ours = AutoTokenizer.from_pretrained(folder)
    ours.add_special_tokens({"pad_token": "<pad>"})
    ours.truncation_side, ours.model_max_length = "left", 99
    written = ours.save_pretrained(tmp_path / "new" / "folder")
    names = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == names
    assert sorted(Path(path).name for path in written) == names
    again = AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert type(theirs) is transformers.CodeGenTokenizer
    for other in (again, theirs):
        assert other.get_vocab() == ours.get_vocab() and other.special_tokens_map == ours.special_tokens_map
        assert (other.padding_side, other.truncation_side, other.model_max_length) == ("left", "left", 99)
        assert all(other.encode(text) == ours.encode(text) for text in make_texts(50, seed=8))
    assert str(tmp_path) in repr(again) and str(tmp_path) not in "".join(Path(path).read_text() for path in written)


def test_save_over_an_old_folder(tmp_path):
    folder = write_tokenizer(tmp_path, layout="hub")
    ours = AutoTokenizer.from_pretrained(folder, pad_token="<pad>")
    ours.eos_token = "def"
    ours.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    assert (again.eos_token, again.pad_token, again.bos_token) == ("def", "<pad>", END_OF_TEXT)
    assert again.get_vocab() == ours.get_vocab()


@pytest.mark.parametrize("layout", ["json", "files"])
def test_special_tokens_that_the_vocabulary_lacks(tmp_path, layout):
    """They are added behind it, in transformers' order."""
    folder = write_tokenizer(tmp_path, layout=layout, additional_special_tokens=["<z>", "<a>"], pad_token="<pad>")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    settings = {"pad_token": "<fill>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    for chosen in ({}, settings):
        ours = AutoTokenizer.from_pretrained(folder, **chosen)
        theirs = transformers.CodeGenTokenizer.from_pretrained(folder, **chosen)
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.all_special_tokens == theirs.all_special_tokens
        text = f"<s>def<pad><z>{END_OF_TEXT}<fill></s>"
        assert ours.encode(text) == theirs.encode(text)
        for skip in (True, False):
            assert ours.decode(ours.encode(text), skip_special_tokens=skip) == theirs.decode(
                theirs.encode(text), skip_special_tokens=skip)


def test_hub_id_is_resolved_to_a_folder(folder, monkeypatch):
    asked = {}

    def resolve(path_or_repo, wanted_patterns, **arguments):
        asked.update(arguments, repo=path_or_repo, wanted=wanted_patterns)
        return folder

    with pytest.raises(OSError, match="there is no folder './nowhere'"):
        AutoTokenizer.from_pretrained("./nowhere")
    monkeypatch.setattr("codegen_fast.weights.hub.resolve", resolve)
    tokenizer = AutoTokenizer.from_pretrained("Salesforce/codegen-350M-mono", revision="float16", token="secret")
    assert tokenizer.name_or_path == "Salesforce/codegen-350M-mono"
    assert tokenizer.get_vocab() == build_backend().get_vocab()
    assert asked.pop("wanted") == ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                                   "added_tokens.json", "special_tokens_map.json"]
    assert asked == {"repo": "Salesforce/codegen-350M-mono", "revision": "float16", "token": "secret",
                     "cache_dir": None, "local_files_only": False}


def test_bad_settings(folder, tmp_path):
    with pytest.raises(TypeError, match="unknown argument 'padding_sides'; did you mean 'padding_side'"):
        AutoTokenizer.from_pretrained(folder, padding_sides="left")
    with pytest.raises(ValueError, match="padding_side is 'top'"):
        AutoTokenizer.from_pretrained(folder, padding_side="top")
    with pytest.raises(ValueError, match="truncation_side is 'top'"):
        AutoTokenizer.from_pretrained(folder).truncation_side = "top"
    with pytest.raises(ValueError, match="model_max_length is 'long'"):
        AutoTokenizer.from_pretrained(folder, model_max_length="long")
    with pytest.raises(TypeError, match="must be a folder or a Hub id, got 3"):
        AutoTokenizer.from_pretrained(3)
    with pytest.raises(OSError, match="is a file; pass the folder"):
        AutoTokenizer.from_pretrained(folder / "tokenizer.json")
    with pytest.raises(OSError, match="holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt.*"
                                      "found neither"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(OSError, match="found vocab.json"):
        AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(("layout", "name", "content", "message"), [
    ("json", "tokenizer.json", b'{"version": "1.0", "mod', "tokenizer.json is not valid JSON"),
    ("json", "tokenizer.json", b"", "tokenizer.json is not valid JSON"),
    ("json", "tokenizer.json", b'{"model": {"type": "BPE"}}', "tokenizer.json is not a tokenizer file"),
    ("json", "tokenizer.json", b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
     "holds a 'WordLevel' tokenizer, expected a byte-level BPE"),
    ("json", "tokenizer_config.json", b"{", "tokenizer_config.json is not valid JSON"),
    ("json", "tokenizer_config.json", b"\xff\xfe", "tokenizer_config.json is not UTF-8"),
    ("json", "tokenizer_config.json", b"[1]", "holds a list; expected a JSON object"),
    ("json", "tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer"}', "'LlamaTokenizer', which is not a"),
    ("json", "tokenizer_config.json", b'{"eos_token": 3}', "eos_token must be a string or an added token, got 3"),
    ("json", "tokenizer_config.json", b'{"added_tokens_decoder": []}', "added_tokens_decoder must be an object"),
    ("files", "tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}', r"added_tokens_decoder\['x'\] is 1"),
    ("files", "tokenizer_config.json", b'{"add_bos_token": true}', "add_bos_token is True"),
    ("files", "vocab.json", b'{"a": 0,', "vocab.json is not valid JSON"),
    ("files", "vocab.json", b'{"a": 0}', "are not a BPE vocabulary: .*out of vocabulary"),
    ("files", "merges.txt", b"#version: 0.2\nx\n", "are not a BPE vocabulary"),
    ("files", "added_tokens.json", b'{"  ": "many"}', "the id of '  ' is 'many'"),
    ("files", "added_tokens.json", b'{"  ": 50286}', "token '  ' is listed with id 50286, but the vocabulary gives it"),
    ("files", "special_tokens_map.json", b"no", "special_tokens_map.json is not valid JSON"),
])
def test_corrupt_files(tmp_path, layout, name, content, message):
    folder = write_tokenizer(tmp_path, layout=layout)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        AutoTokenizer.from_pretrained(folder)
