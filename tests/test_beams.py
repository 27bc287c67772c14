"""codegen_fast.generation.beams: the search of transformers, and beam sampling against its exact distribution."""

from __future__ import annotations

import itertools
import math
import signal
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from checkpoints import make_model
from devices import EMULATED, per_device

import codegen_fast
from codegen_fast import ops
from codegen_fast.generation.beams import BeamResult, draw_without_replacement, run_beams
from codegen_fast.generation.config import GenerationConfig, resolve
from codegen_fast.generation.processors import LogitsPipeline
from codegen_fast.generation.rules import Rules
from codegen_fast.generation.watching import Records

CHECKPOINTS = {
    "codegen": dict(seed=3),
    "narrow": dict(n_embd=32, n_head=4, rotary_dim=4, n_layer=3, vocab_size=53, seed=11),
    "gptj": dict(model_type="gptj", n_embd=48, n_head=6, rotary_dim=8, n_layer=2, vocab_size=67, seed=5),
}
LONE = [[11, 12, 13, 14, 15]]
RAGGED = [[11, 12, 13, 14, 15, 16, 17], [21, 22, 23], [31], [41, 42, 43, 44, 45]]
STEPS = 12
PAD = 0


@pytest.fixture(scope="module", params=CHECKPOINTS)
def models(request):
    """(transformers' model, ours)"""
    theirs = make_model(**CHECKPOINTS[request.param])
    return theirs, codegen_fast.accelerate(theirs)


@pytest.fixture(scope="module")
def model():
    return codegen_fast.accelerate(make_model(**CHECKPOINTS["codegen"]))


@pytest.fixture
def blocked(monkeypatch):
    """Call it, and from then on transformers cannot be imported."""
    return lambda: monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.fixture
