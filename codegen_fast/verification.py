"""Several tokens of each sequence in one call of the decode ops, and what plain decoding would choose after each of
them: the verification of drafts (floor 6).

The decode ops give a token the same bits whatever else is in the call, so logits from here are those of single steps
(``RunningBatch.step``, a ``Step``), bit for bit.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from . import ops, transfer
from .cache import PagedCache, Sequence
from .decoder import Decoder, Scratch
from .sampling import Sampling, as_signed, choosing_workspace
from .stepping import Row
from .transfer import to_device
from .workplace import FILTERS, BoundRules


class Verifier:
    """Calls of up to ``tokens`` tokens in up to ``rows`` sequences. All it writes to is its own: one a thread.

    Args:
        tokens: of a call, all sequences together.
        rows: sequences of a call.
        max_seq_len: tokens of the longest sequence with its new ones.
        logits: of all tokens of a call, or of every sequence's last.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        tokens: int,
        rows: int,
        max_seq_len: int,
        *,
        logits: Literal["all", "last"] = "all",
    ) -> None:
        self._decoder, self._cache, self._last = decoder, cache, logits == "last"
        self.tokens, self.rows, self.max_seq_len = tokens, rows, max_seq_len
        device, wanted = decoder.device, rows if self._last else tokens
        self._scratch = Scratch(decoder, tokens, wanted, max_seq_len)
        self._logits = torch.empty(wanted, decoder.config.vocab_size, dtype=torch.float32, device=device)
        self._page_table = torch.zeros(rows, max(1, cache.pages_for(max_seq_len)), dtype=torch.int32, device=device)
        self._every_row = torch.arange(tokens, dtype=torch.int32, device=device)

    def verify(self, sequences: list[Sequence], tokens: list[list[int]]) -> torch.Tensor:
        """Appends tokens[i], at least one, to sequences[i]; the logits that follow each of them.

        Returns (T, V) float32, one sequence after another, or (B, V), those of the last tokens. The next call
        overwrites it. If this raises, the sequences are as long as before.
        """
        decoder, cache, scratch = self._decoder, self._cache, self._scratch
        lengths = [len(own) for own in tokens]
        total = sum(lengths)
        longest = max(s.length + n for s, n in zip(sequences, lengths, strict=True))
        if total > self.tokens or len(sequences) > self.rows or longest > self.max_seq_len or min(lengths) < 1:
            raise ValueError(
                f"tokens: expected at most {self.tokens} in {self.rows} sequences of up to {self.max_seq_len}, and one "
                f"at least for each; got {lengths} for {len(sequences)} sequences, the longest then of {longest}"
            )
        ops.set_num_threads(torch.get_num_threads())
        cache.reserve(sequences, lengths)
        batch, ends = self._describe(sequences, lengths)
        x = scratch.x[:total]
        ids = to_device([token for own in tokens for token in own], decoder.device, torch.int64)
        ops.embed(x, ids, decoder.weights.embedding)
        decoder.run_layers(x, scratch.q[:total], scratch.act[:total], cache, batch, True, scratch.workspace)
        rows = ends if self._last else self._every_row[:total]
        out = self._logits[: len(rows)]
        decoder.run_lm_head(out, x, rows, True, scratch.workspace)
        for sequence, n in zip(sequences, lengths, strict=True):
            sequence.length += n
        return out

    def _describe(self, sequences: list[Sequence], lengths: list[int]) -> tuple[ops.Batch, torch.Tensor]:
        """The batch, and which of its tokens are their sequences' last (B,) int32."""
        device, table = self._decoder.device, self._page_table[: len(sequences)]
        on_host = transfer.is_host(device)
        values = table.numpy() if on_host else np.zeros(table.shape, dtype=np.int32)
        for row, sequence in zip(values, sequences, strict=True):
            row[: len(sequence.pages)] = sequence.pages
        if not on_host:
            transfer.write(table, values)
        starts = np.cumsum([0, *lengths]).astype(np.int32)
        batch = ops.Batch(
            to_device(starts, device),
            to_device([s.length + n for s, n in zip(sequences, lengths, strict=True)], device, torch.int32),
            table,
            int(starts[-1]),
            self.max_seq_len,
        )
        return batch, to_device(starts[1:] - 1, device)


