"""model(...): a forward pass over a padded batch, through the ragged decoder, packed again as transformers gives it."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder
from .generation.inputs import as_ids, as_mask, require_default_positions, require_vocabulary, token_spans
from .generation.knobs import as_int, nearest
from .outputs import CausalLMOutput
from .past import PastKeyValues, require_past

_ARGUMENTS = ("input_ids", "attention_mask", "past_key_values", "use_cache", "labels", "output_hidden_states",
              "return_dict", "logits_to_keep", "position_ids")
# Of transformers' forward, and not offered: what to do instead.
_REFUSED = {
    "output_attentions": "the fused kernels never hold attention maps; use transformers for them",
    "inputs_embeds": "pass input_ids",
    "token_type_ids": "CodeGen would add the embeddings of those ids; leave it out",
    "num_items_in_batch": "multiply .loss by the number of labels that count, and divide as you like",
    "shift_labels": "pass labels, which are shifted inside",
    "cache_position": "leave it out: a sequence continues where past_key_values ends",
}


def forward(decoder: Decoder, input_ids: Any, attention_mask: Any = None, past_key_values: PastKeyValues | None = None,
            use_cache: bool | None = None, labels: Any = None, output_hidden_states: bool | None = None,
            logits_to_keep: int | Tensor = 0, others: dict[str, Any] | None = None) -> CausalLMOutput:
    """One pass over input_ids (B, n); see CodeGenForCausalLM.forward for arguments, results and errors."""
    others = others or {}
    _require_known(others)
    ids = as_ids(input_ids)
    past = require_past(past_key_values, decoder, ids.shape[0])
    past_columns = past.get_seq_length() if past is not None else 0
    past_tokens = [sequence.length for sequence in past.sequences] if past is not None else [0] * len(ids)

    whole = _whole_mask(attention_mask, ids, past)
    token_spans(whole, right_padding=True)
    mask = whole[:, past_columns:]
    if not mask.any():
        raise ValueError("attention_mask masks every token of input_ids: there is nothing to compute")
    require_vocabulary(ids, mask, decoder.config.vocab_size)
    require_default_positions(others.get("position_ids"), mask, past_tokens, past_columns)
    _require_room(mask, past_tokens, decoder.config.n_positions)
    if labels is not None:
        labels = _labels(labels, ids, decoder.config.vocab_size, logits_to_keep)
    kept = _columns_to_keep(logits_to_keep, ids.shape[1])

    if past is None:
        cache = decoder.new_cache()
        past = PastKeyValues(decoder, cache, [cache.new_sequence() for _ in ids], whole[:, :0])
        keep_cache = decoder.config.use_cache if use_cache is None else bool(use_cache)
    else:
        keep_cache = True  # the caller's cache grows in any case, as in transformers
    # Often (every step, and scoring's prompt) only the last column is asked for: then the rest is not computed.
    last_only = kept == [ids.shape[1] - 1] and bool(mask[:, -1].all())
    rows = [row for row, tokens in enumerate(mask.any(1).tolist()) if tokens]
    with past.cache.lock:
        try:
            output = decoder.prefill(past.cache, [past.sequences[row] for row in rows],
                                     [ids[row, mask[row]] for row in rows],
                                     logits="last" if last_only else "all", hidden_states=bool(output_hidden_states))
        except BaseException:
            for sequence, tokens in zip(past.sequences, past_tokens):
                past.cache.crop(sequence, tokens)  # Ctrl-C leaves the caller's cache as it was
            raise
    past.mask = whole

    if last_only:
        logits = output.logits[:, None]
    else:
        logits = pad_columns(output.logits, mask)
        if kept is not None:
            logits = logits[:, kept]
    hidden_states = None
    if output_hidden_states:
        hidden_states = tuple(pad_columns(states, mask).to(decoder.dtype) for states in output.hidden_states)
    return CausalLMOutput(
        loss=None if labels is None else _loss(logits, labels, mask),
        logits=logits, past_key_values=past if keep_cache else None, hidden_states=hidden_states)


def _require_known(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if name in _REFUSED:
            if value is not None and value is not False:
                raise NotImplementedError(f"{name} is not supported in codegen_fast: {_REFUSED[name]}")
        elif name not in _ARGUMENTS:
            raise TypeError(f"model() got an unknown argument {name!r}{nearest(name, [*_ARGUMENTS, *_REFUSED])}")


def _whole_mask(attention_mask: Any, ids: Tensor, past: PastKeyValues | None) -> Tensor:
    """(B, past columns + n) bool."""
    old = past.mask if past is not None else torch.ones(len(ids), 0, dtype=torch.bool, device="cpu")
    if attention_mask is None:
        return torch.cat([old, torch.ones_like(ids, dtype=torch.bool)], 1)
    whole = as_mask(attention_mask, (len(ids), old.shape[1] + ids.shape[1]))
    if not torch.equal(whole[:, :old.shape[1]], old):
        raise ValueError(f"attention_mask differs in its first {old.shape[1]} columns from the mask with which "
                         "past_key_values was made")
    return whole


def _require_room(mask: Tensor, past_tokens: list[int], n_positions: int) -> None:
    longest = max(past + new for past, new in zip(past_tokens, mask.sum(1).tolist()))
    if longest > n_positions:
        raise ValueError(f"a sequence of {longest} tokens does not fit the model's context of {n_positions} tokens")


def _labels(labels: Any, ids: Tensor, vocab_size: int, logits_to_keep: Any) -> Tensor:
    labels = as_ids(labels, "labels")
    if labels.shape != ids.shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {tuple(ids.shape)}, that of input_ids")
    if isinstance(logits_to_keep, Tensor) or logits_to_keep != 0:
        raise ValueError("labels need the logits of every column: leave logits_to_keep out")
    require_vocabulary(labels, labels != -100, vocab_size, "labels")
    return labels


def _columns_to_keep(logits_to_keep: Any, columns: int) -> list[int] | None:
    """Columns of the logits that are asked for; None for all."""
    if isinstance(logits_to_keep, Tensor) and logits_to_keep.dim() == 1 and not logits_to_keep.is_floating_point():
        return torch.arange(columns, device="cpu")[logits_to_keep.cpu()].tolist()
    count = as_int(logits_to_keep)
    if count is None or count < 0:
        raise ValueError(f"logits_to_keep={logits_to_keep!r} is not allowed: expected 0 for all columns, the number of "
                         "last columns to keep, or a tensor of column indices")
    return None if count == 0 else list(range(max(0, columns - count), columns))


def pad_columns(ragged: Tensor, mask: Tensor) -> Tensor:
    """(tokens, width) -> (B, n, width), zeros at padding. mask (B, n), on the CPU."""
    batch, columns = mask.shape
    if mask.all():
        return ragged.view(batch, columns, -1)
    padded = ragged.new_zeros(batch, columns, ragged.shape[-1])
    padded[mask.to(ragged.device)] = ragged
    return padded


def _loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it, in float32.

    Labels of -100 don't count, nor does a label after padding: nothing has predicted it.
    """
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:].masked_fill(~mask, -100)
    return F.cross_entropy(logits.flatten(0, 1), shifted.flatten().to(logits.device), ignore_index=-100)
