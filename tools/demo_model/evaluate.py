"""Measure a demo checkpoint folder; writes one JSON with every figure of its card.

    python evaluate.py --work DIR --model FOLDER --stdlib DIR --to evaluation.json

Three things, their prompts, seeds and rules fixed before the first result was seen, nothing selected afterwards:
- held-out loss in bits per byte beside a 5-gram model's (`ngram.py`), over all bytes of all held-out files;
- the share of 100 held-out function headers whose completion is a function (see `headers` and `judge`);
- three samples, unedited.
torch and transformers run the model (float32 arithmetic on the stored float16 weights): none of our kernels is judged here.
"""
import argparse
import ast
import hashlib
import io
import json
import math
import re
import sysconfig
import tokenize
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import ngram
from export import load_folder, sha256
from prepare import END, read_stdlib

HEADERS, MAX_NEW_TOKENS, TEMPERATURE = 100, 256, 0.2
STRIDE = 768  # of the window of 1024: every token has the 256 before it, or all that its file has
SAMPLES = (("def fibonacci(n):", 128), ("def read_lines(filename):", 128), ("class Stack:", 192))  # prompt, new tokens
TERMINALS = ["^#", re.escape(END), "^'''", '^"""', "\n\n\n"]


loaded = {}  # a process's own copy of the model: see `load`


def load(folder):
    """Load the checkpoint into this process; the processes use one thread each, so that none waits for another."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loaded["lean"] = load_folder(folder)
    loaded["model"] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loaded["tokenizer"] = AutoTokenizer.from_pretrained(folder)


def windows(ids, starts, window, stride):
    """(ids, how many of them are context only): a file is preceded by <|endoftext|>, and every token is predicted once, from
    at least window - stride tokens before it where the file has them."""
    end = int(ids[-1])
    for begin, stop in zip(starts, np.append(starts[1:], len(ids))):
        text = np.concatenate(([end], ids[begin:stop])).astype(np.int64)
        for at in range(0, len(text) - 1, stride):
            first = max(0, at - (window - stride))
            yield text[first:at + stride + 1], at - first


@torch.no_grad()
def bits(pieces):
    """Cost of some of `windows`. The lean model serves: `export.py` showed that its logits are those of transformers."""
    rows = np.zeros((len(pieces), max(len(p) for p, _ in pieces)), np.int64)
    targets = np.full(rows.shape, -100, np.int64)
    for row, target, (piece, context) in zip(rows, targets, pieces):
        row[:len(piece)] = piece
        target[context + 1:len(piece)] = piece[context + 1:]
    logits = loaded["lean"](torch.from_numpy(rows[:, :-1]))
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets[:, 1:]).flatten(), reduction="sum")
    return nats.item() / math.log(2)


def bits_per_byte(pool, heldout, size, window, stride):
    """Held-out cost over the bytes of all held-out files."""
    pieces = sorted(windows(window=window, stride=stride, **heldout), key=lambda piece: len(piece[0]))  # little padding
    batches = [pieces[i:i + 2] for i in range(0, len(pieces), 2)]
    return sum(tqdm(pool.imap_unordered(bits, batches), "held-out loss", len(batches), mininterval=5)) / size


def header(lines, node):
    """The `def ...:` of a function, through its colon."""
    text = "\n".join(lines[node.lineno - 1:node.end_lineno])
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text + "\n").readline):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == ":" and depth == 0:
                row, column = token.end
                return "\n".join(text.split("\n")[:row - 1] + [text.split("\n")[row - 1][:column]])


def headers(files, paths):
    """Different headers of top-level functions in the files, in the order of their SHA-256."""
    found = set()
    for path in paths:
        lines = files[path].split("\n")
        found |= {header(lines, n) for n in ast.parse(files[path]).body if isinstance(n, ast.FunctionDef)}
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def truncate(completion):
    """The standard truncation of CodeGen's sampling script."""
    for start in ("^print", "^def"):
        found = list(re.finditer(start, completion, re.MULTILINE))
        if len(found) > 1:
            completion = completion[:found[1].start()]
    ends = [m.start() for t in TERMINALS if (m := re.search(t, completion, re.MULTILINE))]
    return completion[:min(ends)] if ends else completion