class _Mirror:
    """An array of the host, and its tensor on a device: one memory where the host may write the device's."""

    def __init__(self, shape: tuple[int, ...], dtype: type, device: torch.device) -> None:
        self.host = np.zeros(shape, dtype=dtype)
        self._shared = transfer.is_host(device)
        tensor = torch.from_numpy(self.host)
        self.tensor = tensor if self._shared else tensor.to(device)

    def upload(self) -> None:
        if not self._shared:
            transfer.write(self.tensor, self.host)


class Chooser:
    """Chooses tokens as a plain step does, for several positions of several rows at once.

    Args:
        history: (slots, columns) int32, the tokens of every row; only rules look at it.
        size: rows of logits at most.
    """

    def __init__(self, decoder: Decoder, sampling: Sampling, rules: BoundRules | None, history: np.ndarray,
                 size: int) -> None:  # fmt: skip
        device, vocab_size = decoder.device, decoder.config.vocab_size
        self._rules, self._history_host = rules, history
        names = ("sample_index", "position", "history_row", "prompt_len")
        self._of_rows = {name: _Mirror((size,), np.int32, device) for name in names}
        self._of_rows["seed"] = _Mirror((size,), np.int64, device)
        parameters = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32}
        parameters |= {name: torch.float32 for name in FILTERS if name in sampling.filters}
        self._parameters = {
            name: torch.full((size,), getattr(sampling, name), dtype=dtype, device=device)
            for name, dtype in parameters.items()
        }
        self._sampled = torch.empty(size, dtype=torch.int64, device=device)
        self._history = None
        if rules is not None:
            self._history = torch.from_numpy(history)
            if not transfer.is_host(device):
                self._history = self._history.to(device)
        self._workspace = choosing_workspace(size, vocab_size, device)
        self._bound: dict[int, tuple[ops.SamplingParams, Any]] = {}

    def choose(self, logits: torch.Tensor, rows: list[Row], slots: list[int], positions: list[int]) -> list[int]:
        """The token of every row of logits (M, V), which may be changed; -1 where one allows none.

        rows[i]: whose logits they are; slots[i]: its line of the history, where the tokens before the one to choose
        stand, those of a draft included; positions[i]: how many they are.
        """
        count = len(rows)
        values = {
            "seed": [as_signed(row.seed) for row in rows],
            "sample_index": [row.sample_index for row in rows],
            "position": positions,
            "history_row": slots,
            "prompt_len": [len(row.prompt) for row in rows],
        }
        for name, mirror in self._of_rows.items():
            mirror.host[:count] = values[name]
            mirror.upload()
        params, rules = self._operands(count)
        if rules is not None:
            if not transfer.is_host(logits.device):
                transfer.write(self._history, self._history_host)
            ops.edit_logits(logits, rules, self._workspace)
        ops.sample(self._sampled[:count], logits, params, self._workspace)
        return self._sampled[:count].tolist()

    def _operands(self, count: int) -> tuple[ops.SamplingParams, Any]:
        if count not in self._bound:
            own = {name: mirror.tensor[:count] for name, mirror in self._of_rows.items()}
            given = {name: values[:count] for name, values in self._parameters.items()}
            params = ops.SamplingParams(
                given.pop("temperature"), given.pop("top_k"), given.pop("top_p"), own["seed"], own["sample_index"],
                own["position"], **given,
            )  # fmt: skip
            rules = None
            if self._rules is not None:
                rules = self._rules.operands(self._history, own["history_row"], own["position"], own["prompt_len"])
            self._bound[count] = params, rules
        return self._bound[count]
