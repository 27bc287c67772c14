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

import codegen_fast
from codegen_fast import ops, transfer
from codegen_fast.generation import drafters, pacing, speculation
from codegen_fast.generation.drafters import Assistant, PromptLookup, Track, find_continuation
from codegen_fast.generation.pacing import Acceptance, Brake, Costs, draft_lengths
from codegen_fast.generation.speculation import Speculation, SpeculativeBatch
from codegen_fast.sampling import Sampling
from codegen_fast.stepping import Row, SteppingBatch
from codegen_fast.verification import Chooser, Verifier
from codegen_fast.workplace import Room, workplace

SHAPE = dict(n_embd=48, n_head=4, rotary_dim=8, n_layer=2, vocab_size=67, n_positions=300, seed=5)
KINDS = {"float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None), "float16": (torch.float16, None),
         "int8": (torch.float32, "int8"), "int4": (torch.float32, "int4")}  # fmt: skip
GREEDY = Sampling(0.0, 0, 1.0, ())
HOT = Sampling(1.2, 20, 0.9, ())


def decoder_on(device: Device, kind: str = "float32", **shape):
    dtype, quantization = KINDS[kind]
    if device.backend == "cuda" and dtype == torch.float32:
        dtype = torch.float16
    model = codegen_fast.accelerate(make_model(dtype=dtype, **{**SHAPE, **shape}), quantization=quantization)
    return (model.to(device.memory) if device.memory.type == "cuda" else model)._decoder


@pytest.fixture(scope="module")
def decoder():
    return decoder_on(CPU)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, SHAPE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def repetitive(length: int, period: int = 7) -> list[int]:
    return (prompt(period, 11) * length)[:length]


class Run:
    """Rows that go on from prompts, in a batch that ``make(place, on_end)`` gives; ``samples`` of each prompt."""

    def __init__(self, decoder, prompts, make, steps, *, samples=1, seed=9, stop_after=None, at_once=None):
        self.decoder, self.prompts, self.steps = decoder, prompts, steps
        rows = len(prompts) * samples
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.events: list[tuple[list[int], list[int]]] = []
        self.fed: dict[int, int] = {}  # of rows that ended, tokens in their pages
        waiting = list(range(rows))
        at_once = at_once or rows
        room = Room(at_once, [len(p) for p in prompts], steps, max(map(len, prompts)) + steps)
        with workplace(decoder, room) as place:
            self.place, cache = place, place.cache
            held = [cache.new_sequence() for _ in prompts]
            ids = [torch.tensor(p) for p in prompts]
            logits = decoder.prefill(cache, held, ids).logits
            batch = self.batch = make(place, self.ended)
            try:
                while waiting or len(batch):
                    free = at_once - len(batch) if waiting else 0
                    if free and batch.settled:
                        joining = [waiting.pop(0) for _ in range(min(free, len(waiting)))]
                        sources = [row // samples for row in joining]
                        news = [Row(row, np.array(prompts[source], dtype=np.int32), cache.fork(held[source]),
                                    seed + source, row % samples) for row, source in zip(joining, sources)]  # fmt: skip
                        event = batch.start(news, logits, sources)
                    else:
                        event = batch.step(hold=free > 0)
                    self.events.append(event)
                    for row, token in zip(*event):
                        self.tokens[row].append(token)
                    if stop_after is not None:
                        batch.finish([row for row, own in enumerate(self.tokens) if len(own) >= stop_after[row]])
            finally:
                batch.close()
                for sequence in held:
                    cache.release(sequence)
            assert cache.pages_in_use == 0
        self.report = getattr(batch, "report", None)

    def ended(self, row: Row) -> None:
        self.fed[row.index] = row.sequence.length
        self.place.cache.release(row.sequence)


def plain(decoder, prompts, sampling, steps, *, rules=None, **more) -> Run:
    return Run(decoder, prompts, lambda place, on_end: SteppingBatch(
        decoder, place, sampling, steps, rules=rules, on_end=on_end), steps, **more)  # fmt: skip


def speculative(decoder, prompts, sampling, steps, how=Speculation(), *, rules=None, drafter=None, **more) -> Run:
    return Run(decoder, prompts, lambda place, on_end: SpeculativeBatch(
        decoder, place, sampling, steps, how, rules=rules, on_end=on_end,
        drafter=drafter(place) if drafter else None), steps, **more)  # fmt: skip


def same(decoder, prompts, sampling, steps, how, **more) -> Run:
    """A speculative run whose tokens are those of the plain one."""
    expected = plain(decoder, prompts, sampling, steps, **{k: v for k, v in more.items() if k != "drafter"})
    got = speculative(decoder, prompts, sampling, steps, how, **more)
    assert got.tokens == expected.tokens
    assert got.fed == expected.fed
    return got


class Oracle:
    """Drafts what plain decoding gives, every token wrong with a probability."""

    probed = False

    def __init__(self, answers: list[list[int]], wrong: float = 0.0, most_tokens: int = 6, seed: int = 0):
        self.answers, self.wrong, self.most_tokens = answers, wrong, most_tokens
        self.random = np.random.default_rng(seed)
        self.calls = 0

    def seconds_a_token(self, step):
        return 0.0

    def outlook(self, track, limit):
        return limit, 1 - self.wrong

    def prepare(self, tracks):
        pass

    def draft(self, tracks, lengths):
        self.calls += 1
        drafts = []
        for track, length in zip(tracks, lengths):
            done = len(track.row.tokens)
            right = self.answers[track.row.index][done : done + length]
            drafts.append([(token + (self.random.random() < self.wrong)) % SHAPE["vocab_size"] for token in right])
        return drafts

    def verified(self, track, draft, tokens):
        pass

    def stepped(self, track, tokens):
        pass

    def forget(self, track):
        pass

    def close(self):
        pass


FIXED = Speculation(fixed=True)


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


# ---- Prompt lookup -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, longest, count, expected",
    [
        ([1, 2, 3, 4, 1, 2], 2, 3, ([3, 4, 1], 2)),
        ([1, 2, 3, 9, 2, 4, 1, 2], 2, 2, ([3, 9], 2)),  # two tokens agree there, one at the later place
        ([1, 2, 3, 9, 2, 4, 1, 2], 1, 2, ([4, 1], 1)),  # the later
        ([1, 2, 3, 1, 2, 4, 1, 2], 5, 1, ([4], 2)),  # of equals the later
        ([5, 1, 2, 3, 1, 2, 4, 5, 1, 2], 5, 1, ([3], 3)),
        ([1, 7, 7], 3, 4, ([7, 7, 7, 7], 1)),
        ([1, 2, 3, 1, 2, 3], 3, 7, ([1, 2, 3, 1, 2, 3, 1], 3)),  # round and round
        ([1, 2, 3], 2, 5, ([], 0)),
        ([1], 2, 5, ([], 0)),
        ([1, 1], 2, 0, ([], 0)),
    ],
)
def test_find_continuation(tokens, longest, count, expected):
    assert find_continuation(np.array(tokens, dtype=np.int32), longest, count) == expected


