"""How far a kernel may be from the float64 reference: derived, not tuned.

U = 2^-24 is the relative error of one float32 rounding. A kernel may add in any order, so a sum of K terms takes at
most K roundings, each at most U times a partial sum. Test data are random with mean zero (every product has a random
weight as a factor), so

  - a partial sum stays within 4 sqrt(sum of squares of the terms), four standard deviations;
  - K roundings of independent sign add up to at most 4 sqrt(K) times the largest.

A sum of products therefore errs by at most SUM sqrt(K) U N, N = sqrt(sum a^2 b^2), with SUM = 16. It is a few percent
of what rounding one operand to bfloat16 costs, and a fraction of what float16 costs. Weights are
rounded to their type in the reference, so their type adds nothing. Float64 errs 2^-29 times as much: nothing.

Where activations are narrow (``Arithmetic.act``) three things are added:

  - Tensor cores multiply exactly and add steps of 8 columns or more, but cut off what a float32 has no room for instead
    of rounding it: each step errs by up to 2 U times the partial sum, always towards zero. Partial sums walk at random
    from 0 to at most 4 N and are 2 N on the way, so K / 8 steps err by at most K U N / 2.
  - What an op stores is rounded once: by u times the value, u = 2^-11 in float16 and 2^-8 in bfloat16, and by 2^-25
    where float16 is subnormal.
  - The reference rounds the normalised row as the kernel does. Both round to the same value, except where the exact
    one lies within the kernel's float32 error of a boundary: there they are one step of the type apart. Through
    random weights such steps add up to at most four standard deviations.
"""

from __future__ import annotations

import math

import quantised
import reference
import torch
from reference import Arithmetic
from torch import Tensor

