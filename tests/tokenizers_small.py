"""Small tokenizers of CodeGen's kind, built on the spot, written as the folders that checkpoints come in.

A byte-level BPE trained on TEXT, with CodeGen's order of ids: the base vocabulary, `<|endoftext|>` last in it, then
(kind="code") runs of 31 to 2 spaces and of 9 to 2 tabs. kind="nl" has no runs, as the NL checkpoints.
`make_texts` makes seeded texts that exercise such a tokenizer.
"""

import functools
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
RUNS = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
TEXT = '''\
import os
import sys
from collections import defaultdict


def fibonacci(n):
    """Return the n-th Fibonacci number, counting from zero."""
    if n < 2:
        return n
    previous, current = 0, 1
    for _ in range(n - 1):
        previous, current = current, previous + current
    return current


class Counter:
    def __init__(self, words):
        self.counts = defaultdict(int)
        for word in words:
            self.counts[word] += 1

    def most_common(self, limit=10):
        # the words that occur most often come first
        return sorted(self.counts.items(), key=lambda item: -item[1])[:limit]


def main(path):
    with open(path, encoding="utf-8") as file:
        for word, count in Counter(file.read().split()).most_common():
            print(f"{word}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
'''

PIECES = ["def ", "class", "(self, x):", "\n", "\n\n\n", "\r\n", "\r", " ", "\t", "é", "ß", "漢字", "Ω", "🙂", "👩‍👩‍👧",
          "\u200b", "\u00a0", "\x00", "\x7f", "'ll", "'S", "0", "3.14", "__init__", "#", '"""', "\\", END_OF_TEXT,
          "<|endof", "_" * 70, "e\u0301", "\U0010ffff", "\ufffd", "\ufeff", "return", " if", "x" * 40]


@functools.cache
def _vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=size - 1, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    trained.train_from_iterator([TEXT], trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    return vocab, [tuple(merge) for merge in model["merges"]]


def build_backend(kind: str = "code", size: int = 400, add_prefix_space: bool = False) -> Tokenizer:
    """The pipeline: a base vocabulary of at most `size` tokens, `<|endoftext|>` and, for kind "code", the runs."""
    vocab, merges = _vocabulary(size)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens([END_OF_TEXT])
    if kind == "code":
        backend.add_tokens([AddedToken(run, normalized=True) for run in RUNS])
    return backend


def write_tokenizer(folder: Path, kind: str = "code", layout: str = "json", size: int = 400, **config) -> Path:
    """Write a tokenizer folder and return it.

    layout: "json" (tokenizer.json), "files" (vocab.json, merges.txt, added_tokens.json, special_tokens_map.json),
    "hub" (all of these, as old Hub repositories), "decoder" (vocab.json, merges.txt, the added tokens in the config's
    added_tokens_decoder), "bare" (vocab.json, merges.txt, added_tokens.json and no config). `config` adds keys to
    tokenizer_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = _vocabulary(size)
    backend = build_backend(kind, size)
    settings = {"tokenizer_class": "CodeGenTokenizer", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT,
                "unk_token": END_OF_TEXT, "add_prefix_space": False, "model_max_length": 2048, **config}
    if layout in ("json", "hub"):
        backend.save(str(folder / "tokenizer.json"))
    if layout != "json":
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if layout in ("files", "hub", "bare") and kind == "code":
        runs = {run: backend.token_to_id(run) for run in RUNS}
        (folder / "added_tokens.json").write_text(json.dumps(runs), encoding="utf-8")
    if layout in ("files", "hub"):
        names = {name: END_OF_TEXT for name in ("bos_token", "eos_token", "unk_token")}
        (folder / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    if layout == "decoder":
        settings["added_tokens_decoder"] = {
            str(index): {"content": token.content, "lstrip": False, "rstrip": False, "normalized": token.normalized,
                         "single_word": False, "special": token.special}
            for index, token in backend.get_added_tokens_decoder().items()}
    if layout != "bare":
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def make_texts(count: int, seed: int) -> list[str]:
    """`count` texts of random pieces: code, unicode, controls, and runs of spaces and tabs of every length below 70."""
    chance = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(chance.randrange(12)):
            kind = chance.randrange(4)
            if kind == 0:
                parts.append(chance.choice(" \t") * chance.randrange(1, 70))
            elif kind == 1:
                start = chance.randrange(len(TEXT))
                parts.append(TEXT[start:start + chance.randrange(60)])
            else:
                parts.append(chance.choice(PIECES))
        texts.append("".join(parts))
    return texts
