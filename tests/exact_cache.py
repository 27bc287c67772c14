"""A cache whose keys and values are known exactly, whatever its type and whoever filled it: for tests of attention."""

from __future__ import annotations

from collections.abc import Sequence as List

import calls
import torch
from devices import Device, label
from torch import Tensor


def values(n_head: int, head_dim: int, lengths: List[int]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """(x, w, k, v): k and v (length, H, D) of every sequence hold in every type exactly. n_head * head_dim is even.

    Rows of +-1 with as many of either sign are their own LayerNorm; a row of the weights adds up to three of them with
    weights 1, 1/2 and 1/4 and a power of two for scale, so that every value has 4 significant bits.
    """
    width = n_head * head_dim
    torch.manual_seed(width)
    half = torch.cat([torch.ones(width // 2), -torch.ones(width // 2)])
    x = torch.stack([half[torch.randperm(width)] for _ in range(sum(lengths))])
    w = torch.zeros(3, width, width)
    for section in w:
        for row in section:
            columns = torch.randperm(width)[:3]
            row[columns] = torch.tensor([1.0, 0.5, 0.25])[: len(columns)] * 2.0 ** torch.randint(-2, 2, ())
    k, v = (list((x @ part.T).reshape(-1, n_head, head_dim).split(list(lengths))) for part in w[1:])
    return x, w, k, v


def filled(store: Device, n_head: int, exact, lengths: List[int], dtypes: tuple[torch.dtype, torch.dtype], *, seed: int):
    """(pool, sequences) that hold the keys and values of ``exact``, which values() gave; dtypes: of activations, of the
    cache."""
    act, cache = dtypes
    x, w, _, _ = exact
    width = x.shape[1]
    packed = calls.pack(store, [[section] for section in (*w, torch.ones(1, width))], label(act))
    still = torch.cat([torch.ones(max(lengths), 1), torch.zeros(max(lengths), 1)], dim=1)  # angle 0 everywhere
    pool = calls.Pool(cache, width, seed=seed, tokens=lengths, device=store)
    sequences = pool.sequences([(0, length) for length in lengths])
    norm = (torch.ones(width), torch.zeros(width), 1e-12)
    calls.input_product(store, x.to(act), norm, packed, torch.zeros(1), still, n_head, pool, sequences, "prefill")
    return pool, sequences