def test_lookup_learns_from_plain_steps_too():
    lookup = PromptLookup(6)
    row = Row(0, np.array([1, 2, 3, 1], dtype=np.int32), None, 0, 0, [2])
    track = Track(row, 0, np.zeros(200, dtype=np.int32))
    before = lookup.outlook(track, 10)[1]
    for token in (3, 1, 2) * 10:
        row.tokens.append(token)
        lookup.stepped(track, track.catch_up())
        limit, share = lookup.outlook(track, 10)
    assert limit == 6 and share > 0.9 > before
    for token in range(100, 130):
        lookup.outlook(track, 10)
        row.tokens.append(token)
        lookup.stepped(track, track.catch_up())
        row.tokens.append(1)
        lookup.stepped(track, track.catch_up())
    assert lookup.outlook(track, 10)[1] < 0.3


# ---- How long drafts are -----------------------------------------------------------------------


def costs_like(seconds, rows=1, up_to=64) -> Costs:
    costs = Costs()
    for _ in range(2):
        costs.note_plain(rows, seconds(rows))
        for tokens in range(rows + 1, up_to):
            costs.note_verify(tokens, seconds(tokens))
    return costs


def test_drafts_are_as_long_as_pays():
    steep, flat = costs_like(lambda n: n), costs_like(lambda n: 1 + 0.01 * n)
    assert draft_lengths(steep, [(10, 0.99)], 0.0, 64) == [0]
    assert draft_lengths(flat, [(10, 0.99)], 0.0, 64) == [10]
    assert 1 <= draft_lengths(flat, [(10, 0.5)], 0.0, 64)[0] <= 5
    assert draft_lengths(flat, [(10, 0.99)], 1.0, 64) == [0]  # as dear as a step
    assert 1 <= draft_lengths(flat, [(10, 0.8)], 0.1, 64)[0] <= 6
    assert draft_lengths(flat, [(10, 0.99)], 0.0, 5) == [4]
    assert draft_lengths(Costs(), [(10, 0.99)], 0.0, 64) == [0]  # nothing was measured yet
    two = draft_lengths(costs_like(lambda n: 1 + 0.1 * n, rows=2), [(10, 0.95), (10, 0.2)], 0.0, 64)
    assert two[0] >= 5 and two[1] == 0


def test_lengths_that_were_never_tried_are_tried():
    costs = Costs()
    for _ in range(2):
        costs.note_plain(1, 1.0)
    assert draft_lengths(costs, [(10, 0.9)], 0.0, 64)[0] > 5
    for _ in range(2):
        costs.note_verify(11, 20.0)
    assert draft_lengths(costs, [(10, 0.9)], 0.0, 64) == [0]
    for _ in range(2):
        costs.note_verify(4, 1.1)
    assert draft_lengths(costs, [(10, 0.9)], 0.0, 64) == [3]


