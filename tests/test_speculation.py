"""Speculative decoding: fewer calls, and the tokens of plain decoding to the last bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoints import make_model
from devices import CPU, CPUS, CUDA, EMULATED, Device, per_device
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speculative_runs import (  # noqa: F401 (decoder: a fixture)
    FIXED,
    GREEDY,
    HOT,
    KINDS,
    SHAPE,
    Oracle,
    decoder,
    decoder_on,
    plain,
    prompt,
    repetitive,
    same,
    speculative,
)

import codegen_fast
from codegen_fast import transfer
from codegen_fast.generation import pacing
from codegen_fast.generation.drafters import Assistant
from codegen_fast.generation.speculation import Speculation, SpeculativeBatch
from codegen_fast.sampling import Sampling
from codegen_fast.verification import Chooser, Verifier


# ---- The logits of a verification --------------------------------------------------------------


def kinds(device: Device):
    return list(KINDS) if device.backend == "cpu" else ["float16", "bfloat16", "int8"]


@per_device((*CPUS, *CUDA), kind=kinds)
def test_verified_logits_are_bitwise_those_of_single_steps(device, kind):
    """Rows with different numbers of tokens, rows that leave, tokens that are forgotten; across a page's end."""
    decoder = decoder_on(device, kind)
    lengths = (1, 30, 61) if device.emulated else (1, 15, 30, 61, 250)
    rounds = ([3, 1, 4], [2, 5, 1]) if device.emulated else ([3, 1, 4, 2, 1], [1, 5, 1, 2, 7], [2, 2, 16, 1, 3])
    generator = torch.Generator().manual_seed(3)
    counts = [sum(own) for own in zip(*rounds)]
    fed = [torch.randint(3, 67, (count,), generator=generator).tolist() for count in counts]
    expected = []
    for i, length in enumerate(lengths):
        cache = decoder.new_cache()
        sequence = cache.new_sequence()
        decoder.prefill(cache, [sequence], [torch.tensor(prompt(length, i))], logits="none")
        batch = decoder.start(cache, [sequence], len(fed[i]))
        expected.append([batch.step(torch.tensor([token], device=decoder.device))[0].cpu().clone() for token in fed[i]])
        batch.close()

    cache = decoder.new_cache()
    sequences = [cache.new_sequence() for _ in lengths]
    decoder.prefill(cache, sequences, [torch.tensor(prompt(n, i)) for i, n in enumerate(lengths)], logits="none")
    verifier = Verifier(decoder, cache, 40, len(lengths), 300)
    of_last = Verifier(decoder, cache, 40, len(lengths), 300, logits="last")
    done = [0] * len(lengths)
    here = list(range(len(lengths)))
    for turn, counts in enumerate(rounds):
        own = [sequences[i] for i in here]
        # Wrong tokens first, which are forgotten.
        wrong = [[5] * (counts[i] + i % 2) for i in here]
        verifier.verify(own, wrong)
        for sequence, tokens in zip(own, wrong):
            cache.crop(sequence, sequence.length - len(tokens))
        tokens = [fed[i][done[i] : done[i] + counts[i]] for i in here]
        if turn % 2:
            last = of_last.verify(own, tokens).cpu().clone()
            for sequence, given in zip(own, tokens):
                cache.crop(sequence, sequence.length - len(given))
        logits = verifier.verify(own, tokens).cpu().clone()
        if turn % 2:
            ends = np.cumsum([len(given) for given in tokens]) - 1
            assert torch.equal(last, logits[ends.tolist()])
        at = 0
        for i, given in zip(here, tokens):
            for n in range(len(given)):
                assert torch.equal(logits[at], expected[i][done[i] + n]), (i, n)
                at += 1
            done[i] += len(given)
        cache.release(sequences[here[-1]])
        here = here[:-1]
    for i in here:
        cache.release(sequences[i])
    assert cache.pages_in_use == 0


def test_too_much_for_a_verifier_is_an_error(decoder):
    cache = decoder.new_cache()
    sequences = [cache.new_sequence(), cache.new_sequence()]
    verifier = Verifier(decoder, cache, 4, 1, 20)
    for own, tokens in ((sequences, [[3], [3]]), (sequences[:1], [[3] * 5]), (sequences[:1], [[]])):
        with pytest.raises(ValueError, match="expected at most 4 in 1 sequences of up to 20"):
            verifier.verify(own, tokens)
    assert [s.length for s in sequences] == [0, 0] and cache.pages_in_use == 0


