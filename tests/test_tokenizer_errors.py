"""Bad arguments of the tokenizer: every message names what was wrong."""

import pytest
import torch
from tokenizers_small import write_tokenizer

from codegen_fast.tokenizer import AutoTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def ours(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("text", "error", "message"), [
    (3, TypeError, "text must be a str or a list of str, got int: 3"),
    (None, TypeError, "text must be a str or a list of str, got NoneType: None"),
    (b"def", TypeError, "text must be a str or a list of str, got bytes: b'def'"),
    (["a", None], TypeError, r"text\[1\] must be a str, got NoneType: None"),
    ([["a"]], TypeError, r"text\[0\] must be a str, got list: \['a'\]"),
    ("ab\ud800c", ValueError, r"text\[0\] has a lone surrogate '\\ud800' at character 2"),
    (["ok", "\udfff"], ValueError, r"text\[1\] has a lone surrogate '\\udfff' at character 0"),
])
def test_bad_text(ours, text, error, message):
    with pytest.raises(error, match=message):
        ours(text)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"return_tensors": "tf"}, ValueError, "return_tensors is 'tf', expected 'pt', 'np' or None"),
    ({"return_tensors": "pt"}, ValueError, "cannot make one tensor of input_ids: its 2 rows have from 1 to . tokens; "
                                           "pass padding=True"),
    ({"return_tensors": "np"}, ValueError, "cannot make one tensor of input_ids"),
    ({"padding": True}, ValueError, "does not have a padding token.*tokenizer.pad_token = tokenizer.eos_token"),
    ({"padding": "max_length", "max_length": 5}, ValueError, "does not have a padding token"),
    ({"padding": "longer"}, ValueError, "padding is 'longer', expected one of True, False, None, 'longest'"),
    ({"padding": 5}, ValueError, "padding is 5, expected"),
    ({"truncation": "all"}, ValueError, "truncation is 'all', expected one of True"),
    ({"truncation": "only_second", "max_length": 1}, ValueError, "truncation is 'only_second'"),
    ({"max_length": -1}, ValueError, "max_length is -1, expected an integer of at least 0"),
    ({"max_length": 1.5}, ValueError, "max_length is 1.5"),
    ({"pad_to_multiple_of": 0}, ValueError, "pad_to_multiple_of is 0, expected an integer of at least 1"),
    ({"padding_side": "middle"}, ValueError, "padding_side is 'middle', expected 'left' or 'right'"),
    ({"trunctaion": True}, TypeError, "unknown argument 'trunctaion'; did you mean 'truncation'"),
    ({"text_pair": "b"}, NotImplementedError, "no text_pair"),
    ({"is_split_into_words": True}, NotImplementedError, "no is_split_into_words"),
])
def test_bad_arguments(ours, arguments, error, message):
    with pytest.raises(error, match=message):
        ours(["a", "def f(x):"], **arguments)


def test_padding_to_a_multiple_that_truncation_breaks(ours):
    ours.pad_token = ours.eos_token
    with pytest.raises(ValueError, match="truncation to 5 tokens is no multiple of pad_to_multiple_of .4."):
        ours("a", padding=True, truncation=True, max_length=5, pad_to_multiple_of=4)


@pytest.mark.parametrize(("ids", "error", "message"), [
    (-1, ValueError, "token id -1 is out of range"),
    ([5, -100], ValueError, "token id -100 is out of range"),
    (torch.tensor([[1], [-2]]), ValueError, "token id -2 is out of range"),
    ([2**40], ValueError, "token id 1099511627776 is out of range"),
    ([1.5], TypeError, r"token ids must be integers, got \[1.5\]"),
    (torch.tensor([1.0]), TypeError, "token ids must be integers"),
    ("def", TypeError, "token ids must be integers, got 'def'"),
    (None, TypeError, "token ids must be integers, got None"),
    ([[[1]]], TypeError, "token ids must be integers"),
])
def test_bad_ids(ours, ids, error, message):
    with pytest.raises(error, match=message):
        ours.decode(ids)


def test_bad_patterns(ours):
    with pytest.raises(TypeError, match="must be a list of patterns, got '\\^#'"):
        ours.decode([5], truncate_before_pattern="^#")
    with pytest.raises(ValueError, match=r"holds '\(', which is no pattern"):
        ours.decode([5], truncate_before_pattern=["("])
