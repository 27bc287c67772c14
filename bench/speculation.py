"""Speculative decoding against plain decoding, one row at a time:

    python -m bench.speculation CHECKPOINT --kind float32 int8 --save NAME

CHECKPOINT may hold random weights in the true shape (tools/make_checkpoint.py). Three things are measured.

Verification: seconds of one decode call over 1 to 16 tokens of a sequence, which is what the draft length follows from.

Edits: what a model writes that copies a file with an edit. The prompt is a task, a source file of this package and a
heading; the answer is the file after the edit, and its tokens are REPLAYED: logits are computed and sampled from as
ever, and then the answer's token is taken, because a checkpoint that edits code is not at hand. Drafts, which of them
are right, verification, and the cache are real; so the figures hold for a model that makes this edit without a fault.
Text is cut into tokens by the demo model's tokenizer (3072 tokens; that of CodeGen makes fewer and longer ones).

Genuine: what greedy decoding and sampling of the weights themselves give, of CHECKPOINT and of the demo model (always
float32), nothing replayed. Sampling from random weights repeats nothing: that row shows what speculation costs in vain.

Plain and speculative runs take turns (A B B A); their tokens must be the same, or the benchmark fails. Beside the
seconds of the clock stand those of all threads, which say more on a machine that others use as well.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import codegen_fast
from bench.clock import Timing, measure
from bench.cpu.results import commit
from codegen_fast import machine, ops
from codegen_fast.demo import demo_model_path
from codegen_fast.generation.speculation import Report, Speculation, SpeculativeBatch
from codegen_fast.sampling import Sampling
from codegen_fast.stepping import Row, SteppingBatch
from codegen_fast.verification import Verifier
from codegen_fast.workplace import Room, workplace

CONTEXT = 400  # tokens before a verification that is timed
GENUINE_TOKENS = 200
GREEDY = Sampling(0.0, 0, 1.0, ())
SAMPLED = Sampling(0.8, 0, 0.95, ())

# The file, and what to do with it: (pattern, replacement) or text to put before a line.
EDITED = "cache.py"
EDITED_LINES = 80  # of its class; prompt and answer must fit the context of 2048
EDITS = {
    "rename": ("Rename `sequence` to `seq`.", r"\bsequence\b", "seq"),
    "annotate": ("Add a check to every method.", r"( +)(def \w+\(self[^\n]*:\n)", r"\1\2\1    self._check()\n"),
    "one line": ("Raise the default capacity.", r"capacity_tokens: int = 0", "capacity_tokens: int = 4096"),
}


def load(folder: str | Path, kind: str):
    quantization = None if kind in ops.FLOAT_KINDS else kind
    dtype = torch.float16 if quantization else getattr(torch, kind)
    load = codegen_fast.AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=dtype, quantization=quantization, device="cpu")._decoder


def verification(decoder, counts: list[int]) -> list[dict]:
    """Seconds of one call over so many tokens of one sequence, all of which get logits."""
    cache = decoder.new_cache(CONTEXT + max(counts))
    sequence = cache.new_sequence()
    decoder.prefill(cache, [sequence], [torch.arange(CONTEXT) % 1000 + 5], logits="none")
    verifier = Verifier(decoder, cache, max(counts), 1, CONTEXT + max(counts))

    def call(count: int) -> None:
        verifier.verify([sequence], [[7] * count])
        cache.crop(sequence, CONTEXT)

    rows = [{"tokens": n, "call": vars(measure([lambda n=n: call(n)], seconds=0.4))} for n in counts]
    for row in rows:
        row["of_one_token"] = row["call"]["median"] / rows[0]["call"]["median"]
    return rows


class Answer:
    """Tokens that are replayed: whatever is sampled, the row's next token is the answer's."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.row: Row | None = None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        sample = ops.sample

        def replay(out, logits, params, workspace) -> None:
            sample(out, logits, params, workspace)
            begin = len(self.row.tokens)
            wanted = self.tokens[begin : begin + len(out)]
            out.numpy()[: len(wanted)] = wanted

        ops.sample = replay
        try:
            yield
        finally:
            ops.sample = sample


Make = Callable[..., SteppingBatch]


def run(decoder, prompt: list[int], steps: int, sampling: Sampling, make: Make,
        answer: Answer | None) -> tuple[list[int], float, float, Report | None]:  # fmt: skip
    """The new tokens, the seconds after the first of them, by the clock and of all threads, and the batch's report."""
    room = Room(1, [len(prompt)], steps, len(prompt) + steps)
    with workplace(decoder, room) as place:
        sequence = place.cache.new_sequence()
        logits = decoder.prefill(place.cache, [sequence], [torch.tensor(prompt)]).logits
        row = Row(0, np.array(prompt, dtype=np.int32), sequence, 11, 0)
        if answer is not None:
            answer.row = row
        batch = make(decoder, place, sampling, steps)
        try:
            batch.start([row], logits, [0])
            begin, worked = time.perf_counter(), time.process_time()
            while len(batch):
                batch.step()
            seconds, worked = time.perf_counter() - begin, time.process_time() - worked
        finally:
            batch.close()
    return row.tokens, seconds, worked, getattr(batch, "report", None)


