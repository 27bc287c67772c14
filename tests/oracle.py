"""What the products must give and how far a kernel may be from it: (expected, bound), both float64, from the reference
and the derived bounds."""

from __future__ import annotations

import bounds
import quantised
import reference
import torch
from reference import Arithmetic, Projected
from torch import Tensor


def as_given(sections, kind: str, how: Arithmetic):
    """Weights for the reference: rounded to their type here, or quantised by the reference itself."""
    return sections if how.mode != "exact" else tuple(reference.rounded(w, kind) for w in sections)


def layer_norm(x: Tensor, norm) -> tuple[Tensor, Tensor]:
    expected = reference.layer_norm(x, *norm)
    return expected, bounds.stored(bounds.layer_norm(x, *norm), expected, x.dtype)


def output_product(x, act, segments, bias, kind: str, how: Arithmetic) -> tuple[Tensor, Tensor]:
    expected = reference.output_product(x, act, as_given(segments, kind, how), bias, how)
    whole = torch.cat([reference.rounded(w, kind) for w in segments], dim=1)
    n = torch.sqrt(bounds.norm_of_products(act, whole) ** 2 + x.double() ** 2 + bias.double() ** 2)
    # Each segment's sums round apart; x and the bias are two terms more.
    bound = bounds.summing(tuple(w.shape[1] for w in segments), how, more=2) * n
    return expected, bounds.stored(bound, expected, how.act)


def lm_head(x, norm, w, bias, kind: str, how: Arithmetic) -> tuple[Tensor, Tensor]:
    """Of every row of x."""
    expected = reference.lm_head(x, torch.arange(len(x)), norm, as_given((w,), kind, how)[0], bias, how)
    rounded = reference.rounded(w, kind)
    if how.mode == "grouped":
        # In two parts: what a code of the first leaves is in the second, where a step is 1/254 of it at most.
        h = reference.layer_norm(x, *norm)
        steps = quantised.quantize_with_offsets(h, (h.shape[1],))[1].double().amax(1, keepdim=True) / 254
        bound = bounds.normed_product(x, norm, rounded, Arithmetic(act=how.act))
        bound = bound + bounds.through_random(steps.expand_as(h), rounded)
    else:
        bound = bounds.normed_product(x, norm, rounded, how)
    return expected, bound + bounds.U * (expected.abs() + bias.abs())


def input_product(
    x, norm, sections, bias, table, n_head: int, positions, kind: str, how: Arithmetic
) -> tuple[Projected, Projected]:
    """Of k and v as they are before they are rounded to the cache's type."""
    made = reference.input_product(x, norm, as_given(sections, kind, how), bias, table, n_head, positions, how)
    q, k, v = (
        bounds.normed_product(x, norm, reference.rounded(w, kind), how).reshape(y.shape)
        for w, y in zip(sections, (made.q, made.k, made.v))
    )
    w = reference.rounded(sections[3], kind)
    size = bias.double().abs() + 4 * bounds.norm_of_products(reference.layer_norm(x, *norm), w)
    act = bounds.gelu(bounds.normed_product(x, norm, w, how), size)
    return made, Projected(
        bounds.stored(bounds.rotated(q, made.q), made.q, how.act), bounds.rotated(k, made.k), v,
        bounds.stored(act, made.act, how.act),
    )  # fmt: skip
