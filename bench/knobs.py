"""What knobs cost a step of decode:

    python -m bench.knobs CHECKPOINT --batch 32 --kind int8 --save NAME

Every variant generates the same number of rows and steps from the same prompts; variants take turns. Beside the time of a
step stands what it takes beyond a plain sampling step (top_k=50), and the share of it. CHECKPOINT may hold random weights
(tools/make_checkpoint.py); its tokens are then read with the tokenizer that --tokenizer names (the demo model's by
itself), because stops look at text.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import torch

import codegen_fast
from bench.clock import Timing
from bench.cpu.results import commit
from codegen_fast import machine, ops
from codegen_fast.demo import demo_model_path

STEPS = 24


class Clock:
    """A streamer that notes when the tokens of a step came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def steps(self) -> list[float]:
        """Seconds of each step: the prompt and the first token, which comes with it, are left out, and a first step."""
        return [b - a for a, b in zip(self.times[2:], self.times[3:])]


def variants(vocab_size: int, tokenizer: object) -> dict[str, dict]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(vocab_size, (300, 2), generator=generator).tolist()
    return {
        "plain": {},
        "penalty, n-grams, 300 bans, 100 suppressed": dict(
            repetition_penalty=1.2, no_repeat_ngram_size=3, bad_words_ids=words, suppress_tokens=list(range(100))),
        "top_p 0.95": dict(top_p=0.95),
        "min_p 0.05": dict(min_p=0.05),
        "typical_p 0.9, whole vocabulary": dict(typical_p=0.9, top_k=0),
        "eta 3e-4, whole vocabulary": dict(eta_cutoff=3e-4, top_k=0),
        "epsilon 3e-4, whole vocabulary": dict(epsilon_cutoff=3e-4, top_k=0),
        "top_p and all four filters": dict(top_p=0.95, min_p=0.01, typical_p=0.95, epsilon_cutoff=1e-5, eta_cutoff=1e-5),
        "stop='truncation'": dict(stop="truncation", tokenizer=tokenizer),
        "stop='function'": dict(stop="function", tokenizer=tokenizer),
        "stop=3 expressions": dict(stop=[r"^class\b", r"^#", r"never \d+ seen"], tokenizer=tokenizer),
        "4 stop_strings": dict(stop_strings=["never seen", "nor this one", "nor that", "<<END>>"], tokenizer=tokenizer),
        "a logits_processor that does nothing": dict(logits_processor=[lambda ids, scores: scores]),
        "return_logprobs=5": dict(return_logprobs=5),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--kind", choices=ops.WEIGHT_KINDS, default="int8")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=400, help="tokens of each prompt: the history that penalties read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokenizer", default=str(demo_model_path()))
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    quantization = None if args.kind in ops.FLOAT_KINDS else args.kind
    dtype = torch.float16 if quantization else getattr(torch, args.kind)
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=dtype, quantization=quantization)
    tokenizer = codegen_fast.AutoTokenizer.from_pretrained(args.tokenizer)
    # One prompt: it is computed once, and rows differ from their first token on.
    ids = torch.randint(3, min(model.config.vocab_size, len(tokenizer)), (1, args.prompt),
                        generator=torch.Generator().manual_seed(1))  # fmt: skip
    cases = variants(model.config.vocab_size, tokenizer)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(args.rounds + 1):
        for name in names if turn % 2 else names[::-1]:
            clock = Clock()
            knobs = dict(do_sample=True, top_k=50, temperature=0.9, seed=turn, num_return_sequences=args.batch,
                         max_new_tokens=STEPS, eos_token_id=None, pad_token_id=0)  # fmt: skip
            model.generate(ids, streamer=clock, **{**knobs, **cases[name]})
            if turn:  # the first warms up
                seconds[name] += clock.steps()
    plain = Timing.of(seconds["plain"]).median
    rows = []
    print(f"{args.kind}, batch {args.batch}, {args.prompt} tokens of prompt, {args.threads} threads: a plain step "
          f"{plain * 1e3:.1f} ms")  # fmt: skip
    for name in names:
        t = Timing.of(seconds[name])
        rows.append({"knobs": name, "step": vars(t), "beyond_plain": t.median - plain, "share": t.median / plain - 1})
        print(f"{name:<45}{t.median * 1e3:>8.2f} ms{(t.median - plain) * 1e3:>+8.2f} ms{t.median / plain - 1:>+8.1%}"
              f"   (10th to 90th percentile {t.p10 * 1e3:.1f} to {t.p90 * 1e3:.1f})")  # fmt: skip
    if args.save:
        path = Path(__file__).parent / "results" / f"{args.save}.json"
        settings = {name: getattr(args, name) for name in ("kind", "batch", "prompt", "rounds", "threads")}
        path.write_text(json.dumps({"cpu": machine.cpu_name(), "isa": ops.cpu_isa(), "commit": commit(), **settings,
                                    "rows": rows}, indent=1) + "\n")  # fmt: skip
        print(path)


if __name__ == "__main__":
    main()
