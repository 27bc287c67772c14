"""The products of the four models, every weight type, for few rows (GB/s) and many (GFLOP/s)."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from bench.cpu.ceiling import beside

TOKENS = (1, 2, 4, 8, 16, 64, 256, 512)
DECODE_TOKENS = 16  # up to so many rows are measured with the decode phase's arithmetic
MODELS = ("350M", "2B", "6B", "16B")
HEAD_KINDS = {"int4": "int8"}  # what lm_head is stored in where the layers are


class Kernels:
    """Answers a worker's requests."""

    def __init__(self, threads: str) -> None:
        import torch

        from codegen_fast import ops

        torch.set_num_threads(int(threads))
        ops.set_num_threads(int(threads))

    def measure(self, model: str, kind: str, tokens: list[int], seconds: float) -> dict[str, Any]:
        """rows of {op, model, kind, phase, tokens, out, in, nbytes, flops, seconds: median, p10, p90, samples,
        ceiling, steady}."""
        return {"rows": list(_rows(model, kind, tokens, seconds))}


def phases_of(tokens: int) -> tuple[str, ...]:
    """What runs so many rows: steps of a batch, a prompt, or both."""
    return ("decode",) * (tokens <= DECODE_TOKENS) + ("prefill",) * (tokens >= DECODE_TOKENS)


def _rows(model: str, kind: str, token_counts: list[int], seconds: float) -> Iterator[dict[str, Any]]:
    import torch

    from bench import ops as jobs
    from bench.clock import measure
    from codegen_fast import ops
    from codegen_fast.quantization import QUANTIZATIONS, packed_kinds

    def moment() -> float:
        return median(ops.read_bandwidth(128 << 20, 0.0) for _ in range(3))

    packed = packed_kinds(torch.float32, kind)["w_in"] if kind in QUANTIZATIONS else kind
    dims = next(dims for dims in jobs.cases.MODELS if dims.name == model)
    d, inner = dims.n_embd, dims.inner
    shapes = {
        "input_product": (jobs.input_products, 3 * d + inner, d),
        "output_product": (jobs.output_products, d, d + inner),
        "lm_head": (jobs.lm_heads, dims.vocab, d),
    }
    for op, (make, rows, columns) in shapes.items():
        if op == "lm_head" and kind in HEAD_KINDS:
            continue  # it is the other kind's
        for phase in ("decode", "prefill"):
            tokens = [n for n in token_counts if phase in phases_of(n)]
            for job in make(dims, [packed], [phase], tokens):
                timing, ceiling, steady = beside(lambda job=job: measure(job.calls, seconds=seconds, min_samples=3), moment)
                yield {
                    "op": op,
                    "model": model,
                    "kind": kind,
                    "phase": phase,
                    "tokens": job.tokens,
                    "out": rows,
                    "in": columns,
                    "nbytes": job.nbytes,
                    "flops": 2 * job.tokens * rows * columns,
                    "seconds": vars(timing),
                    "ceiling": ceiling,
                    "steady": steady,
                }
