"""Tokens a second of a whole model, with transformers (eager, and compiled with a static cache) in the same run:

    python -m bench.gpu.decode --model 6B --budget 440

Weights are random, in true shapes, made on the GPU; both sides have the same. A sample is the mean of a burst of steps,
engines take turns A B B A. Bytes are counted (every packed weight once, the cache once) and set against the read
bandwidth of this run. Before the clock starts the logits that follow a prompt are compared. ``--rehearse`` runs a tiny
model on the emulator and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import cases
import torch

from bench.gpu import ceilings, clock, engines, machine, models, operands, results, steps
from bench.gpu.rehearsal import TINY, on_the_emulator
from codegen_fast.memory import gigabytes

KINDS = ("float16", "int8")
# (batch, context), the ones that gates look at first
POINTS = ((1, 512), (1, 32), (1, 2000), (8, 512), (64, 512), (64, 32), (16, 512), (4, 512), (2, 512), (32, 512),
          (8, 2000), (64, 2000))  # fmt: skip
COMPILED_POINTS = ((1, 32), (1, 2000), (8, 512), (64, 512))
# Both sides round to float16 between their stages, in other places; int8 prompts are quantised on top of that. This
# keeps a wrong build from being timed; tests/ look closely.
LARGEST_ERROR = {"float16": 0.02, "int8": 0.2}


class Stage:
    """What the points of one model share."""

    def __init__(self, dims: cases.Dims, args: argparse.Namespace) -> None:
        self.dims, self.args = dims, args
        self.device = machine.device(args.rehearse)
        self.timer = clock.new_clock(self.device)
        self.budget = clock.Budget(args.budget)
        self.result = machine.begin(self.device) | {"rows": [], "skipped": [], "steps": []}
        self.timer.warm_up()
        self.result["ceilings"] = self.ceilings = ceilings.measure(self.timer, gemms=False)
        begin = time.perf_counter()
        self.decoders = {kind: models.random_decoder(dims, kind, self.device) for kind in args.kind}
        print(f"{dims.name}: weights made in {time.perf_counter() - begin:.1f} s")
        if not args.rehearse:
            print(f"reads {self.ceilings['read'] / 1e9:.0f} GB/s")
        self.twin = None
        if not args.no_peers:
            try:
                self.twin = models.transformers_twin(self.decoders[args.kind[0]])
            except Exception as failure:
                self.skip("transformers", failure)

    def skip(self, what: str, why: object) -> None:
        why = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
        print(f"{what}: left out: {why.splitlines()[0] if why else why}")
        self.result["skipped"].append({"what": what, "why": why})

    def save(self) -> None:
        self.path = results.write(f"decode-{self.dims.name}", self.result)

    # ---- Points --------------------------------------------------------------------------------

    def fits(self, batch: int, context: int, engines: float) -> bool:
        """Whether this many engines' caches find room."""
        if self.device.type != "cuda":
            return True
        config = self.decoders[self.args.kind[0]].config
        cache = batch * (context + 128) * 4 * config.n_layer * config.n_embd
        free = torch.cuda.mem_get_info(self.device)[0]
        if engines * cache <= free:
            return True
        print(f"batch {batch}, context {context}: caches of {gigabytes(cache)} for {engines:.1f} engines, "
              f"{gigabytes(free)} are free")  # fmt: skip
        return False

    @contextmanager
    def engines(self, batch: int, context: int, kinds: Sequence[str], *, peer: bool = True) -> Iterator[list]:
        """Ours in these kinds, then transformers eager, checked."""
        count = 2 if self.args.rehearse else engines.STEPS
        ids = torch.randint(self.dims.vocab, (batch, context), generator=torch.Generator().manual_seed(1))
        ids[:] = ids[:1]  # transformers' side goes through one prompt and repeats it
        opened: list = []
        try:
            for kind in kinds:
                opened.append(engines.Ours(self.decoders[kind], ids, count))
            if self.twin is not None and peer:
                opened.append(engines.Eager(self.twin, ids, count))
                self.check(opened)
            yield opened
        finally:
            for engine in opened:
                engine.close()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def check(self, opened: list) -> None:
        """The logits after the prompt, and how many of the first greedy tokens are the same."""
        theirs = opened[-1]
        wanted = theirs.first_tokens(8)
        for ours in opened[:-1]:
            kind = self.kind_of(ours)
            error = operands.error(ours.logits[:1], theirs.logits.float())
            equal = sum(a == b for a, b in zip(ours.first_tokens(8), wanted))
            print(f"  {kind}: logits differ by {error:.1e} from transformers'; {equal} of 8 greedy tokens equal")
            if error > LARGEST_ERROR[kind]:
                raise SystemExit(f"{self.dims.name} {kind}: logits differ from transformers' by {error:.3f}, "
                                 f"at most {LARGEST_ERROR[kind]} passes: nothing is timed")  # fmt: skip

    def record(self, batch: int, context: int, opened: list, samples: list[list[float]]) -> None:
        for engine, seconds in zip(opened, samples):
            row: dict[str, Any] = {"model": self.dims.name, "engine": engine.name, "batch": batch, "context": context,
                                   "steps_a_sample": engine.steps, "read_bandwidth": self.ceilings["read"]}  # fmt: skip
            if isinstance(engine, engines.Ours):
                kind = self.kind_of(engine)
                length = context + engines.UNTIMED + engine.steps / 2
                row["nbytes"] = models.step_bytes(engine.decoder, batch, length)
                row["prefill_seconds"] = engine.prefill_seconds
            else:
                kind = self.args.kind[0]
                row["compile_seconds"] = getattr(engine, "compile_seconds", None)
            row |= {"kind": kind, "samples": [] if self.args.rehearse else clock.rounded(seconds)}
            self.result["rows"].append(row)
            print(line(row), flush=True)
        self.save()

    def kind_of(self, engine: engines.Ours) -> str:
        return next(kind for kind, decoder in self.decoders.items() if decoder is engine.decoder)

    # ---- In order of importance ----------------------------------------------------------------

    def run(self, points: Sequence[tuple[int, int]]) -> None:
        first, *others = points
        with self.engines(*first, self.args.kind) as opened:
            self.record(*first, opened, engines.race(opened, self.args.bursts))
            for engine in ours_of(opened):
                self.result["steps"].append({"kind": self.kind_of(engine), **steps.of_step(engine)})
            self.compiled(first, opened, "reduce-overhead")
            self.save()
        self.generate()
        for point in others:
            if self.budget.allows():
                self.point(point)
            else:
                self.skip(f"batch {point[0]}, context {point[1]}", "the budget is spent")
        # Compiling takes a minute or more a point, so it comes last; and the mode that tries many kernels last of all.
        for point, mode in [(p, "reduce-overhead") for p in COMPILED_POINTS if p in points] + [(first, "max-autotune")]:
            if self.may_compile(point, mode) and self.fits(*point, len(self.args.kind) + 2.5):
                with self.engines(*point, self.args.kind) as opened:
                    self.compiled(point, opened, mode)

    def point(self, point: tuple[int, int]) -> None:
        """All engines at once; where their caches find no room together, ours one by one."""
        everyone = self.fits(*point, len(self.args.kind) + 1.5)
        for kinds in [self.args.kind] if everyone else [[kind] for kind in self.args.kind]:
            if not everyone and not self.fits(*point, 1.1):
                self.skip(f"batch {point[0]}, context {point[1]}, {kinds[0]}", "no room for its cache")
                continue
            try:
                with self.engines(*point, kinds, peer=everyone) as opened:
                    self.record(*point, opened, engines.race(opened, self.args.bursts))
            except (torch.OutOfMemoryError, OSError) as failure:  # transformers' memory, or ours
                self.skip(f"batch {point[0]}, context {point[1]}", failure)

    last_compile = 60.0  # seconds that compiling took; a guess until it has

    def may_compile(self, point: tuple[int, int], mode: str) -> bool:
        what = f"transformers compiled, {mode}, batch {point[0]}, context {point[1]}"
        expected = self.last_compile * (3 if mode == "max-autotune" else 1)
        if self.twin is None or self.args.no_compile:
            self.skip(what, "not asked for" if self.args.no_compile else "no transformers")
        elif self.device.type != "cuda":
            self.skip(what, "a rehearsal compiles nothing")
        elif not self.budget.allows(expected):
            self.skip(what, f"would take about {expected:.0f} s, {self.budget.left():.0f} are left")
        else:
            return True
        return False

    def compiled(self, point: tuple[int, int], opened: list, mode: str) -> None:
        """transformers compiled, raced with ours again."""
        if not self.may_compile(point, mode):
            return
        try:
            peer = engines.Compiled(opened[-1], mode)
        except Exception as failure:  # a peer that does not compile must not take our figures with it
            self.skip(f"transformers compiled, {mode}, batch {point[0]}, context {point[1]}", failure)
            return
        self.last_compile = peer.compile_seconds
        contestants = [*ours_of(opened), peer]
        self.record(*point, contestants, engines.race(contestants, self.args.bursts))
        peer.close()

    def generate(self) -> None:
        """The public generate(), prompt and all: its tokens a second beside the steps' own."""
        from codegen_fast.generation import GenerationConfig
        from codegen_fast.model import CodeGenForCausalLM

        new = 4 if self.args.rehearse else 128
        ids = torch.randint(self.dims.vocab, (1, 32 if new > 4 else 5), device=self.device)
        for kind, decoder in self.decoders.items():
            model = CodeGenForCausalLM(decoder.config, decoder, GenerationConfig(max_new_tokens=new))
            samples = []
            for _ in range(1 if self.args.rehearse else 6):
                begin = time.perf_counter()
                out = model.generate(ids, max_new_tokens=new)
                samples.append((time.perf_counter() - begin) / new)
            assert out.shape == (1, ids.shape[1] + new), out.shape
            row = {"model": self.dims.name, "engine": "codegen_fast.generate", "kind": kind, "batch": 1, "context": 32,
                   "steps_a_sample": new, "read_bandwidth": self.ceilings["read"],
                   "samples": [] if self.args.rehearse else clock.rounded(samples[1:])}  # fmt: skip
            self.result["rows"].append(row)
            print(line(row), flush=True)
        self.save()