def caches(model, monkeypatch):
    """The caches that were made, to see that their pages come back."""
    made = []
    new_cache = model._decoder.new_cache
    monkeypatch.setattr(model._decoder, "new_cache", lambda *args: made.append(new_cache(*args)) or made[-1])
    yield made
    assert made and all(cache.pages_in_use == 0 for cache in made)


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    columns = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (columns - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (columns - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def search(model, prompts, *, steps=STEPS, seeds=None, sample_offset=0, prefix_fn=None, processors=(), stop_rows=None,
           records=None, **knobs) -> BeamResult:  # fmt: skip
    settings, _ = resolve(knobs, GenerationConfig(), GenerationConfig())
    columns = padded(prompts)[0]
    rules = Rules.of(settings, columns.shape[1], steps)
    return run_beams(
        model._decoder, [torch.tensor(prompt) for prompt in prompts], columns, settings, rules,
        LogitsPipeline(rules, prefix_fn, tuple(processors), settings.num_beams), seeds or [0] * len(prompts),
        sample_offset, steps, stop_rows, records or Records())  # fmt: skip


def expected(theirs, prompts, *, steps=STEPS, prefix_fn=None, processors=(), criteria=(), **knobs):
    """What transformers returns: its output, and new tokens without padding."""
    ids, mask = padded(prompts)
    knobs = {"eos_token_id": None, "pad_token_id": PAD, **knobs}
    theirs.generation_config.eos_token_id = None  # None as an argument does not count
    out = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=steps, prefix_allowed_tokens_fn=prefix_fn,
        logits_processor=list(processors), stopping_criteria=list(criteria), return_dict_in_generate=True,
        output_scores=True, output_logits=True, output_hidden_states=True, **knobs)  # fmt: skip
    counts = (out.beam_indices >= 0).sum(1).tolist()
    return out, [row[: len(ids[0]) + n][len(ids[0]) :] for row, n in zip(out.sequences.tolist(), counts)]


def require_equal(got: BeamResult, out, rows) -> None:
    assert got.rows == rows
    torch.testing.assert_close(got.sequences_scores, out.sequences_scores, rtol=2e-5, atol=2e-5)
    assert torch.equal(got.beam_indices, out.beam_indices)
    new = out.sequences[:, out.sequences.shape[1] - out.beam_indices.shape[1] :].tolist()
    assert new == [row + [got.fill] * (len(whole) - len(row)) for row, whole in zip(rows, new)]
    assert got.sequences_scores.dtype == torch.float32 and got.beam_indices.dtype == torch.int32


def likely(model, prompts=RAGGED, count=3) -> list[int]:
    """Tokens that continuations without an end hold, the most frequent first: as eos tokens they matter."""
    rows = search(model, prompts, num_beams=5, num_return_sequences=5).rows
    return [token for token, _ in Counter(token for row in rows for token in row[2:]).most_common(count)]


def alone(run, prompts, *args, **knobs):
    """The rows and scores of run(model, prompts), each prompt on its own."""
    rows, scores = [], []
    for prompt in prompts:
        result = run([prompt], *args, **knobs)
        rows += result[1] if isinstance(result, tuple) else result.rows
        scores.append(result[0].sequences_scores if isinstance(result, tuple) else result.sequences_scores)
    return rows, torch.cat(scores)


# ---- Parity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [LONE, RAGGED], ids=["lone", "ragged"])
@pytest.mark.parametrize("num_beams, returned", [(2, 1), (3, 3), (5, 2)])
def test_without_eos(models, blocked, prompts, num_beams, returned):
    theirs, ours = models
    knobs = dict(num_beams=num_beams, num_return_sequences=returned)
    out, rows = expected(theirs, prompts, **knobs)
    blocked()
    got = search(ours, prompts, **knobs)
    require_equal(got, out, rows)
    assert got.num_steps == STEPS and all(len(row) == STEPS for row in rows)


def test_beams_find_what_greedy_decoding_does_not(models):
    theirs, ours = models
    ids, mask = padded(RAGGED)
    greedy = theirs.generate(ids, attention_mask=mask, max_new_tokens=STEPS, eos_token_id=None, do_sample=False)
    best = search(ours, RAGGED, num_beams=4)
    assert best.rows != greedy[:, ids.shape[1] :].tolist()
    assert best.rows != search(ours, RAGGED, num_beams=2).rows


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.5, 0.0, 1.0, 2.5])
def test_ends(models, blocked, early_stopping, length_penalty):
    """One to three eos tokens that the beams meet, at every penalty."""
    theirs, ours = models
    eos = likely(ours)
    ends = 0
    for num_eos, num_beams, prompts in ((1, 4, LONE), (1, 2, RAGGED), (2, 5, RAGGED), (3, 3, LONE), (3, 4, RAGGED)):
        knobs = dict(num_beams=num_beams, num_return_sequences=min(3, num_beams), early_stopping=early_stopping,
                     length_penalty=length_penalty, eos_token_id=eos[:num_eos])  # fmt: skip
        out, rows = expected(theirs, prompts, **knobs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "transformers", None)
            require_equal(search(ours, prompts, **knobs), out, rows)
        ends += sum(len(row) < STEPS for row in rows)
    assert ends >= 5 or length_penalty == 2.5  # which favours long rows


def test_how_a_search_ends_matters(model):
    eos = likely(model)[:2]
    found = {
        (early_stopping, length_penalty): search(model, RAGGED, num_beams=3, num_return_sequences=3, eos_token_id=eos,
                                                 early_stopping=early_stopping, length_penalty=length_penalty).rows
        for early_stopping in (False, True, "never") for length_penalty in (0.0, 2.5)
    }  # fmt: skip
    assert all(a != b for a, b in itertools.combinations([found[e, 2.5] for e in (False, True, "never")], 2))
    assert found[False, 0.0] != found[False, 2.5]


