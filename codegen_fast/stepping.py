"""The loop of generation: rows that step together, their tokens read while the next steps run (floor 6).

Where the backend has graphs (CUDA), several steps are enqueued ahead of the host, which reads tokens from a small ring,
and a row that has finished is idle from the next step on. Where it has none (CPU), the same ops run one step at a time,
on exactly the rows that still run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from . import transfer
from .cache import Sequence
from .decoder import Decoder
from .sampling import Sampling, as_signed
from .workplace import RING_SLOTS, Workplace

_EOS_SLOTS = 8  # eos tokens that a step looks for, at least


@dataclass
class _Row:
    """One row of the result while it runs."""

    index: int
    sequence: Sequence
    prompt_len: int
    seed: int
    sample_index: int
    token: int = 0  # the last one
    count: int = 0  # of tokens so far


class SteppingBatch:
    """Sequences that generate together. They belong to the batch, which gives their pages back as they end.

    Row i continues sequences[i], a prompt that has gone through prefill, and draws with seeds[i], sample_indices[i].
    """

    def __init__(self, decoder: Decoder, place: Workplace, sequences: list[Sequence], sampling: Sampling,
                 seeds: list[int], sample_indices: list[int], max_new_tokens: int) -> None:  # fmt: skip
        self._decoder, self._place, self._sampling = decoder, place, sampling
        self._max_new_tokens = max_new_tokens
        self._rows = [
            _Row(i, sequence, sequence.length, seed, sample_index)
            for i, (sequence, seed, sample_index) in enumerate(zip(sequences, seeds, sample_indices, strict=True))
        ]
        self._arranged: list[_Row] = []  # in order of the device's rows; some may have ended
        self._read = place.number  # the number of the last step whose tokens were read
        self._fed = 0  # tokens of every row that went through the layers, or will by what is enqueued
        self._room = 0  # steps that may be enqueued before pages must be reserved
        self._eos_slots = max(_EOS_SLOTS, 1 << max(0, len(sampling.eos) - 1).bit_length())

    def tokens(self, logits: torch.Tensor) -> Iterator[tuple[list[int], list[int]]]:
        """(rows, tokens) of every step: tokens[i] is the new token of row rows[i]; rows that ended before are left out.

        logits (N, V): what follows the sequences; each row is that of as many sequences, one after another.
        Raises ValueError if a row's logits allow no token.
        """
        self._first(logits)
        while self._rows:
            while self._place.number - self._read < self._place.ahead and self._enqueue():
                pass
            yield self._take()

    def close(self) -> None:
        """Waits for what is enqueued; all sequences give their pages back."""
        if self._place.number > self._read:
            self._read = self._place.number
            transfer.wait_for(self._decoder.device)  # whoever waited for tokens has heard of what failed
        for row in self._rows:
            self._place.cache.release(row.sequence)
        self._rows = []

    def _first(self, logits: torch.Tensor) -> None:
        self._arrange()
        target = self._step.logits[: len(self._rows)].view(len(logits), -1, logits.shape[1])
        if transfer.is_host(target.device):
            # On this thread: torch's pool would hang in a forked child.
            np.copyto(target.numpy(), logits.numpy()[:, None])
        else:
            transfer.copy(target, logits[:, None])
        self._place.finish(self._step)

    def _arrange(self) -> None:
        """Gives the rows that still run their places on the device. No step is under way."""
        place, sampling = self._place, self._sampling
        self._arranged = list(self._rows)
        self._longest = max(row.prompt_len for row in self._rows)
        count = len(self._arranged)
        self._step = place.step(self._decoder, place.bucket(count), self._eos_slots)
        self._read = place.number
        state = self._step.state
        for name, values in (
            ("tokens", [row.token for row in self._arranged]),
            ("seeds", [as_signed(row.seed) for row in self._arranged]),
            ("seq_lens", [row.prompt_len + row.count for row in self._arranged]),
            ("remaining", [self._max_new_tokens - row.count for row in self._arranged]),
            ("sample_indices", [row.sample_index for row in self._arranged]),
        ):
            state.host[name][:count] = values
            state.host[name][count:] = 0  # length 0: an idle row
        state.host["temperature"][:] = sampling.temperature
        state.host["top_k"][:] = sampling.top_k
        state.host["top_p"][:] = sampling.top_p
        state.host["eos"][:] = -1  # no token
        state.host["eos"][: len(sampling.eos)] = sampling.eos
        state.upload()
        self._room = 0

    def _enqueue(self) -> bool:
        """One more step, unless all that can come is enqueued, or the rows that are left should be moved together."""
        if self._fed + 1 == self._max_new_tokens:
            return False
        if self._place.bucket(len(self._rows)) < self._step.rows:
            if self._place.number > self._read:
                return False
            self._arrange()
        if self._room == 0:
            self._reserve()
        self._fed += 1
        self._room -= 1
        self._place.run(self._decoder, self._step, self._longest + self._fed)
        return True

    def _reserve(self) -> None:
        """Pages for the next tokens of every row, and the table of them."""
        cache = self._place.cache
        for row in self._rows:
            row.sequence.length = row.prompt_len + self._fed
        self._room = min(cache.page_size, self._max_new_tokens - 1 - self._fed)
        cache.reserve([row.sequence for row in self._rows], [self._room] * len(self._rows))
        device_table = self._step.page_table
        on_host = transfer.is_host(device_table.device)
        table = device_table.numpy() if on_host else np.zeros(device_table.shape, dtype=np.int32)
        for row, place in enumerate(self._arranged):
            pages = place.sequence.pages  # none of a row that has ended
            table[row, : len(pages)] = pages
        if not on_host:
            transfer.write(device_table, table)

    def _take(self) -> tuple[list[int], list[int]]:
        """Waits for the tokens of the next step."""
        number = self._read + 1
        self._step.ring.wait(number, self._decoder.weights.embedding)
        self._read = number
        slot = self._step.slots[(number - 1) % RING_SLOTS, 1 : 1 + len(self._arranged)].tolist()
        rows: list[int] = []
        tokens: list[int] = []
        eos, ended = self._sampling.eos, False
        for row, token in zip(self._arranged, slot, strict=True):
            if token == -2:  # it had ended before
                continue
            if token < 0:
                wider = "torch.bfloat16" if self._decoder.backend == "cuda" else "torch.float32 or torch.bfloat16"
                raise ValueError(
                    f"logits: row {row.index} holds NaN or no finite value, so no token can be chosen; the weights or "
                    f"the type they were converted to overflow (try dtype={wider})"
                )
            rows.append(row.index)
            tokens.append(token)
            row.token = token
            row.count += 1
            if token in eos or row.count == self._max_new_tokens:
                self._place.cache.release(row.sequence)
                ended = True
        if ended:
            self._rows = [row for row in self._rows if row.count < self._max_new_tokens and row.token not in eos]
        return rows, tokens
