"""The loop of generation: prefill each prompt once, fork it for its samples, step the rows that still run."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache import PagedCache, Sequence
from ..decoder import Decoder
from ..sampling import Sampler
from .config import Settings


# New tokens a row that the cache has room for from the start; it grows by copying when a batch runs longer.
_FIRST_TOKENS = 64


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

    prompts: LongTensors (n_i,). Row r is sample sample_indices[r] of prompt r // num_return_sequences and draws with
    seeds[r]. A row that has given an eos token leaves the batch. However this ends, all pages are returned; nothing
    outlives the call, so that several threads may run on one decoder.
    """
    samples = settings.num_return_sequences
    num_rows = len(prompts) * samples
    eos = frozenset(settings.eos_token_ids)
    pad = settings.pad_token_id if settings.pad_token_id is not None else 0  # None: no row ends before the others
    generated: list[list[int]] = [[] for _ in range(num_rows)]

    # Room for the prompts and the first pages of every row; most completions are shorter than what is asked for.
    cache = decoder.new_cache()
    first_pages = cache.pages_for(min(steps, _FIRST_TOKENS)) + 1  # and the page that a sample shares with its prompt
    cache.grow_to(sum(cache.pages_for(len(prompt)) for prompt in prompts) + num_rows * first_pages)
    held: list[Sequence] = []  # ours to release
    batch = None
    try:
        held.extend(cache.new_sequence() for _ in prompts)
        logits = decoder.prefill(cache, held, [prompt.to(decoder.device) for prompt in prompts]).logits
        if samples > 1:
            logits = _repeat(logits, samples)
        sampler = Sampler(settings.temperature, min(settings.top_k, decoder.config.vocab_size), settings.top_p, seeds,
                          sample_indices, decoder.device)
        positions = torch.tensor([len(prompt) for prompt in prompts for _ in range(samples)], dtype=torch.int32,
                                 device=decoder.device)
        rows = list(range(num_rows))  # of the result, one for each row of the batch
        for step in range(steps):
            tokens = sampler.sample(logits, positions)
            values = tokens.tolist()  # the step's one read by the host
            for row, token in zip(rows, values):
                generated[row].append(token)
            stream.put_step(rows, values, num_rows, pad)
            running = [i for i, token in enumerate(values) if token not in eos]
            if not running or step + 1 == steps:
                break
            if batch is None:
                held = _fork(cache, held, samples)
                batch = decoder.start(cache, held, steps)
                held = []  # the batch's now
            if len(running) < len(rows):
                batch.keep(running)
                sampler.keep(running)
                rows = [rows[i] for i in running]
                kept = torch.tensor(running, device=decoder.device)
                tokens, positions = tokens[kept], positions[kept]
            logits = batch.step(tokens)
            positions += 1
    finally:
        if batch is not None:
            batch.close()
        for sequence in held:
            cache.release(sequence)
    return generated


def _repeat(logits: Tensor, samples: int) -> Tensor:
    """Each row `samples` times. On a CPU by numpy: torch's pool would hang in a forked child."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.repeat(logits.numpy(), samples, axis=0))
    return logits.repeat_interleave(samples, 0)


def _fork(cache: PagedCache, sequences: list[Sequence], samples: int) -> list[Sequence]:
    """Each sequence, followed by samples - 1 forks of it."""
    return [row for sequence in sequences
            for row in (sequence, *(cache.fork(sequence) for _ in range(samples - 1)))]