def last_complete_line(cut, generated):
    """Drop an unfinished last line. A line is complete when a newline or <|endoftext|> follows it in what was generated."""
    follows = generated[len(cut):]
    if follows.startswith(("\n", END)):
        return cut
    return cut[:cut.rfind("\n") + 1]


def judge(text):
    """(does it parse with a first function whose body has two or more different statements, why)."""
    try:
        function = ast.parse(text).body[0]
    except (SyntaxError, ValueError):
        return False, "does not parse"
    if len({ast.dump(s) for s in function.body}) < 2:
        return False, "one statement"
    return True, "function"


def complete(task):
    """One sampled completion of (prompt, seed, new tokens), with its <|endoftext|> if it came to one."""
    prompt, seed, max_new_tokens = task
    tokenizer = loaded["tokenizer"]
    torch.manual_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt")
    out = loaded["model"].generate(**inputs, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
                                   max_new_tokens=max_new_tokens, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0, inputs.input_ids.shape[1]:], clean_up_tokenization_spaces=False)


def functions(pool, files, split):
    """The share of headers that become functions, with every completion and why it counts or not."""
    trained_on = set(headers(files, split["library"] + split["tests"]))
    prompts = headers(files, split["heldout"])
    tasks = [(prompt, i, MAX_NEW_TOKENS) for i, prompt in enumerate(prompts[:HEADERS])]
    results = []
    for (prompt, seed, _), generated in zip(tasks, tqdm(pool.imap(complete, tasks), "functions", len(tasks), mininterval=5)):
        kept = last_complete_line(truncate(generated), generated)
        good, why = judge(prompt + kept)
        results.append({"prompt": prompt, "seed": seed, "generated": generated, "kept": kept, "good": good, "why": why,
                        "header_in_training_files": prompt in trained_on})
    return {"headers": len(prompts), "tried": len(results), "max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE,
            "good": sum(r["good"] for r in results),
            "does_not_parse": sum(r["why"] == "does not parse" for r in results),
            "one_statement": sum(r["why"] == "one statement" for r in results),
            "header_also_in_training_files": sum(r["header_in_training_files"] for r in results),
            "good_of_those": sum(r["good"] and r["header_in_training_files"] for r in results), "results": results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    args = parser.parse_args()
    split = json.loads((args.work / "split.json").read_text())
    heldout, window = split["report"]["heldout"], json.loads((args.model / "config.json").read_text())["n_positions"]
    figures = {"sha256": sha256(args.model / "model.safetensors"), "torch": torch.__version__,
               "transformers": transformers.__version__}
    with mp.get_context("spawn").Pool(args.workers, load, (args.model,)) as pool:
        texts = pool.map(complete, [(prompt, 0, n) for prompt, n in SAMPLES])
        figures["samples"] = [{"prompt": prompt, "seed": 0, "max_new_tokens": n, "temperature": TEMPERATURE,
                               "text": prompt + text} for (prompt, n), text in zip(SAMPLES, texts)]
        figures["functions"] = functions(pool, read_stdlib(args.stdlib), split["stdlib"])
        print({k: v for k, v in figures["functions"].items() if k != "results"}, flush=True)
        figures["bits_per_byte"] = {
            "files": heldout["documents"], "bytes": heldout["bytes"], "tokens": heldout["tokens"], "window": window,
            "stride": STRIDE, "five_gram": ngram.measure(args.work), "model": bits_per_byte(
                pool, np.load(args.work / "heldout.npz"), heldout["bytes"], window, STRIDE)}
        print(figures["bits_per_byte"])
    figures["parameters"] = sum(p.numel() for p in load_folder(args.model).parameters())
    args.to.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
