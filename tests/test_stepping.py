"""codegen_fast.stepping and workplace: steps recorded and enqueued ahead give the tokens of one step at a time."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from checkpoints import make_model
from devices import CPU, CUDA, EMULATED, Device, per_device
from tokenizers_small import write_tokenizer

import codegen_fast
from codegen_fast import ops, stepping, transfer, workplace

SHAPE = dict(n_embd=48, n_head=4, rotary_dim=8, n_layer=1, vocab_size=67, n_positions=300, seed=5)
ALL = (CPU, *CUDA)
HOT = dict(do_sample=True, temperature=1.5, top_k=0, eos_token_id=None)


def model_on(device: Device, quantization: str | None = None):
    dtype = torch.float32 if device.backend == "cpu" else torch.float16
    model = codegen_fast.accelerate(make_model(dtype=dtype, **SHAPE), quantization=quantization)
    return model.to(device.memory) if device.memory.type == "cuda" else model


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, SHAPE["vocab_size"], (1, length), generator=torch.Generator().manual_seed(seed))


def greedy_one_by_one(model, ids: torch.Tensor, steps: int) -> tuple[list[int], torch.Tensor]:
    """Tokens, and the logits (steps, V) after each, by the eager steps of RunningBatch; the host takes the largest."""
    decoder = model._decoder
    cache = decoder.new_cache()
    sequence = cache.new_sequence()
    logits = decoder.prefill(cache, [sequence], [ids[0]]).logits
    batch = decoder.start(cache, [sequence], steps)
    tokens, each = [], []
    for _ in range(steps):
        tokens.append(int(logits[0].argmax()))
        logits = batch.step(torch.tensor(tokens[-1:], device=decoder.device))
        each.append(logits[0].clone())
    batch.close()
    return tokens, torch.stack(each)


@pytest.fixture
def recordings(monkeypatch):
    """One entry for every graph that is recorded."""
    made = []
    new_graph = ops.new_graph
    monkeypatch.setattr(ops, "new_graph", lambda on: made.append(new_graph(on)) or made[-1])
    return made


def test_buckets():
    assert [workplace.rows_bucket(n) for n in (1, 2, 3, 4, 5, 33, 64)] == [1, 2, 4, 4, 8, 64, 64]
    assert [workplace.rows_bucket(n) for n in (65, 128, 129)] == [128, 128, 192]
    assert [workplace.seq_len_bucket(n, 2048) for n in (1, 128, 129, 1025, 2048)] == [128, 128, 256, 2048, 2048]
    assert [workplace.seq_len_bucket(n, 300) for n in (5, 129, 257, 300)] == [128, 256, 300, 300]
    assert workplace.seq_len_bucket(3, 64) == 64


@per_device(ALL, quantization=lambda device: (None, "int8", "int4") if device.backend == "cpu" else (None, "int8"))
def test_recorded_steps_give_the_bits_of_eager_ones(device, quantization, recordings, monkeypatch):
    """From 121 tokens to 133: past the end of a page, and of the first bound that steps are recorded for."""
    model = model_on(device, quantization)
    ids = prompt(121)
    logits, run = [], workplace.Step.run
    monkeypatch.setattr(workplace.Step, "run", lambda step, *args, **how: run(step, *args, **how) or logits.append(step.logits[0].clone()))
    got = model.generate(ids, max_new_tokens=12, eos_token_id=None)
    assert got.device == model.device
    tokens, eager = greedy_one_by_one(model, ids, 12)
    assert got[0, 121:].tolist() == tokens
    # The first token comes from the prompt's logits; on a GPU a step of idle rows runs before all others.
    assert torch.equal(torch.stack(logits[-11:]), eager[:11])
    assert len(recordings) == 2


@per_device(ALL)
def test_rows_that_end_leave_and_the_rest_moves_together(device):
    """Five rows (a bucket of 8) of two prompts, of which ever fewer run: each gets what it gets alone."""
    model = model_on(device)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    ids = torch.cat([prompt(9, 1), prompt(9, 2)])
    knobs = {**HOT, "max_new_tokens": 7, "num_return_sequences": 3, "pad_token_id": 0}
    free = model.generate(ids, mask, seed=3, **knobs)[:, 9:].cpu()
    eos = sorted({int(free[0, 1]), int(free[3, 1]), int(free[1, 2]), int(free[4, 3])})
    knobs["eos_token_id"] = eos
    rows = model.generate(ids, mask, seed=3, **knobs)[:, 9:].tolist()
    ends = []
    for whole, row in zip(free.tolist(), rows):
        end = next((i + 1 for i, token in enumerate(whole) if token in eos), 7)
        ends.append(end)
        assert row == whole[:end] + [0] * (len(row) - end)
    assert len(set(ends)) >= 3
    seeds = [codegen_fast.sampling.mix_seed(3, prompt) for prompt in (0, 1)]
    alone = model.generate(ids[1:, 4:], seed=seeds[1], sample_offset=2, **{**knobs, "num_return_sequences": 1})
    assert alone[0, 5:].tolist() == rows[5][: ends[5]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return codegen_fast.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@per_device(ALL)
def test_rows_that_the_host_ends_while_steps_are_under_way(device, tokenizer, monkeypatch):
    """Text ends a row: the steps that were enqueued with it write to its pages, which go back when those are done."""
    model = model_on(device)
    knobs = {**HOT, "max_new_tokens": 20, "num_return_sequences": 4, "pad_token_id": 0, "seed": 11}
    free = model.generate(prompt(30), **knobs)[:, 30:].tolist()
    texts = [tokenizer.decode([token]) for token in range(67)]
    strings = sorted({texts[row[at]] for row, at in zip(free, (3, 4, 7, 9))})
    caches = []
    monkeypatch.setattr(stepping.SteppingBatch, "close",
                        lambda batch, close=stepping.SteppingBatch.close: caches.append(batch._place.cache) or close(batch))
    for at_once in (4, 2):
        got = model.generate(prompt(30), stop_strings=strings, tokenizer=tokenizer, max_batch_size=at_once, **knobs)
        for row, whole in zip(got[:, 30:].tolist(), free):
            end = next(i + 1 for i, token in enumerate(whole) if any(text in texts[token] for text in strings))
            assert row == whole[:end] + [0] * (len(row) - end)
    assert len(caches) == 2 and not any(cache.pages_in_use for cache in caches)
    assert torch.equal(model.generate(prompt(30), **knobs)[:, 30:].cpu(), torch.tensor(free))


@per_device((EMULATED,))
def test_state_that_must_be_copied(device, monkeypatch):
    """As on a GPU, whose memory the host does not share."""
    model = model_on(device)
    monkeypatch.setattr(transfer, "is_host", lambda device: False)
    ids = prompt(30)
    expected = greedy_one_by_one(model, ids, 5)[0]
    rows = model.generate(ids, max_new_tokens=5, eos_token_id=expected[3])
    assert rows[0, 30:].tolist() == expected[:4]


@per_device(CUDA)
def test_a_workplace_made_in_inference_mode_serves_outside_of_it(device, monkeypatch):
    model = model_on(device)
    monkeypatch.setattr(transfer, "is_host", lambda device: False)
    with torch.inference_mode():
        expected = model.generate(prompt(5), max_new_tokens=4)
    kept = list(model._decoder.kept)
    assert torch.equal(model.generate(prompt(5), max_new_tokens=4), expected)
    assert len(kept) == 1 and model._decoder.kept == kept


@per_device(ALL)
def test_one_token(device):
    model = model_on(device)
    assert model.generate(prompt(5), max_new_tokens=1).shape == (1, 6)
    assert model.generate(prompt(299), max_new_tokens=1).shape == (1, 300)


@per_device(ALL)
def test_more_eos_tokens_than_a_step_usually_looks_for(device):
    model = model_on(device)
    free = model.generate(prompt(5), max_new_tokens=6, eos_token_id=None)[0, 5:].tolist()
    first = next(i for i, token in enumerate(free) if i >= 2 and token not in free[:i])
    eos = [free[first], *(token for token in range(67) if token not in free)]
    assert len(eos) > 8
    assert model.generate(prompt(5), max_new_tokens=6, eos_token_id=eos)[0, 5:].tolist() == free[: first + 1]


@per_device(ALL)
def test_a_cache_that_grows_is_recorded_again(device, monkeypatch, recordings):
    """It begins with one page: the prompt's."""
    monkeypatch.setattr(workplace, "_make_room", lambda *arguments: None)
    model = model_on(device)
    ids = prompt(20)
    expected = greedy_one_by_one(model, ids, 70)[0]
    assert model.generate(ids, max_new_tokens=70, eos_token_id=None)[0, 20:].tolist() == expected
    # On CUDA grown before the first step, and when the pages for its first 52 tokens were full; a CPU's pages are smaller.
    assert len(recordings) == {"cuda": 2, "cpu": 3}[device.backend]


