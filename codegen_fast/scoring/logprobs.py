"""Log-probabilities of tokens and of the best alternatives, from logits (floor 7)."""
from __future__ import annotations

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, targets: Tensor, top_k: int,
                      rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits (M, V): (own (N,) float32, top_ids (M, top_k) long, top_logprobs (M, top_k) float32), where they are.

    own[i] is the log-softmax of row rows[i] (row i where rows is None) at targets[i]; targets and rows (N,) long.
    Alternatives are in falling order, of equal logits the lowest id first. A row's results do not depend on the others.
    Memory: one more (M, V) float32.
    """
    log_probs = torch.log_softmax(logits, -1, dtype=torch.float32)
    if rows is None:
        rows = torch.arange(len(targets), device=logits.device)
    own = log_probs[rows, targets]
    top_ids = _best(logits, top_k)
    return own, top_ids, log_probs.gather(1, top_ids)


def _best(logits: Tensor, k: int) -> Tensor:
    """Ids (M, k) of the k largest logits of each row, of equal ones the lowest ids, in falling order."""
    if k == 0:
        return torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
    values, ids = logits.topk(k)
    # topk keeps any of those equal to the last and orders equals as it likes.
    unsure = (logits >= values[:, -1:]).sum(1) > k
    ids = ids.sort(1).values
    ids = ids.gather(1, logits.gather(1, ids).sort(dim=1, descending=True, stable=True).indices)
    if unsure.any():
        ids[unsure] = logits[unsure].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return ids
