"""Many samples of one prompt in one call, against as many calls of one sample each:

    python -m bench.samples CHECKPOINT --samples 200 --prompt 400 --new 32 --kind int8 --save NAME

Every way runs in a process of its own, which measures seconds and how much memory (anonymous and shared pages) the call
adds at its peak to what the loaded model takes. The ways: one call with num_return_sequences (the prompt computed once,
its pages shared, rows in waves), one call with the prompt given so many times (a batch of separate prompts), and separate
calls, of which --calls are timed and scaled up (the JSON says so).
A sample alone must have the tokens that it has among others; that is checked.
CHECKPOINT may hold random weights (tools/make_checkpoint.py): rows then run to their full length.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import torch

import codegen_fast
from bench.cpu.results import commit
from codegen_fast import machine, ops
from codegen_fast.sampling import mix_seed

WAYS = ("one call", "one call, separate prompts", "separate calls")


class PeakMemory:
    """The most anonymous and shared memory that the process held since ``begin``, looked at every millisecond."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self.base = self.peak = held_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, held_bytes())

    def stop(self) -> int:
        """Bytes above what was held at the beginning."""
        self._done.set()
        self._thread.join()
        return max(self.peak, held_bytes()) - self.base


def held_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024


def run_way(args: argparse.Namespace) -> dict:
    """One way, in this process."""
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    quantization = None if args.kind in ops.FLOAT_KINDS else args.kind
    dtype = torch.float16 if quantization else getattr(torch, args.kind)
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=dtype, quantization=quantization)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, args.prompt), generator=generator)
    knobs = dict(do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=args.new, eos_token_id=None)
    model.generate(prompt, **{**knobs, "max_new_tokens": 2}, seed=1)  # touches what is touched once
    memory = PeakMemory()
    begin = time.perf_counter()
    calls = args.samples
    if args.way == WAYS[0]:
        rows = model.generate(prompt, seed=1, num_return_sequences=args.samples, max_batch_size=args.rows, **knobs)
    elif args.way == WAYS[1]:
        # Sample j of a prompt is drawn by (seed, j): as separate prompts, each must be given a seed of its own.
        rows = model.generate(prompt.repeat(args.samples, 1), seed=[mix_seed(1, j) for j in range(args.samples)],
                              max_batch_size=args.rows, **knobs)  # fmt: skip
    else:
        calls = min(args.calls, args.samples)
        rows = torch.cat([model.generate(prompt, seed=1, sample_offset=j, **knobs) for j in range(calls)])
    seconds = time.perf_counter() - begin
    return {"way": args.way, "seconds": seconds * args.samples / calls, "samples_timed": calls,
            "added_peak_bytes": memory.stop(), "model_bytes": model.memory_footprint(),
            "tokens_per_second": calls * args.new / seconds,
            "tokens": hashlib.sha256(rows[:args.calls].numpy().tobytes()).hexdigest()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--kind", choices=ops.WEIGHT_KINDS, default="int8")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=400, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="new tokens a sample")
    parser.add_argument("--rows", type=int, help="rows at once; by itself as many as the package chooses")
    parser.add_argument("--calls", type=int, default=20, help="separate calls that are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run_way(args)))
        return
    results = []
    for way in WAYS:
        run = subprocess.run([sys.executable, "-m", "bench.samples", *sys.argv[1:], "--way", way], capture_output=True,
                             text=True)  # fmt: skip
        if run.returncode:
            sys.exit(run.stderr)
        results.append(json.loads(run.stdout.splitlines()[-1]))
        one = results[-1]
        print(f"{way:<28}{one['seconds']:>8.1f} s{one['tokens_per_second']:>8.0f} tokens/s"
              f"{one['added_peak_bytes'] / 1e6:>8.0f} MB beside the model"
              + (f"  (timed: {one['samples_timed']} of {args.samples})" if one["samples_timed"] < args.samples else ""))
    first, separate = results[0], results[2]
    assert first["tokens"] == separate["tokens"], "a sample alone differs from the same sample among others"
    print(f"gain over separate calls: {separate['seconds'] / first['seconds']:.1f} times; over separate prompts "
          f"{results[1]['seconds'] / first['seconds']:.1f} times in time, "
          f"{results[1]['added_peak_bytes'] / first['added_peak_bytes']:.1f} times in memory")
    if args.save:
        path = Path(__file__).parent / "results" / f"{args.save}.json"
        settings = {name: getattr(args, name) for name in ("kind", "samples", "prompt", "new", "rows", "threads")}
        path.write_text(json.dumps({"cpu": machine.cpu_name(), "isa": ops.cpu_isa(), "commit": commit(), **settings,
                                    "results": results}, indent=1) + "\n")  # fmt: skip
        print(path)


if __name__ == "__main__":
    main()
