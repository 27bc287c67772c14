"""200 samples of one HumanEval problem: this package's evaluation against transformers' generate in float32.

    python -m bench.evaluation CHECKPOINT --save NAME

CHECKPOINT may hold random weights in the true shape (tools/make_checkpoint.py): rows then run to their full length, in
both, since nothing ends them. The prompt is HumanEval's, cut into tokens by the checkpoint's tokenizer, or by the demo
model's where there is none (it makes more of them).

First transformers, in float32, runs one batch of every size of --splits; the size with the most tokens a second is its
best split, and all samples are run in batches of it. Then the ways take turns (A B C, C B A), each visit in a process
of its own: transformers at its best split, and codegen_fast in every type of --kinds through the Completer that
codegen-fast eval uses. Both draw with temperature 0.2 and top_p 0.95. Beside the seconds stands the most memory
(anonymous and shared pages) that the process held while it generated: the model's, and what the call added.

Apart from that, on the demo model and the first ten problems, where samples do end: the seconds of the same samples when
a row leaves the batch with the token that decides its cut, and when rows run on and are cut afterwards. The texts must
be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import codegen_fast
from bench.cpu.results import commit, describe_machine, path_of, write
from bench.cpu.rounds import in_turns
from bench.samples import PeakMemory
from codegen_fast import ops, truncate
from codegen_fast.demo import demo_model_path
from codegen_fast.evaluation.humaneval import read_problems
from codegen_fast.evaluation.rows import Completer, Prompt
from codegen_fast.evaluation.settings import Knobs, preset

PEER = "transformers float32"
TEMPERATURE = 0.2
DEMO_PROBLEMS = 10  # the first ones share the samples
DEMO_TEMPERATURE = 0.6  # at 0.2 the demo model mostly repeats itself, and nothing ends


def tokenizer_of(folder: str) -> Any:
    has_one = any((Path(folder) / name).exists() for name in ("tokenizer.json", "vocab.json"))
    return codegen_fast.AutoTokenizer.from_pretrained(folder if has_one else demo_model_path())


def prompt_of(args: argparse.Namespace, tokenizer: Any) -> list[int]:
    problem = next(each for each in read_problems(None) if each["task_id"] == args.problem)
    return tokenizer(problem["prompt"])["input_ids"]


def completer_of(folder: str | Path, tokenizer: Any, kind: str, stop: str) -> Completer:
    quantization = None if kind in ops.FLOAT_KINDS else kind
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16 if quantization else getattr(torch, kind), quantization=quantization, device="cpu"
    )
    return Completer(model, tokenizer, Knobs.of({**preset("humaneval", "paper"), "stop": stop}))


def run_fast(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    tokenizer = tokenizer_of(args.checkpoint)
    completer = completer_of(args.checkpoint, tokenizer, kind, "none")
    completer.model.generation_config = {"pad_token_id": 0}  # nothing ends a row here, as nothing does there
    ids = prompt_of(args, tokenizer)

    def generate(samples: int, new: int) -> int:
        return sum(row.tokens for row in completer.complete([Prompt(0, ids, 1, 0, samples, new)], TEMPERATURE))

    return {**timed(lambda: generate(args.samples, args.new), lambda: generate(2, 2)), "prompt_tokens": len(ids)}


def load_peer(args: argparse.Namespace) -> Any:
    from transformers import CodeGenForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return CodeGenForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32).eval()


def generate_by_peer(model: Any, ids: list[int], rows: int, new: int) -> int:
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=0.95,
            top_k=0,
            max_new_tokens=new,
            min_new_tokens=new,
            num_return_sequences=rows,
            pad_token_id=0,
        )
    return rows * (out.shape[1] - len(ids))


def run_peer(args: argparse.Namespace, split: int) -> dict[str, Any]:
    model = load_peer(args)
    ids = prompt_of(args, tokenizer_of(args.checkpoint))
    batches = [min(split, args.samples - done) for done in range(0, args.samples, split)]
    return timed(
        lambda: sum(generate_by_peer(model, ids, rows, args.new) for rows in batches),
        lambda: generate_by_peer(model, ids, 2, 2),
    )


def run_splits(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One batch of every size."""
    model = load_peer(args)
    ids = prompt_of(args, tokenizer_of(args.checkpoint))
    sizes = [size for size in args.splits if size <= args.samples]
    return [
        {"split": size, **timed(lambda size=size: generate_by_peer(model, ids, size, args.new),
                                lambda: generate_by_peer(model, ids, 2, 2))}
        for size in sizes
    ]  # fmt: skip


