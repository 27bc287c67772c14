"""One call of `generate`: which loop runs it, what watches it, and what it returns."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from ..config import CodeGenConfig
from ..decoder import Decoder
from ..forward import pad_columns
from ..interruption import uninterrupted
from ..outputs import GenerateOutput
from ..past import PastKeyValues
from ..sampling import Sampling
from ..stepping import Row, SteppingBatch
from ..stops import StopSearch, StopStrings, TokenBytes, as_stop_rule
from ..workplace import Workplace
from .beams import BeamResult, run_beams
from .beginnings import KeptRows, OfSession, past_to_continue
from .columns import Columns
from .config import Settings
from .loop import Task, run
from .processors import LogitsPipeline
from .request import Request
from .speculation import Report, Speculation, SpeculativeBatch
from .stopping import Emitted, Stops
from .streaming import TokenStream
from .watching import HostWatch, Records
from .waves import rows_at_once


class Generation:
    """A checked call, ready to run: `events` once, then `result`.

    Raises ValueError or TypeError for what does not fit this model, OSError where memory is short.
    """

    def __init__(self, config: CodeGenConfig, decoder: Decoder, request: Request, stream: TokenStream, tokenizer: Any):
        settings, num_rows = request.settings, len(request.input_ids)
        self._config, self._decoder, self._request, self._stream = config, decoder, request, stream
        self._pad = settings.pad_token_id if settings.pad_token_id is not None else 0  # None: no row ends early
        self.rows: list[list[int]] = [[] for _ in range(num_rows)]  # new tokens so far
        self.reasons: list[str | None] = [None] * num_rows
        self.speculation: Report | None = None  # what drafts have brought
        self._beams: BeamResult | None = None
        self.cut: StopSearch | None = None  # the search that says where `stop` cuts the text
        self.vocabulary = TokenBytes(tokenizer) if tokenizer is not None else None
        past = past_to_continue(request.past, decoder, request.mask)
        if request.session is not None:
            request.session.require(decoder)
            if past is not None:
                raise ValueError("both session and past_key_values were given: a session has a cache of its own")
            if settings.return_dict_in_generate and settings.output_hidden_states:
                raise ValueError("output_hidden_states does not go with session: the states of what a session knows "
                                 "already are not computed again; call model.generate without it")

        records = self._records = Records(*(
            [] if settings.return_dict_in_generate and asked else None
            for asked in (settings.output_logits, settings.output_scores, settings.output_hidden_states)))
        self._columns = Columns(request.input_ids, request.steps, self._pad, decoder.device)
        self._pipeline = LogitsPipeline(request.rules, request.callbacks.prefix_fn, request.callbacks.processors,
                                        settings.num_beams)
        watched = records != Records() or bool(request.callbacks) or request.return_logprobs is not None
        self._watch = HostWatch(self._pipeline, self._columns, num_rows, records, top=request.return_logprobs,
                                renormalize=settings.renormalize_logits) if watched else None
        self._stops = self._make_stops()
        self._speculation: Speculation | None = None
        self._kept: KeptRows | None = None
        self._past: PastKeyValues | None = None  # of the result
        beams = settings.num_beams > 1
        together = beams or stream.is_heard or bool(request.callbacks) or records != Records() or past is not None
        self._max_rows = rows_at_once(
            config, decoder.dtype, [len(prompt) for prompt in request.prompts],
            settings.num_beams if beams else settings.num_return_sequences, request.steps, decoder.device,
            limit=request.max_batch_size, together=together,
            kept=sum(place.nbytes() for place in list(decoder.kept)))
        if beams:
            self._refuse_with_beams(past)
            return
        # Many completions that are cut and looked at as text need no caches, which are all held at once.
        if past is not None or (settings.return_dict_in_generate and settings.use_cache and request.session is None
                                and request.stop is None and self._max_rows >= num_rows):
            self._kept = KeptRows(decoder, past)
        self._speculation = _speculation_of(request, decoder, watched, stream.is_heard)

    @property
    def num_beams(self) -> int:
        return self._request.settings.num_beams

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._request.settings.eos_token_ids

    def events(self) -> Iterator[Emitted]:
        """Runs the call. Closing the iterator stops it at the next token; all memory is given back however it ends."""
        request = self._request
        self._stream.put(request.input_ids)
        if request.settings.num_beams > 1:
            yield from self._run_beams()
            return
        beginnings = self._kept if self._kept is not None else \
            OfSession(request.session) if request.session is not None else None
        task = Task(request.prompts, request.settings.num_return_sequences, request.steps, request.seeds,
                    request.sample_indices, self._max_rows)
        on_states = self._take_prompt_states if self._records.hidden_states is not None else None
        events = run(self._decoder, task, self._stops, self._make_batch, beginnings=beginnings,
                     on_prompt_states=on_states)
        if beginnings is None:
            with closing(events):
                for emitted in events:
                    self._note(emitted)
                    yield emitted
            return
        # A cache that outlives the call is changed a step at a time, whole steps only. The lock is not held between
        # them: a stream may stand still there, or go on in another thread.
        try:
            while True:
                with beginnings.lock, uninterrupted():
                    emitted = next(events, None)
                    if emitted is None and self._kept is not None:
                        mask = request.mask.repeat_interleave(request.settings.num_return_sequences, 0)
                        self._past = self._kept.settle(mask, [len(row) for row in self.rows])
                if emitted is None:
                    return
                self._note(emitted)
                yield emitted
        finally:
            with beginnings.lock, uninterrupted():
                events.close()
                beginnings.abandon()

    def result(self) -> Tensor | GenerateOutput:
        """After the last event: (rows, n) long on the model's device, or all that the call asked for."""
        request, settings = self._request, self._request.settings
        longest = max(map(len, self.rows))
        fill = self._pad if self._beams is None else self._beams.fill
        new = torch.tensor([row + [fill] * (longest - len(row)) for row in self.rows], dtype=torch.long, device="cpu")
        prompts = request.input_ids
        sequences = torch.cat([prompts, new], 1).to(self._decoder.device)
        if not settings.return_dict_in_generate and request.return_logprobs is None:
            return sequences
        records, beams = self._records, self._beams
        return GenerateOutput(
            sequences=sequences,
            sequences_scores=None if beams is None or records.scores is None else beams.sequences_scores,
            scores=_as_tuple(records.scores), logits=_as_tuple(records.logits),
            beam_indices=None if beams is None else beams.beam_indices,
            hidden_states=_as_tuple(records.hidden_states),
            past_key_values=self._past if settings.use_cache else None,
            new_tokens=[list(row) for row in self.rows],
            finish_reasons=list(self.reasons) if beams is None else None,
            completions=[self.text(row) for row in range(len(self.rows))] if self.vocabulary is not None else None,
            logprobs=self._watch.alternatives if self._watch is not None else None,
            speculation=self.speculation)

    def text(self, row: int) -> str:
        """A row's new text, without its eos token, cut where `stop` says."""
        tokens = self.rows[row]
        if tokens and tokens[-1] in self._request.settings.eos_token_ids:
            tokens = tokens[:-1]
        data = self.vocabulary.join(tokens)
        cut = self.cut.cut(row) if self.cut is not None else None
        return (data if cut is None else data[:cut]).decode("utf-8", "replace")

    def _note(self, emitted: Emitted) -> None:
        """What has come, before the caller sees it."""
        rows, tokens = emitted.rows, emitted.tokens
        if self._watch is not None:
            self._watch.chosen(rows, tokens)
        for row, token in zip(rows, tokens):
            self.rows[row].append(token)
        for row, reason in emitted.reasons.items():
            self.reasons[row] = reason
        self._stream.put_step(rows, tokens, len(self.rows), self._pad)

    def _make_batch(self, place: Workplace, on_end: Callable[[Row], None] | None) -> SteppingBatch:
        request, watch = self._request, self._watch
        sampling = sampling_of(request.settings, self._config.vocab_size)
        # A watch edits the logits itself, because callbacks act in the middle of the rules.
        rules = request.rules if watch is None and not request.rules.is_empty else None
        if self._speculation is None:
            return SteppingBatch(self._decoder, place, sampling, request.steps, rules=rules, watch=watch, on_end=on_end)
        batch = SpeculativeBatch(self._decoder, place, sampling, request.steps, self._speculation, rules=rules,
                                 on_end=on_end)
        self.speculation = batch.report
        return batch

    def _make_stops(self) -> Stops:
        request, settings = self._request, self._request.settings
        searches: list[StopSearch] = []
        if (request.stop is not None or settings.stop_strings) and self.vocabulary is None:
            name = "stop" if request.stop is not None else "stop_strings"
            raise ValueError(f"{name} needs the tokenizer, to see the text of the tokens: pass tokenizer=")
        if request.stop is not None:
            self.cut = StopSearch(as_stop_rule(request.stop), self.vocabulary)
            searches.append(self.cut)
        if settings.stop_strings:
            searches.append(StopSearch(StopStrings(settings.stop_strings), self.vocabulary))
        return Stops(eos=settings.eos_token_ids, steps=request.steps, prompt_columns=request.input_ids.shape[1],
                     searches=searches, seconds=settings.max_time, criteria=request.callbacks.criteria,
                     columns=self._columns if self._watch is not None else None,
                     scores=self._watch.scores if self._watch is not None else lambda: None)

    def _take_prompt_states(self, states: list[Tensor]) -> None:
        """Hidden states of the prompts' new tokens (tokens, d) -> (rows, columns, d), zeros at padding."""
        request = self._request
        mask = request.mask if request.past is None else request.mask[:, request.past.get_seq_length():]
        samples = request.settings.num_return_sequences
        self._records.hidden_states.append(tuple(
            pad_columns(state, mask).to(self._decoder.dtype).repeat_interleave(samples, 0) for state in states))

    # ---- Beams -----------------------------------------------------------------------------------

    def _refuse_with_beams(self, past: Any) -> None:
        request = self._request
        for name, value, instead in (
            ("past_key_values", past, "pass the whole prompt alone"),
            ("session", request.session, "leave it out"),
            ("stop", request.stop, "cut the text afterwards with codegen_fast.truncate"),
            ("return_logprobs", request.return_logprobs, "use output_scores, or model.score on the result"),
            ("max_batch_size", request.max_batch_size, "all beams of all prompts run together"),
            ("streamer", self._stream if self._stream.is_heard else None, "beams are not known before the end")):
            if value is not None:
                raise ValueError(f"{name} does not go with num_beams={request.settings.num_beams}: {instead}")
        if request.assistant is not None or request.settings.prompt_lookup_num_tokens is not None:
            request.warnings.append("drafts are left out of beam search, which takes the best of whole sequences")

    def _stop_beams(self, ids: Tensor, scores: Any) -> Tensor:
        prompts = self._request.prompts
        each = len(ids) // len(prompts)
        return self._stops.verdict(ids, [prompts[row // each] for row in range(len(ids))], scores)

    def _run_beams(self) -> Iterator[Emitted]:
        request, settings = self._request, self._request.settings
        self._beams = run_beams(
            self._decoder, request.prompts, request.input_ids[::settings.num_return_sequences], settings, request.rules,
            self._pipeline, request.seeds[::settings.num_return_sequences], request.sample_indices[0], request.steps,
            self._stop_beams if self._stops.are_outside else None, self._records)
        self.rows = self._beams.rows
        yield Emitted([row for row, tokens in enumerate(self.rows) for _ in tokens],
                      [token for tokens in self.rows for token in tokens], {})


def _speculation_of(request: Request, decoder: Decoder, watched: bool, heard: bool) -> Speculation | None:
    """Where drafts come from, if the call wants any. Raises TypeError or ValueError for an assistant that cannot."""
    settings, assistant = request.settings, request.assistant
    if assistant is None and settings.prompt_lookup_num_tokens is None:
        return None
    drafter = None
    if assistant is not None:
        drafter = getattr(assistant, "_decoder", None)
        if not isinstance(drafter, Decoder):
            raise TypeError(f"assistant_model must be a model of codegen_fast, got {type(assistant).__name__}: load it "
                            "with codegen_fast.AutoModelForCausalLM, or pass it through codegen_fast.accelerate")
        if drafter.config.vocab_size != decoder.config.vocab_size:
            raise ValueError(f"assistant_model has a vocabulary of {drafter.config.vocab_size} tokens and this model "
                             f"one of {decoder.config.vocab_size}: drafts need the same tokenizer")
    if watched or (heard and len(request.input_ids) > 1):
        request.warnings.append("drafts are left out of this call, because callbacks, records of scores, "
                                "return_logprobs or a streamer of several rows look at every single step; the tokens "
                                "are the same")
        return None
    return Speculation(
        assistant=drafter, longest_ngram=settings.max_matching_ngram_size,
        most_tokens=settings.num_assistant_tokens if assistant is not None else settings.prompt_lookup_num_tokens,
        confidence=settings.assistant_confidence_threshold,
        fixed=settings.num_assistant_tokens_schedule == "constant")


def sampling_of(settings: Settings, vocab_size: int) -> Sampling:
    return Sampling(settings.temperature, min(settings.top_k, vocab_size), settings.top_p, settings.eos_token_ids,
                    settings.min_p, settings.typical_p, settings.epsilon_cutoff, settings.eta_cutoff)


def _as_tuple(values: list | None) -> tuple | None:
    return None if values is None else tuple(values)
