"""Files of the Python standard library -> split, tokenizer, token arrays.

    python prepare.py --work DIR [--stdlib DIR]

Writes into DIR: `split.json` (which file is trained on, which is held out), `tokenizer/` (tokenizer.json, vocab.json,
merges.txt, tokenizer_config.json), and `heldout.npz`, `library.npz`, `tests.npz`, `library_snippets.npz`,
`tests_snippets.npz`: the arrays `ids` (uint16, every document ends with <|endoftext|>) and `starts` (where each
document begins). Only `heldout.npz` holds anything of a held-out file, and the tokenizer never sees one.
"""
import argparse
import ast
import hashlib
import json
import platform
import re
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
VOCAB_SIZE = 3072
SPACES, TABS = range(31, 1, -1), range(9, 1, -1)  # the runs that are tokens, in CodeGen's order
# Not source that somebody wrote: installed packages, files about one build, charmap tables, generated text, bad syntax.
EXCLUDE = re.compile(r"^(site-packages|config-[^/]*|encodings|pydoc_data|lib2to3/tests/data)/|^_sysconfigdata|/__pycache__/")
SNIPPET_CHARS = 1400


def is_test(path):
    """True for the standard library's own tests, which are most of its bytes."""
    return re.search(r"(^|/)(test|tests|idle_test)/", path) is not None


def is_held_out(path):
    """One file in ten, by the hash of its relative path."""
    return int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10 == 0


def read_stdlib(root):
    """{relative path: text} of the files that parse, are UTF-8 and differ from each other."""
    files, seen = {}, set()
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if EXCLUDE.search(path):
            continue
        try:
            text = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
            ast.parse(text)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        if text.strip() and text not in seen and END not in text:
            seen.add(text)
            files[path] = text
    return files


def dedented(node, lines):
    """The source of a def or class from its first line, moved to column 0; None if that does not parse."""
    indent = node.col_offset
    taken = lines[node.lineno - 1:node.end_lineno]
    text = "\n".join(line[min(indent, len(line) - len(line.lstrip())):] for line in taken) + "\n"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    return text if len(tree.body) == 1 else None


def snippets(text):
    """Functions, methods and small classes of a file as texts of their own: what a user's prompt begins like.

    Functions are taken when their body has two or more different statements (one-liners are half of all defs and teach
    the model to stop at once).
    """
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            source = dedented(node, lines)
            if source and len(source) <= SNIPPET_CHARS and len({ast.dump(s) for s in node.body}) >= 2:
                yield source


def train_tokenizer(texts):
    """CodeGen's kind of tokenizer: GPT-2's byte-level BPE and added tokens for runs of spaces and tabs."""
    runs = Regex(r" {2,}|\t{2,}")
    tokenizer = Tokenizer(models.BPE())
    # The added tokens take the runs out of the text before BPE sees it, so BPE is trained without them.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(runs, "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1 - len(SPACES) - len(TABS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = dict(trained["vocab"])
    vocab[END] = len(vocab)
    merges = [tuple(m) for m in trained["merges"]]

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, use_regex=True, trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(c * n, normalized=True) for c, ns in ((" ", SPACES), ("\t", TABS)) for n in ns])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer, vocab, merges


def save_tokenizer(folder, tokenizer, vocab, merges, n_positions=1024):
    """The four files that transformers' CodeGenTokenizer and `tokenizers` read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    added = {str(i): {"content": t.content, "lstrip": False, "normalized": t.normalized, "rstrip": False,
                      "single_word": False, "special": t.special}
             for i, t in sorted(tokenizer.get_added_tokens_decoder().items())}
    config = {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False, "bos_token": END, "eos_token": END,
              "unk_token": END, "pad_token": END, "clean_up_tokenization_spaces": False,
              "model_max_length": n_positions, "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def save_tokens(file, tokenizer, texts):
    """Encode documents into one uint16 array and the array of their beginnings; returns the number of tokens."""
    end = tokenizer.token_to_id(END)
    encoded = [e.ids + [end] for i in range(0, len(texts), 256) for e in tokenizer.encode_batch(texts[i:i + 256])]
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    ids = np.concatenate([np.array(ids, np.uint16) for ids in encoded])
    np.savez(file, ids=ids, starts=np.concatenate(([0], np.cumsum(lengths)[:-1])))
    return len(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    files = read_stdlib(args.stdlib)
    groups = {"heldout": [p for p in files if is_held_out(p)],
              "library": [p for p in files if not is_held_out(p) and not is_test(p)],
              "tests": [p for p in files if not is_held_out(p) and is_test(p)]}
    texts = {name: [files[p] for p in paths] for name, paths in groups.items()}
    for name in ("library", "tests"):
        texts[name + "_snippets"] = list(dict.fromkeys(s for text in texts[name] for s in snippets(text)))

    # The tests are three fifths of the bytes and repetitive: every fourth is enough for the vocabulary.
    tokenizer, vocab, merges = train_tokenizer(texts["library"] + texts["tests"][::4])
    save_tokenizer(args.work / "tokenizer", tokenizer, vocab, merges)

    report = {"python": platform.python_version(), "vocab_size": VOCAB_SIZE}
    for name, documents in texts.items():
        tokens = save_tokens(args.work / f"{name}.npz", tokenizer, documents)
        report[name] = {"documents": len(documents), "bytes": sum(len(t.encode()) for t in documents), "tokens": tokens}
        print(name, report[name], flush=True)
    (args.work / "split.json").write_text(json.dumps({"report": report, "stdlib": groups}, indent=1) + "\n")


if __name__ == "__main__":
    main()
