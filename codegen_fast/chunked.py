"""Tokens through the layers chunk by chunk, for callers that read hidden states and choose the logits (floor 6)."""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import ops
from .cache import PagedCache, Sequence
from .decoder import CUDA_PREFILL_CHUNK, PREFILL_CHUNK, Decoder, Scratch, chunks, prefill_batch
from .transfer import to_device

# Rows of logits that exist at once: 50 MB for CodeGen's vocabulary.
LOGITS_ROWS = 256

Piece = tuple[int, int, int]  # (sequence, begin, end) of its new tokens


def chunked(decoder: Decoder, cache: PagedCache, sequences: list[Sequence], token_ids: list[Tensor], *,
            layer: int | None = None) -> Iterator[tuple[list[Piece], Tensor, Tensor]]:
    """Appends new tokens to sequences in the prefill phase, with the bits of `Decoder.prefill`.

    Gives for each chunk (pieces, x, workspace): x (T, d) in the type of activations is the last layer's output, ready
    for `Decoder.run_lm_head` of up to LOGITS_ROWS rows with that workspace; or with layer the hidden states of that
    index, 0 to n_layer. The next chunk overwrites both.
    token_ids: one (n_i,) int64 CPU tensor a sequence, n_i >= 1, checked by the caller.
    """
    lengths = [len(ids) for ids in token_ids]
    total, depth = sum(lengths), decoder.config.n_layer + 1
    cache.reserve(sequences, lengths)
    max_seq_len = max(s.length + n for s, n in zip(sequences, lengths))
    chunk = min(total, CUDA_PREFILL_CHUNK if decoder.backend == "cuda" else PREFILL_CHUNK)
    scratch = Scratch(decoder, chunk, min(chunk, LOGITS_ROWS), max_seq_len)
    wanted, others = (torch.empty_like(scratch.x), torch.empty_like(scratch.x)) if layer is not None else (None, None)
    for pieces in chunks(lengths, chunk):
        ops.set_num_threads(torch.get_num_threads())
        members = [sequences[i] for i, _, _ in pieces]
        ids = to_device(torch.cat([token_ids[i][begin:end] for i, begin, end in pieces]), decoder.device)
        n = len(ids)
        batch = prefill_batch(members, [end - begin for _, begin, end in pieces], max_seq_len, decoder.device)
        states = None
        if layer is not None:
            states = [others[:n]] * depth
            states[layer] = wanted[:n]
        x = scratch.x[:n]
        ops.embed(x, ids, decoder.weights.embedding)
        decoder.run_layers(x, scratch.q[:n], scratch.act[:n], cache, batch, False, scratch.workspace, states)
        for sequence, (_, begin, end) in zip(members, pieces):
            sequence.length += end - begin
        yield pieces, x if layer is None else wanted[:n], scratch.workspace
    decoder.prefilled_tokens += total
