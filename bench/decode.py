"""Decode and prefill of a whole model, with transformers in the same run:

    python -m bench.decode CHECKPOINT --kind float32 float16 int8 --batch 1 8 --save NAME

Decode is timed apart from prefill, step by step; engines take turns (A B B A). Beside each figure stands the share of
the read bandwidth measured in the same run: bytes are counted analytically (every packed weight once, the cache once).
CHECKPOINT may hold random weights (tools/make_checkpoint.py): speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

import codegen_fast
from bench.clock import Timing
from codegen_fast import machine, ops

PROMPT = 32
PREFILL = 512


class Fast:
    """codegen_fast in one weight type."""

    def __init__(self, folder: str, kind: str) -> None:
        self.name = f"codegen_fast {kind}"
        quantization = "int8" if kind == "int8" else None
        dtype = torch.float16 if quantization else getattr(torch, kind)
        begin = time.perf_counter()
        self.model = codegen_fast.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization=quantization)
        self.load_seconds = time.perf_counter() - begin
        self.decoder = self.model._decoder
        weights = self.decoder.weights
        self.step_bytes = weights.nbytes() - weights.embedding.nbytes

    def prefill(self, ids: torch.Tensor) -> float:
        cache = self.decoder.new_cache(ids.numel())
        begin = time.perf_counter()
        self.decoder.prefill(cache, [cache.new_sequence() for _ in ids], list(ids))
        return time.perf_counter() - begin

    def decode(self, ids: torch.Tensor, steps: int) -> list[float]:
        cache = self.decoder.new_cache(len(ids) * (ids.shape[1] + steps + 32))
        sequences = [cache.new_sequence() for _ in ids]
        self.decoder.prefill(cache, sequences, list(ids))
        batch = self.decoder.start(cache, sequences, steps)
        first = ids[:, 0].contiguous()
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            tokens = batch.step(first).argmax(-1)
            tokens[0].item()
            seconds.append(time.perf_counter() - begin)
        return seconds


class Transformers:
    """transformers, eager: the engine that the package replaces."""

    def __init__(self, folder: str, kind: str) -> None:
        from transformers import CodeGenForCausalLM

        self.name = f"transformers {kind}"
        begin = time.perf_counter()
        self.model = CodeGenForCausalLM.from_pretrained(folder, dtype=getattr(torch, kind)).eval()
        self.load_seconds = time.perf_counter() - begin
        self.step_bytes = sum(p.nbytes for n, p in self.model.named_parameters() if "wte" not in n)

    def prefill(self, ids: torch.Tensor) -> float:
        with torch.inference_mode():
            begin = time.perf_counter()
            self.model(ids, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - begin

    def decode(self, ids: torch.Tensor, steps: int) -> list[float]:
        with torch.inference_mode():
            past = self.model(ids, use_cache=True, logits_to_keep=1).past_key_values
            seconds = []
            for _ in range(steps):
                begin = time.perf_counter()
                tokens = self.model(ids[:, :1], past_key_values=past, use_cache=True).logits[:, -1].argmax(-1)
                tokens[0].item()
                seconds.append(time.perf_counter() - begin)
            return seconds


def commit() -> str:
    """The commit that was measured, with + where the tree differs from it; "unknown" outside of a checkout."""
    described = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--kind", nargs="+", choices=ops.WEIGHT_KINDS, default=list(ops.WEIGHT_KINDS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    ops.set_num_threads(args.threads)

    measured = [ops.read_bandwidth()]  # again beside every type: a virtual machine's share of the memory comes and goes
    rows = []
    for kind in args.kind:
        makers = [Fast] + ([Transformers] if kind != "int8" and not args.no_peers else [])
        engines = [make(args.checkpoint, kind) for make in makers]
        vocab = engines[0].model.config.vocab_size
        prompt = torch.randint(vocab, (1, PREFILL), generator=torch.Generator().manual_seed(0))
        prefill = {e.name: [] for e in engines}
        steps = {(e.name, b): [] for e in engines for b in args.batch}
        for engine in engines:  # warm up
            engine.decode(prompt[:, :PROMPT], 4)
        for order in (engines, engines[::-1]):
            for engine in order:
                prefill[engine.name].append(engine.prefill(prompt))
                for batch in args.batch:
                    steps[engine.name, batch] += engine.decode(prompt[:, :PROMPT].repeat(batch, 1), args.steps)
            measured.append(ops.read_bandwidth())
        for engine in engines:
            for batch in args.batch:
                t = Timing.of(steps[engine.name, batch])
                rows.append({"engine": engine.name, "batch": batch, "step": vars(t),
                             "step_seconds": [round(x, 7) for x in steps[engine.name, batch]], "tokens_per_second": batch / t.median,
                             "step_bytes": engine.step_bytes, "load_seconds": engine.load_seconds,
                             "prefill_tokens_per_second": PREFILL / min(prefill[engine.name])})  # fmt: skip
        del engines, engine

    bandwidth = max(measured)
    print(f"{platform.machine()}, {ops.cpu_isa()}, {args.threads} threads, reads {bandwidth / 1e9:.1f} GB/s at best "
          f"({min(measured) / 1e9:.1f} at worst)")  # fmt: skip
    print(f"{'engine':<24}{'load s':>8}{'prefill':>10}{'batch':>8}{'tokens/s':>11}{'of limit':>10}")
    for row in rows:
        row["bandwidth_share"] = row["step_bytes"] / row["step"]["median"] / bandwidth
        print(f"{row['engine']:<24}{row['load_seconds']:>8.1f}{row['prefill_tokens_per_second']:>10.0f}{row['batch']:>8}"
              f"{row['tokens_per_second']:>11.1f}{row['bandwidth_share']:>10.0%}")  # fmt: skip
    if args.save:
        path = Path(__file__).parent / "results" / f"{args.save}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"cpu": machine.cpu_name(), "isa": ops.cpu_isa(), "threads": args.threads, "read_bandwidth": measured,
                                    "torch": torch.__version__, "transformers": None if args.no_peers else version("transformers"),
                                    "commit": commit(), "build": ops.build_info(), "prompt": PROMPT,
                                    "prefill": PREFILL, "rows": rows}, indent=1) + "\n")  # fmt: skip
        print(path)


if __name__ == "__main__":
    main()
