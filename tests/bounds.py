"""How far a float32 kernel may be from the float64 reference: derived, not tuned.

U = 2^-24 is the relative error of one float32 rounding. A kernel may add in any order, so a sum of K terms takes at
most K roundings, each at most U times a partial sum. Test data are random with mean zero (every product has a random
weight as a factor), so

  - a partial sum stays within 4 sqrt(sum of squares of the terms), four standard deviations;
  - K roundings of independent sign add up to at most 4 sqrt(K) times the largest.

A sum of products therefore errs by at most SUM sqrt(K) U N, N = sqrt(sum a^2 b^2), with SUM = 16. It is a few percent
of what rounding one operand to bfloat16 costs, and a fraction of what float16 costs. Weights are
rounded to their type in the reference, so their type adds nothing. Float64 errs 2^-29 times as much: nothing.
"""

from __future__ import annotations

import math

import reference
import torch
from torch import Tensor

U = 2.0**-24
SUM = 16.0


def norm_of_products(x: Tensor, w: Tensor) -> Tensor:
    """N (n, rows) = sqrt(sum over columns of x^2 w^2) for x (n, cols) and w (rows, cols)."""
    return torch.sqrt(x.double().square() @ w.double().square().T)


def terms(columns: int, kind: str) -> int:
    """Float additions of a product over ``columns``: one a column, or one a group where groups are integer sums."""
    return -(-columns // reference.GROUP) + 4 if kind == "int8" else columns


def layer_norm_errors(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Relative error of 1/std and error of the mean in units of std = sqrt(var + eps), both (n, 1), of x (n, d).

    The sum of d values has partial sums up to d |mean| + 4 sqrt(d) std, so the mean errs by
    4 U (sqrt(d) |mean| + 4 std) and one rounding; the sum of squared differences has positive terms, so it errs
    by 4 sqrt(d) U relative, and the root halves that. (A variance taken as E[x^2] - mean^2 does not pass.)
    """
    x = x.double()
    d = x.shape[1]
    mean = x.mean(1, keepdim=True)
    std = torch.sqrt((x - mean).square().mean(1, keepdim=True) + eps)
    mean = mean.abs()
    scale_error = torch.full_like(std, 2 * math.sqrt(d) * U + 4 * U)
    return scale_error, 4 * U * (math.sqrt(d) * mean / std + 4) + U * mean / std


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Bound (n, d): the errors of mean and scale, and four roundings of the result's parts."""
    scale_error, mean_error = layer_norm_errors(x, eps)
    scaled = reference.layer_norm(x, weight, torch.zeros_like(bias), eps).abs()
    return scaled * (scale_error + 4 * U) + weight.double().abs() * mean_error + 4 * U * bias.double().abs()


def normed_product(
    x: Tensor, norm: tuple[Tensor, Tensor, float], w: Tensor, kind: str, h_scale: float = 1.0
) -> Tensor:
    """Bound (n, rows) of W layer_norm(x), W (rows, d) as the kernel holds it.

    The error of 1/std scales the whole row and that of the mean shifts it along the norm's weight: through random W
    each reaches the result as 4 N. In int8 an activation whose code lies within the error of h of a boundary may
    take either code, and moves the result by one step times the weight.
    """
    h = reference.layer_norm(x, *norm)
    n = torch.sqrt((h.square() + norm[0].double().square()) @ w.double().square().T)
    scale_error, mean_error = layer_norm_errors(x, norm[2])
    bound = (SUM * math.sqrt(terms(x.shape[1], kind)) * U + 4 * (scale_error + mean_error + 4 * U)) * n
    if kind == "int8":
        bound = bound + uncertain_codes(h, layer_norm(x, *norm)) @ w.double().abs().T
    return bound


def uncertain_codes(h: Tensor, h_error: Tensor) -> Tensor:
    """(n, d): the step of the activation's scale where h's code is uncertain by h_error, else 0."""
    steps = torch.zeros_like(h)
    for first in range(0, h.shape[1], reference.GROUP):
        columns = slice(first, first + reference.GROUP)
        group = h[:, columns]
        step = group.abs().amax(1, keepdim=True) / 127
        code = group / step
        # amax errs as h does, and the code is two float32 products away from h.
        code_error = 2 * (h_error[:, columns].amax(1, keepdim=True) / step) + 127 * 2 * U
        near = ((code - code.floor()) - 0.5).abs() < code_error
        steps[:, columns] = torch.where(near, step, 0.0)
    return steps


def rotated(bound: Tensor, y: Tensor) -> Tensor:
    """Bound after rotary, for a bound (n, H, D) before it on y: both members of a pair, and three roundings."""
    pair = bound.reshape(*bound.shape[:-1], -1, 2).sum(-1, keepdim=True).expand(*bound.shape[:-1], -1, 2)
    size = y.double().abs().reshape(*bound.shape[:-1], -1, 2).sum(-1, keepdim=True).expand(*bound.shape[:-1], -1, 2)
    return (pair + 3 * U * size).reshape(bound.shape)


def gelu(bound: Tensor, m_size: Tensor) -> Tensor:
    """Bound after bias and gelu, for a bound on m and |m|'s size: |gelu'| < 1.13; 1 + tanh cancels where m < 0, so
    the function's own error is 8 U |m|, and adding the bias rounds once."""
    return 1.13 * (bound + U * m_size) + 8 * U * m_size


def attention(q: Tensor, k: Tensor, v: Tensor, k_error: Tensor | None = None, v_error: Tensor | None = None) -> Tensor:
    """Bound (n, H, D) for one sequence: q (n, H, D) against k, v (length, H, D), known up to k_error, v_error.

    A score errs by its sum (SUM sqrt(D) U N / sqrt(D)), by two roundings, and by k's error. The softmax's argument
    is a difference of two scores and rounds three times; exp, the rescaling between splits and the quotient add
    16 U. A relative error e of every weight moves the result by at most 2 e sum p |v|.
    """
    q, k, v = q.double(), k.double(), v.double()
    new, heads, width = q.shape
    length = k.shape[0]
    bound = torch.empty_like(q)
    visible = torch.arange(length)[None, :] <= torch.arange(length - new, length)[:, None]
    for head in range(heads):
        scores = q[:, head] @ k[:, head].T / math.sqrt(width)
        error = SUM * U * norm_of_products(q[:, head], k[:, head]) + 5 * U * scores.abs()
        if k_error is not None:
            error = error + q[:, head].abs() @ k_error[:, head].T / math.sqrt(width)
        weight_error = 2 * torch.where(visible, error, 0.0).amax(1, keepdim=True) + 16 * U + 4 * math.sqrt(length) * U
        p = torch.softmax(scores.masked_fill(~visible, -math.inf), dim=1)
        bound[:, head] = 2 * weight_error * (p @ v[:, head].abs())
        bound[:, head] += SUM * math.sqrt(length) * U * norm_of_products(p, v[:, head].T)
        if v_error is not None:
            bound[:, head] += p @ v_error[:, head]
    return bound


def assert_within(got: Tensor, expected: Tensor, bound: Tensor, what: str) -> None:
    """Every element of got is finite and within bound of expected; the message names the worst."""
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if got.numel() == 0:
        return
    excess = (got.double() - expected).abs() / bound.clamp_min(1e-300)
    excess = torch.where(torch.isnan(excess), math.inf, excess)
    worst = int(excess.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape))
    assert excess.flatten()[worst] <= 1, (
        f"{what}{list(index)} is {got[index].item()!r}, expected {expected[index].item()!r} within "
        f"{bound[index].item():.3g}; {int((excess > 1).sum())} of {got.numel()} elements are outside"
    )