U = 2.0**-24
SUM = 16.0
ROUNDING = {torch.float32: U, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SUBNORMAL = {torch.float32: 0.0, torch.float16: 2.0**-25, torch.bfloat16: 0.0}


def norm_of_products(x: Tensor, w: Tensor) -> Tensor:
    """N (n, rows) = sqrt(sum over columns of x^2 w^2) for x (n, cols) and w (rows, cols)."""
    return torch.sqrt(x.double().square() @ w.double().square().T)


def summing(segments: tuple[int, ...], how: Arithmetic, more: int = 0) -> float:
    """Error of a product's sum over the columns of ``segments`` and ``more`` terms, in units of N: a float addition a
    column, or one a group where groups are integer sums."""
    if how.mode in ("w8a8", "w4a8", "grouped"):
        group = min(how.group or math.inf, how.weight_group if how.mode == "w4a8" else math.inf)
        terms = sum(math.ceil(columns / group) + 4 if group < math.inf else 5 for columns in segments)
        return SUM * math.sqrt(terms + more) * U
    return SUM * math.sqrt(sum(segments) + more) * U + cut_off(sum(segments), how.act)


def cut_off(columns: int, act: torch.dtype | None) -> float:
    """What tensor cores lose on the way, in units of N."""
    return 0.0 if act in (None, torch.float32) else columns * U / 2


def stored(bound: Tensor, y: Tensor, act: torch.dtype | None) -> Tensor:
    """Bound on what an op returns, for a bound on the float32 value that is rounded to ``act``."""
    if act in (None, torch.float32):
        return bound
    return bound + ROUNDING[act] * (y.double().abs() + bound) + SUBNORMAL[act]


def rounding_error(value: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """How far dtype(value +- error) can be from dtype(value): rounding is monotone."""
    middle = value.to(dtype).double()
    return torch.maximum((value + error).to(dtype).double() - middle, middle - (value - error).to(dtype).double())


def through_random(steps: Tensor, w: Tensor) -> Tensor:
    """What errors of up to ``steps`` (n, cols) in a row make of W's rows: at most their sum, and four deviations."""
    w = w.double().abs()
    return torch.minimum(steps @ w.T, 4 * torch.sqrt(steps.square() @ w.square().T))


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


def normed_product(x: Tensor, norm: tuple[Tensor, Tensor, float], w: Tensor, how: Arithmetic) -> Tensor:
    """Bound (n, rows) of W layer_norm(x), W (rows, d) as the kernel holds it.

    The error of 1/std scales the whole row and that of the mean shifts it along the norm's weight: through random W
    each reaches the result as 4 N. Where the row is rounded, all that is left of both are steps of its type. In int8
    an activation whose code lies within the error of h of a boundary may take either code, and moves the result by
    one step times the weight; and the group's scale errs as its largest activation does.
    """
    h, h_error = reference.layer_norm(x, *norm), layer_norm(x, *norm)
    w = w.double()
    if how.act is None:
        n = torch.sqrt((h.square() + norm[0].double().square()) @ w.square().T)
        scale_error, mean_error = layer_norm_errors(x, norm[2])
        bound = (summing((x.shape[1],), how) + 4 * (scale_error + mean_error + 4 * U)) * n
    else:
        h, h_error = h.to(how.act).double(), rounding_error(h, h_error, how.act)
        n = norm_of_products(h, w)
        bound = summing((x.shape[1],), how) * n
    if how.mode in ("w8a8", "w4a8", "grouped"):
        offset_error = torch.zeros(len(h), 1, dtype=torch.float64)
        if how.mode == "grouped":
            # The offset errs as the largest of the row does, and through it every difference from it.
            offset_error = h_error.amax(1, keepdim=True) + U * h.abs().amax(1, keepdim=True)
            h = h - quantised.quantize_with_offsets(h, (h.shape[1],))[2].double()
            h_error = h_error + offset_error
            bound = bound + through_random(offset_error.expand_as(h), w)
        uncertain, scale_error = uncertain_codes(h, h_error, how.group, in_five_bits=how.mode == "grouped")
        bound = bound + through_random(uncertain, w) + 4 * scale_error * n
    elif how.act is not None:
        bound = bound + through_random(h_error, w)
    return bound


def uncertain_codes(h: Tensor, h_error: Tensor, group: int | None, in_five_bits: bool = False) -> tuple[Tensor, Tensor]:
    """Of h known up to h_error: (n, d) the step of the activation's scale where h's code is uncertain, else 0; and
    (n, 1) the largest relative error of a scale. A scale in five bits is certain or, near a boundary, one of two, and
    then all codes of its group are uncertain."""
    steps, scale_error = torch.zeros_like(h), torch.zeros(len(h), 1, dtype=torch.float64)
    group = group or h.shape[1]
    for first in range(0, h.shape[1], group):
        columns = slice(first, first + group)
        part, error = h[:, columns].abs(), h_error[:, columns]
        amax = part.amax(1, keepdim=True)
        amax_error = torch.maximum(
            (part + error).amax(1, keepdim=True) - amax, amax - (part - error).amax(1, keepdim=True)
        )
        step, either = amax / 127, torch.zeros_like(amax, dtype=torch.bool)
        if in_five_bits:
            off = amax_error + 2 * U * amax  # the division rounds too
            least, step = (quantised.in_five_bits((of / 127).float()).double() for of in (amax - off, amax + off))
            either, amax_error = step != least, torch.zeros_like(amax)
        code = part / step
        # The code is two float32 products away from h and amax.
        code_error = error / step + code * (amax_error / amax) + 127 * 2 * U
        near = ((code - code.floor()) - 0.5).abs() < code_error
        steps[:, columns] = torch.where(near | either, step, 0.0)
        scale_error = torch.maximum(scale_error, amax_error / amax)
    return steps, scale_error


def rotated(bound: Tensor, y: Tensor) -> Tensor:
    """Bound after rotary, for a bound (n, H, D) before it on y: both members of a pair, and three roundings."""
    pair = bound.reshape(*bound.shape[:-1], -1, 2).sum(-1, keepdim=True).expand(*bound.shape[:-1], -1, 2)
    size = y.double().abs().reshape(*bound.shape[:-1], -1, 2).sum(-1, keepdim=True).expand(*bound.shape[:-1], -1, 2)
    return (pair + 3 * U * size).reshape(bound.shape)


def gelu(bound: Tensor, m_size: Tensor) -> Tensor:
    """Bound after bias and gelu, for a bound on m and |m|'s size: |gelu'| < 1.13; 1 + tanh cancels where m < 0, so
    the function's own error is 8 U |m|, and adding the bias rounds once."""
    return 1.13 * (bound + U * m_size) + 8 * U * m_size


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_error: Tensor | None = None,
    v_error: Tensor | None = None,
    act: torch.dtype | None = None,
) -> Tensor:
    """Bound (n, H, D) for one sequence: q (n, H, D) against k, v (length, H, D), known up to k_error, v_error.

    A score errs by its sum (SUM sqrt(D) U N / sqrt(D)), by two roundings, and by k's error. The softmax's argument
    is a difference of two scores and rounds three times; exp, the rescaling between splits and the quotient add
    16 U. A relative error e of every weight moves the result by at most 2 e sum p |v|.

    Where activations are narrow a weight is rounded to their type before it is multiplied, relative to the largest
    weight of its split or of those before, which is at least the row's own share: independent errors, through random
    v. What is subnormal in float16 is 2^-25 of a weight of 1 off.
    """
    q, k, v = q.double(), k.double(), v.double()
    new, heads, width = q.shape
    length = k.shape[0]
    bound, out = torch.empty_like(q), torch.empty_like(q)
    visible = torch.arange(length)[None, :] <= torch.arange(length - new, length)[:, None]
    for head in range(heads):
        scores = q[:, head] @ k[:, head].T / math.sqrt(width)
        error = SUM * U + cut_off(width, act) / math.sqrt(width)
        error = error * norm_of_products(q[:, head], k[:, head]) + 5 * U * scores.abs()
        if k_error is not None:
            error = error + q[:, head].abs() @ k_error[:, head].T / math.sqrt(width)
        weight_error = 2 * torch.where(visible, error, 0.0).amax(1, keepdim=True) + 16 * U + 4 * math.sqrt(length) * U
        p = torch.softmax(scores.masked_fill(~visible, -math.inf), dim=1)
        out[:, head] = p @ v[:, head]
        bound[:, head] = 2 * weight_error * (p @ v[:, head].abs())
        bound[:, head] += (SUM * math.sqrt(length) * U + cut_off(length, act)) * norm_of_products(p, v[:, head].T)
        if v_error is not None:
            bound[:, head] += p @ v_error[:, head]
        if act in (torch.float16, torch.bfloat16):
            bound[:, head] += through_random(ROUNDING[act] * p + SUBNORMAL[act] * visible, v[:, head].T)
    return stored(bound, out, act)


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
