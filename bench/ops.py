"""Microbenchmarks of the ops, over the dimensions of tests/cases.py:

    python -m bench.ops --model 350M 2B --kind float32 int8 --tokens 1 8 80 --save NAME

Each line: median time with 10th and 90th percentile, the bytes that the op must read, GB/s, and the share of the
read bandwidth that was measured in the same run. Weights are rotated so that they come from memory, as in a model;
on a busy machine, or one whose caches hold 256 MB, shares above 100% are possible.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cases
import torch

from bench.clock import Timing, measure
from codegen_fast import ops

CPU = torch.device("cpu")
COLD_BYTES = 256 << 20  # more than a last-level cache holds


@dataclass
class Job:
    """One line of the table: calls that do the same with different memory, and the bytes each must read."""

    op: str
    kind: str
    phase: str
    tokens: int
    detail: str
    nbytes: int
    calls: list[Callable[[], object]]


def random_weight(kind: str, sections: tuple[int, ...], segments: tuple[int, ...]) -> ops.PackedWeight:
    """A weight of random values; 64 rows are drawn and repeated, the kernels cannot know."""
    weight = ops.new_packed_weight(kind, sections, segments, CPU)
    status = ops.new_pack_status(CPU)
    for segment, cols in enumerate(segments):
        rows = torch.randn(64, cols) * cols**-0.5
        for section, count in enumerate(sections):
            for row in range(0, count, 64):
                ops.pack(weight, rows[: count - row], status, section=section, row=row, segment=segment)
    return weight


def cold_weights(kind: str, sections: tuple[int, ...], segments: tuple[int, ...]) -> list[ops.PackedWeight]:
    nbytes = ops.packed_weight_nbytes(kind, sections, segments)
    return [random_weight(kind, sections, segments) for _ in range(1 + COLD_BYTES // nbytes)]


def new_norm(width: int) -> ops.Norm:
    return ops.Norm(torch.ones(width), torch.zeros(width), 1e-5)


def new_scratch(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


def batch_of(tokens: int, length: int, phase: str) -> tuple[ops.Batch, int]:
    """Decode: ``tokens`` sequences of ``length``; prefill: one sequence of ``tokens``. And the pages it takes."""
    sequences, length = (tokens, length) if phase == "decode" else (1, tokens)
    per_sequence = -(-length // ops.kv_page_size())
    start = torch.arange(sequences + 1) * (tokens // sequences)
    table = torch.randperm(sequences * per_sequence).reshape(sequences, per_sequence)
    lengths = torch.full((sequences,), length)
    batch = ops.Batch(*(t.to(torch.int32) for t in (start, lengths, table)), tokens, length)
    return batch, sequences * per_sequence


def new_pages(count: int, d: int) -> torch.Tensor:
    return torch.randn(count, ops.kv_page_size(), 2 * d)


def input_products(dims: cases.Dims, kinds, phases, token_counts) -> Iterator[Job]:
    d, inner = dims.n_embd, dims.inner
    norm, bias = new_norm(d), torch.zeros(inner)
    table = torch.rand(dims.n_positions, dims.rotary_dim)
    for kind in kinds:
        weights = cold_weights(kind, (d, d, d, inner), (d,))
        for phase in phases:
            for tokens in token_counts:
                batch, num_pages = batch_of(tokens, 1, phase)
                pages, x = new_pages(num_pages, d), torch.randn(tokens, d)
                q, act = torch.empty(tokens, d), torch.empty(tokens, d + inner)
                scratch = new_scratch(ops.input_product_workspace(tokens, weights[0]))
                calls = [
                    partial(ops.input_product, q, act, pages, x, norm, w, bias, table, dims.n_head, batch,
                            phase == "decode", scratch)
                    for w in weights
                ]  # fmt: skip
                yield Job("input_product", kind, phase, tokens, "", weights[0].nbytes, calls)


def output_products(dims: cases.Dims, kinds, phases, token_counts) -> Iterator[Job]:
    d, inner = dims.n_embd, dims.inner
    bias = torch.zeros(d)
    for kind in kinds:
        weights = cold_weights(kind, (d,), (d, inner))
        for phase in phases:
            for tokens in token_counts:
                x, act = torch.zeros(tokens, d), torch.randn(tokens, d + inner)
                scratch = new_scratch(ops.output_product_workspace(tokens, weights[0]))
                calls = [partial(ops.output_product, x, act, w, bias, phase == "decode", scratch) for w in weights]
                yield Job("output_product", kind, phase, tokens, "", weights[0].nbytes, calls)


def lm_heads(dims: cases.Dims, kinds, phases, token_counts) -> Iterator[Job]:
    norm, bias = new_norm(dims.n_embd), torch.zeros(dims.vocab)
    for kind in kinds:
        weights = cold_weights(kind, (dims.vocab,), (dims.n_embd,))
        for phase in phases:
            for tokens in token_counts:
                x, rows = torch.randn(tokens, dims.n_embd), torch.arange(tokens, dtype=torch.int32)
                logits = torch.empty(tokens, dims.vocab)
                scratch = new_scratch(ops.lm_head_workspace(tokens, weights[0]))
                calls = [
                    partial(ops.lm_head, logits, x, rows, norm, w, bias, phase == "decode", scratch) for w in weights
                ]
                yield Job("lm_head", kind, phase, tokens, "", weights[0].nbytes, calls)


def lm_head_calls(kind: str, columns: int, rows: int, *, at_least: int) -> tuple[list[Callable[[], object]], int]:
    """Products of one row that read a weight each, ``at_least`` so many bytes together; and the bytes of one."""
    nbytes = ops.packed_weight_nbytes(kind, (rows,), (columns,))
    weights = [random_weight(kind, (rows,), (columns,)) for _ in range(-(-at_least // nbytes))]
    x, row, logits = torch.randn(1, columns), torch.zeros(1, dtype=torch.int32), torch.empty(1, rows)
    norm, bias, scratch = new_norm(columns), torch.zeros(rows), new_scratch(ops.lm_head_workspace(1, weights[0]))
    return [partial(ops.lm_head, logits, x, row, norm, w, bias, True, scratch) for w in weights], nbytes


def attentions(dims: cases.Dims, kinds, phases, token_counts) -> Iterator[Job]:
    """The cache in the types of ``kinds`` that a cache can have."""
    d = dims.n_embd
    for kind in (kind for kind in kinds if kind in cases.FLOAT_KINDS):
        for phase in phases:
            for tokens in token_counts:
                for length in (128, dims.n_positions) if phase == "decode" else (tokens,):
                    batch, num_pages = batch_of(tokens, length, phase)
                    pages = new_pages(num_pages, d).to(getattr(torch, kind))
                    caches = [pages.clone() for _ in range(1 + COLD_BYTES // pages.nbytes)]
                    act, q = torch.empty(tokens, d + dims.inner), torch.randn(tokens, d)
                    scratch = new_scratch(ops.attention_workspace(tokens, dims.n_head, dims.head_dim, length))
                    calls = [
                        partial(ops.attention, act, q, pages, dims.n_head, batch, phase == "decode", scratch)
                        for pages in caches
                    ]
                    sequences = tokens if phase == "decode" else 1
                    nbytes = sequences * length * 2 * d * caches[0].element_size()
                    yield Job("attention", kind, phase, tokens, f"{length} keys", nbytes, calls)


def small_ops(dims: cases.Dims, kinds, phases, token_counts) -> Iterator[Job]:
    """embed, layer_norm and sample: no weights to speak of, so microseconds are what counts."""
    d, vocab = dims.n_embd, dims.vocab
    for tokens in token_counts:
        x = torch.randn(tokens, d)
        for kind in (kind for kind in kinds if kind in cases.FLOAT_KINDS):
            wte = torch.randn(vocab, d).to(getattr(torch, kind))
            ids = torch.randint(0, vocab, (tokens,))
            yield Job("embed", kind, "", tokens, "", tokens * d * wte.element_size(), [partial(ops.embed, x, ids, wte)])
        call = partial(ops.layer_norm, x, x, new_norm(d))
        yield Job("layer_norm", "float32", "", tokens, "", tokens * d * 4, [call])
        logits = 3 * torch.randn(tokens, vocab)
        integers = torch.arange(tokens, dtype=torch.int32)
        out, scratch = torch.empty(tokens, dtype=torch.int64), new_scratch(ops.sample_workspace(tokens, vocab))
        knobs = (("greedy", 0.0, 0, 1.0), ("t 0.2, p 0.95", 0.2, 0, 0.95), ("k 50", 1.0, 50, 1.0))
        for detail, temperature, top_k, top_p in knobs:
            params = ops.SamplingParams(
                torch.full((tokens,), temperature), torch.full((tokens,), top_k, dtype=torch.int32),
                torch.full((tokens,), top_p), torch.zeros(tokens, dtype=torch.int64), integers, integers,
            )  # fmt: skip
            call = partial(ops.sample, out, logits, params, scratch)
            yield Job("sample", "float32", "", tokens, detail, logits.nbytes, [call])


OPS = {
    "input_product": input_products,
    "attention": attentions,
    "output_product": output_products,
    "lm_head": lm_heads,
    "small": small_ops,
}


def line(dims: cases.Dims, job: Job, timing: Timing, bandwidth: float) -> str:
    rate = job.nbytes / timing.median
    return (
        f"{dims.name:>5} {job.op:<15} {job.kind:<9} {job.phase:<8} {job.tokens:>4} {job.detail:<14}"
        f"{timing.median * 1e6:>10.1f} {timing.p10 * 1e6:>10.1f} {timing.p90 * 1e6:>10.1f}"
        f"{rate / 1e9:>8.2f} GB/s {rate / bandwidth:>6.0%}"
    )


def main() -> None:
    models = {dims.name: dims for dims in cases.MODELS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=models, default=["350M"])
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--kind", nargs="+", choices=ops.WEIGHT_KINDS, default=list(cases.WEIGHT_KINDS))
    parser.add_argument("--phase", nargs="+", choices=cases.PHASES, default=list(cases.PHASES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[t for t in cases.TOKENS if t])
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--seconds", type=float, default=0.3, help="time of one line")
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    ops.set_num_threads(torch.get_num_threads())

    bandwidth = ops.read_bandwidth()
    print(f"{ops.cpu_isa()}, {torch.get_num_threads()} threads, reads {bandwidth / 1e9:.1f} GB/s")
    print("model op              type      phase    rows                  median us        p10        p90")
    rows = []
    for name in args.model:
        for op in args.op:
            for job in OPS[op](models[name], args.kind, args.phase, args.tokens):
                timing = measure(job.calls, seconds=args.seconds)
                print(line(models[name], job, timing, bandwidth), flush=True)
                row = {"model": name, **{key: value for key, value in vars(job).items() if key != "calls"}}
                rows.append({**row, **asdict(timing), "bandwidth_share": job.nbytes / timing.median / bandwidth})
    if args.save:
        path = Path(__file__).parent / "results" / f"{args.save}.json"
        path.parent.mkdir(exist_ok=True)
        machine = {"isa": ops.cpu_isa(), "threads": torch.get_num_threads(), "read_bandwidth": bandwidth}
        path.write_text(json.dumps({**machine, "build": ops.build_info(), "rows": rows}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
