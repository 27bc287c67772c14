"""Sessions: what two prompts have in common is computed once, within the bound, and the tokens stay the same."""
from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import make_model
from devices import CPU, EMULATED, per_device
from hypothesis import given, settings
from hypothesis import strategies as st

import codegen_fast
from codegen_fast.cache import PagedCache
from codegen_fast.demo import demo_model_path
from codegen_fast.session import Session

# ---- Entries, on a cache that no decoder writes --------------------------------------------------


class FakeDecoder:
    """Its caches hold the tokens themselves."""

    def new_cache(self):
        return PagedCache(1, 8, torch.float32)

    def run(self, session, prompt, new_tokens=0):
        """What a call of generate does: begins, writes the rest of the prompt and new tokens, keeps. -> reused"""
        ids = np.array([*prompt, *new_tokens] if new_tokens else [*prompt, -1])  # the last token is never in the cache
        with session.lock:
            sequence = session.begin(np.array(prompt))
            reused = sequence.length
            assert read(session.cache, sequence) == list(prompt[:reused]) and reused < len(prompt)
            session.cache.reserve([sequence], [len(ids) - 1 - reused])
            for position in range(reused, len(ids) - 1):
                page, slot = divmod(position, session.cache.page_size)
                session.cache.storage[0, sequence.pages[page]].view(-1)[slot] = float(ids[position])
            sequence.length = len(ids) - 1
            session.keep(ids, sequence, len(prompt))
        return reused


