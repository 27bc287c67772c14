"""Where the time of one decode step goes: seconds of every kernel, as CUPTI sees them or with events between ops."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import torch

from bench.gpu.engines import UNTIMED, Ours
from codegen_fast import ops

OPS = ("embed", "input_product", "attention", "output_product", "lm_head", "sample", "advance")


def of_step(engine: Ours) -> dict[str, Any]:
    """{"by": "kernel" or "op", "steps": n, "seconds": {name: a step}, "launches": {name: a step}}.

    Kernels of a step overlap (each begins before the one before it has ended), so that by kernel the sum is more than
    a step takes; by op every op is waited for, so that it is much more.
    """
    return _by_kernel(engine) or _by_op(engine)


def _by_kernel(engine: Ours) -> dict[str, Any] | None:
    if engine.decoder.device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with engine.stream(UNTIMED + engine.steps) as tokens:
        for _ in range(UNTIMED):
            next(tokens)
        try:
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                for _ in range(engine.steps):
                    next(tokens)
                torch.cuda.synchronize()
            seconds, launches = Counter(), Counter()
            for event in profiler.events():
                if event.device_type == DeviceType.CUDA:
                    seconds[event.name] += event.device_time_total * 1e-6
                    launches[event.name] += 1
        except Exception as failure:  # CUPTI is not there, or another tool holds it: events will do
            print(f"no profile: {type(failure).__name__}: {failure}")
            return None
    if not seconds:
        return None
    return {"by": "kernel", "steps": engine.steps, "seconds": {k: s / engine.steps for k, s in seconds.most_common()},
            "launches": {k: n / engine.steps for k, n in launches.most_common()}}  # fmt: skip


def _by_op(engine: Ours) -> dict[str, Any]:
    """Eagerly, op by op; in a rehearsal the ops are counted and no time is taken."""
    timed = engine.decoder.device.type == "cuda"
    spans: dict[str, list] = defaultdict(list)
    before = {name: getattr(ops, name) for name in OPS}

    def wrapped(name: str):
        def call(*args):
            if not timed:
                spans[name].append(None)
                return before[name](*args)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = before[name](*args)
            end.record()
            spans[name].append((begin, end))
            return result

        return call

    decoder, steps = engine.decoder, 2
    cache = decoder.new_cache()
    sequence = cache.new_sequence()
    decoder.prefill(cache, [sequence], [engine.ids[0].cpu()], logits="none")
    running = decoder.start(cache, [sequence], steps)
    token = engine.ids[0, :1].to(decoder.device)
    running.step(token)
    try:
        for name in OPS:
            setattr(ops, name, wrapped(name))
        running.step(token)
    finally:
        for name, op in before.items():
            setattr(ops, name, op)
    running.close()
    if timed:
        torch.cuda.synchronize()
    seconds = {name: sum(a.elapsed_time(b) for a, b in pairs) * 1e-3 for name, pairs in spans.items()} if timed else {}
    return {"by": "op", "steps": 1, "seconds": seconds, "launches": {name: len(pairs) for name, pairs in spans.items()}}