def compare(decoder, prompt: list[int], steps: int, sampling: Sampling, how: Speculation, rounds: int,
            answer: Answer | None = None) -> dict:  # fmt: skip
    """Plain and speculative runs in turn (A B B A, so many times): a row of the table."""

    def speculative(*where) -> SteppingBatch:
        return SpeculativeBatch(*where, how)

    plain, drafted, plain_work, work, expected, report = [], [], [], [], None, None
    for make in [SteppingBatch, speculative, speculative, SteppingBatch] * rounds:
        tokens, seconds, worked, told = run(decoder, prompt, steps, sampling, make, answer)
        expected = expected or tokens
        assert tokens == expected, "speculation changed the tokens"
        (plain if make is SteppingBatch else drafted).append(seconds)
        (plain_work if make is SteppingBatch else work).append(worked)
        report = told or report
    steps = len(expected) - 1
    each = Timing.of(plain).median, Timing.of(drafted).median
    return {"prompt_tokens": len(prompt), "new_tokens": len(expected), "plain_seconds": plain, "seconds": drafted,
            "plain_tokens_per_second": steps / each[0], "tokens_per_second": steps / each[1],
            "plain_thread_seconds": plain_work, "thread_seconds": work, "thread_speed_up": sum(plain_work) / sum(work),
            "speed_up": each[0] / each[1], "estimated_speed_up": report.speed_up, "acceptance": report.acceptance,
            "drafted": report.drafted, "decode_calls": report.decode_calls, "verify_calls": report.verify_calls,
            "tokens_per_call": report.tokens_per_call, "on_at_the_end": report.on}  # fmt: skip


def edits(tokenizer, new_tokens: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """(name, prompt, answer) in tokens."""
    source = (Path(codegen_fast.__file__).parent / EDITED).read_text()
    source = "".join(source[source.index("class PagedCache") :].splitlines(keepends=True)[:EDITED_LINES])
    for name, (task, pattern, replacement) in EDITS.items():
        prompt = f"# {task}\n# Before:\n{source}\n# After:\n"
        answer = tokenizer(re.sub(pattern, replacement, source))["input_ids"]
        yield name, tokenizer(prompt)["input_ids"], answer[:new_tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--kind", nargs="+", choices=ops.WEIGHT_KINDS, default=["float32", "int8"])
    parser.add_argument("--draft", type=int, default=10, help="prompt_lookup_num_tokens")
    parser.add_argument("--new-tokens", type=int, default=400, help="of an answer, at most")
    parser.add_argument("--rounds", type=int, default=2, help="of plain, speculative, speculative, plain")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ops.set_num_threads(args.threads)

    tokenizer = codegen_fast.AutoTokenizer.from_pretrained(demo_model_path())
    cases = list(edits(tokenizer, args.new_tokens))
    how = Speculation(most_tokens=args.draft)
    bandwidth = [ops.read_bandwidth()]
    calls, rows = {}, []

    def note(model: str, kind: str, case: str, row: dict) -> None:
        rows.append({"model": model, "kind": kind, "case": case, **row})
        print(f"{model:<12}{kind:<10}{case:<18}{row['plain_tokens_per_second']:>9.1f}{row['tokens_per_second']:>10.1f}"
              f"{row['speed_up']:>9.2f}x{row['thread_speed_up']:>9.2f}x{row['acceptance']:>10.0%}{row['tokens_per_call']:>12.2f}"
              f"{'on' if row['on_at_the_end'] else 'off':>6}", flush=True)  # fmt: skip

    print(f"{'model':<12}{'kind':<10}{'case':<18}{'plain t/s':>9}{'drafts t/s':>10}{'speed-up':>10}{'threads':>10}{'accepted':>10}"
          f"{'tokens/call':>12}{'':>6}")  # fmt: skip
    demo = load(demo_model_path(), "float32")
    for name, prompt, _ in cases:
        row = compare(demo, prompt[-600:], GENUINE_TOKENS, GREEDY, how, args.rounds)
        note("demo", "float32", f"genuine {name}", row)
    for kind in args.kind:
        decoder = load(args.checkpoint, kind)
        calls[kind] = verification(decoder, [*range(1, 17), 24, 32])
        print("  ".join(f"{row['tokens']}: {1e3 * row['call']['median']:.1f} ms" for row in calls[kind]))
        for name, prompt, tokens in cases:
            answer = Answer(tokens)
            with answer.replayed():
                row = compare(decoder, prompt, len(tokens), GREEDY, how, args.rounds, answer)
            note("checkpoint", kind, f"edit {name}", row)
        prompt = cases[0][1][-CONTEXT:]
        note("checkpoint", kind, "genuine greedy", compare(decoder, prompt, GENUINE_TOKENS, GREEDY, how, args.rounds))
        note("checkpoint", kind, "genuine sampled", compare(decoder, prompt, GENUINE_TOKENS, SAMPLED, how, args.rounds))
        bandwidth.append(ops.read_bandwidth())
        del decoder
    if args.save:
        path = Path(__file__).parent / "results" / f"{args.save}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"cpu": machine.cpu_name(), "isa": ops.cpu_isa(), "threads": args.threads,
                                    "read_bandwidth": bandwidth, "torch": torch.__version__, "commit": commit(),
                                    "build": ops.build_info(), "draft": args.draft, "context": CONTEXT,
                                    "verification": calls, "rows": rows}, indent=1) + "\n")  # fmt: skip
        print(path)


if __name__ == "__main__":
    main()
