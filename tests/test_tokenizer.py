"""The tokenizer against transformers' own on the same small folders: ids, calls, decoding, special tokens."""

import copy
import pickle
import random
import re
import threading

import numpy as np
import pytest
import torch
import transformers
from tokenizers_small import END_OF_TEXT, RUNS, TEXT, make_texts, write_tokenizer

from codegen_fast.tokenizer import AutoTokenizer, BatchEncoding

FOLDERS = [("code", "json"), ("code", "files"), ("code", "hub"), ("code", "decoder"), ("code", "bare"),
           ("nl", "json"), ("nl", "files"), ("nl", "bare")]
PATTERNS = [r"\n\n^#", "^'''", "\n\n\n", re.escape(END_OF_TEXT)]


@pytest.fixture(scope="module", params=FOLDERS, ids="-".join)
def pair(request, tmp_path_factory):
    """(ours, transformers') on the same folder."""
    kind, layout = request.param
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), kind, layout)
    return AutoTokenizer.from_pretrained(folder), transformers.CodeGenTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), "code", "hub")


@pytest.fixture
def ours(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def theirs(folder):
    return transformers.CodeGenTokenizer.from_pretrained(folder, padding_side="left")


# Every layout against transformers.

def test_vocabulary(pair):
    ours, theirs = pair
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for name in ("bos", "eos", "unk", "pad"):
        for attribute in (f"{name}_token", f"{name}_token_id"):
            assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.add_prefix_space is theirs.add_prefix_space is False
    assert ours.model_max_length == theirs.model_max_length
    assert ours.truncation_side == theirs.truncation_side


def test_text_to_ids_and_back(pair):
    ours, theirs = pair
    for text in make_texts(300, seed=1):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.decode(ids).encode() == text.encode()
        without_special = ours.decode(ids, skip_special_tokens=True)
        assert without_special == theirs.decode(ids, skip_special_tokens=True) == text.replace(END_OF_TEXT, "")


def test_every_run_of_spaces_and_tabs(pair):
    ours, theirs = pair
    for character in " \t":
        for length in range(1, 101):
            for text in (character * length, f"x{character * length}y", f"\n{character * length}"):
                ids = ours.encode(text)
                assert ids == theirs.encode(text)
                assert ours.decode(ids) == text


def test_runs_are_single_tokens(ours):
    for run in RUNS:
        assert ours.encode(run) == [ours.get_vocab()[run]]


def test_arbitrary_ids_decode_as_transformers_does(pair):
    ours, theirs = pair
    chance = random.Random(2)
    for _ in range(300):
        ids = [chance.randrange(len(ours) + 40) for _ in range(chance.randrange(20))]  # half characters, gaps, no token
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)


# Calls.

CALLS = [
    {}, {"padding": True}, {"padding": "longest", "max_length": 9, "truncation": True}, {"max_length": 7},
    {"padding": "max_length", "max_length": 30, "truncation": True}, {"padding": "max_length", "max_length": 30},
    {"padding": "max_length", "max_length": 8, "truncation": "longest_first"},
    {"padding": True, "pad_to_multiple_of": 8}, {"truncation": "only_first", "max_length": 0},
    {"truncation": True}, {"padding": "do_not_pad", "truncation": "do_not_truncate"},
    {"padding": True, "return_attention_mask": False}, {"add_special_tokens": False},
    {"padding": True, "return_token_type_ids": True, "return_special_tokens_mask": True, "return_length": True},
    {"return_offsets_mapping": True, "verbose": False},
]


@pytest.mark.parametrize("truncation_side", ["right", "left"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("arguments", CALLS, ids=str)
def test_call_is_transformers_call(ours, theirs, arguments, padding_side, truncation_side):
    for tokenizer in (ours, theirs):
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side, tokenizer.truncation_side = padding_side, truncation_side
    texts = make_texts(6, seed=3)
    for text in (texts, tuple(texts[:1]), texts[1], texts[2]):
        got, expected = ours(text, **arguments), theirs(text, **arguments)
        assert dict(got) == dict(expected)
        assert list(got) == list(expected)
    assert ours.encode(texts[1], **arguments) == theirs.encode(texts[1], **arguments)


def test_max_length_is_ignored_with_a_warning(ours):
    ours.pad_token = ours.eos_token
    with pytest.warns(UserWarning, match="max_length is ignored with padding=True"):
        assert len(ours(["a b c d e f"], padding=True, max_length=2).input_ids[0]) > 2


def test_truncation_without_a_limit_changes_nothing(tmp_path):
    ours = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, layout="bare"))
    assert ours.model_max_length == int(1e30)
    assert ours.encode(TEXT, truncation=True) == ours.encode(TEXT)
    ours.pad_token = ours.eos_token
    assert ours.encode("a", padding="max_length") == ours.encode("a")


