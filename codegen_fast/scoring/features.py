"""model.embed(...): one vector a text, from the model's hidden states (floor 7)."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..chunked import chunked
from ..decoder import Decoder
from ..generation.checks import as_int
from .rounds import BATCH_TOKENS
from .scores import check_batch_tokens, require_room
from .token_lists import TokenReader, is_single, long_tensor

POOLINGS = ("mean", "last")


def embed(decoder: Decoder, inputs: Any, *, find_tokenizer: Callable[[], Any] = lambda: None, pooling: str = "mean",
          layer: int = -1, normalize: bool = False, batch_tokens: int = BATCH_TOKENS) -> Tensor:
    """Features (B, d) float32 on the decoder's device; see CodeGenForCausalLM.embed."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} is not allowed: expected one of {', '.join(map(repr, POOLINGS))}")
    depth = decoder.config.n_layer + 1
    index = as_int(layer)
    if index is None or not -depth <= index < depth:
        raise ValueError(f"layer={layer!r} is not allowed: expected an index of the {depth} hidden states, {-depth} to "
                         f"{depth - 1}")
    check_batch_tokens(batch_tokens)
    rows = _read(inputs, TokenReader(find_tokenizer, decoder.config.vocab_size), decoder.config.n_positions)

    features = torch.empty(len(rows), decoder.config.n_embd, dtype=torch.float32, device=decoder.device)
    cache = decoder.new_cache()
    for first, stop in _batches([len(ids) for ids in rows], batch_tokens):
        sequences = [cache.new_sequence() for _ in rows[first:stop]]
        # A text's own states together, so that the order of its sum does not depend on the others.
        states = [torch.empty(len(ids), decoder.config.n_embd, dtype=decoder.act_dtype, device=decoder.device)
                  for ids in rows[first:stop]]
        for pieces, x, _ in chunked(decoder, cache, sequences, rows[first:stop], layer=index % depth):
            at = 0
            for i, begin, end in pieces:
                states[i][begin:end] = x[at:at + end - begin]
                at += end - begin
        for i, own in enumerate(states):
            features[first + i] = own[-1] if pooling == "last" else own.mean(0, dtype=torch.float64)
            cache.release(sequences[i])
    return torch.nn.functional.normalize(features, dim=1) if normalize else features


def _read(inputs: Any, reader: TokenReader, n_positions: int) -> list[Tensor]:
    single = is_single(inputs)
    rows = []
    for i, value in enumerate([inputs] if single else inputs):
        name = "inputs" if single else f"inputs[{i}]"
        ids = reader.read(value, name)
        if not ids:
            raise ValueError(f"{name} is empty: features need at least one token")
        require_room(name, len(ids), n_positions)
        rows.append(long_tensor(ids))
    if not rows:
        raise ValueError("inputs is empty: expected at least one text or list of token ids")
    return rows


def _batches(lengths: list[int], batch_tokens: int) -> list[tuple[int, int]]:
    """[first, stop) of texts whose tokens go together, one text at least."""
    batches: list[tuple[int, int]] = []
    first = tokens = 0
    for i, n in enumerate(lengths):
        if i > first and tokens + n > batch_tokens:
            batches.append((first, i))
            first, tokens = i, 0
        tokens += n
    return [*batches, (first, len(lengths))]
