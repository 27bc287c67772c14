"""Streams, interruptions and threads: what a caller sees while generate() runs, and what must not stay behind."""
from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from pairs import pair, quiet  # noqa: F401  (fixtures)

IDS = torch.tensor([[11, 12, 13, 14, 15], [0, 0, 21, 22, 23], [0, 0, 0, 0, 31]])
MASK = (IDS != 0).long()
HOT = dict(do_sample=True, temperature=1.5, max_new_tokens=12, eos_token_id=None, top_k=0)


@pytest.fixture
def caches(pair, monkeypatch):
    """The caches that calls of generate make, to see that their pages come back."""
    made = []
    decoder = pair[1]._decoder
    new_cache = decoder.new_cache

    def recorded(*args, **kwargs):
        made.append(new_cache(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(decoder, "new_cache", recorded)
    yield made
    assert made and all(cache.pages_in_use == 0 for cache in made)


class Recorder:
    def __init__(self, raise_at=None, error=None):
        self.calls, self.raise_at, self.error = [], raise_at, error

    def put(self, tokens):
        assert tokens.device.type == "cpu"
        self.calls.append(tokens.tolist())
        if len(self.calls) == self.raise_at:
            self.error()

    def end(self):
        self.calls.append("end")


def test_a_streamer_hears_what_transformers_tells_it(pair):
    eos = pair[0].generate(IDS, attention_mask=MASK, max_new_tokens=9)[1, 7].item()
    heard = []
    for model in pair:
        recorder = Recorder()
        model.generate(IDS, attention_mask=MASK, max_new_tokens=9, eos_token_id=eos, pad_token_id=3, streamer=recorder)
        heard.append(recorder.calls)
    assert heard[0] == heard[1] and heard[1][0] == IDS.tolist() and heard[1][-1] == "end"


class Letters:
    def decode(self, ids, **kwargs):
        return "".join(chr(97 + i % 26) + (" " if i % 3 == 0 else "") for i in ids)


def test_transformers_text_streamers(pair, capsys):
    printed = []
    for model in pair:
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=9, streamer=transformers.TextStreamer(Letters()))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[1].endswith("\n") and len(printed[1]) > 12

    streamer = transformers.TextIteratorStreamer(Letters(), skip_prompt=True, timeout=60)
    thread = threading.Thread(target=pair[1].generate, args=([[5, 6, 7]],),
                              kwargs=dict(max_new_tokens=9, streamer=streamer))
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.strip() and text.strip() in printed[1]


def test_transformers_text_streamer_takes_one_prompt(pair, caches):
    for model in pair:
        with pytest.raises(ValueError, match="batch size 1"):
            model.generate(torch.tensor([[5], [6]]), max_new_tokens=2, streamer=transformers.TextStreamer(Letters()))
    pair[1].generate([[5]], max_new_tokens=2)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise RuntimeError("the consumer broke")


@pytest.mark.parametrize("knobs", [dict(), dict(do_sample=True, num_return_sequences=3, seed=1)])
@pytest.mark.parametrize("raise_at", [1, 2, 5])
@pytest.mark.parametrize("action, kind", [(interrupt, KeyboardInterrupt), (fail, RuntimeError)])
def test_an_interrupted_generation_leaves_the_model_usable(pair, caches, knobs, raise_at, action, kind):
    expected = pair[1].generate([[5, 6, 7]], max_new_tokens=9, **knobs)
    recorder = Recorder(raise_at, action)
    with pytest.raises(kind):
        pair[1].generate([[5, 6, 7]], max_new_tokens=9, streamer=recorder, **knobs)
    assert len(recorder.calls) == raise_at  # a streamer that raised is told nothing more
    assert torch.equal(pair[1].generate([[5, 6, 7]], max_new_tokens=9, **knobs), expected)


def test_an_error_elsewhere_ends_the_stream(pair, caches, monkeypatch):
    decoder = pair[1]._decoder
    run_layers = decoder.run_layers

    def broken(x, q, act, cache, batch, decode, *rest):
        if decode:
            raise KeyboardInterrupt
        run_layers(x, q, act, cache, batch, decode, *rest)

    monkeypatch.setattr(decoder, "run_layers", broken)
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        pair[1].generate([[5, 6, 7]], max_new_tokens=9, num_return_sequences=2, do_sample=True, streamer=recorder)
    assert len(recorder.calls) == 3 and recorder.calls[-1] == "end"


def test_pages_come_back(pair, caches):
    ending = {**HOT, "eos_token_id": list(range(30))}
    pair[1].generate(IDS, attention_mask=MASK, num_return_sequences=4, seed=3, **ending)
    pair[1].generate(IDS, attention_mask=MASK, max_new_tokens=1)
    assert len(caches) == 2


def test_threads_share_a_model(pair):

    def generate(seed):
        knobs = {**HOT, "max_new_tokens": 40}
        return pair[1].generate(IDS, attention_mask=MASK, num_return_sequences=2, seed=seed, **knobs)

    expected = [generate(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(generate, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_inside_any_grad_mode(pair, mode):
    expected = pair[1].generate([[5, 6, 7]], max_new_tokens=5)
    with mode():
        got = pair[1].generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5)
    assert torch.equal(got, expected) and not got.requires_grad