@pytest.mark.parametrize("side", ["left", "right"])
def test_tensors(ours, theirs, side):
    texts = make_texts(5, seed=4) + [""]
    for tokenizer in (ours, theirs):
        tokenizer.pad_token_id = tokenizer.eos_token_id
        tokenizer.padding_side = side
    for text in (texts, texts[0], ""):
        expected = theirs(text, padding=True, return_tensors="pt")
        got = ours(text, padding=True, return_tensors="pt")
        arrays = ours(text, padding=True, return_tensors="np")
        for name in ("input_ids", "attention_mask"):
            assert got[name].dtype == torch.int64 and torch.equal(got[name], expected[name])
            assert arrays[name].dtype == np.int64 and np.array_equal(arrays[name], expected[name].numpy())
    assert ours.encode("", return_tensors="pt").shape == (1, 0)
    assert ours("").input_ids == []
    assert ours([], return_tensors="pt").input_ids.shape == (0, 0)
    assert ours([]).input_ids == []
    offsets = ours(texts, padding=True, return_tensors="pt", return_offsets_mapping=True).offset_mapping
    assert torch.equal(offsets, theirs(texts, padding=True, return_tensors="pt",
                                       return_offsets_mapping=True).offset_mapping)


def test_pads_on_the_left_by_default(ours):
    ours.pad_token = ours.eos_token
    batch = ours(["def main(path):", "x"], padding=True, return_tensors="pt")
    assert ours.padding_side == "left"
    assert batch.input_ids[1].tolist()[:-1] == [ours.eos_token_id] * (batch.input_ids.shape[1] - 1)
    assert batch.attention_mask[1].tolist() == [0] * (batch.input_ids.shape[1] - 1) + [1]


def test_padding_side_of_one_call(ours, theirs):
    for tokenizer in (ours, theirs):
        tokenizer.pad_token = tokenizer.eos_token
    texts = ["def main(path):", "x"]
    assert dict(ours(texts, padding=True, padding_side="right")) == dict(
        theirs(texts, padding=True, padding_side="right"))
    assert ours.padding_side == "left"


def test_batch_encoding(ours):
    batch = ours("def f(x):", return_tensors="pt")
    assert batch.input_ids is batch["input_ids"] and set(batch) == {"input_ids", "attention_mask"}
    assert (lambda input_ids, attention_mask: input_ids)(**batch) is batch.input_ids
    assert batch.to("cpu") is batch and batch.to(torch.device("cpu"), non_blocking=True) is batch
    assert torch.equal(pickle.loads(pickle.dumps(batch)).input_ids, batch.input_ids)
    assert torch.equal(copy.deepcopy(batch).input_ids, batch.input_ids)
    assert not hasattr(batch, "labels")
    assert ours("x").to("cpu").input_ids == ours.encode("x")
    rows = ours(["a", "b", "c"])
    assert rows[1:] == {"input_ids": rows.input_ids[1:], "attention_mask": rows.attention_mask[1:]}
    with pytest.raises(AttributeError, match="no 'labels', it has input_ids, attention_mask"):
        batch.labels
    with pytest.raises(TypeError, match="takes a device, got torch.float16"):
        batch.to(torch.float16)


