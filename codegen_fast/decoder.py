"""The decoder: composes the ops into prefill and decode steps over a paged cache (floor 6).

The life of a token: ``embed`` -> every layer's ``input_product``, ``attention``, ``output_product`` -> ``lm_head``.
Nothing else computes between a token id and its logits. Inside there is no padding: a batch is a list of sequences.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from . import ops, transfer
from .cache import PagedCache, Sequence
from .config import CodeGenConfig
from .transfer import to_device
from .weights.decoder_weights import DecoderWeights

# Tokens of a prefill that go through the layers together. It bounds the scratch (16B: about 90 MB) and changes no bit.
PREFILL_CHUNK = 512
# The same on CUDA, where a chunk must keep thousands of tensor cores busy (16B: about 160 MB).
CUDA_PREFILL_CHUNK = 2048
# Tokens of a chunk from which the last layer's input product makes keys and values of all, and the rest of the few whose
# logits are wanted: those few read the weights once more. On CUDA a model's answer, not measured.
LEAST_APART = 32
CUDA_LEAST_APART = 512
_ROTARY_ROWS = 2048  # made at once: beside a table there is never a second one
_ROW_PADDING = 16  # elements


@dataclass
class PrefillOutput:
    """Logits (B, V) of the last tokens or (T, V) of all, float32; hidden states: n_layer + 1 tensors (T, d) of the type
    of activations."""

    logits: torch.Tensor | None
    hidden_states: list[torch.Tensor] | None


class Scratch:
    """Activations and workspace for up to ``tokens`` tokens, of which ``rows`` get logits; views are cut from them."""

    def __init__(self, decoder: Decoder, tokens: int, rows: int, max_seq_len: int) -> None:
        config, device = decoder.config, decoder.device
        d, layer = config.n_embd, decoder.weights.layers[0]
        self.x = torch.empty(tokens, d, dtype=decoder.act_dtype, device=device)
        self.q = torch.empty(tokens, d, dtype=decoder.act_dtype, device=device)
        # Rows that a product reads side by side must not lie a multiple of 4096 bytes apart (csrc/cpu/product.h).
        width = d + config.inner
        padded = width + (0 if decoder.backend == "cuda" else _ROW_PADDING)
        self.act = torch.empty(tokens, padded, dtype=decoder.act_dtype, device=device)[:, :width]
        workspace = max(
            ops.input_product_workspace(tokens, layer.w_in),
            ops.attention_workspace(tokens, config.n_head, config.head_dim, max_seq_len, device.type),
            ops.output_product_workspace(tokens, layer.w_out),
            ops.lm_head_workspace(rows, decoder.weights.lm_head),
        )
        self.workspace = torch.empty(workspace, dtype=torch.uint8, device=device)


class Decoder:
    """A CodeGen model's weights, and how tokens go through them.

    A decoder holds no state of a generation: caches and running batches do, so several threads may use one decoder.
    ``prefilled_tokens`` counts the tokens that went through prefill, for tests.
    """

    def __init__(self, config: CodeGenConfig, weights: DecoderWeights, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.weights = weights
        self.device = torch.device(device)
        self.dtype = weights.dtype
        self.backend = ops.backend(self.device)
        self.act_dtype = ops.activation_dtype(self.dtype, self.device)
        self.prefilled_tokens = 0
        # Workplaces of generations that have ended (workplace.py), for those to come: they hold no reference to this.
        self.kept: list[Any] = []
        self.kept_lock = threading.Lock()
        self.rotary = _rotary_table(config.n_positions, config.rotary_dim, self.device)

    def new_cache(self, capacity_tokens: int = 0) -> PagedCache:
        return PagedCache(self.config.n_layer, self.config.n_embd, self.dtype, self.device, capacity_tokens)

    def prefill(
        self,
        cache: PagedCache,
        sequences: list[Sequence],
        token_ids: list[torch.Tensor],
        *,
        logits: Literal["last", "all", "none"] = "last",
        hidden_states: bool = False,
    ) -> PrefillOutput:
        """Appends new tokens to sequences (which may hold tokens already) and computes what is asked for.

        Args:
            token_ids: one (n_i,) int64 tensor a sequence, n_i >= 1, all on the decoder's device or all on the CPU; ids
                checked by the caller.
            logits: of every sequence's last token (B, V), of all tokens one sequence after another (T, V), or none.
            hidden_states: also the input of every layer and the final norm's output, (T, d) each.
        """
        ops.set_num_threads(torch.get_num_threads())
        lengths = [len(ids) for ids in token_ids]
        total, vocab_size, d = sum(lengths), self.config.vocab_size, self.config.n_embd
        cache.reserve(sequences, lengths)
        rows = {"last": len(sequences), "all": total, "none": 0}[logits]
        out = torch.empty(rows, vocab_size, dtype=torch.float32, device=self.device) if rows else None
        states = (
            [torch.empty(total, d, dtype=self.act_dtype, device=self.device) for _ in range(self.config.n_layer + 1)]
            if hidden_states
            else None
        )
        max_seq_len = max(s.length + n for s, n in zip(sequences, lengths, strict=True))
        chunk = CUDA_PREFILL_CHUNK if self.backend == "cuda" else PREFILL_CHUNK
        scratch = Scratch(self, min(total, chunk), min(rows, chunk), max_seq_len)

        done = written = 0
        for pieces in chunks(lengths, chunk):
            members = [sequences[i] for i, _, _ in pieces]
            ids = to_device(torch.cat([token_ids[i][begin:end] for i, begin, end in pieces]), self.device)
            batch = prefill_batch(members, [end - begin for _, begin, end in pieces], max_seq_len, self.device)
            x = scratch.x[: len(ids)]
            ops.embed(x, ids, self.weights.embedding)
            here = slice(done, done + len(ids))
            wanted = _rows_with_logits(pieces, lengths, logits)
            ends = None
            if logits != "all" and not hidden_states:
                ending = [(s, end - begin) for s, (i, begin, end) in zip(members, pieces, strict=True)
                          if wanted and end == lengths[i]]  # fmt: skip
                apart = len(ids) - len(wanted) >= (CUDA_LEAST_APART if self.backend == "cuda" else LEAST_APART)
                ends = LastTokens.of(wanted, ending, max_seq_len, apart, self.device)
            self.run_layers(x, scratch.q[: len(ids)], scratch.act[: len(ids)], cache, batch, False, scratch.workspace,
                         [s[here] for s in states] if states else None, ends)  # fmt: skip
            if wanted:
                rows_wanted = to_device(wanted, self.device, torch.int32)
                self.run_lm_head(out[written : written + len(wanted)], x, rows_wanted, False, scratch.workspace)
                written += len(wanted)
            for sequence, (_, begin, end) in zip(members, pieces, strict=True):
                sequence.length += end - begin
            done += len(ids)
        self.prefilled_tokens += total
        return PrefillOutput(out, states)

    def start(self, cache: PagedCache, sequences: list[Sequence], max_new_tokens: int) -> RunningBatch:
        """A batch that decodes one token a step for every sequence, at most ``max_new_tokens`` of them."""
        return RunningBatch(self, cache, sequences, max_new_tokens)

    def run_layers(self, x, q, act, cache, batch, decode, workspace, states=None, ends=None) -> None:
        """All layers, on x (T, d) in place; q and act are scratch.

        ends: of a prefill's last layer only these rows are needed, and x holds it in them alone. The cache gets all.
        """
        n_head, rotary = self.config.n_head, self.rotary
        input_product, attention, output_product = ops.input_product, ops.attention, ops.output_product
        last = self.config.n_layer - 1
        for i, (layer, pages) in enumerate(zip(self.weights.layers, cache.layers, strict=True)):
            if states:
                states[i].copy_(x)
            if ends is not None and i == last:
                self._run_last_layer(x, q, act, pages, layer, batch, workspace, ends)
                break
            input_product(q, act, pages, x, layer.norm, layer.w_in, layer.bias_in, rotary, n_head, batch, decode, workspace)
            attention(act, q, pages, n_head, batch, decode, workspace)
            output_product(x, act, layer.w_out, layer.bias_out, decode, workspace)
        if states:
            ops.layer_norm(states[-1], x, self.weights.final_norm)

    def _run_last_layer(self, x, q, act, pages, layer, batch, workspace, ends: LastTokens) -> None:
        """Keys and values of every token; the rest, in place, of those whose logits are wanted."""
        n_head, rotary = self.config.n_head, self.rotary

        def project(q, act, x, batch):
            ops.input_product(q, act, pages, x, layer.norm, layer.w_in, layer.bias_in, rotary, n_head, batch, False, workspace)

        # Apart, keys and values of the last tokens are made and written twice: the same bits.
        made = slice(0, 0) if ends.apart else slice(None)
        project(q[made], act[made], x, batch)
        if ends.batch is None:
            return
        x_own, q_own, act_own = x[ends.rows], q[ends.rows], act[ends.rows]
        if ends.apart:
            project(q_own, act_own, x_own, ends.batch)
        ops.attention(act_own, q_own, pages, n_head, ends.batch, False, workspace)
        ops.output_product(x_own, act_own, layer.w_out, layer.bias_out, False, workspace)
        x[ends.rows] = x_own

    def run_lm_head(self, out, x, rows, decode, workspace) -> None:
        """out (M, V) <- the logits of these rows of x."""
        w = self.weights
        ops.lm_head(out, x, rows, w.final_norm, w.lm_head, w.lm_head_bias, decode, workspace)


@dataclass
class LastTokens:
    """The tokens of a prefill whose logits are wanted, each the last of its sequence.

    Of the others the last layer's keys and values are all that anything reads later.
    """

    rows: torch.Tensor  # of the chunk, int64, ascending
    batch: ops.Batch | None  # one token of each sequence that ends here; None for none
    apart: bool  # their queries and MLP are made in a product of their own

    @classmethod
    def of(cls, rows: list[int], ending: list[tuple[Sequence, int]], max_seq_len: int, apart: bool,
           device: torch.device) -> LastTokens:  # fmt: skip
        """ending: the sequences whose last tokens these are, and how many tokens of each this chunk has."""
        batch = None
        if ending:
            lens = [s.length + new for s, new in ending]
            batch = _batch([s for s, _ in ending], [1] * len(ending), lens, max_seq_len, device)
        return cls(to_device(rows, device, torch.int64), batch, apart or batch is None)


class RunningBatch:
    """Sequences that decode together, one token each a step. All it writes to is its own: one a thread.

    ``sequences`` are those still in the batch, in order of the rows of ``step``.
    """

    def __init__(self, decoder: Decoder, cache: PagedCache, sequences: list[Sequence], max_new_tokens: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self.sequences = list(sequences)
        longest = max(s.length for s in sequences) + max_new_tokens
        self._max_seq_len = longest
        size, device = len(sequences), decoder.device
        self._scratch = Scratch(decoder, size, size, longest)
        self._logits = torch.empty(size, decoder.config.vocab_size, dtype=torch.float32, device=device)
        self._page_table = torch.zeros(size, max(1, cache.pages_for(longest)), dtype=torch.int32, device=device)
        self._on_host = transfer.is_host(device)  # lengths and pages are written in place
        self._arrange()

    def step(self, token_ids: torch.Tensor, states: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Appends token_ids (B,) int64, one a sequence, and returns the logits (B, V) float32 that follow them.

        The result is overwritten by the next step. states: n_layer + 1 tensors (B, d) that get the hidden states.
        """
        decoder, cache = self._decoder, self._cache
        ops.set_num_threads(torch.get_num_threads())
        if self._room == 0:
            self._reserve()
        self._lengthen(1)
        try:
            ops.embed(self._x, token_ids, decoder.weights.embedding)
            decoder.run_layers(self._x, self._q, self._act, cache, self._batch, True, self._scratch.workspace, states)
            decoder.run_lm_head(self._out, self._x, self._rows, True, self._scratch.workspace)
        except BaseException:
            self._lengthen(-1)
            raise
        self._room -= 1
        for sequence in self.sequences:
            sequence.length += 1
        return self._out

    def keep(self, rows: list[int]) -> None:
        """The sequences of these rows stay, in this order; the others leave and give their pages back."""
        kept = set(rows)
        for i, sequence in enumerate(self.sequences):
            if i not in kept:
                self._cache.release(sequence)
        self.sequences = [self.sequences[i] for i in rows]
        if self.sequences:
            self._arrange()

    def reorder(self, parents: list[int]) -> None:
        """Row i goes on from what row parents[i] held. A parent may appear several times: its rows share pages until
        they differ. Rows that are no parent leave and give their pages back.

        Raises ValueError for more rows than the batch began with.
        """
        if len(parents) > self._logits.shape[0]:
            raise ValueError(f"parents: {len(parents)} rows, and this batch has room for {self._logits.shape[0]}")
        rows: list[int] = []
        taken: set[int] = set()
        for parent in parents:
            if parent in taken:
                # At once among the batch's: whatever interrupts this, close() gives its pages back.
                self.sequences.append(self._cache.fork(self.sequences[parent]))
                parent = len(self.sequences) - 1
            rows.append(parent)
            taken.add(parent)
        self.keep(rows)

    def close(self) -> None:
        """All sequences give their pages back."""
        for sequence in self.sequences:
            self._cache.release(sequence)
        self.sequences = []

    def _arrange(self) -> None:
        """Cuts the buffers for the present number of sequences and describes them to the ops."""
        size, scratch, device = len(self.sequences), self._scratch, self._decoder.device
        self._x, self._q, self._act = scratch.x[:size], scratch.q[:size], scratch.act[:size]
        self._out = self._logits[:size]
        self._rows = torch.arange(size, dtype=torch.int32, device=device)
        self._lens = to_device([s.length for s in self.sequences], device, torch.int32)
        # numpy's addition costs a tenth of torch's
        self._lens_host = self._lens.numpy() if self._on_host else None
        self._table = self._page_table[:size]
        starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._batch = ops.Batch(starts, self._lens, self._table, size, self._max_seq_len)
        self._fill_table()

    def _lengthen(self, by: int) -> None:
        if self._on_host:
            self._lens_host += by
        else:
            self._lens += by

    def _reserve(self) -> None:
        self._cache.reserve(self.sequences, [1] * len(self.sequences))
        self._fill_table()

    def _fill_table(self) -> None:
        page_size = self._cache.page_size
        table = self._table.numpy() if self._on_host else np.zeros(self._table.shape, dtype=np.int32)
        for row, sequence in zip(table, self.sequences, strict=True):
            row[: len(sequence.pages)] = sequence.pages
        if not self._on_host:
            transfer.write(self._table, table)
        # A page that another sequence shares must be copied before it is written: no room, so the next step reserves.
        self._room = min(
            0 if self._cache.is_shared(s) else len(s.pages) * page_size - s.length for s in self.sequences
        )