@per_device(CUDA)
def test_a_workplace_is_kept_for_the_next_call(device, recordings):
    model = model_on(device)
    decoder = model._decoder
    first = model.generate(prompt(5), seed=1, max_new_tokens=4, **HOT)
    made = len(recordings)
    assert made == 1 and len(decoder.kept) == 1
    kept = decoder.kept[0]
    assert torch.equal(model.generate(prompt(5), seed=1, max_new_tokens=4, **HOT), first)
    assert decoder.kept == [kept] and len(recordings) == made and kept.cache.pages_in_use == 0
    model.generate(prompt(5), seed=1, max_new_tokens=4, num_return_sequences=2, **HOT)  # more rows than it has
    assert len(decoder.kept) == 2 and len(recordings) == made + 1
    for _ in range(2):
        model.generate(prompt(5), seed=1, max_new_tokens=2, num_return_sequences=3, **HOT)
    assert len(decoder.kept) == 2
    moved = model.bfloat16()._decoder
    assert moved is not decoder and not decoder.kept and not moved.kept


@per_device(CUDA)
def test_too_large_a_workplace_is_not_kept(device, monkeypatch):
    monkeypatch.setattr(workplace, "_kept_bytes", lambda device: 1000)
    model = model_on(device)
    model.generate(prompt(5), max_new_tokens=2)
    assert model._decoder.kept == []