def test_an_outlier_does_not_count_for_long_and_old_times_are_forgotten():
    costs = costs_like(lambda n: 1 + 0.01 * n)
    costs.note_verify(5, 1000.0)
    assert costs.verify(1, 5)[-1] < 2
    for _ in range(600):
        costs.note_verify(3, 1.0)
    assert costs.verify(1, 3)[-1] == pytest.approx(1.01, abs=0.02)
    assert len(costs._verify.points()) == 1


def test_the_brake_holds_longer_each_time_it_was_right():
    brake, held = Brake(), []
    for _ in range(4):
        for _ in range(8):
            assert not brake.holds()
            brake.note(1.0, 1.5)
        count = 0
        while brake.holds():
            count += 1
        held.append(count)
    assert held == [15, 31, 63, 127]
    for _ in range(8):
        brake.note(2.0, 1.0)
    assert not brake.holds()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only verifications, plain steps and assistants move: seconds by the tokens of a call."""

    class Clock:
        now = 0.0
        seconds = staticmethod(lambda tokens: 1.0 + 0.05 * tokens)

        def perf_counter(self):
            return self.now

    clock = Clock()
    for module in (speculation, drafters):
        monkeypatch.setattr(module, "time", clock)
    run_layers = codegen_fast.decoder.Decoder.run_layers

    def timed(self, x, q, act, cache, batch, decode, *more):
        clock.now += clock.seconds(len(x)) * (getattr(self, "slowness", 1.0)) if decode else 0
        return run_layers(self, x, q, act, cache, batch, decode, *more)

    monkeypatch.setattr(codegen_fast.decoder.Decoder, "run_layers", timed)
    pacing._COSTS.clear()
    yield clock
    pacing._COSTS.clear()


def test_where_drafts_are_right_it_pays(decoder, clock):
    prompts = [prompt(9)]
    expected = plain(decoder, prompts, HOT, 200)
    report = same(decoder, prompts, HOT, 200, Speculation(), drafter=lambda place: Oracle(expected.tokens, 0.1)).report
    assert report.on and report.speed_up > 2 and report.plain_calls < 10
    assert report.seconds == pytest.approx(clock.now, rel=1)


@pytest.mark.parametrize("claimed", (0.0, 0.9, 0.99))
def test_where_drafts_are_wrong_it_costs_little(decoder, clock, claimed):
    """Whatever the drafter says of itself."""

    class Liar(Oracle):
        def outlook(self, track, limit):
            return limit, claimed

    prompts = [prompt(9)]
    expected = plain(decoder, prompts, HOT, 280)
    began = clock.now
    plain(decoder, prompts, HOT, 280)
    plain_seconds = clock.now - began
    began = clock.now
    got = speculative(decoder, prompts, HOT, 280, drafter=lambda place: Liar(expected.tokens, 1.0))
    assert got.tokens == expected.tokens and got.report.accepted == 0
    assert clock.now - began < 1.08 * plain_seconds
    assert got.report.speed_up == pytest.approx(plain_seconds / (clock.now - began), rel=0.02)


def test_lookup_that_never_helps_is_left_alone(decoder, clock):
    clock.seconds = lambda tokens: float(tokens)  # a call of two tokens costs two steps
    report = same(decoder, [repetitive(40)], GREEDY, 100, Speculation()).report
    assert report.verify_calls <= 2


@pytest.mark.parametrize("slowness", (0.1, 1.5))
def test_an_assistant_is_asked_again_now_and_then_if_it_could_pay(decoder, clock, slowness):
    other = decoder_on(CPU, n_layer=1, n_embd=16, rotary_dim=4)  # agrees by chance
    other.slowness = slowness
    report = same(decoder, [prompt(9)], HOT, 280, Speculation(assistant=other, most_tokens=4)).report
    assert report.speed_up > 0.95
    assert 3 <= report.verify_calls <= 12 if slowness < 1 else report.verify_calls <= 3


def test_speculation_comes_back(decoder, clock):
    """An assistant that is wrong at first and right later."""
    prompts = [prompt(9)]
    expected = plain(decoder, prompts, HOT, 250)

    class Late(Oracle):
        probed = True
        acceptance = Acceptance(0.7)

        def outlook(self, track, limit):
            return limit, self.acceptance.share

        def draft(self, tracks, lengths):
            self.wrong = 0.0 if len(tracks[0].row.tokens) > 60 else 1.0
            return super().draft(tracks, lengths)

        def verified(self, track, draft, tokens):
            for guess, token in zip(draft, tokens):
                self.acceptance.note(guess == token)

    got = speculative(decoder, prompts, HOT, 250, drafter=lambda place: Late(expected.tokens))
    assert got.tokens == expected.tokens
    assert got.report.on and got.report.accepted > 60


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
