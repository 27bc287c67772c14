"""The scores of the tokens that were chosen, read back from the scores of all."""
from __future__ import annotations

import torch
from torch import Tensor


def compute_transition_scores(sequences: Tensor, scores: tuple[Tensor, ...], beam_indices: Tensor | None = None,
                              normalize_logits: bool = False) -> Tensor:
    """(rows, new tokens) float32: the score of each chosen token; see CodeGenForCausalLM.compute_transition_scores."""
    if not scores:
        raise ValueError("compute_transition_scores needs the scores of a generation: output_scores=True and "
                         "return_dict_in_generate=True")
    by_step = torch.stack(list(scores))  # (steps, running rows, V)
    if normalize_logits:
        by_step = torch.log_softmax(by_step, -1)
    steps = len(scores)
    if beam_indices is None:
        rows = torch.arange(len(sequences), device=sequences.device)[:, None].expand(-1, steps)
    else:
        steps = int((beam_indices >= 0).sum(1).max())
        rows = beam_indices[:, :steps].to(sequences.device, torch.long)
    tokens = sequences[:, sequences.shape[1] - steps:]
    order = torch.arange(steps, device=sequences.device)
    chosen = by_step[order, rows.clamp(min=0), tokens]
    return chosen.masked_fill(rows < 0, 0.0)