def test_pad(ours, theirs):
    for tokenizer in (ours, theirs):
        tokenizer.pad_token = tokenizer.eos_token
    rows = [theirs(text) for text in ("def f(x):", "", "    return")]
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    ids_only = {"input_ids": batch["input_ids"]}
    labelled = {"input_ids": [[1, 2], [3, 4]], "labels": [[1, 2], [3, 4]]}
    for arguments in ({}, {"padding": "max_length", "max_length": 12}, {"pad_to_multiple_of": 4}, {"padding": False},
                      {"padding_side": "right"}, {"return_attention_mask": True}):
        for encoded in (rows, batch, ids_only, dict(rows[0]), labelled):
            before = copy.deepcopy(encoded)
            assert dict(ours.pad(encoded, **arguments)) == dict(theirs.pad(copy.deepcopy(encoded), **arguments))
            assert encoded == before
    got = ours.pad(rows, return_tensors="pt")
    assert torch.equal(got.input_ids, theirs.pad(rows, return_tensors="pt").input_ids)
    tensors = [{"input_ids": torch.tensor([1, 2, 3])}, {"input_ids": torch.tensor([4])}]
    assert ours.pad(tensors).input_ids.tolist() == [[1, 2, 3], [ours.pad_token_id] * 2 + [4]]
    assert isinstance(ours.pad({"input_ids": np.array([1, 2])}).input_ids, np.ndarray)
    assert ours.pad({"input_ids": []}).input_ids == []
    with pytest.raises(ValueError, match="holds input_ids.*got \\['labels'\\]"):
        ours.pad({"labels": [1]})


# Decoding.

def test_decode_takes_every_kind_of_ids(ours):
    ids = ours.encode(TEXT)
    for kind in (list, tuple, np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.int32),
                 lambda ids: [torch.tensor(index) for index in ids], lambda ids: list(np.array(ids)),
                 lambda ids: {"input_ids": ids}, lambda ids: BatchEncoding(input_ids=torch.tensor(ids))):
        assert ours.decode(kind(ids)) == TEXT
    assert ours.decode(ids[0]) == ours.decode(np.int64(ids[0])) == ours.decode(torch.tensor(ids[0])) == "import"
    assert ours.decode([]) == "" and ours.decode(torch.tensor([], dtype=torch.int64)) == ""
    rows = [ids, ids[:3]]
    for batch in (rows, tuple(rows), [torch.tensor(row) for row in rows], [np.array(row) for row in rows]):
        assert ours.decode(batch) == ours.batch_decode(batch) == [TEXT, ours.decode(ids[:3])]
    assert ours.batch_decode(torch.tensor([ids, ids])) == [TEXT, TEXT]
    assert ours.batch_decode(ids) == [TEXT]
    assert ours.batch_decode(torch.tensor(ids[0])) == ["import"]
    assert ours.batch_decode([[]]) == [""] and ours.batch_decode([]) == []
    assert ours.batch_decode(torch.zeros(0, 5, dtype=torch.int64)) == []


def test_ids_without_a_token_decode_to_nothing(ours, theirs):
    ids = [len(ours), *ours.encode("x = 1"), 51199, 60000, 2**31]
    assert ours.decode(ids) == theirs.decode(ids) == "x = 1"
    assert ours.decode(51199) == ""
    assert ours.convert_ids_to_tokens([51199]) == theirs.convert_ids_to_tokens([51199]) == [None]


def test_no_clean_up(ours):
    text = "a , b . c ! do n't ' s ' i 'm"
    ids = ours.encode(text)
    assert ours.decode(ids) == ours.decode(ids, clean_up_tokenization_spaces=False) == text
    with pytest.warns(UserWarning, match="clean_up_tokenization_spaces=True is ignored"):
        assert ours.decode(ids, clean_up_tokenization_spaces=True) == text


COMPLETIONS = ["", "x = 1\n", "def f():\n    pass\ndef g():\n    pass\n", "print(1)\nx = 2\nprint(2)\nprint(3)",
               "    print(1)\n    print(2)\n", "x\n\n\ny", "x = 1\n\n# comment\ny", "'''doc'''", "x\n'''doc'''",
               f"x{END_OF_TEXT}y", "def f():\n    print(1)\n\n\n\nprint(2)\ndef g(): pass\nprint(3)",
               "printer\ndefine\n"]