# ---- Tokens ------------------------------------------------------------------------------------

HOWS = {"adaptive": Speculation(), "fixed": FIXED, "three": Speculation(most_tokens=3, fixed=True),
        "bigrams": Speculation(longest_ngram=2, fixed=True)}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", HOWS)
def test_tokens_are_those_of_plain_decoding(kind, how):
    decoder = decoder_on(CPU, kind)
    prompts = [repetitive(40), prompt(9, 1), repetitive(23, 3)]
    for sampling in (GREEDY, HOT, Sampling(0.3, 0, 1.0, (7,), min_p=0.05)):
        same(decoder, prompts, sampling, 50, HOWS[how])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_drafts_of_any_rows_give_the_tokens_of_plain_decoding(decoder, data):
    """Prompts, samples of each, seeds, lengths, eos tokens, rows that are stopped or wait; drafts right and wrong."""
    prompts = [prompt(data.draw(st.integers(1, 40)), i) for i in range(data.draw(st.integers(1, 3)))]
    samples, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 30))
    rows = len(prompts) * samples
    temperature = data.draw(st.sampled_from([0.0, 0.5, 1.5]))
    eos = tuple(data.draw(st.lists(st.integers(3, 66), max_size=2, unique=True)))
    sampling = Sampling(temperature, data.draw(st.sampled_from([0, 5])), data.draw(st.sampled_from([0.8, 1.0])), eos)
    more = {"samples": samples, "seed": data.draw(st.integers(0, 2**63)), "at_once": data.draw(st.integers(1, rows))}
    stop_after = data.draw(st.none() | st.lists(st.integers(1, 30), min_size=rows, max_size=rows))
    expected = plain(decoder, prompts, sampling, steps, **more)
    wrong, most = data.draw(st.sampled_from([0.0, 0.3, 1.0])), data.draw(st.integers(1, 12))
    source = data.draw(st.sampled_from(["lookup", "oracle", "assistant"]))
    how = Speculation(fixed=True, most_tokens=most, assistant=decoder if source == "assistant" else None,
                      confidence=data.draw(st.sampled_from([None, 0.5])))  # fmt: skip
    drafter = (lambda place: Oracle(expected.tokens, wrong, most)) if source == "oracle" else None
    got = speculative(decoder, prompts, sampling, steps, how, drafter=drafter, stop_after=stop_after, **more)
    for row, own in enumerate(got.tokens):
        wanted = len(own) if stop_after is None else min(len(own), stop_after[row])
        assert own[:wanted] == expected.tokens[row][: len(expected.tokens[row]) if stop_after is None else wanted]
        assert len(own) >= min(len(expected.tokens[row]), stop_after[row] if stop_after is not None else 10**9)


@per_device((EMULATED,))
@pytest.mark.parametrize("copied", (False, True))
def test_tokens_on_cuda(device, copied, monkeypatch):
    """The host reads behind the device; or, as on a GPU, shares no memory with it."""
    decoder = decoder_on(device, n_layer=1)
    if copied:
        monkeypatch.setattr(transfer, "is_host", lambda device: False)
    prompts = [repetitive(30), prompt(5, 1)]
    for sampling, how in ((GREEDY, Speculation(most_tokens=4, fixed=True)), (HOT, Speculation()),
                          (HOT, Speculation(assistant=decoder, most_tokens=3, fixed=True))):  # fmt: skip
        assert same(decoder, prompts, sampling, 9, how).report.tokens == 16


def rules_of(eos=(), **knobs):
    from codegen_fast.generation.rules import Rules

    values = dict(repetition_penalty=1.0, no_repeat_ngram_size=0, bad_words_ids=(), sequence_bias=(), min_new_tokens=0,
                  min_length=0, forced_eos_token_ids=(), exponential_decay_length_penalty=None, suppress_tokens=(),
                  begin_suppress_tokens=(), remove_invalid_values=False, eos_token_ids=eos, max_length=None,
                  max_new_tokens=40)  # fmt: skip
    return Rules.of(type("Settings", (), {**values, **knobs})(), 30, 40)


