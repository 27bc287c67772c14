"""Beam search and beam sampling: the best continuations of each prompt, looked for together (floor 7).

The search of transformers 5.23. A prompt has K running beams. At every step its C = K * max(2, 1 + eos tokens) best
(beam, token) pairs are its candidates, or C pairs that are drawn. The first K candidates that end compete with those
that ended before for the K places of the result; the best K that do not end run on. Each prompt has what it would get
alone: it is done when it would be done alone, and then nothing changes its result.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops, transfer
from ..cache import PagedCache, Sequence
from ..decoder import Decoder, RunningBatch
from ..sampling import Sampling
from .config import Settings
from .processors import LogitsPipeline
from .rules import Rules
from .watching import Records

_HOPELESS = -1.0e9  # added to the score of what must not be chosen; transformers' number, which shows where all are
_FIRST_TOKENS = 64  # new tokens a beam that the cache has room for from the start

# (ids of all candidates (B * C, n), scores so far) -> which of them end
StopRows = Callable[[Tensor, "tuple[Tensor, ...] | None"], Tensor]


@dataclass
class BeamResult:
    """The best num_return_sequences continuations of each of B prompts, best first."""

    rows: list[list[int]]      # B * num_return_sequences: the new tokens of each, its eos token included
    sequences_scores: Tensor   # (rows,) float32: sum of log-probabilities / length ** length_penalty
    beam_indices: Tensor       # (rows, longest) int32: which of the B * K running beams each token followed; then -1
    num_steps: int             # steps that were computed, the prompt's included
    fill: int                  # what transformers puts after the end of a row: never pad_token_id=0, and -1 without eos


def run_beams(decoder: Decoder, prompts: list[Tensor], columns: Tensor, settings: Settings, rules: Rules,
              pipeline: LogitsPipeline, seeds: list[int], sample_offset: int, steps: int, stop_rows: StopRows | None,
              records: Records) -> BeamResult:
    """Searches for settings.num_beams continuations of each prompt, of at most `steps` tokens.

    prompts: B LongTensors (n_i,) on the CPU, without padding; columns (B, n): the same, padded on the left. seeds (one
    a prompt) and sample_offset are for do_sample. stop_rows: what ends a row besides eos tokens and its length; it and
    callbacks get ids on the decoder's device. records: its lists get (B * K, V) logits and scores of every step, and
    hidden states as transformers gives them. However this ends, all pages are returned.
    Raises ValueError where the logits of a prompt hold NaN or allow no token.
    """
    num_beams, vocab_size = settings.num_beams, decoder.config.vocab_size
    search = _Search(len(prompts), steps, vocab_size, settings)
    # Who looks at all rows side by side must not see them move.
    stays = stop_rows is not None or pipeline.has_callbacks or records != Records()
    scoring = _Scoring(decoder, prompts, columns, settings, rules, pipeline, steps)
    lens = [len(prompt) for prompt in prompts]
    cache = _new_cache(decoder, lens, num_beams, steps)
    held: list[Sequence] = []
    batch = None
    try:
        held += [cache.new_sequence() for _ in prompts]
        output = decoder.prefill(cache, held, prompts, hidden_states=records.hidden_states is not None)
        logits = output.logits.repeat_interleave(num_beams, 0)
        if records.hidden_states is not None:
            records.hidden_states.append(tuple(
                _in_columns(states, lens, columns.shape[1]).to(decoder.dtype).repeat_interleave(num_beams, 0)
                for states in output.hidden_states))
        while True:
            if records.logits is not None:
                records.logits.append(logits.clone())
            scores = scoring.scores(logits, search)
            if records.scores is not None:
                records.scores.append(scores.clone())
            found = _candidates(scores, search, settings, seeds, sample_offset, lens)
            ending = None
            if stop_rows is not None:
                ids = search.candidate_ids(columns, found.places).to(decoder.device)
                ending = stop_rows(ids, None if records.scores is None else tuple(records.scores)).cpu()
            parents = search.advance(found, ending)
            if not search.open.any():
                break
            if not stays:
                parents = search.drop_done(parents)
            if batch is None:
                beams = []
                for sequence in held[:]:
                    beams.append(sequence)
                    for _ in range(num_beams - 1):
                        held.append(cache.fork(sequence))
                        beams.append(held[-1])
                batch = decoder.start(cache, beams, steps - 1)
            scoring.follow(parents, search)
            if parents != list(range(len(batch.sequences))):
                batch.reorder(parents)
            logits = _step(decoder, batch, search.last_tokens(), records)
    finally:
        transfer.wait_for(decoder.device)
        if batch is not None:
            batch.close()
        for sequence in held:  # those of the batch are empty by now
            cache.release(sequence)
    return search.result(settings.num_return_sequences)


# ---- The search, on the host -------------------------------------------------------------------


@dataclass
class _Candidates:
    """C a prompt; place = beam * vocab_size + token."""

    scores: Tensor  # (P, C) float32, sums of log-probabilities
    places: Tensor  # (P, C) int64


class _Search:
    """The beams of all prompts: P prompts run, K beams each.

    A beam's path holds the place of each of its tokens, -1 where there is none yet. What runs is kept for the prompts
    of `prompts`, the result for all of them. Small tensors on the CPU.
    """

    def __init__(self, num_prompts: int, steps: int, vocab_size: int, settings: Settings):
        self._settings, self._steps, self._vocab_size = settings, steps, vocab_size
        self._eos = torch.tensor(settings.eos_token_ids, dtype=torch.long, device="cpu")
        self.num_candidates = settings.num_beams * max(2, 1 + len(settings.eos_token_ids))
        shape = (num_prompts, settings.num_beams)
        self.length = 0  # new tokens of every running beam
        self.prompts = torch.arange(num_prompts, device="cpu")  # (P,)
        self.open = torch.ones(num_prompts, dtype=torch.bool, device="cpu")  # (P,): not done
        self.scores = torch.zeros(shape, device="cpu")  # (P, K) of the running beams
        self.scores[:, 1:] = _HOPELESS  # all begin with the prompt, and would all find the same
        self.paths = torch.full((*shape, steps), -1, dtype=torch.long, device="cpu")
        self._final_scores = torch.full(shape, _HOPELESS, device="cpu")
        self._final_paths = self.paths.clone()
        self._ended = torch.zeros(shape, dtype=torch.bool, device="cpu")  # whether a place of the result is taken

    def candidate_ids(self, columns: Tensor, places: Tensor) -> Tensor:
        """(P * C, n + length + 1): the prompts' columns and all new tokens of the candidates."""
        paths = self._extended(places)[:, :, :self.length + 1]
        return torch.cat([columns[self.prompts].repeat_interleave(places.shape[1], 0),
                          (paths % self._vocab_size).flatten(0, 1)], 1)

    def ids(self, columns: Tensor) -> Tensor:
        """(P * K, n + length): the same of the running beams."""
        return torch.cat([columns[self.prompts].repeat_interleave(self.scores.shape[1], 0),
                          (self.paths[:, :, :self.length] % self._vocab_size).flatten(0, 1)], 1)

    def last_tokens(self) -> Tensor:
        """(P * K,) long: what the running beams end with."""
        return self.paths[:, :, self.length - 1].flatten() % self._vocab_size

    def advance(self, found: _Candidates, stopped: Tensor | None) -> list[int]:
        """One token more: for each running beam the row that it continues. stopped: (P * C,) bool, or nobody asked."""
        num_beams, penalty = self._settings.num_beams, self._settings.length_penalty
        ends = torch.isin(found.places % self._vocab_size, self._eos)
        if stopped is not None:
            ends |= stopped.view(ends.shape)
        paths = self._extended(found.places)
        self.length += 1
        if self.length == self._steps:
            ends[:] = True
        going_on = found.scores + ends * _HOPELESS
        best = torch.topk(going_on, num_beams).indices
        self.scores, self.paths = going_on.gather(1, best), _gather_paths(paths, best)

        counted = ends.clone()
        counted[:, num_beams:] = False
        self._keep_best(found.scores / self.length**penalty + ~counted * _HOPELESS, paths, counted)
        self.open &= self._may_improve() & ~ends.all(1)
        if self._settings.early_stopping is True:
            self.open &= ~self._ended[self.prompts].all(1)
        rows = torch.arange(len(self.prompts), device="cpu")[:, None] * num_beams
        return (rows + (found.places // self._vocab_size).gather(1, best)).flatten().tolist()

    def drop_done(self, parents: list[int]) -> list[int]:
        """Prompts that are done run no longer; parents of the others."""
        if self.open.all():
            return parents
        num_beams = self.scores.shape[1]
        kept = self.open.tolist()
        self.prompts, self.scores, self.paths = (x[self.open] for x in (self.prompts, self.scores, self.paths))
        self.open = self.open[self.open]
        return [parent for row, parent in enumerate(parents) if kept[row // num_beams]]

    def result(self, num_return_sequences: int) -> BeamResult:
        """Raises ValueError for a prompt that has no continuation."""
        if not self._ended[:, 0].all():
            prompt = int((~self._ended[:, 0]).nonzero()[0])
            raise ValueError(f"prompt {prompt}: no continuation has a finite score, because what edits the logits bans "
                             "every token")
        paths = self._final_paths[:, :num_return_sequences]
        offsets = torch.arange(len(paths), device="cpu")[:, None, None] * self.scores.shape[1]
        beams = torch.where(paths < 0, -1, paths // self._vocab_size + offsets).flatten(0, 1).int()
        lengths = (beams >= 0).sum(1).tolist()
        tokens = (paths % self._vocab_size).flatten(0, 1).tolist()
        eos = self._settings.eos_token_ids
        return BeamResult([row[:length] for row, length in zip(tokens, lengths)],
                          self._final_scores[:, :num_return_sequences].flatten(), beams[:, :max(lengths)], self.length,
                          (self._settings.pad_token_id or eos[0]) if eos else -1)

    def _extended(self, places: Tensor) -> Tensor:
        """(P, C, steps): paths of the running beams with one place more."""
        paths = _gather_paths(self.paths, places // self._vocab_size)
        paths[:, :, self.length] = places
        return paths

    def _keep_best(self, scores: Tensor, paths: Tensor, counted: Tensor) -> None:
        """The K best of the result so far and of candidates (P, C), for prompts that are not done."""
        here = self.prompts[self.open]
        scores = torch.cat([self._final_scores[here], scores[self.open]], 1)
        best = torch.topk(scores, self._final_scores.shape[1]).indices
        self._final_scores[here] = scores.gather(1, best)
        self._final_paths[here] = _gather_paths(torch.cat([self._final_paths[here], paths[self.open]], 1), best)
        self._ended[here] = torch.cat([self._ended[here], counted[self.open]], 1).gather(1, best)

    def _may_improve(self) -> Tensor:
        """(P,): whether a running beam might still beat the worst that ended, as transformers estimates it."""
        penalty = self._settings.length_penalty
        length = self._steps if self._settings.early_stopping == "never" and penalty > 0.0 else self.length
        possible = self.scores[:, :1] / length**penalty
        worst = self._final_scores[self.prompts].amin(1, keepdim=True)
        return (possible > torch.where(self._ended[self.prompts], worst, _HOPELESS)).any(1)


def _gather_paths(paths: Tensor, index: Tensor) -> Tensor:
    """paths (P, n, steps), index (P, m) -> (P, m, steps)"""
    return paths.gather(1, index[:, :, None].expand(-1, -1, paths.shape[2]))


# ---- Scores and candidates ---------------------------------------------------------------------


class _Scoring:
    """From logits to the scores of the next tokens of all running beams."""

    def __init__(self, decoder: Decoder, prompts: list[Tensor], columns: Tensor, settings: Settings, rules: Rules,
                 pipeline: LogitsPipeline, steps: int):
        self._columns, self._pipeline, self._settings = columns, pipeline, settings
        self._device = device = decoder.device
        self._filters = _Filters(settings, decoder.config.vocab_size, len(prompts) * settings.num_beams, device)
        self._edits = pipeline.has_callbacks or not rules.is_empty
        if not self._edits:
            return
        # The tokens of each running beam, without padding.
        lens = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32, device="cpu")
        history = torch.zeros(len(prompts), int(lens.max()) + steps, dtype=torch.int32, device="cpu")
        for row, prompt in zip(history, prompts):
            row[:len(prompt)] = prompt
        self._history = history.repeat_interleave(settings.num_beams, 0).to(device)
        self._lens = self._prompt_lens = lens.repeat_interleave(settings.num_beams).to(device)

    def scores(self, logits: Tensor, search: _Search) -> Tensor:
        """(P * K, V) float32: log-probabilities, as rules, callbacks, filters and renormalize_logits leave them."""
        scores = torch.log_softmax(logits, -1)
        if self._edits:
            rows = torch.arange(len(logits), dtype=torch.int32, device=self._device)
            scores = self._pipeline.apply(scores, lambda: search.ids(self._columns).to(self._device), self._history,
                                          rows, self._lens, self._prompt_lens)
        changes = self._filters.any or self._settings.renormalize_logits
        # A beam that nothing may follow ends here; filters would make NaN of it.
        dead = torch.isneginf(scores.amax(-1, keepdim=True)) if changes and self._edits else None
        if self._filters.any:
            self._filters.apply(scores)
        if self._settings.renormalize_logits:
            scores = torch.log_softmax(scores, -1)
        if dead is not None:
            scores.masked_fill_(dead, -torch.inf)
        return scores

    def follow(self, parents: list[int], search: _Search) -> None:
        """Row i continues row parents[i] with the last token of the search's row i."""
        if not self._edits:
            return
        index = transfer.to_device(parents, self._device, torch.int64)
        self._history, self._lens = self._history[index], self._lens[index]
        self._prompt_lens = self._prompt_lens[index]
        tokens = transfer.to_device(search.last_tokens().int(), self._device)
        self._history.scatter_(1, self._lens.long()[:, None], tokens[:, None])
        self._lens = self._lens + 1


class _Filters:
    """Temperature and the filters of sampling, for up to `rows` rows. They leave enough tokens for a beam to run on."""

    def __init__(self, settings: Settings, vocab_size: int, rows: int, device: torch.device):
        self._values = Sampling(settings.temperature, min(settings.top_k, vocab_size), settings.top_p,
                                settings.eos_token_ids, settings.min_p, settings.typical_p, settings.epsilon_cutoff,
                                settings.eta_cutoff)
        values = self._values
        self.any = settings.do_sample and (values.temperature != 1.0 or values.top_k > 0 or values.top_p < 1.0
                                           or bool(values.filters))
        if not self.any:
            return
        self._min_tokens_to_keep = 1 + max(1, len(settings.eos_token_ids))
        self._device = device
        self._workspace = torch.empty(ops.sample_workspace(rows, vocab_size, device.type), dtype=torch.uint8,
                                      device=device)

    def apply(self, scores: Tensor) -> None:
        """scores (rows, V) in place."""
        values, rows = self._values, len(scores)

        def filled(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((rows,), value, dtype=dtype, device=self._device)

        # Seeds, samples and positions are those of draws, and nothing is drawn here.
        params = ops.SamplingParams(
            filled(values.temperature), filled(values.top_k, torch.int32), filled(values.top_p),
            filled(0, torch.int64), filled(0, torch.int32), filled(0, torch.int32),
            **{name: filled(getattr(values, name)) for name in values.filters},
            min_tokens_to_keep=self._min_tokens_to_keep)
        ops.filter_logits(scores, params, self._workspace)


def _candidates(scores: Tensor, search: _Search, settings: Settings, seeds: list[int], sample_offset: int,
                lens: list[int]) -> _Candidates:
    """The candidates of every prompt; scores (P * K, V) are those of single tokens."""
    num_prompts, num_beams = search.scores.shape
    count = search.num_candidates
    sums = scores.reshape(num_prompts, num_beams, -1) + search.scores[:, :, None].to(scores.device)
    sums = sums.view(num_prompts, -1)
    if settings.do_sample:
        host = sums.cpu()
        largest = host.amax(1)  # NaN where there is one
        _refuse(largest.isnan() | largest.isposinf(), search)
        places = torch.from_numpy(np.stack([
            draw_without_replacement(row, [
                # Each offset has draws of its own. The token that follows n tokens has position n.
                ops.philox_uniform(seeds[prompt], (sample_offset * count + draw) % 2**32,
                                   lens[prompt] + search.length)
                for draw in range(count)])
            for row, prompt in zip(host.numpy(), search.prompts.tolist())]))
        return _Candidates(host.gather(1, places), places)
    values, places = torch.topk(sums, count)
    found = _Candidates(values.cpu(), places.cpu())
    _refuse(found.scores[:, 0].isnan(), search)  # NaN comes first
    return found


def _refuse(strange: Tensor, search: _Search) -> None:
    if strange.any():
        prompt = int(search.prompts[strange][0])
        raise ValueError(f"logits: prompt {prompt} gets NaN or infinity, so no token can be chosen; the weights or the "
                         "type they were converted to overflow, or what edits the logits makes it (see "
                         "remove_invalid_values)")


def draw_without_replacement(scores: np.ndarray, uniforms: list[float]) -> np.ndarray:
    """(len(uniforms),) int64 indices, one after another, each from softmax(scores (n,)) over those not drawn before.

    u draws the first index at which the running mass exceeds u * mass. Scores of -infinity come last, in order.
    """
    left = np.flatnonzero(scores > -np.inf)
    values = scores[left].astype(np.float64)
    drawn: list[int] = []  # indices into scores
    mass: np.ndarray | None = None  # running mass of `left`; None: to be computed
    taken: list[int] = []  # of left, drawn since the mass was computed, in their order
    for u in uniforms:
        if mass is None or mass[-1] - _width(mass, taken) < 1e-3 * mass[-1]:
            # What is left is too small to tell from rounding: it is computed anew.
            left, values = np.delete(left, taken), np.delete(values, taken)
            taken = []
            if len(left) == 0:
                break
            mass = np.cumsum(np.exp(values - values.max()))
        target = u * (mass[-1] - _width(mass, taken))
        for i in taken:  # past what was drawn
            if target < (mass[i - 1] if i else 0.0):
                break
            target = max(target + _width(mass, [i]), mass[i])
        place = int(np.searchsorted(mass, target, side="right"))
        if place == len(left):  # by rounding: the last with a share
            place = max(i for i in np.flatnonzero(np.diff(mass, prepend=0.0)) if i not in taken)
        drawn.append(int(left[place]))
        taken = sorted([*taken, place])
    impossible = np.flatnonzero(scores == -np.inf)[:len(uniforms) - len(drawn)]
    return np.array([*drawn, *impossible.tolist()], dtype=np.int64)


def _width(mass: np.ndarray, places: list[int]) -> float:
    """The share that these places have of a running mass."""
    return float(sum(mass[i] - (mass[i - 1] if i else 0.0) for i in places))


# ---- The model ---------------------------------------------------------------------------------


def _new_cache(decoder: Decoder, lens: list[int], num_beams: int, steps: int) -> PagedCache:
    """With room for the prompts and the first tokens of every beam."""
    cache = decoder.new_cache()
    # A beam's first page is a copy of the prompt's last.
    each = cache.pages_for(min(steps, _FIRST_TOKENS)) + 1
    cache.grow_to(sum(cache.pages_for(n) + num_beams * each for n in lens))
    return cache


def _step(decoder: Decoder, batch: RunningBatch, tokens: Tensor, records: Records) -> Tensor:
    """The logits that follow these tokens (rows,)."""
    states = None
    if records.hidden_states is not None:
        shape = (len(tokens), decoder.config.n_embd)
        states = [torch.empty(shape, dtype=decoder.act_dtype, device=decoder.device)
                  for _ in range(decoder.config.n_layer + 1)]
    logits = batch.step(transfer.to_device(tokens, decoder.device), states)
    if states is not None:
        records.hidden_states.append(tuple(state.to(decoder.dtype)[:, None] for state in states))
    return logits


def _in_columns(states: Tensor, lens: list[int], columns: int) -> Tensor:
    """(tokens, d) of prompts one after another -> (B, columns, d), zeros at the padding on the left."""
    padded = states.new_zeros(len(lens), columns, states.shape[1])
    for row, own in zip(padded, states.split(lens)):
        row[columns - len(own):] = own
    return padded