def ours_of(opened: list) -> list[engines.Ours]:
    return [engine for engine in opened if isinstance(engine, engines.Ours)]


def line(row: dict[str, Any]) -> str:
    text = f"{row['model']:>5} {row['kind']:<8} batch {row['batch']:>2}, context {row['context']:>4}  "
    text += f"{row['engine']:<40}"
    if not row["samples"]:
        return f"{text} ran, not timed"
    seconds = median(row["samples"])
    text += f" {seconds * 1e3:8.3f} ms a step {row['batch'] / seconds:9.1f} tokens/s"
    return text + (f" {row['nbytes'] / seconds / row['read_bandwidth']:5.0%} of reading" if "nbytes" in row else "")


def main() -> None:
    shapes = {dims.name: dims for dims in cases.MODELS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=shapes, default="350M")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--budget", type=float, default=440, help="seconds in all; what matters least is left out")
    parser.add_argument("--bursts", type=int, default=8, help="samples of an engine at a point")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    with on_the_emulator(args.rehearse):
        if args.rehearse:
            args.bursts = 1
            stage = Stage(TINY, args)
            stage.run([(1, 9), (2, 5)])
        else:
            stage = Stage(shapes[args.model], args)
            stage.run(POINTS)
    print(f"{stage.path}: {len(stage.result['rows'])} rows, {len(stage.result['skipped'])} left out")


if __name__ == "__main__":
    main()