def _rotary_table(n_positions: int, rotary_dim: int, device: torch.device) -> torch.Tensor:
    """(P, R) float32: cosines, then sines, of position * 10000^(-2i/R).

    Computed in float32 as transformers does: at position 2000 the rounding of an angle is 6e-5, which the model was
    trained with and which a more exact table would turn into a difference.
    """
    steps = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu")
    inverse = 1.0 / (10000 ** (steps / rotary_dim))
    table = torch.empty(n_positions, rotary_dim, dtype=torch.float32, device="cpu")
    for first in range(0, n_positions, _ROTARY_ROWS):
        part = table[first:first + _ROTARY_ROWS]
        angles = torch.arange(first, first + len(part), dtype=torch.float32, device="cpu")[:, None] * inverse[None, :]
        part.copy_(torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))
    return table.to(device)


def chunks(lengths: list[int], size: int) -> list[list[tuple[int, int, int]]]:
    """Cuts sequences of new tokens into calls of at most ``size`` tokens: lists of (sequence, begin, end)."""
    chunks: list[list[tuple[int, int, int]]] = []
    room = 0
    for i, n in enumerate(lengths):
        begin = 0
        while begin < n:
            if room == 0:
                chunks.append([])
                room = size
            end = min(n, begin + room)
            chunks[-1].append((i, begin, end))
            room -= end - begin
            begin = end
    return chunks