def run_demo(args: argparse.Namespace) -> dict[str, Any]:
    """Rows that end at their cut, against rows that run on."""
    tokenizer = tokenizer_of(str(demo_model_path()))
    prompts = [Prompt(i, tokenizer(problem["prompt"])["input_ids"], 1, 0, max(1, args.samples // DEMO_PROBLEMS),
                      args.demo_new) for i, problem in enumerate(read_problems(None)[:DEMO_PROBLEMS])]  # fmt: skip
    told: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    completers = {stop: completer_of(demo_model_path(), tokenizer, "float32", stop) for stop in ("truncation", "none")}
    for turn, stop in enumerate(("truncation", "none", "none", "truncation")):
        completer = completers[stop]
        rows: list[Any] = []

        def generate(completer=completer, rows=rows) -> int:
            found = completer.complete(prompts, DEMO_TEMPERATURE)
            rows[:] = sorted(found, key=lambda row: (row.prompt.name, row.sample))
            return sum(row.tokens for row in rows)

        told[f"{stop} {turn}"] = timed(generate, lambda: None)
        texts[stop] = [truncate(row.text, "truncation") for row in rows]
    assert texts["truncation"] == texts["none"], "a text that was cut while it came differs from one cut afterwards"
    return told


def timed(work: Any, warm_up: Any) -> dict[str, Any]:
    """work() returns its new tokens."""
    warm_up()
    memory = PeakMemory()
    begin = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - begin
    added = memory.stop()
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds,
            "base_bytes": memory.base, "peak_bytes": memory.base + added}  # fmt: skip


def visit(way: str) -> Any:
    """In a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "bench.evaluation", *sys.argv[1:], "--way", way], capture_output=True, text=True
    )
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def run_way(args: argparse.Namespace) -> Any:
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if args.way == "splits":
        return run_splits(args)
    if args.way == "demo":
        return run_demo(args)
    name, _, argument = args.way.partition(":")
    return run_peer(args, int(argument)) if name == "peer" else run_fast(args, argument)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--problem", default="HumanEval/0")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--new", type=int, default=64, help="new tokens a sample")
    parser.add_argument("--kinds", nargs="+", choices=ops.WEIGHT_KINDS, default=["float32", "int8"])
    parser.add_argument("--splits", type=int, nargs="+", default=[8, 25, 50, 100, 200], help="batches that are tried")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demo-new", type=int, default=400, help="new tokens at most, of the demo model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run_way(args)))
        return

    splits = visit("splits")
    for row in splits:
        print(f"{PEER}, batches of {row['split']:>3}: {row['tokens_per_second']:7.1f} tokens/s, "
              f"{row['peak_bytes'] / 1e9:.2f} GB")  # fmt: skip
    best = max(splits, key=lambda row: row["tokens_per_second"])["split"]
    ways = {PEER: f"peer:{best}", **{f"codegen_fast {kind}": f"fast:{kind}" for kind in args.kinds}}
    samples = []
    for number, order in enumerate(in_turns(list(ways), args.rounds)):
        for name in order:
            samples.append({"way": name, "round": number, **visit(ways[name])})
            print(f"round {number}: {name:<24}{samples[-1]['seconds']:8.1f} s", flush=True)
    demo = visit("demo")
    summary = summarize(samples, demo)
    print_summary(summary)
    if args.save:
        settings = {name: getattr(args, name) for name in ("problem", "samples", "new", "splits", "rounds", "threads",
                                                            "demo_new")}  # fmt: skip
        result = {
            "benchmark": "evaluation", "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(), "machine": describe_machine(args.threads),
            "versions": {name: version(name) for name in ("torch", "transformers")}, "settings": settings,
            "prompt_tokens": next(one["prompt_tokens"] for one in samples if "prompt_tokens" in one),
            "best_split": best, "splits": splits, "samples": samples, "demo": demo, "summary": summary,
        }  # fmt: skip
        write(result, path_of(args.save))
        print(path_of(args.save))


def summarize(samples: list[dict[str, Any]], demo: dict[str, Any]) -> dict[str, Any]:
    """Medians over rounds; `times` is how many times as fast as the peer, in the same rounds."""
    names = list(dict.fromkeys(one["way"] for one in samples))
    of = {name: [one for one in samples if one["way"] == name] for name in names}
    peer = [one["seconds"] for one in of[PEER]]
    ways = {
        name: {
            "seconds": statistics.median(one["seconds"] for one in own),
            "tokens_per_second": statistics.median(one["tokens_per_second"] for one in own),
            "times": statistics.median(theirs / one["seconds"] for theirs, one in zip(peer, own)),
            "peak_bytes": max(one["peak_bytes"] for one in own),
            "added_bytes": max(one["peak_bytes"] - one["base_bytes"] for one in own),
        }
        for name, own in of.items()
    }
    cut, whole = ([one for name, one in demo.items() if name.startswith(stop)] for stop in ("truncation", "none"))
    seconds = [sum(one["seconds"] for one in each) for each in (cut, whole)]
    gain = {"cut_seconds": seconds[0] / 2, "whole_seconds": seconds[1] / 2, "times": seconds[1] / seconds[0],
            "cut_tokens": cut[0]["tokens"], "whole_tokens": whole[0]["tokens"]}  # fmt: skip
    return {"ways": ways, "demo": gain}


def print_summary(summary: dict[str, Any]) -> None:
    for name, own in summary["ways"].items():
        print(f"{name:<24}{own['seconds']:8.1f} s{own['tokens_per_second']:8.0f} tokens/s{own['times']:6.2f} "
              f"times the peer{own['peak_bytes'] / 1e9:7.2f} GB at its peak, {own['added_bytes'] / 1e9:.2f} of it "
              "the call's")  # fmt: skip
    gain = summary["demo"]
    print(f"rows that end at their cut (demo model): {gain['cut_seconds']:.1f} s, {gain['cut_tokens']} tokens; run on "
          f"and cut afterwards {gain['whole_seconds']:.1f} s, {gain['whole_tokens']} tokens: {gain['times']:.2f} times")


if __name__ == "__main__":
    main()