@pytest.mark.parametrize("prompts", [LONE, RAGGED], ids=["lone", "ragged"])
@pytest.mark.parametrize("rule", [
    dict(repetition_penalty=1.4), dict(no_repeat_ngram_size=2), "bad_words_ids", "suppress_tokens",
    dict(min_new_tokens=6), dict(repetition_penalty=0.8, renormalize_logits=True),
], ids=["repetition_penalty", "ngrams", "bad_words", "suppress", "min_new_tokens", "renormalize"])  # fmt: skip
def test_rules(models, blocked, rule, prompts):
    """Each prompt as transformers has it alone: its padding is no part of a prompt's history."""
    theirs, ours = models
    tokens = likely(ours, count=4)
    plain = dict(num_beams=3, num_return_sequences=2, eos_token_id=tokens[:1] if "min_new_tokens" in rule else None)
    best = search(ours, prompts, **plain).rows[0]
    if rule == "bad_words_ids":
        rule = {rule: [[tokens[1]], best[-2:], best[3:6]]}
    elif rule == "suppress_tokens":
        rule = {rule: [tokens[1], best[-1]]}
    knobs = {**plain, **rule}
    rows, scores = alone(lambda prompts: expected(theirs, prompts, **knobs), prompts)
    blocked()
    got = search(ours, prompts, **knobs)
    assert got.rows == rows
    torch.testing.assert_close(got.sequences_scores, scores, rtol=2e-5, atol=2e-5)
    before = search(ours, prompts, **plain)
    assert before.rows != rows or not torch.allclose(before.sequences_scores, scores)


def test_renormalized_scores_differ(model):
    knobs = dict(num_beams=3, no_repeat_ngram_size=1)
    one, other = (search(model, LONE, **knobs, renormalize_logits=value).sequences_scores for value in (False, True))
    assert float(other) > float(one) + 1e-3


class LessOfTheLast:
    """A logits processor: what a row ends with gets less likely."""

    def __init__(self):
        self.shapes = []

    def __call__(self, ids, scores):
        self.shapes.append(ids.shape)
        return scores.scatter_add(1, ids[:, -1:], torch.full((len(ids), 1), -3.0))


@pytest.mark.parametrize("prompts", [LONE, RAGGED], ids=["lone", "ragged"])
def test_callbacks(models, blocked, prompts):
    """They see all beams at every step, padded; prompts that are done keep their places."""
    theirs, ours = models
    eos = likely(ours)[2:]
    vocab_size = theirs.config.vocab_size
    seen = []

    def allowed(batch_id, ids):
        seen.append((batch_id, ids.tolist()))
        return [token for token in range(vocab_size) if (token + int(ids[-1]) + batch_id) % 3]

    knobs = dict(num_beams=3, num_return_sequences=2, eos_token_id=eos)
    processors = [LessOfTheLast(), LessOfTheLast()]
    out, rows = expected(theirs, prompts, prefix_fn=allowed, processors=processors[:1], **knobs)
    theirs_saw = seen[:]
    seen.clear()
    blocked()
    got = search(ours, prompts, prefix_fn=allowed, processors=processors[1:], **knobs)
    require_equal(got, out, rows)
    assert seen == theirs_saw and processors[0].shapes == processors[1].shapes
    assert rows != search(ours, prompts, **knobs).rows


@pytest.mark.parametrize("prompts", [LONE, RAGGED], ids=["lone", "ragged"])
@pytest.mark.parametrize("eos", [lambda tokens: tokens[2:], lambda tokens: None], ids=["eos", "no_eos"])
def test_criteria(models, blocked, prompts, eos):
    theirs, ours = models
    asked = []

    def ends(ids, scores):
        asked.append((ids.shape, len(scores)))
        return ids[:, -2:].sum(1) % 4 == 0

    knobs = dict(num_beams=3, num_return_sequences=3, eos_token_id=eos(likely(ours)), pad_token_id=5)
    out, rows = expected(theirs, prompts, criteria=[ends], **knobs)
    theirs_asked = asked[:]
    asked.clear()
    blocked()
    got = search(ours, prompts, stop_rows=ends, records=Records(scores=[]), **knobs)
    require_equal(got, out, rows)
    assert asked == theirs_asked
    assert rows != search(ours, prompts, **knobs).rows


