"""The time of a prompt through a whole model, with transformers and with the best composition of torch's own kernels:

    python -m bench.gpu.prefill --model 350M 2B 6B --budget 440

Calls are timed with CUDA events, from the ids to the last token's logits, the host's work included, in turns A B B A.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import cases
import torch

from bench.gpu import ceilings, clock, machine, models, operands, results
from bench.gpu.decode import KINDS, LARGEST_ERROR
from bench.gpu.rehearsal import TINY, on_the_emulator
from codegen_fast.decoder import Decoder

LENGTHS = (2000, 512, 128)
CALLS = 24  # timed, of every engine


def operations(dims: cases.Dims, tokens: int) -> int:
    """Of the products, and of the causal half of attention; one row of logits."""
    d, layer = dims.n_embd, dims.n_embd * (4 * dims.n_embd + 2 * dims.inner)
    return 2 * dims.n_layer * (layer * tokens + d * tokens * (tokens + 1)) + 2 * dims.vocab * d


def ours(decoder: Decoder, longest: int) -> Callable[[torch.Tensor], torch.Tensor]:
    cache = decoder.new_cache(longest)

    def prefill(ids: torch.Tensor) -> torch.Tensor:
        sequence = cache.new_sequence()
        logits = decoder.prefill(cache, [sequence], [ids]).logits
        cache.release(sequence)
        return logits

    return prefill


def transformers(model) -> Callable[[torch.Tensor], torch.Tensor]:
    @torch.inference_mode()
    def prefill(ids: torch.Tensor) -> torch.Tensor:
        return model(ids[None], use_cache=True, logits_to_keep=1).logits[:, -1]

    return prefill


def race(contestants: dict[Any, Callable[[], object]], timer: clock.Clock, calls: int) -> dict[Any, list[float]]:
    """Seconds of single calls in turns; nothing in a rehearsal."""
    samples: dict[Any, list[float]] = {key: [] for key in contestants}
    for call in contestants.values():
        call()
        call()
    order = list(contestants)
    for turn in range(0 if timer.device.type != "cuda" else calls):
        for key in order if turn % 4 in (0, 3) else order[::-1]:
            samples[key].append(timer.span(contestants[key]))
    return samples


def measure(dims: cases.Dims, lengths, timer: clock.Clock, result: dict[str, Any], budget: clock.Budget) -> None:
    device = timer.device
    decoders = {kind: models.random_decoder(dims, kind, device) for kind in KINDS}
    engines = {("codegen_fast", kind): ours(decoder, max(lengths)) for kind, decoder in decoders.items()}
    engines["torch, composed", "float16"] = models.Composed(decoders["float16"], dims).prefill
    try:
        engines["transformers eager", "float16"] = transformers(models.transformers_twin(decoders["float16"]))
    except Exception as failure:
        result["skipped"].append({"what": f"{dims.name} transformers", "why": f"{type(failure).__name__}: {failure}"})
    for tokens in lengths:
        if not budget.allows():
            result["skipped"].append({"what": f"{dims.name}, {tokens} tokens", "why": "the budget is spent"})
            continue
        ids = torch.randint(dims.vocab, (tokens,), device=device)
        wanted = engines["torch, composed", "float16"](ids).float()
        for (name, kind), prefill in engines.items():
            error = operands.error(prefill(ids), wanted)
            if error > LARGEST_ERROR[kind]:
                raise SystemExit(f"{dims.name} {kind}, {tokens} tokens: the logits of {name} differ by {error:.3f} "
                                 f"from torch's, at most {LARGEST_ERROR[kind]} passes: nothing is timed")  # fmt: skip
        calls = {key: partial(prefill, ids) for key, prefill in engines.items()}
        for (name, kind), samples in race(calls, timer, CALLS).items():
            row = {"model": dims.name, "engine": name, "kind": kind, "context": tokens, "batch": 1,
                   "operations": operations(dims, tokens), "ceiling": result["ceilings"][kind],
                   "samples": clock.rounded(samples)}  # fmt: skip
            result["rows"].append(row)
            print(line(row), flush=True)
        results.write("prefill", result)


def line(row: dict[str, Any]) -> str:
    text = f"{row['model']:>5} {row['kind']:<8} {row['context']:>5} tokens  {row['engine']:<22}"
    if not row["samples"]:
        return f"{text} ran, not timed"
    seconds = median(row["samples"])
    rate = row["operations"] / seconds
    return (f"{text} {seconds * 1e3:8.2f} ms {row['context'] / seconds:9.0f} tokens/s {rate / 1e12:6.0f} TFLOP/s "
            f"{rate / row['ceiling']:5.0%} of a large product")  # fmt: skip


def main() -> None:
    shapes = {dims.name: dims for dims in cases.MODELS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=shapes, default=["6B", "350M", "2B"])
    parser.add_argument("--budget", type=float, default=440, help="seconds in all")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    with on_the_emulator(args.rehearse):
        timer = clock.new_clock(machine.device(args.rehearse))
        budget = clock.Budget(args.budget)
        result = machine.begin(timer.device) | {"rows": [], "skipped": []}
        timer.warm_up()
        result["ceilings"] = ceilings.measure(timer)
        for dims in [TINY] if args.rehearse else [shapes[name] for name in args.model]:
            begin = time.perf_counter()
            measure(dims, (20, 5) if args.rehearse else LENGTHS, timer, result, budget)
            print(f"{dims.name} took {time.perf_counter() - begin:.0f} s")
            gc.collect()
            if timer.device.type == "cuda":
                torch.cuda.empty_cache()
    for left_out in result["skipped"]:
        print(f"left out: {left_out['what']}: {left_out['why'].splitlines()[0]}")
    print(results.write("prefill", result))


if __name__ == "__main__":
    main()
