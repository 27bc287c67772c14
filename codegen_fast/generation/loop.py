"""The loop of generation: prefill each prompt once, fork it for its samples, step the rows that still run."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cache import PagedCache, Sequence
from ..decoder import Decoder
from ..sampling import Sampling
from ..stepping import SteppingBatch
from ..workplace import workplace
from .config import Settings


class TokenStream:
    """Hands tokens to a caller's streamer (anything with put and end), or to nobody.

    put gets what transformers gives: the prompts (rows, n), then the tokens (rows,) of each step, on the CPU, with
    finished rows padded. `fail` ends the stream after an error elsewhere, also when the call is refused before anything
    was put, so that a consumer in another thread does not wait for ever; a streamer that raised itself is left alone.
    """

    def __init__(self, streamer: Any):
        if streamer is not None and not (callable(getattr(streamer, "put", None))
                                         and callable(getattr(streamer, "end", None))):
            raise TypeError(f"streamer must have the methods put(tokens) and end(), got {type(streamer).__name__}")
        self._streamer = streamer
        self._running = streamer is not None

    def put(self, tokens: Tensor) -> None:
        if self._streamer is not None:
            self._running = False  # until it returns
            self._streamer.put(tokens)
            self._running = True

    def put_step(self, rows: list[int], tokens: list[int], num_rows: int, pad: int) -> None:
        """One step: tokens[i] belongs to row rows[i]; the other rows are padded."""
        if self._streamer is not None:
            step = torch.full((num_rows,), pad, dtype=torch.long, device="cpu")
            step[rows] = torch.tensor(tokens, dtype=torch.long, device="cpu")
            self.put(step)

    def end(self) -> None:
        if self._streamer is not None:
            self._running = False
            self._streamer.end()

    def fail(self) -> None:
        if self._running:
            self.end()


def run(decoder: Decoder, prompts: list[Tensor], steps: int, settings: Settings, seeds: list[int],
        sample_indices: list[int], stream: TokenStream) -> list[list[int]]:
    """The new tokens of every row, at most `steps` each, an eos token included.

    prompts: LongTensors (n_i,) on the CPU. Row r is sample sample_indices[r] of prompt r // num_return_sequences and
    draws with seeds[r]. A row that has given an eos token leaves the batch. However this ends, all pages are returned,
    and no step is under way; several threads may run on one decoder.
    """
    samples = settings.num_return_sequences
    num_rows = len(prompts) * samples
    pad = settings.pad_token_id if settings.pad_token_id is not None else 0  # None: no row ends before the others
    sampling = Sampling(settings.temperature, min(settings.top_k, decoder.config.vocab_size), settings.top_p,
                        settings.eos_token_ids)
    generated: list[list[int]] = [[] for _ in range(num_rows)]
    with workplace(decoder, [len(prompt) for prompt in prompts], samples, steps) as place:
        held: list[Sequence] = []  # ours to release
        batch = None
        try:
            held.extend(place.cache.new_sequence() for _ in prompts)
            logits = decoder.prefill(place.cache, held, prompts).logits
            held = _fork(place.cache, held, samples)
            batch = SteppingBatch(decoder, place, held, sampling, seeds, sample_indices, steps)
            held = []  # the batch's now
            for rows, tokens in batch.tokens(logits):
                for row, token in zip(rows, tokens):
                    generated[row].append(token)
                stream.put_step(rows, tokens, num_rows, pad)
        finally:
            if batch is not None:
                batch.close()
            for sequence in held:
                place.cache.release(sequence)
    return generated


def _fork(cache: PagedCache, sequences: list[Sequence], samples: int) -> list[Sequence]:
    """Each sequence, followed by samples - 1 forks of it."""
    return [row for sequence in sequences
            for row in (sequence, *(cache.fork(sequence) for _ in range(samples - 1)))]