def test_truncate_before_pattern(ours, theirs):
    chance = random.Random(5)
    texts = COMPLETIONS + ["".join(chance.choices(COMPLETIONS + ["\n", "#", "    "], k=4)) for _ in range(200)]
    for text in texts:
        ids = ours.encode(text)
        for patterns in (PATTERNS, ["^#"], ["never"], [], None):
            assert ours.decode(ids, truncate_before_pattern=patterns) == theirs.decode(
                ids, truncate_before_pattern=patterns)
        assert ours.truncate(text, PATTERNS) == theirs.truncate(text, PATTERNS)
    cut = ours.batch_decode([ours.encode(text) for text in texts], truncate_before_pattern=PATTERNS)
    assert cut == [theirs.truncate(text, PATTERNS) for text in texts]


def test_tokens(ours, theirs):
    tokens = theirs.tokenize("def f(x):\n        return 'é'") + ["no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("no such token") == ours.unk_token_id
    assert ours.convert_tokens_to_string(tokens[:-1]) == theirs.convert_tokens_to_string(tokens[:-1])
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5)
    ids = [ours.eos_token_id, 5]
    assert ours.convert_ids_to_tokens(torch.tensor(ids), skip_special_tokens=True) == theirs.convert_ids_to_tokens(
        ids, skip_special_tokens=True)


# Special tokens and settings.

def test_pad_token_setters(ours):
    assert ours.pad_token is None and ours.pad_token_id is None
    ours.pad_token = ours.eos_token
    assert (ours.pad_token, ours.pad_token_id) == (END_OF_TEXT, ours.eos_token_id)
    ours.pad_token = None
    assert ours.pad_token_id is None
    ours.pad_token_id = 7
    assert ours.pad_token == ours.convert_ids_to_tokens(7)
    ours.pad_token = ours.eos_token_id  # as the CodeGen repository's sampling script does
    assert ours.pad_token == END_OF_TEXT
    with pytest.warns(UserWarning, match="pad_token = '<pad>' is not in the vocabulary"):
        ours.pad_token = "<pad>"
    assert ours.pad_token_id == ours.unk_token_id
    for wrong in (-1, 10**6):
        with pytest.raises(ValueError, match=f"pad_token_id = {wrong}: the tokenizer has no such token"):
            ours.pad_token_id = wrong
    with pytest.raises(ValueError, match="eos_token must be a string"):
        ours.eos_token = 1.5


def test_added_tokens(ours, theirs):
    size = len(ours)
    for tokenizer in (ours, theirs):
        assert tokenizer.add_special_tokens({"pad_token": "<pad>"}) == 1
        tokenizer.add_tokens(["<new>", " " * 40, "def"], special_tokens=False)
        assert tokenizer.add_special_tokens({"extra_special_tokens": ["<extra>"]}) == 1
    assert ours.pad_token_id == theirs.pad_token_id == size and len(ours) == len(theirs) == size + 4
    text = f"def x<new>{' ' * 90}<pad>y<extra>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text), skip_special_tokens=True) == f"def x<new>{' ' * 90}y"
    assert ours.all_special_ids == theirs.all_special_ids
    with pytest.raises(ValueError, match="cannot add 'padding_token'"):
        ours.add_special_tokens({"padding_token": "<pad>"})
    with pytest.raises(TypeError, match="must be a str or an AddedToken, got 3"):
        ours.add_tokens([3])


def test_the_tokenizer_of_the_sampling_script(tmp_path):
    """GPT-2's tokenizer and runs added by hand, as the CodeGen repository builds it, is the same tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "nl", "nl", "bare"))
    tokenizer.add_tokens([" " * n for n in reversed(range(2, 32))], special_tokens=False)
    tokenizer.add_tokens(["\t" * n for n in reversed(range(2, 10))], special_tokens=False)
    code = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "code"))
    assert tokenizer.get_vocab() == code.get_vocab()
    assert all(tokenizer.encode(text) == code.encode(text) for text in make_texts(100, seed=6))


def test_copies_and_threads(ours):
    texts = make_texts(40, seed=9)
    expected = [ours.encode(text) for text in texts]
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert [other.encode(text) for text in texts] == expected
    ours.pad_token = ours.eos_token
    failures = []

    def call(cut: int) -> None:
        for text, ids in zip(texts * 5, expected * 5, strict=True):
            row = ours(text, padding="max_length", truncation=True, max_length=cut).input_ids
            if len(row) != cut or row[max(0, cut - len(ids)):] != ids[:cut]:
                failures.append((cut, text))

    threads = [threading.Thread(target=call, args=(cut,)) for cut in (3, 11, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
