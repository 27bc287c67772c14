"""Python threads generate at once, on one model and on several: the program that runs under the sanitizers.

    python -m reliability.concurrent_generation --isa avx2

The demo model in float32, int8 and int4, each of them in four threads: samples of two seeds, beams, and a stop rule with
penalties. What a thread gets must be what it gets alone. Prints how many tokens were made.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from codegen_fast import AutoModelForCausalLM, AutoTokenizer, ops
from codegen_fast.demo import demo_model_path

PROMPT = "def fibonacci(n):\n    if n < 2:\n"


def works(quantizations: tuple[str | None, ...], new_tokens: int) -> dict[str, Callable[[], Tensor]]:
    """What threads do at once, by name: each gives the tokens that it made."""
    folder = demo_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    made = {}
    for quantization in quantizations:
        own = dict(dtype=torch.float32, quantization=quantization, device="cpu")
        model = AutoModelForCausalLM.from_pretrained(folder, **own)

        def generate(model=model, **knobs):
            return model.generate(ids, max_new_tokens=new_tokens, pad_token_id=0, **knobs)

        name = quantization or "float32"
        for seed in range(2):
            made[f"{name}, samples of seed {seed}"] = lambda generate=generate, seed=seed: generate(
                do_sample=True, top_p=0.9, seed=seed, num_return_sequences=3
            )
        made[f"{name}, beams"] = lambda generate=generate: generate(num_beams=2)
        made[f"{name}, rules and stops"] = lambda generate=generate: generate(
            stop="function", tokenizer=tokenizer, repetition_penalty=1.2, no_repeat_ngram_size=3
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.concurrent_generation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--isa", default=ops.cpu_isa(), choices=ops.cpu_isas())
    parser.add_argument("--quantizations", nargs="+", default=["none", "int8", "int4"])
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(3)
    with ops.forced_isa(args.isa):
        todo = works(tuple(None if name == "none" else name for name in args.quantizations), args.new_tokens)
        alone = {name: work() for name, work in todo.items()}
        wrong = []

        def repeat(name: str) -> None:
            for _ in range(args.rounds):
                if not torch.equal(todo[name](), alone[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=repeat, args=(name,)) for name in todo]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    tokens = args.rounds * sum(made.numel() for made in alone.values())
    print(f"{args.isa}: {len(todo)} threads made {tokens} tokens at once; "
          f"other tokens than alone: {', '.join(wrong) or 'none'}")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