RULES = {  # of the tokens without any
    "repetition": lambda free: dict(repetition_penalty=1.3),
    "ngrams": lambda free: dict(no_repeat_ngram_size=2),
    "bans": lambda free: dict(bad_words_ids=((free[9],), tuple(free[3:5]), tuple(free[5:8]))),
    "bias": lambda free: dict(sequence_bias=(((5,), 3.0), (tuple(free[3:5]), -9.0), (tuple(free[2:5]), -9.0))),
    "length": lambda free: dict(min_new_tokens=30, exponential_decay_length_penalty=(31, 1.6)),
    "suppressed": lambda free: dict(suppress_tokens=(free[6],), begin_suppress_tokens=(free[0],)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("source", ("oracle", "lookup", "assistant"))
def test_rules_see_the_draft_as_if_it_stood_there(decoder, name, source):
    prompts = [repetitive(30), prompt(12, 4)]
    for sampling in (Sampling(0.9, 0, 1.0, (7,)), Sampling(0.0, 0, 1.0, (7,))):
        free = plain(decoder, prompts, sampling, 40).tokens
        rules = rules_of(eos=(7,), **RULES[name](max(free, key=len)))
        expected = plain(decoder, prompts, sampling, 40, rules=rules)
        assert expected.tokens != free
        drafter = (lambda place: Oracle(expected.tokens, 0.2)) if source == "oracle" else None  # noqa: B023
        how = Speculation(fixed=True, most_tokens=6, assistant=decoder if source == "assistant" else None)
        got = speculative(decoder, prompts, sampling, 40, how, rules=rules, drafter=drafter)
        assert got.tokens == expected.tokens
        if source == "assistant":
            assert got.report.accepted == got.report.drafted  # it obeys the rules too


# ---- Calls -------------------------------------------------------------------------------------


@pytest.fixture
def decode_calls(monkeypatch):
    """(tokens, whether in decode) of every call of the layers."""
    made = []
    run_layers = codegen_fast.decoder.Decoder.run_layers

    def counted(self, x, q, act, cache, batch, decode, *more):
        made.append((len(x), decode))
        return run_layers(self, x, q, act, cache, batch, decode, *more)

    monkeypatch.setattr(codegen_fast.decoder.Decoder, "run_layers", counted)
    return made


@pytest.mark.parametrize("rows", (1, 3))
def test_drafts_are_verified_in_one_call(decoder, decode_calls, rows):
    prompts = [prompt(8 + i, i) for i in range(rows)]
    expected = plain(decoder, prompts, HOT, 25)
    decode_calls.clear()
    got = speculative(decoder, prompts, HOT, 25, FIXED, drafter=lambda place: Oracle(expected.tokens))
    assert got.tokens == expected.tokens
    calls = [tokens for tokens, decode in decode_calls if decode]
    # 1 token from the prompt, then three times 7 of each row, then 3.
    assert calls == [7 * rows] * 3 + [3 * rows]
    report = got.report
    assert (report.verify_calls, report.plain_calls, report.decode_calls) == (4, 0, 4)
    assert report.drafted == report.accepted == rows * (3 * 6 + 2) and report.tokens == 24 * rows
    assert report.acceptance == 1 and report.tokens_per_call == 6 * rows and report.on


def test_rounds(decoder):
    """Within a step the first tokens of all rows come before the second ones, and every row's are in order."""
    prompts = [prompt(5), prompt(6, 1)]
    expected = plain(decoder, prompts, HOT, 20)
    answers = [expected.tokens[0], [0] * 20]  # the second row's drafts are wrong
    got = speculative(decoder, prompts, HOT, 20, FIXED, drafter=lambda place: Oracle(answers, most_tokens=3))
    assert got.tokens == expected.tokens
    assert [rows for rows, _ in got.events[1:3]] == [[0, 1, 0, 0, 0]] * 2


def test_more_rows_than_a_call_has_tokens_for(decoder, decode_calls):
    prompts = [prompt(5)]
    expected = plain(decoder, prompts, HOT, 12, samples=40)
    decode_calls.clear()
    got = speculative(decoder, prompts, HOT, 12, FIXED, samples=40, drafter=lambda place: Oracle(expected.tokens))
    assert got.tokens == expected.tokens
    assert max(tokens for tokens, decode in decode_calls if decode) == 80


# ---- Assistants --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", (GREEDY, HOT), ids=("greedy", "sampled"))
def test_an_assistant_that_always_agrees(decoder, decode_calls, sampling):
    prompts = [prompt(9), prompt(4, 1)]
    got = same(decoder, prompts, sampling, 31, Speculation(assistant=decoder, most_tokens=5, fixed=True))
    assert got.report.drafted == got.report.accepted > 0
    assert got.report.verify_calls == 5  # 30 tokens, 6 a call


def test_a_shared_draw_makes_another_model_agree_more_often(decoder):
    """With the assistant's tokens drawn from elsewhere, as many are right as the two models' probabilities allow."""
    other = decoder_on(CPU, "int8")
    prompts = [prompt(9 + i, i) for i in range(4)]
    how = Speculation(assistant=other, most_tokens=4, fixed=True)
    sampling = Sampling(1.0, 0, 1.0, ())
    shared = same(decoder, prompts, sampling, 80, how).report
    assert shared.acceptance > 0.8

    class OtherDraws(Chooser):
        def choose(self, logits, rows, slots, positions):
            return super().choose(logits, rows, slots, [position + 1000 for position in positions])

    def independent(place):
        history = np.zeros((place.rows, place.max_seq_len), dtype=np.int32)
        assistant = Assistant(other, decoder, sampling, None, history, most_tokens=4)
        assistant._chooser = OtherDraws(other, sampling, None, history, place.rows)
        return assistant

    unshared = same(decoder, prompts, sampling, 80, how, drafter=independent).report
    assert unshared.acceptance < shared.acceptance - 0.2


def test_an_assistant_that_is_unsure_drafts_less(decoder):
    prompts = [prompt(9), prompt(7, 1)]
    reports = [same(decoder, prompts, Sampling(1.0, 0, 1.0, ()), 40, Speculation(
        assistant=decoder, most_tokens=6, fixed=True, confidence=confidence)).report
        for confidence in (None, 0.5, 0.9)]  # fmt: skip
    assert reports[0].drafted > reports[1].drafted > reports[2].drafted > 0


def test_an_assistant_with_a_shorter_context(decoder):
    """It drafts as long as the row fits in it."""
    short = decoder_on(CPU, n_positions=32)
    how = Speculation(assistant=short, most_tokens=4, fixed=True)
    got = same(decoder, [prompt(20), prompt(40, 1)], GREEDY, 30, how)
    assert 0 < got.report.drafted < 30


def test_samples_share_an_assistants_prompt(decoder):
    assistant = decoder_on(CPU, seed=6)
    before = assistant.prefilled_tokens
    same(decoder, [prompt(30), prompt(20, 1)], HOT, 12, Speculation(assistant=assistant, most_tokens=3, fixed=True),
         samples=5, at_once=3)  # fmt: skip
    assert assistant.prefilled_tokens - before == 50


def test_an_assistant_catches_up_after_plain_steps(decoder, monkeypatch):
    """Those of more than a few tokens in one prefill; and what it drafts is right as before."""
    assistants = []

    def make(place):
        history = np.zeros((place.rows, place.max_seq_len + 1), dtype=np.int32)
        assistants.append(Assistant(decoder, decoder, HOT, None, history, most_tokens=3))
        return assistants[-1]

    choose_lengths = SpeculativeBatch._choose_lengths
    calls = []

    def seldom(self):
        calls.append(0)
        return choose_lengths(self) if len(calls) in (3, 8, 40, 41) else [0] * len(self._rows)

    monkeypatch.setattr(SpeculativeBatch, "_choose_lengths", seldom)
    got = same(decoder, [prompt(9), prompt(5, 1)], HOT, 60, FIXED, drafter=make)
    assert got.report.verify_calls == 4 and got.report.drafted == 4 * 2 * 3
    assert got.report.acceptance > 0.9  # tokens that went through prefill may differ in the last bit
    assert assistants[0]._cache.pages_in_use == 0


# ---- What may go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("at", (1, 2, 5))
@pytest.mark.parametrize("how", (FIXED, "assistant"), ids=("lookup", "assistant"))
def test_an_interruption_gives_all_pages_back(decoder, at, how, monkeypatch):
    assistant = decoder_on(CPU, seed=6)
    how = Speculation(assistant=assistant, fixed=True) if how == "assistant" else how
    caches = []
    for one in (decoder, assistant):
        new_cache = one.new_cache
        monkeypatch.setattr(one, "new_cache", lambda *args, make=new_cache: caches.append(make(*args)) or caches[-1])
    verify, calls = Verifier.verify, []

    def interrupted(self, *args, **more):
        calls.append(0)
        if len(calls) == at:
            raise KeyboardInterrupt
        return verify(self, *args, **more)

    prompts = [repetitive(30), repetitive(20, 3)]
    with monkeypatch.context() as patch:
        patch.setattr(Verifier, "verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            speculative(decoder, prompts, GREEDY, 40, how)
    assert caches and all(cache.pages_in_use == 0 for cache in caches)
    same(decoder, prompts, GREEDY, 40, how)


def test_logits_without_an_answer_name_their_row():
    """Found at a position that a draft reached, told when it is the row's turn."""
    decoder = decoder_on(CPU)
    prompts = [prompt(5), prompt(9, 1)]
    expected = plain(decoder, prompts, GREEDY, 20)
    poisoned = expected.tokens[1][8]
    decoder.weights.embedding[poisoned] = float("nan")
    messages = []
    for make in (plain, speculative):
        more = {} if make is plain else {"how": FIXED, "drafter": lambda place: Oracle(expected.tokens)}
        with pytest.raises(ValueError, match="holds NaN or no finite value") as raised:
            make(decoder, prompts, GREEDY, 20, **more)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_threads_share_what_calls_cost(decoder):
    prompts = [repetitive(30), prompt(9)]
    expected = plain(decoder, prompts, HOT, 60).tokens
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: speculative(decoder, prompts, HOT, 60).tokens, range(4)))
    assert got == [expected] * 4
    assert pacing.costs_of(decoder) is pacing.costs_of(decoder)


# ---- In generate -------------------------------------------------------------------------------


def test_an_eos_token_in_a_draft(decoder):
    """The lookup finds what followed before, eos and all; the row ends where plain decoding ends it."""
    free = plain(decoder, [repetitive(40)], GREEDY, 60).tokens[0]
    for eos in dict.fromkeys(free[1:]):
        got = same(decoder, [repetitive(40) + [eos, 5] + repetitive(20)], Sampling(0.0, 0, 1.0, (eos,)), 60, FIXED)
        assert eos not in got.tokens[0][:-1]


def test_generate_with_drafts_gives_the_same_tokens(decoder):
    model = codegen_fast.accelerate(make_model(**SHAPE))
    small = codegen_fast.accelerate(make_model(**{**SHAPE, "n_layer": 1}))
    ids = torch.tensor([repetitive(24), [0] * 4 + repetitive(20, 3)])
    mask = (ids != 0).long()
    for knobs in (dict(do_sample=False), dict(do_sample=True, temperature=0.7, num_return_sequences=3, seed=4),
                  dict(do_sample=False, repetition_penalty=1.2, no_repeat_ngram_size=4)):  # fmt: skip
        knobs = dict(max_new_tokens=40, pad_token_id=0, eos_token_id=[7, 8], **knobs)
        expected = model.generate(ids, mask, **knobs)
        always = dict(num_assistant_tokens_schedule="constant")
        for drafts in (dict(prompt_lookup_num_tokens=5), dict(assistant_model=small), dict(assistant_model=model),
                       dict(prompt_lookup_num_tokens=3, **always),
                       dict(assistant_model=small, num_assistant_tokens=3, **always)):  # fmt: skip
            got = model.generate(ids, mask, return_dict_in_generate=True, **knobs, **drafts)
            assert torch.equal(got.sequences, expected), drafts
            assert got.speculation is not None


def test_an_assistant_that_cannot_be_one():
    model = codegen_fast.accelerate(make_model(**SHAPE))
    other = codegen_fast.accelerate(make_model(**{**SHAPE, "vocab_size": 68}))
    with pytest.raises(ValueError, match="vocabulary of 68 tokens and this model one of 67"):
        model.generate(torch.tensor([[5, 6]]), assistant_model=other, max_new_tokens=3)
    with pytest.raises(TypeError, match="assistant_model must be a model of codegen_fast, got str"):
        model.generate(torch.tensor([[5, 6]]), assistant_model="small", max_new_tokens=3)