@per_device(CUDA)
def test_what_is_kept_makes_room(device, monkeypatch):
    model = model_on(device)
    decoder = model._decoder
    first = model.generate(prompt(5), max_new_tokens=3)
    make_room = workplace._make_room

    kept = weakref.ref(decoder.kept[0])

    def full(*arguments):
        if kept() is not None:
            raise OSError("full")
        make_room(*arguments)

    monkeypatch.setattr(workplace, "_make_room", full)
    assert torch.equal(model.generate(prompt(5), max_new_tokens=3), first)
    assert len(decoder.kept) == 1
    other = decoder.kept.pop()
    kept = weakref.ref(other)
    with pytest.raises(OSError, match="full"):
        monkeypatch.setattr(workplace, "Workplace", lambda *arguments: other)
        model.generate(prompt(5), max_new_tokens=3)


class Broken:
    """A streamer that fails at its n-th token."""

    def __init__(self, at, error):
        self.at, self.error = at, error

    def put(self, tokens):
        self.at -= 1
        if self.at < 0:
            raise self.error

    def end(self):
        pass


@per_device(ALL)
def test_an_interrupted_generation_gives_everything_back(device, monkeypatch):
    model = model_on(device)
    decoder = model._decoder
    expected = model.generate(prompt(5), max_new_tokens=6, eos_token_id=None)
    caches = []
    new_cache = decoder.new_cache
    monkeypatch.setattr(decoder, "new_cache", lambda *args: caches.append(new_cache(*args)) or caches[-1])
    for error in (KeyboardInterrupt(), RuntimeError("the consumer broke")):
        with pytest.raises(type(error)):
            model.generate(prompt(5), max_new_tokens=6, eos_token_id=None, streamer=Broken(3, error))
        assert decoder.kept == []
    assert torch.equal(model.generate(prompt(5), max_new_tokens=6, eos_token_id=None), expected)
    assert caches and all(cache.pages_in_use == 0 for cache in caches)


