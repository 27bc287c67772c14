"""Random operands of the ops on a device, and what the ops compute written in torch: reference and peer in one."""

from __future__ import annotations

from collections.abc import Callable

import cases
import torch
import torch.nn.functional as F

from codegen_fast import ops

ROWS = 8192  # of a weight that are drawn at a time
EPS = 1e-5


def act_dtype(kind: str) -> torch.dtype:
    """The type of activations and cache beside weights of this kind."""
    return torch.bfloat16 if kind == "bfloat16" else torch.float16


def random_weight(
    kind: str, sections: tuple[int, ...], segments: tuple[int, ...], device: torch.device
) -> ops.PackedWeight:
    """A packed weight of normal values that keeps the size of what it multiplies."""
    weight = ops.new_packed_weight(kind, sections, segments, device)
    status = ops.new_pack_status(device)
    for section, count in enumerate(sections):
        for segment, columns in enumerate(segments):
            for row in range(0, count, ROWS):
                rows = torch.randn(min(ROWS, count - row), columns, device=device, dtype=act_dtype(kind))
                rows *= sum(segments) ** -0.5
                ops.pack(weight, rows, status, section=section, row=row, segment=segment)
    return weight


def copy_of(weight: ops.PackedWeight) -> ops.PackedWeight:
    """The same weight in other memory."""
    scales = None if weight.scales is None else weight.scales.clone()
    return ops.PackedWeight(weight.kind, weight.sections, weight.segments, weight.data.clone(), scales)


def plain(weight: ops.PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """(out_features, in_features), dequantised."""
    rows = [
        torch.cat([ops.unpack(weight, count, dtype, section=s, segment=i) for i in range(len(weight.segments))], 1)
        for s, count in enumerate(weight.sections)
    ]
    return torch.cat(rows)


def new_norm(width: int, device: torch.device) -> ops.Norm:
    return ops.Norm(1 + 0.1 * torch.randn(width, device=device), 0.1 * torch.randn(width, device=device), EPS)


def rotary_table(dims: cases.Dims, device: torch.device) -> torch.Tensor:
    """(P, R): cosines, then sines (csrc/ops.h)."""
    inverse = 10000 ** (-torch.arange(0, dims.rotary_dim, 2, device=device) / dims.rotary_dim)
    angles = torch.arange(dims.n_positions, device=device)[:, None] * inverse
    return torch.cat([angles.cos(), angles.sin()], 1).to(torch.float32)


def workspace(nbytes: int, device: torch.device) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


def batch_of(phase: str, tokens: int, length: int, device: torch.device) -> tuple[ops.Batch, int]:
    """Decode: ``tokens`` sequences of ``length``; prefill: one sequence of ``tokens``. And how many pages it takes.

    Sequence b holds pages b * n ... in order.
    """
    sequences, length = (tokens, length) if phase == "decode" else (1, tokens)
    pages = -(-length // ops.kv_page_size(device.type))
    start = torch.arange(sequences + 1, dtype=torch.int32, device=device) * (tokens // sequences)
    table = torch.arange(sequences * pages, dtype=torch.int32, device=device).reshape(sequences, pages)
    lengths = torch.full((sequences,), length, dtype=torch.int32, device=device)
    return ops.Batch(start, lengths, table, tokens, length), sequences * pages


def new_pages(count: int, d: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(count, ops.kv_page_size(device.type), 2 * d, device=device, dtype=dtype)


def keys_and_values(pages: torch.Tensor, dims: cases.Dims, sequences: int, length: int) -> torch.Tensor:
    """(2, sequences, heads, length, head_dim) of ``batch_of``'s pages, in the order of csrc/cuda/layout.h."""
    page_size = pages.shape[1]
    blocks = pages.view(sequences, -1, dims.n_head, 2, page_size, dims.head_dim)
    return blocks.permute(3, 0, 2, 1, 4, 5).reshape(2, sequences, dims.n_head, -1, dims.head_dim)[:, :, :, :length]


# ---- In torch ----------------------------------------------------------------------------------


def rotated(x: torch.Tensor, table: torch.Tensor, dims: cases.Dims) -> torch.Tensor:
    """x (T, d) with the rotary embedding of rows of ``table`` (T, R) on the first R dims of every head."""
    heads = x.view(-1, dims.n_head, dims.head_dim)
    cos, sin = table[:, None].to(x.dtype).chunk(2, -1)
    even, odd = heads[..., : dims.rotary_dim : 2], heads[..., 1 : dims.rotary_dim : 2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return torch.cat([turned, heads[..., dims.rotary_dim :]], -1).view_as(x)


def input_in_torch(x, norm, weight, bias, table, dims: cases.Dims) -> tuple[torch.Tensor, ...]:
    """q, k, v (T, d) and gelu_new(m) (T, F): LayerNorm, one product of all sections, rotary, gelu. As x's type."""
    h = F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), EPS)
    d = dims.n_embd
    q, k, v, m = F.linear(h, weight).split([d, d, d, dims.inner], -1)
    return (rotated(q, table, dims), rotated(k, table, dims), v, F.gelu(m + bias.to(x.dtype), approximate="tanh"))


def output_in_torch(x, act, weight, bias) -> torch.Tensor:
    return x + F.linear(act, weight, bias.to(x.dtype))


def lm_head_in_torch(x, norm, weight, bias) -> torch.Tensor:
    h = F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), EPS)
    return F.linear(h, weight, bias.to(x.dtype))


# ---- Errors ------------------------------------------------------------------------------------

# Norm of the error over norm of the reference. Sums are float32, so what is stored between the stages rounds: a few
# roundings of half a unit in the last place. Activations in int8 add amax / 127 / sqrt(12) a value, about 1% of normal
# ones. The op tests are the ones that look closely; this is to keep a wrong kernel from being timed.
_BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_INT8_ACTIVATIONS = 2.5e-2


def bound(kind: str, phase: str) -> float:
    return _BOUNDS[act_dtype(kind)] + (_INT8_ACTIVATIONS if kind == "int8" and phase == "prefill" else 0)


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """NaN anywhere gives infinity."""
    difference = float((out.float() - reference).norm() / reference.norm())
    return difference if difference == difference else float("inf")


def poisoned(call: Callable[[], object], *outputs: torch.Tensor) -> None:
    """Runs the call with outputs full of NaN before it, so that one that is not written shows."""
    for out in outputs:
        out.fill_(float("nan"))
    call()