def read(cache, sequence):
    page_size = cache.page_size
    cells = cache.storage[0].view(cache.num_pages, -1)
    return [int(cells[sequence.pages[i // page_size], i % page_size]) for i in range(sequence.length)]


def fake_session(**arguments):
    decoder = FakeDecoder()
    model = SimpleNamespace(_decoder=decoder, config=SimpleNamespace(n_positions=256))
    return Session(model, **arguments), decoder


PAGE = PagedCache(1, 8, torch.float32).page_size


def test_what_is_in_common_is_reused():
    session, decoder = fake_session()
    file = list(range(100))
    assert decoder.run(session, file) == 0
    assert decoder.run(session, file) == 99  # not the last token, whose logits are wanted
    assert decoder.run(session, [*file, 7]) == 100
    assert decoder.run(session, [*file[:50], 3, *file[50:]]) == 50
    assert decoder.run(session, [1, 2, 3]) == 0
    assert decoder.run(session, file[:20]) == 19
    stats = session.stats
    assert (stats.reused_tokens, stats.computed_tokens) == (99 + 100 + 50 + 19, 100 + 1 + 1 + 51 + 3 + 1)


@pytest.mark.parametrize("exact", [False, True])
def test_generated_tokens_are_reused_unless_bits_must_be_equal(exact):
    session, decoder = fake_session(exact=exact)
    turn = list(range(40))
    answer = list(range(200, 230))
    assert decoder.run(session, turn, answer) == 0
    assert decoder.run(session, [*turn, *answer, 5, 6], [8, 9]) == (40 if exact else 69)  # its last was not fed
    assert decoder.run(session, [*turn, *answer, 5, 6, 8, 9, 1]) == (72 if exact else 73)


def test_a_longer_sequence_replaces_its_beginning():
    session, decoder = fake_session()
    for length in range(1, 60):
        decoder.run(session, range(length))
    assert session.stats.entries == 1
    assert session.cache.pages_in_use == len(session._owners) == session.cache.pages_for(59)
    decoder.run(session, range(10))  # holds nothing new
    assert session.stats.entries == 1 and session.stats.tokens == session.cache.pages_for(59) * PAGE


def test_the_least_recently_used_goes_first():
    session, decoder = fake_session(max_tokens=4 * PAGE)
    prompts = [[start] * PAGE for start in (1, 2, 3, 4)]
    for prompt in prompts:
        decoder.run(session, prompt)
    assert session.stats.entries == 4
    assert decoder.run(session, prompts[0]) == PAGE - 1  # used again
    decoder.run(session, [5] * PAGE)
    assert decoder.run(session, prompts[0]) == PAGE - 1
    assert decoder.run(session, prompts[1]) == 0  # gone, and back in the place of prompts[2]
    assert decoder.run(session, prompts[2]) == 0
    assert session.stats.tokens == session.cache.pages_in_use * PAGE == 4 * PAGE


def test_a_sequence_longer_than_the_bound_keeps_its_beginning():
    session, decoder = fake_session(max_tokens=2 * PAGE + 1)
    decoder.run(session, range(5 * PAGE))
    assert session.stats.tokens == 2 * PAGE
    assert decoder.run(session, range(5 * PAGE)) == 2 * PAGE
    assert session.cache.pages_in_use == 2


def test_running_sequences_do_not_count():
    """A large batch does not drive out what the session keeps, and entries that go leave running forks alone."""
    session, decoder = fake_session(max_tokens=2 * PAGE)
    decoder.run(session, range(2 * PAGE))
    running = session.begin(np.arange(2 * PAGE + 1))
    session.cache.reserve([running], [20 * PAGE])
    decoder.run(session, range(2 * PAGE))
    assert session.stats.entries == 1
    decoder.run(session, [9] * 2 * PAGE)
    assert session.stats.entries == 1 and session.begin(np.arange(9)).length == 0
    assert read(session.cache, running) == list(range(2 * PAGE))
    session.cache.release(running)
    assert session.cache.pages_in_use == 2


TOKENS = st.lists(st.integers(0, 1), max_size=20)


@settings(max_examples=150, deadline=None)
@given(bound=st.integers(1, 12), exact=st.booleans(),
       calls=st.lists(st.tuples(st.integers(0, 3 * PAGE), TOKENS, st.integers(0, 20)), max_size=25))
def test_entries_against_a_slow_model(bound, exact, calls):
    """Prompts: the first tokens of a long text, then others; all that a session keeps follows from the calls alone."""
    session, decoder = fake_session(max_tokens=bound * PAGE, exact=exact)
    expected = []  # (tokens, ids of pages), the least recently used first
    for beginning, tail, new in calls:
        prompt = [7] * beginning + tail or [7]
        generated = [2] * new
        reused, parent = 0, None
        for entry in reversed(expected):
            common = sum(1 for _ in _common(entry[0], prompt[:-1]))
            if common > reused:
                reused, parent = common, entry
        assert decoder.run(session, prompt, generated) == reused
        if parent is not None:
            expected.append(expected.pop(_index(expected, parent)))
        known = prompt if exact else (prompt + generated)[:max(len(prompt), len(prompt) + new - 1)]
        known = known[:bound * PAGE]
        pages = parent[1][:reused // PAGE] if parent is not None else []
        pages = (pages + [object() for _ in range(len(known))])[:-(-len(known) // PAGE)]
        longer = [entry for entry in expected if entry[0][:len(known)] == known]
        if longer:
            expected.append(expected.pop(_index(expected, longer[0])))
        else:
            expected = [entry for entry in expected if entry[0] != known[:len(entry[0])]] + [(known, pages)]
            while len({id(page) for _, own in expected for page in own}) > bound:
                expected.pop(0)
        assert [entry.token_ids.tolist() for entry in session._entries] == [tokens for tokens, _ in expected]
        held = {page for entry in session._entries for page in entry.sequence.pages}
        assert session.cache.pages_in_use == len(held) == session.stats.tokens // PAGE <= bound
        assert Counter(page for entry in session._entries for page in entry.sequence.pages) == session._owners
        for entry in session._entries:
            assert read(session.cache, entry.sequence) == entry.token_ids.tolist()
    cache = session.cache
    session.close()
    assert cache.pages_in_use == 0


def _common(one, other):
    for a, b in zip(one, other):
        if a != b:
            return
        yield a


def _index(entries, entry):
    return next(i for i, other in enumerate(entries) if other is entry)


# ---- A session as an object ----------------------------------------------------------------------


def test_bounds():
    session, decoder = fake_session()
    assert session._max_pages == 2 * 256 // PAGE  # two contexts
    page_bytes = session.cache.storage.nbytes // session.cache.num_pages
    assert fake_session(max_bytes=3 * page_bytes + 5)[0]._max_pages == 3
    assert fake_session(max_bytes=3 * page_bytes, max_tokens=2 * PAGE)[0]._max_pages == 2
    for arguments in (dict(max_tokens=PAGE - 1), dict(max_tokens=0), dict(max_tokens=-5), dict(max_tokens=True),
                      dict(max_tokens=1e6), dict(max_bytes=page_bytes - 1), dict(max_bytes="1GB")):
        with pytest.raises(ValueError, match=r"^max_(tokens|bytes)=.* is not allowed: expected a number .* at least"):
            fake_session(**arguments)
    decoder.run(session, range(PAGE + 1))
    assert session.stats.bytes == 2 * page_bytes <= session.stats.reserved_bytes


def test_the_wrong_model():
    session, decoder = fake_session()
    session.require(decoder)
    with pytest.raises(ValueError, match=r"^session belongs to another model, or was made before .*: make a new one"):
        session.require(FakeDecoder())


def test_closing():
    session, decoder = fake_session()
    with session as same:
        assert same is session
        decoder.run(session, range(50))
        running = session.begin(np.arange(60))
    assert repr(session) == "Session(closed)"
    session.close()
    for use in (lambda: session.require(decoder), lambda: session.cache):
        with pytest.raises(ValueError, match="^session is closed: make a new one"):
            use()
    session.keep(np.arange(51), running, 51)  # of a call that was under way
    assert session.begin(np.arange(60)).length == 0
    stats = session.stats
    assert (stats.entries, stats.tokens, stats.bytes, stats.reserved_bytes) == (0, 0, 0, 0)


def test_a_session_is_freed_with_its_last_reference_and_keeps_no_weights_alive():
    session, decoder = fake_session()
    decoder.run(session, range(50))
    cache, weights = weakref.ref(session.cache), weakref.ref(decoder)
    session._model._decoder = None  # as model.to(...) leaves it
    gc.disable()
    try:
        del decoder
        assert weights() is None
        with pytest.raises(ValueError, match="^session belongs to another model"):
            session.require(FakeDecoder())
        del session
        assert cache() is None
    finally:
        gc.enable()


def test_no_copies():
    session, _ = fake_session()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="^a Session can be neither copied nor pickled"):
            attempt(session)


def test_threads_share_entries():
    session, decoder = fake_session(max_tokens=8 * PAGE)
    failures = []

    def work(own):
        try:
            for turn in range(60):
                decoder.run(session, [*range(2 * PAGE), own, *range(turn % 20)], [own] * 5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert session.cache.pages_in_use == len(session._owners) <= 8


# ---- Generation through a session ----------------------------------------------------------------

SHAPE = dict(n_embd=32, n_head=4, rotary_dim=8, n_layer=2, vocab_size=67, n_positions=300, seed=5)


@pytest.fixture(scope="module")
def model():
    return codegen_fast.accelerate(make_model(**SHAPE))


def text(length, seed=0):
    return torch.randint(12, SHAPE["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generate(model, prompt, **knobs):
    knobs = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None, **knobs}
    return model.generate([prompt], **knobs)


class Prefilled:
    """How many tokens went through prefill since the last look."""

    def __init__(self, model):
        self.decoder, self.before = model._decoder, model._decoder.prefilled_tokens

    def take(self):
        before, self.before = self.before, self.decoder.prefilled_tokens
        return self.before - before


def test_keystrokes(model):
    """A file, sent again after every change; only what follows the change is computed."""
    file = text(120)
    prefilled = Prefilled(model)
    with model.session(max_tokens=1024) as session:
        for changed, expected in ((file, 120), (file[:100], 1), ([*file[:100], 13], 1), ([*file[:100], 13, 14, 15], 2),
                                  ([*file[:40], file[40] - 1, *file[40:]], 81), (file, 1)):  # fmt: skip
            result = generate(session, changed)
            assert prefilled.take() == expected
            assert torch.equal(result, generate(model, changed)) and prefilled.take() == len(changed)
        assert session.stats.reused_tokens == 99 + 100 + 101 + 40 + 119
        assert session.stats.computed_tokens == 120 + 1 + 1 + 2 + 81 + 1


def test_turns_of_a_conversation(model):
    prefilled = Prefilled(model)
    conversation = text(30)
    with model.session() as session:
        for turn in range(4):
            result = generate(session, conversation)
            assert prefilled.take() == (30 if turn == 0 else 6)  # the turn's 5, and the last generated token
            assert torch.equal(result, generate(model, conversation))
            prefilled.take()
            conversation = result[0].tolist() + text(5, seed=turn)


KNOBS = st.sampled_from([
    {}, dict(do_sample=True, seed=3), dict(do_sample=True, seed=9, num_return_sequences=3),
    dict(repetition_penalty=1.3), dict(prompt_lookup_num_tokens=4),
    dict(do_sample=True, seed=1, num_return_sequences=4, max_batch_size=2, eos_token_id=[3, 4, 5, 6])])  # fmt: skip
TAILS = st.lists(st.integers(12, 66), max_size=20)
CALLS = st.lists(st.tuples(st.integers(1, 90), TAILS, KNOBS), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(bound=st.integers(1, 16), calls=CALLS)
def test_exact_sessions_give_the_bits_of_cold_calls(model, bound, calls):
    """Also when much was thrown out, with samples, in waves, with rules and with drafts."""
    file = text(90)
    session = model.session(max_tokens=bound * PAGE, exact=True)
    for beginning, tail, knobs in calls:
        prompt = file[:beginning] + tail
        if {"prompt_lookup_num_tokens", "max_batch_size"} & knobs.keys():  # no look at logits with these
            assert torch.equal(generate(session, prompt, **knobs), generate(model, prompt, **knobs))
        else:
            warm, cold = (generate(each, prompt, return_dict_in_generate=True, output_logits=True, **knobs)
                          for each in (session, model))  # fmt: skip
            assert torch.equal(warm.sequences, cold.sequences)
            assert all(torch.equal(one, other) for one, other in zip(warm.logits, cold.logits, strict=True))
        assert session.cache.pages_in_use == session.stats.tokens // PAGE <= bound
    cache = session.cache
    session.close()
    assert cache.pages_in_use == 0


@per_device((CPU, EMULATED), dtype=[torch.float32, torch.bfloat16, torch.float16], quantization=[None, "int8", "int4"],
            where=lambda device, dtype, quantization: device.backend == "cpu" or (
                dtype != torch.float32 and quantization != "int4"))  # fmt: skip
def test_exact_sessions_in_every_type(device, dtype, quantization):
    model = codegen_fast.accelerate(make_model(dtype=dtype, **SHAPE), quantization=quantization)
    file, knobs = text(90), dict(max_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    with model.session(exact=True) as session:
        for prompt in (file, file[:70] + text(30, seed=1)):
            warm, cold = (generate(each, prompt, **knobs) for each in (session, model))
            assert torch.equal(warm.sequences, cold.sequences)
            assert all(torch.equal(one, other) for one, other in zip(warm.logits, cold.logits, strict=True))
        assert session.stats.reused_tokens >= 70


def test_reused_generated_tokens_change_logits_within_the_bound_only(model):
    prompt = text(60)
    with model.session() as session:
        longer = generate(session, prompt, max_new_tokens=40)[0].tolist() + text(3)
        warm, cold = (generate(each, longer, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
                      for each in (session, model))  # fmt: skip
        assert session.stats.reused_tokens == 99
    error = (warm.logits[0] - cold.logits[0]).norm() / cold.logits[0].norm()
    assert float(error) <= 2e-5


def test_batches_share_a_session(model):
    """Ragged prompts at once, some of which the session knows."""
    file = text(100)
    prompts = [file[:50], file, file[:70] + [12], text(20, seed=4)]
    with model.session(exact=True) as session:
        generate(session, file[:80])
        prefilled = Prefilled(model)
        warm = session.generate(prompts, max_new_tokens=6, pad_token_id=0, eos_token_id=None)
        assert prefilled.take() == 1 + 20 + 1 + 20
        assert torch.equal(warm, model.generate(prompts, max_new_tokens=6, pad_token_id=0, eos_token_id=None))


def test_refusals(model):
    other = codegen_fast.accelerate(make_model(**SHAPE))
    session = model.session()
    with pytest.raises(ValueError, match="^session belongs to another model"):
        generate(other, text(5), session=session)
    own = other.session()
    generate(own, text(5))
    other.to(torch.bfloat16)
    with pytest.raises(ValueError, match="^session belongs to another model, or was made before"):
        generate(own, text(5))
    session.close()
    with pytest.raises(ValueError, match="^session is closed"):
        generate(session, text(5))
    past = generate(model, text(5), return_dict_in_generate=True).past_key_values
    with model.session() as open_session, pytest.raises(ValueError, match="both session and past_key_values"):
        generate(open_session, text(30), past_key_values=past)


def test_an_interrupted_call_leaves_the_session_usable(model):
    class Interrupt:
        def put(self, value):
            if value.dim() == 1:
                raise KeyboardInterrupt

        def end(self):
            pass

    prompt = text(50)
    with model.session(exact=True) as session:
        generate(session, prompt)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                generate(session, [*prompt, 13, 14], streamer=Interrupt())
        assert session.cache.pages_in_use == session.stats.tokens // PAGE
        assert torch.equal(generate(session, [*prompt, 13]), generate(model, [*prompt, 13]))


@pytest.fixture(scope="module")
def demo():
    """(model, tokenizer) for what needs text."""
    folder = demo_model_path()
    return codegen_fast.AutoModelForCausalLM.from_pretrained(folder), codegen_fast.AutoTokenizer.from_pretrained(folder)


STREAMED = dict(max_new_tokens=12, eos_token_id=None, pad_token_id=0)


def test_streams(demo):
    model, tokenizer = demo
    with model.session(exact=True) as session:
        for prompt in ("def add(a, b):", "def add(a, b, c):"):
            warm, cold = ("".join(piece.text for piece in each.stream(prompt, **STREAMED)) for each in (session, model))
            assert warm == cold
        assert session.stats.reused_tokens > 0
        stream = session.stream("def add(a, b):", **STREAMED)
        next(stream)
        stream.close()
        assert session.cache.pages_in_use == session.stats.tokens // PAGE


def test_an_unfinished_stream_locks_nobody_out(demo):
    """It may be continued and closed in other threads, as web servers do, and others go on meanwhile."""
    model, tokenizer = demo
    prompt = tokenizer("def add(a, b):")["input_ids"]
    expected = "".join(piece.text for piece in model.stream([prompt], **STREAMED))

    def in_a_thread(function, *arguments):
        results = []
        thread = threading.Thread(target=lambda: results.append(function(*arguments)), daemon=True)
        thread.start()
        thread.join(60)
        assert results, "it waits for ever, or failed"
        return results[0]

    with model.session(exact=True) as session:
        stream = session.stream([prompt], **STREAMED)
        pieces = [in_a_thread(next, stream).text]
        other = session.stream([prompt], **STREAMED)
        begun = next(other).text
        cold = model.generate([prompt], max_new_tokens=5, pad_token_id=0)
        assert torch.equal(in_a_thread(lambda: session.generate([prompt], max_new_tokens=5, pad_token_id=0)), cold)
        pieces += in_a_thread(lambda: [piece.text for piece in stream])
        assert "".join(pieces) == expected
        assert begun and in_a_thread(lambda: other.close() or True)
        assert session.cache.pages_in_use == session.stats.tokens // PAGE


def test_threads_generate_through_one_session(model):
    file = text(80)
    prompts = [[*file[:length], 12 + length % 7] for length in range(10, 80, 7)]
    expected = [generate(model, prompt).tolist() for prompt in prompts]
    with model.session(max_tokens=256, exact=True) as session:
        results = [None] * len(prompts)

        def work(start):
            for i in range(start, len(prompts), 3):
                results[i] = generate(session, prompts[i]).tolist()

        threads = [threading.Thread(target=work, args=(start,)) for start in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == expected
        assert session.cache.pages_in_use == session.stats.tokens // PAGE
