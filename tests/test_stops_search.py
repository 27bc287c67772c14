"""codegen_fast.stops over tokens: their bytes, rows found complete while tokens come, transformers' stop strings."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_small import END_OF_TEXT, TEXT, make_texts, write_tokenizer
from transformers.generation.stopping_criteria import StopStringCriteria

from codegen_fast.stops import PieceText, StopSearch, StopStrings, TokenBytes, as_stop_rule, truncate
from codegen_fast.tokenizer import CodeGenTokenizer

RULES = ["function", "statement", "line", "truncation", ["^def", r"\n\n\n", "return$"], [r"\w+\(x", "é"]]
PROMPTS = ["", "def f(x):\n", 'class A:\n    def f(self):\n        """Not closed', "x = 1\n", "if x", "# é漢\n"]


class SlowTokenizer:
    """What transformers' slow byte-level tokenizers offer of it, with the vocabulary of a fast one."""

    def __init__(self, fast):
        self.byte_decoder = {character: byte for byte, character in bytes_to_unicode().items()}
        self.added_tokens_decoder = fast.added_tokens_decoder
        self.vocab_size = fast.vocab_size
        self.convert_ids_to_tokens = fast.convert_ids_to_tokens


def bytes_to_unicode() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode as theirs

    return theirs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def ours(folder):
    return CodeGenTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


# Bytes of tokens.

@pytest.mark.parametrize("kind", ["ours", "theirs", "slow"])
def test_bytes_of_tokens(kind, ours, theirs):
    tokenizer = {"ours": ours, "theirs": theirs, "slow": SlowTokenizer(theirs)}[kind]
    vocabulary = TokenBytes(tokenizer)
    for text in make_texts(200, seed=1):
        ids = ours.encode(text)
        assert vocabulary.join(ids) == text.encode()
    everything = random.Random(2).choices(range(len(ours)), k=3000)
    assert vocabulary.join(everything).decode("utf-8", "replace") == theirs.decode(everything)
    assert [vocabulary[token] for token in everything] == vocabulary.pieces(everything)
    assert vocabulary.pieces([len(ours), 51199, ours.eos_token_id]) == [b"", b"", END_OF_TEXT.encode()]


def test_tokens_are_looked_up_once_and_late(folder):
    tokenizer = CodeGenTokenizer.from_pretrained(folder)
    calls = []

    class Counting:
        decoder = tokenizer.backend_tokenizer.decoder

        def id_to_token(self, token):
            calls.append(token)
            return tokenizer.backend_tokenizer.id_to_token(token)

    class Wrapped:
        backend_tokenizer = Counting()
        convert_ids_to_tokens = None

    wrapped = Wrapped()
    vocabulary = TokenBytes(wrapped)
    assert calls == []
    assert vocabulary.join([5, 6, 5]) == TokenBytes(wrapped).join([5, 6, 5])
    assert calls == [5, 6]


def test_a_tokenizer_may_get_new_tokens_and_is_let_go(folder):
    tokenizer = CodeGenTokenizer.from_pretrained(folder)
    vocabulary, new = TokenBytes(tokenizer), len(tokenizer)
    assert vocabulary[new] == b""
    tokenizer.add_tokens("<new> ü 漢")
    assert tokenizer.convert_tokens_to_ids("<new> ü 漢") == new and vocabulary[new] == "<new> ü 漢".encode()
    gone = weakref.ref(tokenizer)
    del tokenizer, vocabulary
    gc.collect()
    assert gone() is None


def test_refused_tokenizers():
    with pytest.raises(TypeError, match="tokenizer must be a tokenizer of codegen_fast or transformers, got 7"):
        TokenBytes(7)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    vocabulary = TokenBytes(transformers.PreTrainedTokenizerFast(tokenizer_object=words))
    with pytest.raises(ValueError, match="is no byte-level BPE"):
        vocabulary[0]

    class Other:
        def convert_ids_to_tokens(self, token):
            return "a"

    with pytest.raises(ValueError, match="Other is no byte-level BPE"):
        TokenBytes(Other())[0]


# Rows of tokens.