def prefill_batch(members: list[Sequence], new: list[int], max_seq_len: int, device: torch.device) -> ops.Batch:
    """These numbers of new tokens behind what the sequences hold."""
    return _batch(members, new, [s.length + n for s, n in zip(members, new, strict=True)], max_seq_len, device)


def _batch(members: list[Sequence], new: list[int], lens: list[int], max_seq_len: int,
           device: torch.device) -> ops.Batch:  # fmt: skip
    """The last ``new`` tokens of sequences that are ``lens`` long with them."""
    table = np.zeros((len(members), max(len(s.pages) for s in members)), dtype=np.int32)
    for row, sequence in zip(table, members, strict=True):
        row[: len(sequence.pages)] = sequence.pages
    return ops.Batch(
        to_device([0, *np.cumsum(new).tolist()], device, torch.int32),
        to_device(lens, device, torch.int32),
        to_device(table, device),
        sum(new),
        max_seq_len,
    )


def _rows_with_logits(pieces: list[tuple[int, int, int]], lengths: list[int], logits: str) -> list[int]:
    """Rows of a chunk whose logits are wanted."""
    ends = np.cumsum([end - begin for _, begin, end in pieces])
    if logits == "all":
        return list(range(int(ends[-1])))
    if logits == "last":
        return [int(row) - 1 for row, (i, _, end) in zip(ends, pieces, strict=True) if end == lengths[i]]
    return []