@per_device(ALL)
def test_an_interruption_while_a_step_is_enqueued(device, monkeypatch):
    """After the step was counted and before it was launched: nobody waits for it for ever."""
    model = model_on(device)
    expected = model.generate(prompt(5), max_new_tokens=6, eos_token_id=None)
    run, calls = workplace.Step.run, []

    def interrupted(self, *args, **how):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        run(self, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(workplace.Step, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(prompt(5), max_new_tokens=6, eos_token_id=None)
    assert model._decoder.kept == []
    assert torch.equal(model.generate(prompt(5), max_new_tokens=6, eos_token_id=None), expected)


@per_device(CUDA)
def test_memory_is_given_back_when_the_device_is_done_with_it(device, monkeypatch):
    """Also where only the idle step that loads kernels was enqueued, which nobody reads."""
    model = model_on(device)
    waits = []
    monkeypatch.setattr(transfer, "wait_for", lambda device: waits.append(device) or True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stepping, "as_signed", Broken(0, KeyboardInterrupt()).put)
        model.generate(prompt(5), max_new_tokens=6)
    assert waits == [model.device]
    monkeypatch.setattr(transfer, "wait_for", lambda device: False)  # the device has failed
    model.generate(prompt(5), max_new_tokens=2)
    assert model._decoder.kept == []


@per_device(ALL)
def test_logits_without_an_answer_name_their_row(device):
    model = model_on(device)
    model.generate(prompt(5), max_new_tokens=2)
    model._decoder.weights.lm_head_bias[7] = float("nan")
    with pytest.raises(ValueError, match="row 0 holds NaN or no finite value"):
        model.generate(prompt(5), max_new_tokens=2)


@per_device((CPU, CUDA[1]))
def test_threads_have_workplaces_of_their_own(device):
    model = model_on(device)

    def generate(seed):
        return model.generate(prompt(5), seed=seed, max_new_tokens=20, num_return_sequences=3, **HOT)

    expected = [generate(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(generate, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    assert len(model._decoder.kept) <= 2


# ---- The ring ----------------------------------------------------------------------------------


def test_waiting_for_a_step_that_never_comes_is_an_error():
    ring, on = ops.new_host_ring(4, 2, torch.device("cpu")), torch.zeros(1)
    with pytest.raises(RuntimeError, match="step 1 was not in it"):
        ring.wait(1, on)
    assert ring.wait(1, on, 0.0) is False
    ring.slots[0, 0] = 1
    assert ring.wait(1, on)
    ring.slots[0, 0] = 5
    assert ring.wait(5, on)
    with pytest.raises(ValueError, match="holds step 5"):
        ring.wait(1, on)
    with pytest.raises(ValueError, match="number: expected at least 1, got 0"):
        ring.wait(0, on)
    with pytest.raises(ValueError, match="slots: expected memory of the host with at least one slot"):
        ops.HostRing(torch.zeros(0, 3, dtype=torch.int64)).wait(1, on)


@per_device((CUDA[1],))  # the emulator's device writes everywhere
def test_memory_that_a_device_cannot_write_is_refused(device):
    own = dict(device=device.memory)
    with pytest.raises(ValueError, match="slots: expected pinned memory"):
        ops.advance(torch.zeros(1, dtype=torch.int64, **own), torch.ones(1, dtype=torch.int32, **own),
                    torch.ones(1, dtype=torch.int32, **own), torch.zeros(1, dtype=torch.int64, **own),
                    torch.zeros(1, 0, dtype=torch.int32, **own), ops.HostRing(torch.zeros(4, 2, dtype=torch.int64)),
                    torch.zeros(1, dtype=torch.int64, **own), torch.zeros(0, dtype=torch.int64, **own))  # fmt: skip


@per_device(ALL)
def test_a_graph_is_recorded_once(device):
    on = torch.zeros(1, device=device.memory)
    graph = ops.new_graph(on)
    with pytest.raises(RuntimeError, match="has not been recorded"):
        graph.replay()
    with pytest.raises(KeyError), ops.recorded(graph):
        raise KeyError
    with ops.recorded(graph):
        pass
    graph.replay()
    with pytest.raises(RuntimeError, match="has been recorded"):
        graph.begin()


def test_a_cpu_recording_is_its_threads_and_replays_what_tensors_hold_then():
    x, norm = torch.randn(2, 64), ops.Norm(torch.ones(64), torch.zeros(64), 1e-5)
    first, out, other = x.clone(), torch.zeros(2, 64), torch.zeros(2, 64)
    graph = ops.new_graph(x)
    with ops.recorded(graph):
        ops.layer_norm(out, x, norm)
        thread = threading.Thread(target=ops.layer_norm, args=(other, x, norm))
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="recording another graph"):
            ops.new_graph(x).begin()
    assert not out.any() and other.any()
    graph.replay()
    assert torch.equal(out, other)
    x *= 3
    x[0, 0] += 1
    graph.replay()
    ops.layer_norm(other, x, norm)
    assert torch.equal(out, other) and not torch.equal(x, first)
    wrong = ops.new_graph(x)
    with ops.recorded(wrong):
        ops.layer_norm(out, torch.zeros(2, 64), norm)
        ops.layer_norm(out, x[:1], norm)
    with pytest.raises(ValueError, match=r"out: expected shape \(1, 64\), got \(2, 64\)"):
        wrong.replay()
    assert not torch.equal(out, other)  # those before it have run
    with pytest.raises(TypeError, match="x: "), ops.recorded(ops.new_graph(x)):
        ops.layer_norm(out, [1.0], norm)
    ops.layer_norm(out, x, norm)  # no longer recorded
    assert torch.equal(out, other)