def random_tokens(tokenizer: CodeGenTokenizer, chance: random.Random) -> list[int]:
    """Tokens of code, of texts with characters of many bytes, and any tokens at all."""
    tokens: list[int] = []
    for _ in range(chance.randrange(1, 6)):
        kind = chance.randrange(3)
        if kind == 0:
            start = chance.randrange(len(TEXT))
            tokens += tokenizer.encode(TEXT[start:start + chance.randrange(80)])
        elif kind == 1:
            tokens += tokenizer.encode(chance.choice(["é漢字🙂", "\n\n\n", "\n", "def f(x):\n", "\n   ", "'''", "#"]))
        else:
            tokens += chance.choices(range(len(tokenizer) + 3), k=3)
    return tokens


@pytest.mark.parametrize("stop", RULES, ids=str)
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_rows_keep_what_truncate_keeps(ours, stop, seed):
    chance = random.Random(seed)
    vocabulary = TokenBytes(ours)
    search = StopSearch(as_stop_rule(stop), vocabulary)
    prompts = [chance.choice(PROMPTS) for _ in range(4)]
    completions = [random_tokens(ours, chance) or [0] for _ in range(4)]
    texts, shown = [PieceText() for _ in range(4)], [""] * 4
    for row, prompt in enumerate(prompts):
        search.open(row, ours.encode(prompt) if prompt else [])
    running, step = [0, 1, 2, 3], 0
    while running:
        tokens = [completions[row][step] for row in running]
        ended = search.feed(running, tokens)
        for row, token in zip(running, tokens, strict=True):
            if row in ended:
                texts[row].push(vocabulary[token], pending=10**6)
            else:
                shown[row] += texts[row].push(vocabulary[token], search.pending(row))
        step += 1
        running = [row for row in running if row not in ended and step < len(completions[row])]
        chance.shuffle(running)
    for row in range(4):
        whole = vocabulary.join(completions[row])
        shown[row] += texts[row].finish(search.cut(row))
        assert shown[row] == whole[:search.cut(row)].decode("utf-8", "replace")
        if b"\xff" not in whole and whole == whole.decode("utf-8", "replace").encode():
            assert shown[row] == truncate(whole.decode("utf-8"), stop, prompt=prompts[row])
        search.close(row)
        search.close(row)


def test_a_row_can_begin_again(ours):
    search = StopSearch(as_stop_rule("line"), TokenBytes(ours))
    newline, x = ours.encode("\n")[0], ours.encode("x")[0]
    search.open(0, [x])
    assert search.feed([0], [newline]) == [0] and search.cut(0) == 0
    assert search.feed([0], [x]) == []
    search.open(0, [])
    assert search.cut(0) is None and search.feed([0], [newline]) == []


# Stop strings.

@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_stop_strings_end_rows_as_in_transformers(ours, theirs, seed):
    chance = random.Random(seed)
    strings = []
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(len(TEXT))
        strings.append(TEXT[start:start + chance.randrange(1, 6)] or "x")
    if chance.random() < 0.3:
        strings.append(chance.choice(["é", "漢字", END_OF_TEXT, "\n\n", "of_text"]))
    criterion = StopStringCriteria(theirs, strings)
    search = StopSearch(StopStrings(strings), TokenBytes(ours))
    for row in range(3):
        tokens = random_tokens(ours, chance) or [0]
        start = chance.randrange(len(tokens))
        search.open(row, tokens[:start])
        for end in range(start, len(tokens)):
            expected = bool(criterion(torch.tensor([tokens[:end + 1]]), None))
            assert search.feed([row], [tokens[end]]) == ([row] if expected else []), (strings, tokens[:end + 1])
        assert search.cut(row) is None and search.pending(row) == 0


def test_stop_strings_within_and_across_tokens_of_a_batch(ours):
    search = StopSearch(StopStrings(["return fib"]), TokenBytes(ours))
    texts = ["x\n    return fibonacci", "x\n    return fi", "return fibreturn fib"]
    ids = [ours.encode(text) for text in texts]
    for row in range(3):
        search.open(row, ids[row][:1])
    ended = []
    for column in range(1, max(map(len, ids))):
        rows = [row for row in range(3) if column < len(ids[row])]
        found = search.feed(rows, [ids[row][column] for row in rows])
        ended += [(row, ours.decode(ids[row][:column + 1])) for row in found]
    assert [row for row, _ in ended if row != 2] == [0] and [row for row, _ in ended].count(2) >= 1
    assert all("return fib" in text for _, text in ended)
