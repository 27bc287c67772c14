"""Activations beyond float16's 65504: what a float16 model gives here, and what transformers gives in float16.

Random models, float16 weights scaled so that one part of the network passes 65504. The truth is transformers in float32
with the same float16 weights.
"""

from __future__ import annotations

import copy
from typing import Any

import bench  # noqa: F401 (tests/ is on the path now)
import checkpoints
import torch
from torch import Tensor

import codegen_fast

LIMIT = 65504.0
# DESIGN's bound for float16: no worse than 1.25 times what transformers errs by in that type.
NO_WORSE = 1.25
# Where transformers has no number to compare with: a model whose cache alone is float16 errs by its rounding, 2^-11.
_CACHE_ROUNDING = 2.0**-11

# part -> the weights that are scaled, and by how much; None: none.
CASES = {
    "nothing": (None, 1.0),
    "the mlp's inner activations": ("mlp.fc_in.weight", 30000.0),
    "the residual stream": ("mlp.fc_out.weight", 30000.0),
    "values": ("v", 30000.0),
    "keys": ("k", 30000.0),
}
_SHAPE = dict(n_embd=128, n_head=8, rotary_dim=16, n_layer=3, vocab_size=199)


def scaled_model(part: str | None, by: float) -> torch.nn.Module:
    """A float16 model; part: an end of the names of parameters, or "k" or "v" for these rows of qkv_proj."""
    model = checkpoints.make_model(**_SHAPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in ("k", "v") and "qkv_proj" in name:
                blocks = parameter.view(4, 3, -1, parameter.shape[1])  # block, (q, v, k), row, column
                blocks[:, {"v": 1, "k": 2}[part]] *= by
            elif part and name.endswith(part):
                parameter *= by
    assert all(float(p.detach().abs().max()) < LIMIT for p in model.parameters()), "weights shall fit float16"
    return model.half()


def error(logits: Tensor, truth: Tensor) -> float | None:
    """Relative to the truth's length; None where it is not a number."""
    if not logits.isfinite().all():
        return None
    return float((logits.double() - truth).norm() / truth.norm())


def measure(tokens: int = 48) -> dict[str, Any]:
    """AssertionError where transformers' float16 gives numbers and we don't, or better ones."""
    ids = torch.randint(3, _SHAPE["vocab_size"], (1, tokens), generator=torch.Generator().manual_seed(0))
    rows = []
    for name, (part, by) in CASES.items():
        half = scaled_model(part, by)
        wide = copy.deepcopy(half).float()
        with torch.no_grad():
            truth = wide(ids).logits[0].double()
            theirs = error(half(ids).logits[0].float(), truth)
        errors = {"transformers float16": theirs}
        for label, quantization in (("float16", None), ("int8", "int8"), ("int4", "int4")):
            fast = codegen_fast.accelerate(copy.deepcopy(half), quantization=quantization)
            errors[label] = error(fast(ids).logits[0], truth)
        fast = codegen_fast.accelerate(copy.deepcopy(half).to(torch.bfloat16))
        errors["bfloat16"] = error(fast(ids).logits[0], truth)
        ours = errors["float16"]
        if theirs is not None:
            what = f"{name}: float16 errs by {ours}, transformers by {theirs}"
            assert ours is not None and ours <= NO_WORSE * theirs, what
        elif part in ("k", "v"):
            refused(half, ids)
        else:  # nothing of ours is float16 there but the cache
            assert ours is not None and ours <= _CACHE_ROUNDING, f"{name}: float16 errs by {ours}"
        assert errors["bfloat16"] is not None, f"{name}: bfloat16 gives no numbers"
        rows.append({"case": name, **errors})
    return {"limit": LIMIT, "cases": rows}


def refused(half: torch.nn.Module, ids: Tensor) -> None:
    """Keys or values that a float16 cache cannot hold become NaN, and a generation says so."""
    fast = codegen_fast.accelerate(copy.deepcopy(half))
    try:
        fast.generate(ids, max_new_tokens=2, pad_token_id=0)
    except (ValueError, RuntimeError, ArithmeticError) as raised:
        assert "NaN" in str(raised) or "infinite" in str(raised), f"an unclear error: {raised}"
    else:
        raise AssertionError("tokens were generated from logits that are no numbers")


def lines(found: dict[str, Any]) -> str:
    columns = [key for key in found["cases"][0] if key != "case"]
    rows = [f"| beyond {found['limit']:.0f} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for case in found["cases"]:
        cells = ("NaN" if case[key] is None else f"{case[key]:.1e}" for key in columns)
        rows.append(f"| {case['case']} | {' | '.join(cells)} |")
    return f"""\
**Very large activations** (`overflow.py`): float16 weights scaled so that one part of the network passes {found['limit']:.0f}; errors
of the logits against transformers in float32 with the same weights:

{chr(10).join(rows)}

Between ops activations are float32, so only what the cache keeps in float16 can overflow. There transformers gives NaN
too, and a generation here ends with an error that says so; `dtype="bfloat16"` holds such a model. int8 and int4 keep the
checkpoint's type for the cache.
"""
