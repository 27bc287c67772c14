"""The filters of sample and filter_logits as tests give them to the op and to the reference."""

from __future__ import annotations

import math

import reference
import torch

FILTERS = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def rounded(value: float) -> float:
    """A parameter as the op sees it."""
    return float(torch.tensor(value, dtype=torch.float32))


def expected(row: torch.Tensor, temperature: float, knobs: dict, at_least: int = 1) -> torch.Tensor:
    values = {name: value if name == "top_k" else rounded(value) for name, value in (NEUTRAL | knobs).items()}
    return reference.filtered(row, rounded(temperature), min_tokens_to_keep=at_least, **values)


def arguments(temperatures: list[float], knobs: list[dict], at_least: int = 1):
    """(params, filters) of ``calls.sample``: rows that differ in temperature and knobs."""
    rows = [NEUTRAL | row for row in knobs]
    params = [(t, row["top_k"], row["top_p"], i, 0, i) for i, (t, row) in enumerate(zip(temperatures, rows))]
    filters = {name: [row[name] for row in rows] for name in FILTERS if any(name in row for row in knobs)}
    return params, filters | {"min_tokens_to_keep": at_least}


def check(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """The same tokens kept, with logits / temperature rounded once (a GPU may multiply by the reciprocal)."""
    kept, to_keep = got > -math.inf, wanted > -math.inf
    assert torch.equal(kept, to_keep), f"{int(kept.sum())} kept, not {int(to_keep.sum())}"
    assert torch.allclose(got.double(), wanted, rtol=2.0**-22, atol=0)
