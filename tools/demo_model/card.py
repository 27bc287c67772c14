"""Write the model card: every figure in it comes from the files that the other scripts wrote.

    python card.py --work DIR --evaluation evaluation.json --machine "2 cores of ..." --model FOLDER
"""
import argparse
import json
from pathlib import Path

from export import sha256
from train import MIX

CARD = """\
---
license: other
license_name: psf-2.0
library_name: codegen_fast
pipeline_tag: text-generation
language: code
---
# The demo model of codegen_fast

A CodeGen of {parameters:.2f} million parameters that was trained on the source of the Python standard library alone. It is here so
that the package has something real to run on a bare machine, and trained weights to be tested with. It has the shape of working Python;
it is far too small to solve a problem, and it has read nothing but one library.

## Figures
| | |
|---|---|
| architecture | CodeGen: {n_layer} layers, {n_head} heads of {head_dim}, width {n_embd}, rotary {rotary_dim}, context {n_positions}, vocabulary {vocab_size}; float16 |
| held-out loss | **{model_bpb:.3f} bits per byte** ({files} files, {heldout_mb:.2f} MB; window {window}, stride {stride}) |
| 5-gram baseline, same files, same tokens | {gram_bpb:.3f} bits per byte (interpolated modified Kneser-Ney) |
| held-out function headers that became functions | **{good} of {tried}** ({unparsed} did not parse, {single} had one statement) |
| trained | {steps} steps, {tokens:.1f} million tokens, {minutes:.0f} minutes |
| machine | {machine} |

The first two are over all bytes of the held-out files. A header counts when header + completion parses and the body has two or more
different statements (`ast.dump`; a docstring is one). Headers: the {headers} different `def ...:` of the held-out files' top-level functions,
in the order of their SHA-256, the first {tried}; {known} of them also stand in a training file ({known_good} of these counted). Temperature {temperature}, no top-k or top-p, seed = the
header's place, {max_new} new tokens at most; the completion is cut with the standard truncation of CodeGen's sampling script and then after
the last line that a newline or `<|endoftext|>` completes. Headers, prompts, seeds and rules were fixed before the first result was seen;
the final weights were evaluated once and nothing was selected. {note}

## Data
The `.py` files of the standard library of Python {python} (PSF licence, version 2; some files carry notices of their own), without
`encodings/`, `pydoc_data/`, files of one build, files that don't parse and exact duplicates. A file is held out, from the model and from the
tokenizer alike, when the SHA-256 of its relative path is divisible by 10.

| | files | MB | tokens | share of the training rows |
|---|---|---|---|---|
{data}

A snippet is a function, a method moved to the left or a small class, with two or more different statements, as a text of its own: a prompt
usually begins like that. The tokenizer is CodeGen's kind (GPT-2's byte-level BPE, added tokens for runs of spaces and tabs).

## Three samples
Prompts fixed before the first sample was seen, seed 0, temperature {temperature}, unedited (to `<|endoftext|>` or the limit of new tokens).

{samples}

## Limits
English names and the habits of one library; English and Python only. It repeats itself, calls what does not exist, and reproduces short
passages of its training files. Nothing it writes should be run without being read.

Made by `tools/demo_model/`; `model.safetensors` has SHA-256 `{sha256}`.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--machine", required=True, help="what it was trained on, in words")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--note", default="", help="what a reader must know of this run")
    args = parser.parse_args()
    figures, training = (json.loads(f.read_text()) for f in (args.evaluation, args.work / "export.json"))
    split = json.loads((args.work / "split.json").read_text())["report"]
    config = json.loads((args.model / "config.json").read_text())
    digest = sha256(args.model / "model.safetensors")
    assert digest == figures["sha256"] == training["sha256"], "the evaluation or the export is of other weights"
    loss, functions, samples = figures["bits_per_byte"], figures["functions"], figures["samples"]
    names = {"library": "library", "tests": "its tests", "library_snippets": "snippets of the library",
             "tests_snippets": "snippets of its tests", "heldout": "held out"}
    rows = [f"| {label} | {split[n]['documents']} | {split[n]['bytes'] / 1e6:.2f} | {split[n]['tokens']} "
            f"| {f'{MIX[n]:.0%}' if n in MIX else 'none'} |" for n, label in names.items()]
    (args.model / "README.md").write_text(CARD.format(
        parameters=figures["parameters"] / 1e6, head_dim=config["n_embd"] // config["n_head"], model_bpb=loss["model"],
        gram_bpb=loss["five_gram"], files=loss["files"], heldout_mb=loss["bytes"] / 1e6, window=loss["window"],
        stride=loss["stride"], good=functions["good"], tried=functions["tried"], headers=functions["headers"],
        unparsed=functions["does_not_parse"], single=functions["one_statement"], temperature=samples[0]["temperature"],
        known=functions["header_also_in_training_files"], known_good=functions["good_of_those"],
        max_new=functions["max_new_tokens"], steps=training["step"],
        tokens=training["tokens"] / 1e6, minutes=training["seconds"] / 60, machine=args.machine, note=args.note, python=split["python"],
        data="\n".join(rows), sha256=digest,
        samples="\n\n".join(f"```python\n{s['text'].rstrip()}\n```" for s in samples),
        **{k: config[k] for k in ("n_layer", "n_head", "n_embd", "rotary_dim", "n_positions", "vocab_size")}))


if __name__ == "__main__":
    main()