@pytest.mark.parametrize("prompts", [LONE, RAGGED], ids=["lone", "ragged"])
def test_records(models, blocked, prompts):
    theirs, ours = models
    knobs = dict(num_beams=3, num_return_sequences=2, eos_token_id=likely(ours), length_penalty=2.0)
    out, rows = expected(theirs, prompts, **knobs)
    blocked()
    records = Records([], [], [])
    got = search(ours, prompts, records=records, **knobs)
    require_equal(got, out, rows)
    assert got.num_steps == len(out.scores) == len(records.scores) == len(records.logits) == len(records.hidden_states)
    for mine, other in zip([*records.scores, *records.logits], [*out.scores, *out.logits], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    tokens = padded(prompts)[1].bool().repeat_interleave(3, 0)
    for step, (mine, other) in enumerate(zip(records.hidden_states, out.hidden_states, strict=True)):
        for a, b in zip(mine, other, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            torch.testing.assert_close(*((a, b) if step else (a[tokens], b[tokens])), rtol=1e-4, atol=1e-4)
    assert float(records.hidden_states[0][0][~tokens].abs().sum()) == 0.0


# ---- Company, pages, interruptions -------------------------------------------------------------


@pytest.mark.parametrize("knobs", [
    dict(), dict(repetition_penalty=1.2), dict(do_sample=True, top_k=9, temperature=1.3),
], ids=["search", "rules", "sampling"])  # fmt: skip
def test_a_prompt_gets_what_it_gets_alone(model, caches, knobs):
    knobs = dict(num_beams=4, num_return_sequences=3, eos_token_id=likely(model), length_penalty=1.5, **knobs)
    together = search(model, RAGGED, seeds=[5, 6, 7, 8], **knobs)
    records = Records(scores=[])  # then no prompt leaves
    watched = search(model, RAGGED, seeds=[5, 6, 7, 8], records=records, **knobs)
    assert watched.rows == together.rows and torch.equal(watched.sequences_scores, together.sequences_scores)
    for i, prompt in enumerate(RAGGED):
        own = search(model, [prompt], seeds=[5 + i], **knobs)
        mine = slice(3 * i, 3 * i + 3)
        assert own.rows == together.rows[mine]
        assert torch.equal(own.sequences_scores, together.sequences_scores[mine])
        longest = own.beam_indices.shape[1]
        ours = together.beam_indices[mine, :longest]
        assert torch.equal(torch.where(ours < 0, -1, ours - 4 * i), own.beam_indices)


def test_prompts_are_computed_once_and_leave_when_done(model, caches, monkeypatch):
    sizes = []
    step = codegen_fast.decoder.RunningBatch.step
    monkeypatch.setattr(codegen_fast.decoder.RunningBatch, "step",
                        lambda self, ids, *args: sizes.append(len(ids)) or step(self, ids, *args))  # fmt: skip
    eos = likely(model)
    sizes.clear()
    before = model._decoder.prefilled_tokens
    result = search(model, RAGGED, num_beams=3, eos_token_id=eos, early_stopping=True)
    assert model._decoder.prefilled_tokens - before == sum(map(len, RAGGED))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 12 and sizes[-1] < 12 and set(sizes) <= {3, 6, 9, 12}
    assert result.num_steps == len(sizes) + 1


def test_beams_share_the_pages_of_their_prompt(monkeypatch):
    model = codegen_fast.accelerate(make_model(n_positions=600, n_ctx=600, seed=3))
    most = []
    cache = model._decoder.new_cache()
    reserve = type(cache).reserve

    def counted(self, *args):
        reserve(self, *args)
        most.append(self.pages_in_use)

    monkeypatch.setattr(type(cache), "reserve", counted)
    prompt = torch.randint(3, 101, (500,), generator=torch.Generator().manual_seed(1)).tolist()
    search(model, [prompt], num_beams=5, steps=4)
    assert max(most) <= cache.pages_for(500) + 5 * 2


def test_interruptions_give_all_pages_back(model, caches):
    whole = search(model, RAGGED, num_beams=3).rows

    class Stop(Exception):
        pass

    def failing(at, error):
        calls = itertools.count()

        def process(ids, scores):
            if next(calls) == at:
                error()
            return scores

        return process

    def stop():
        raise Stop

    for at in (0, 1, 5):
        with pytest.raises(Stop):
            search(model, RAGGED, num_beams=3, processors=[failing(at, stop)])
        assert caches[-1].pages_in_use == 0
        with pytest.raises(KeyboardInterrupt):
            search(model, RAGGED, num_beams=3, processors=[failing(at, lambda: signal.raise_signal(signal.SIGINT))])
        assert caches[-1].pages_in_use == 0
    with pytest.raises(Stop):
        search(model, RAGGED, num_beams=3, stop_rows=lambda ids, scores: stop())
    assert search(model, RAGGED, num_beams=3).rows == whole


def test_an_interruption_in_the_middle_of_a_reordering(model, caches, monkeypatch):
    fork = codegen_fast.cache.PagedCache.fork
    calls = itertools.count()

    def interrupted(self, sequence):
        if next(calls) == 13:
            raise KeyboardInterrupt
        return fork(self, sequence)

    monkeypatch.setattr(codegen_fast.cache.PagedCache, "fork", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(model, RAGGED, num_beams=3)


def test_two_threads(model, caches):
    knobs = dict(num_beams=4, num_return_sequences=2, eos_token_id=likely(model))
    each = {name: search(model, prompts, **knobs).rows for name, prompts in (("lone", LONE), ("ragged", RAGGED))}
    got = {}
    threads = [threading.Thread(target=lambda n=name, p=prompts: got.update({n: search(model, p, **knobs).rows}))
               for name, prompts in (("lone", LONE), ("ragged", RAGGED))]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == each


def test_refusals(model, caches):
    def spoil(value):
        return lambda ids, scores: scores.fill_(value)

    for knobs in (dict(), dict(do_sample=True, top_k=0)):
        with pytest.raises(ValueError, match="prompt 0 gets NaN"):
            search(model, RAGGED, num_beams=3, processors=[spoil(math.nan)], **knobs)
        with pytest.raises(ValueError, match="prompt 0: no continuation"):
            search(model, RAGGED, num_beams=3, processors=[spoil(-math.inf)], **knobs)
    second = torch.arange(8)[:, None] // 2 == 1
    with pytest.raises(ValueError, match="prompt 1: no continuation"):
        search(model, RAGGED, num_beams=2, processors=[lambda ids, scores: scores.masked_fill(second, -math.inf)])


def test_a_beam_that_nothing_may_follow_ends(model):
    """The others go on, with filters and renormalisation as well."""
    dead = search(model, LONE, num_beams=3).rows[0][1]

    def process(ids, scores):
        return scores.masked_fill(ids[:, -1:] == dead, -math.inf)

    for knobs in (dict(), dict(renormalize_logits=True), dict(do_sample=True, temperature=0.5, top_p=0.9, top_k=5)):
        got = search(model, LONE, num_beams=3, num_return_sequences=3, processors=[process], **knobs)
        assert all(len(row) == STEPS and dead not in row[:-1] for row in got.rows)
        assert got.sequences_scores.isfinite().all()


@per_device((EMULATED,))
def test_on_cuda(device):
    """Scores are those of the whole rows: beams that changed places took their caches along."""
    model = codegen_fast.accelerate(make_model(n_embd=32, n_head=4, rotary_dim=4, n_layer=1, vocab_size=37,
                                               dtype=torch.float16, seed=2)).to(device.memory)  # fmt: skip
    prompts = [[5, 6, 7], [8, 9]]
    got = search(model, prompts, steps=4, num_beams=3, num_return_sequences=3, length_penalty=0.0)
    assert (got.beam_indices[:, 1:] != got.beam_indices[:, :-1]).any()
    for r, (row, score) in enumerate(zip(got.rows, got.sequences_scores.tolist())):
        prompt = prompts[r // 3]
        logits = model(torch.tensor([prompt + row])).logits[0].float()
        own = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(1, torch.tensor(row)[:, None]).sum()
        assert abs(float(own) - score) < 0.05


def test_rows_of_a_running_batch_change_places(model):
    decoder = model._decoder
    cache = decoder.new_cache()
    sequences = [cache.new_sequence() for _ in range(3)]
    decoder.prefill(cache, sequences, [torch.tensor(prompt) for prompt in RAGGED[:3]])
    batch = decoder.start(cache, sequences, 9)
    tokens = torch.tensor([51, 52, 53])
    batch.step(tokens)
    with pytest.raises(ValueError, match="4 rows"):
        batch.reorder([0, 0, 1, 2])
    batch.reorder([2, 0, 2])
    assert cache.pages_in_use == 2
    got = [batch.step(torch.tensor(ids)).clone() for ids in ([61, 62, 63], [71, 72, 73])]
    batch.reorder([1])
    assert cache.pages_in_use == 1
    got.append(batch.step(torch.tensor([81])).clone())
    batch.close()
    assert cache.pages_in_use == 0
    rows = [[*RAGGED[2], 53, 61, 71], [*RAGGED[0], 51, 62, 72, 81], [*RAGGED[2], 53, 63, 73]]
    for row, ids in enumerate(rows):
        start = len(ids) - (4 if row == 1 else 3)
        sequence = cache.new_sequence()
        decoder.prefill(cache, [sequence], [torch.tensor(ids[:start])])
        alone = decoder.start(cache, [sequence], 9)
        logits = [alone.step(torch.tensor([token])).clone()[0] for token in ids[start:]][1:]
        alone.close()
        assert torch.equal(got[0][row], logits[0]) and torch.equal(got[1][row], logits[1])
        if row == 1:
            assert torch.equal(got[2][0], logits[2])


# ---- Beam sampling -----------------------------------------------------------------------------


def ordered_draws(scores, count) -> dict[tuple[int, ...], float]:
    """The probability of every order of `count` draws without replacement from softmax(scores)."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    draws = {(): 1.0}
    for _ in range(count):
        longer = {}
        for drawn, probability in draws.items():
            left = sum(weight for i, weight in enumerate(weights) if i not in drawn)
            for i, weight in enumerate(weights):
                if i not in drawn and weight > 0:
                    longer[*drawn, i] = probability * weight / left
        draws = longer
    return draws


def require_distribution(counts: Counter, exact: dict) -> None:
    """A chi-square test at 4 standard deviations, outcomes that are expected less than 5 times together."""
    total = counts.total()
    assert not counts.keys() - exact.keys()
    assert abs(sum(exact.values()) - 1) < 1e-9
    rare = {outcome for outcome, probability in exact.items() if total * probability < 5}
    cells = [(counts[outcome], total * exact[outcome]) for outcome in exact if outcome not in rare]
    cells.append((sum(counts[outcome] for outcome in rare), total * sum(exact[outcome] for outcome in rare)))
    cells = [(seen, mean) for seen, mean in cells if mean > 0]
    chi_square = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    freedom = len(cells) - 1
    assert freedom >= 5 and chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_draws_without_replacement():
    scores = np.array([0.3, -1.0, -math.inf, 1.2, 0.0, -math.inf], dtype=np.float32)
    exact = ordered_draws(scores.tolist(), 3)
    generator = np.random.default_rng(1)
    counts = Counter(tuple(draw_without_replacement(scores, generator.random(3)).tolist()) for _ in range(20_000))
    require_distribution(counts, exact)


def test_draws_from_what_a_certain_one_leaves():
    """The first takes all but 1e-30 of the mass, the next two all but 1e-12 of what is left."""
    scores = np.array([70.0, -30.0, 0.0, -29.0, 0.7, -28.5], dtype=np.float32)
    exact = {}
    for (a, b), middle in ordered_draws([0.0, 0.7], 2).items():
        for rest, probability in ordered_draws([-30.0, -29.0, -28.5], 2).items():
            exact[0, (2, 4)[a], (2, 4)[b], *((1, 3, 5)[i] for i in rest)] = middle * probability
    generator = np.random.default_rng(2)
    counts = Counter(tuple(draw_without_replacement(scores, generator.random(5)).tolist()) for _ in range(20_000))
    require_distribution(counts, exact)


def test_draws_at_the_edges():
    scores = np.array([-math.inf, 0.0, -1e9, -math.inf, 0.0], dtype=np.float32)
    last = np.nextafter(1.0, 0.0)
    assert draw_without_replacement(scores, [0.0] * 5).tolist() == [1, 4, 2, 0, 3]
    assert draw_without_replacement(scores, [last] * 5).tolist() == [4, 1, 2, 0, 3]
    assert draw_without_replacement(np.full(3, -math.inf, dtype=np.float32), [0.5] * 2).tolist() == [0, 1]


def exact_beam_sampling(log_probs, num_beams, num_eos, eos, steps) -> dict[tuple[tuple[int, ...], ...], float]:
    """The probability of each result of beam sampling (early_stopping=False, length_penalty=1), by enumeration.

    log_probs: of a tuple of new tokens -> scores of the next.
    """
    count = num_beams * max(2, 1 + num_eos)
    # A state: running beams (score, tokens), ended ones (final score, tokens), whether the search goes on.
    states = {(((0.0, ()),), (), True): 1.0}
    for length in range(1, steps + 1):
        after: dict = {}
        for (running, ended, goes_on), probability in states.items():
            if not goes_on:
                after[running, ended, goes_on] = after.get((running, ended, goes_on), 0.0) + probability
                continue
            pairs = [(score + float(value), (*tokens, token)) for score, tokens in running
                     for token, value in enumerate(log_probs(tokens)) if value > -math.inf]  # fmt: skip
            for drawn, chance in ordered_draws([score for score, _ in pairs], min(count, len(pairs))).items():
                candidates = [pairs[i] for i in drawn]
                done = [tokens[-1] in eos or length == steps for _, tokens in candidates]
                best = sorted((c for c, end in zip(candidates, done) if not end), reverse=True)[:num_beams]
                first = list(zip(candidates, done))[:num_beams]
                new = [(score / length, tokens) for (score, tokens), end in first if end]
                kept = tuple(sorted([*ended, *new], reverse=True)[:num_beams])
                on = bool(best) and (len(kept) < num_beams or best[0][0] / length > kept[-1][0])
                state = (tuple(best), kept, on)
                after[state] = after.get(state, 0.0) + probability * chance
        states = after
    results: dict = {}
    for (_, ended, _), probability in states.items():
        rows = tuple(tokens for _, tokens in ended)
        results[rows] = results.get(rows, 0.0) + probability
    return results


@pytest.mark.parametrize("filters", [dict(top_k=0), dict(top_k=4, temperature=1.7)], ids=["plain", "filtered"])
def test_beam_sampling_has_its_exact_distribution(filters, blocked):
    """Ours, and transformers', so that it is the same."""
    theirs = make_model(n_embd=16, n_head=4, rotary_dim=2, n_layer=1, vocab_size=5, seed=9)
    ours = codegen_fast.accelerate(theirs)
    knobs = dict(num_beams=2, num_return_sequences=2, do_sample=True, eos_token_id=[4], **filters)
    prompt, steps = [1, 3], 2

    def log_probs(tokens):
        logits = ours(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
        scores = torch.log_softmax(logits, -1) / filters.get("temperature", 1)
        kept = scores.topk(filters["top_k"] or len(scores)).indices
        return torch.full_like(scores, -math.inf).index_put_((kept,), scores[kept]).tolist()

    cached = {tokens: log_probs(tokens) for n in range(steps) for tokens in itertools.product(range(5), repeat=n)}
    exact = exact_beam_sampling(cached.__getitem__, 2, 1, [4], steps)
    torch.manual_seed(1)
    for rows in (
        expected(theirs, [prompt] * 5_000, steps=steps, **knobs)[1],
        search(ours, [prompt] * 20_000, steps=steps, seeds=range(20_000), **knobs).rows,
    ):
        require_distribution(Counter(tuple(map(tuple, pair)) for pair in zip(rows[::2], rows[1::2])), exact)


def test_seeds(model):
    knobs = dict(num_beams=3, num_return_sequences=3, do_sample=True, top_k=0, temperature=1.2)
    first = search(model, RAGGED, seeds=[1, 2, 3, 2**64 - 1], **knobs)
    again = search(model, RAGGED, seeds=[1, 2, 3, 2**64 - 1], **knobs)
    assert first.rows == again.rows and torch.equal(first.sequences_scores, again.sequences_scores)
    other = search(model, RAGGED, seeds=[4, 5, 6, 7], **knobs)
    later = search(model, RAGGED, seeds=[1, 2, 3, 2**64 - 1], sample_offset=1, **knobs)
    for i in range(4):
        rows = slice(3 * i, 3 * i + 3)
        assert len({str(result.rows[rows]) for result in (first, other, later)}) == 3
