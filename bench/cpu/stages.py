"""Where the time of a decode step goes: every op's share, and the rest, which is Python.

Every op's call is timed where it runs, behind the binding, also in a recorded step. LayerNorm and the quantisation of
activations happen inside the products and cannot be told from them; what they cost shows in the products' own share of the
limit.
"""

from __future__ import annotations

import random
import time
from typing import Any

STAGES = {
    "products": ("input_product", "output_product", "lm_head"),
    "attention": ("attention",),
    "embedding": ("embed",),
    "sampling": ("sample", "advance", "edit_logits", "filter_logits"),
}
_WARM_STEPS = 4  # that no clock sees


def measure(engine: Any, context: int, rows: int, steps: int, vocab: int) -> dict[str, Any]:
    """{steps: seconds of every step as it is, timed: of those whose ops are timed, ops: name -> seconds a step}."""
    from codegen_fast import ops

    plain = _steps(engine, context, rows, steps, vocab)
    before: dict[str, float] = {}
    with ops.timed() as seconds:
        slower = _steps(engine, context, rows, steps, vocab, lambda: before.update(seconds()))
        totals = {name: total - before[name] for name, total in seconds().items()}
    return {
        "steps": plain,
        "timed": slower,
        "ops": {name: total / len(slower) for name, total in totals.items() if total},
    }


def _steps(engine: Any, context: int, rows: int, steps: int, vocab: int, begin_counting=lambda: None) -> list[float]:
    """Seconds of steps behind a prompt. begin_counting is called before the first of them."""
    draw = random.Random(context)
    prompts = [[draw.randrange(vocab) for _ in range(context)] for _ in range(rows)]
    events = engine.events(prompts, 1 + _WARM_STEPS + steps)
    for _ in range(1 + _WARM_STEPS):
        next(events)
    begin_counting()
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        next(events)
        seconds.append(time.perf_counter() - begin)
    events.close()
    return seconds


def by_stage(ops: dict[str, float], step: float) -> dict[str, float]:
    """Seconds of each stage of a step, and of what no op took: "Python". Ops of no stage are "other ops"."""
    known = {op: stage for stage, names in STAGES.items() for op in names}
    stages = dict.fromkeys((*STAGES, "other ops"), 0.0)
    for op, seconds in ops.items():
        stages[known.get(op, "other ops")] += seconds
    return {**stages, "Python": max(0.0, step - sum(ops.values()))}
