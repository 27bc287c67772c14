"""The decoder as a whole: equal to transformers, and the same bits in any company."""

import time

import pytest
import torch
from checkpoints import make_checkpoint, make_model

import codegen_fast
from codegen_fast import ops

KINDS = [(torch.float32, None), (torch.bfloat16, None), (torch.float16, None), (torch.float32, "int8")]
KIND_IDS = ["float32", "bfloat16", "float16", "int8"]

# head dims 16, 64, 80, 256; odd vocabularies; n_inner set; 4 to 32 heads; 1 to 5 layers
SHAPES = {
    "head16": dict(n_embd=128, n_head=8, rotary_dim=16, n_layer=5, vocab_size=131),
    "head64": dict(n_embd=256, n_head=4, rotary_dim=32, n_layer=3, vocab_size=257),
    "head80": dict(n_embd=320, n_head=4, rotary_dim=64, n_layer=2, vocab_size=101),
    "head256": dict(n_embd=1024, n_head=4, rotary_dim=64, n_layer=1, vocab_size=333),
    "heads32": dict(n_embd=512, n_head=32, rotary_dim=8, n_layer=2, n_inner=411, vocab_size=75),
    "gptj": dict(model_type="gptj", n_embd=96, n_head=6, rotary_dim=8, n_layer=3, vocab_size=97),
}


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def fast(hf_model, quantization=None):
    return codegen_fast.accelerate(hf_model, quantization=quantization)


@pytest.fixture(scope="module")
def small():
    """A transformers model that tells heads, positions and biases apart."""
    return make_model(n_embd=128, n_head=8, rotary_dim=16, n_layer=3, vocab_size=199, n_positions=512, seed=3)


@pytest.mark.parametrize("isa", ops.cpu_isas())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_logits_and_greedy_tokens_are_those_of_transformers(shape, isa):
    hf = make_model(**shape)
    model = fast(hf)
    ids = torch.randint(3, shape["vocab_size"], (3, 11), generator=torch.Generator().manual_seed(1))
    with ops.forced_isa(isa), torch.no_grad():
        assert relative_error(model(ids).logits, hf(ids).logits) <= 2e-5
        expected = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0)
        assert torch.equal(model.generate(ids, max_new_tokens=40, pad_token_id=0, attention_mask=torch.ones_like(ids)), expected)


@pytest.mark.parametrize("isa", ops.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_half_logits_err_no_more_than_transformers(name, dtype, isa):
    shape = SHAPES[name]
    narrow = make_model(dtype=dtype, **shape)
    # The reference has the narrow weights and computes in float32: what is left is the error of the arithmetic.
    wide = type(narrow)(narrow.config).eval()
    wide.load_state_dict({k: v.float() for k, v in narrow.state_dict().items()})
    ids = torch.randint(3, shape["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(2))
    with ops.forced_isa(isa), torch.no_grad():
        reference = wide.float()(ids).logits
        theirs = relative_error(narrow(ids).logits, reference)
        assert relative_error(fast(narrow)(ids).logits, reference) <= 1.25 * theirs


def logits_of_steps(model, prompts, steps, threads):
    """Logits after every prompt and after each of its steps, all prompts in one batch: [prompt][step] (V,)."""
    torch.set_num_threads(threads)
    decoder = model._decoder
    cache = decoder.new_cache()
    sequences = [cache.new_sequence() for _ in prompts]
    logits = decoder.prefill(cache, sequences, [p for p, _ in prompts]).logits
    collected = [[row.clone()] for row in logits]
    batch = decoder.start(cache, sequences, steps)
    for step in range(steps):
        logits = batch.step(torch.tensor([int(forced[step]) for _, forced in prompts]))
        for own, row in zip(collected, logits, strict=True):
            own.append(row.clone())
    batch.close()
    assert cache.pages_in_use == 0
    return collected


@pytest.mark.parametrize("isa", ops.cpu_isas())
@pytest.mark.parametrize(("dtype", "quantization"), KINDS, ids=KIND_IDS)
def test_logits_are_the_same_bits_alone_in_a_batch_and_with_any_threads(small, dtype, quantization, isa):
    model = fast(make_model(n_embd=128, n_head=8, rotary_dim=16, n_layer=3, vocab_size=199, n_positions=512,
                            seed=3, dtype=dtype), quantization)  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    # Ragged: shorter than a page, at its end, across the 256 keys of an attention split, longer than a chunk's rest.
    prompts = [(torch.randint(3, 199, (n,), generator=generator), torch.randint(3, 199, (20,), generator=generator))
               for n in (1, 15, 16, 33, 250, 300, 130)]  # fmt: skip
    with ops.forced_isa(isa):
        together = logits_of_steps(model, prompts, 20, threads=2)
        together_one_thread = logits_of_steps(model, prompts, 20, threads=1)
        for i, prompt in enumerate(prompts):
            alone = logits_of_steps(model, [prompt], 20, threads=1 + i % 2)[0]
            for a, b, c in zip(alone, together[i], together_one_thread[i], strict=True):
                assert torch.equal(a, b) and torch.equal(b, c)


@pytest.mark.parametrize(("dtype", "quantization"), KINDS, ids=KIND_IDS)
def test_steps_agree_with_prefill(small, dtype, quantization):
    model = fast(small.to(dtype), quantization)
    ids = torch.randint(3, 199, (1, 90), generator=torch.Generator().manual_seed(4))
    whole = model(ids).logits[0]
    stepwise = logits_of_steps(model, [(ids[0, :50], ids[0, 50:])], 40, threads=2)[0]
    assert relative_error(torch.stack(stepwise), whole[49:]) <= 2e-5
    small.float()


def test_prefill_in_chunks_gives_the_same_bits(small, monkeypatch):
    model = fast(small)
    ids = torch.randint(3, 199, (1, 300), generator=torch.Generator().manual_seed(5))
    whole = model(ids, output_hidden_states=True)
    monkeypatch.setattr("codegen_fast.decoder.PREFILL_CHUNK", 37)
    pieces = model(ids, output_hidden_states=True)
    assert torch.equal(whole.logits, pieces.logits)
    assert all(torch.equal(a, b) for a, b in zip(whole.hidden_states, pieces.hidden_states, strict=True))


def test_samples_share_the_prompt(small):
    model = fast(small)
    decoder = model._decoder
    before = decoder.prefilled_tokens
    ids = torch.randint(3, 199, (2, 70), generator=torch.Generator().manual_seed(6))
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, num_return_sequences=6, max_new_tokens=5, seed=1, pad_token_id=0)
    assert out.shape[0] == 12
    assert decoder.prefilled_tokens - before == 2 * 70

    cache = decoder.new_cache()
    sequence = cache.new_sequence()
    decoder.prefill(cache, [sequence], [ids[0]])
    pages = cache.pages_in_use
    twins = [cache.fork(sequence) for _ in range(8)]
    assert cache.pages_in_use == pages
    batch = decoder.start(cache, twins, 1)
    batch.step(torch.arange(3, 11))
    # 70 tokens: four full pages stay shared, the fifth is copied for each sample that writes into it
    assert pages == 5 and cache.pages_in_use == 5 + 8
    assert len({twin.pages[4] for twin in twins} | {sequence.pages[4]}) == 9
    batch.close()
    assert cache.pages_in_use == 5
    cache.release(sequence)
    assert cache.pages_in_use == 0


def test_forked_samples_decode_as_if_alone(small):
    decoder = fast(small)._decoder
    ids = torch.randint(3, 199, (40,), generator=torch.Generator().manual_seed(8))
    cache = decoder.new_cache()
    sequence = cache.new_sequence()
    decoder.prefill(cache, [sequence], [ids])
    twins = [cache.fork(sequence) for _ in range(3)]
    batch = decoder.start(cache, twins, 30)
    tokens = torch.randint(3, 199, (30, 3), generator=torch.Generator().manual_seed(9))
    together = [batch.step(row).clone() for row in tokens]
    batch.close()
    for i in range(3):
        own = cache.fork(sequence)
        alone = decoder.start(cache, [own], 30)
        for row, expected in zip(tokens, together, strict=True):
            assert torch.equal(alone.step(row[i : i + 1])[0], expected[i])
        alone.close()


def test_rows_that_leave_do_not_disturb_the_others(small):
    decoder = fast(small)._decoder
    prompts = [torch.randint(3, 199, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 40, 17, 30)]
    cache = decoder.new_cache()
    sequences = [cache.new_sequence() for _ in prompts]
    decoder.prefill(cache, sequences, prompts)
    batch = decoder.start(cache, sequences, 30)
    rows = [0, 1, 2, 3]
    seen = {i: [] for i in rows}
    for step in range(30):
        if step == 7:
            batch.keep([3, 1])
            rows = [rows[3], rows[1]]
        if step == 20:
            batch.keep([1])
            rows = [rows[1]]
        for i, logits in zip(rows, batch.step(torch.tensor([(step + i) % 199 for i in rows])), strict=True):
            seen[i].append(logits.clone())
    batch.close()
    assert cache.pages_in_use == 0
    forced = torch.tensor([(step + 1) % 199 for step in range(30)])
    alone = logits_of_steps(fast(small), [(prompts[1], forced)], 30, threads=1)[0][1:]
    assert all(torch.equal(a, b) for a, b in zip(alone, seen[1], strict=True))


def test_nothing_but_our_kernels_computes(small, monkeypatch):
    """With torch's products and softmax broken, logits and tokens come out as before."""
    model = fast(small)
    ids = torch.randint(3, 199, (2, 30), generator=torch.Generator().manual_seed(10))
    mask = torch.ones_like(ids)
    logits = model(ids).logits
    tokens = model.generate(ids, attention_mask=mask, do_sample=True, seed=3, max_new_tokens=12, pad_token_id=0)

    def broken(*args, **kwargs):
        raise AssertionError("torch arithmetic between the embedding and the logits")

    for name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "softmax", "log_softmax", "layer_norm", "tanh", "exp"):
        monkeypatch.setattr(torch, name, broken)
    for name in ("matmul", "__matmul__", "mm", "bmm", "softmax", "exp", "tanh"):
        monkeypatch.setattr(torch.Tensor, name, broken)
    for name in ("linear", "softmax", "layer_norm", "gelu", "scaled_dot_product_attention", "embedding"):
        monkeypatch.setattr(torch.nn.functional, name, broken)
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model.generate(ids, attention_mask=mask, do_sample=True, seed=3, max_new_tokens=12, pad_token_id=0), tokens)


def test_a_larger_model_decodes_eight_rows_in_less_than_two_and_a_half_times_the_time_of_one():
    """The weights (200 MB, beyond any cache) are read once for all rows."""
    model = make_model(n_embd=1024, n_head=16, rotary_dim=32, n_layer=4, vocab_size=256, n_positions=256)
    decoder = fast(model)._decoder
    del model
    cache = decoder.new_cache(4096)
    sequence = cache.new_sequence()
    decoder.prefill(cache, [sequence], [torch.arange(3, 35)])
    batches = {n: decoder.start(cache, [cache.fork(sequence) for _ in range(n)], 200) for n in (1, 8)}
    best = {1: 1.0, 8: 1.0}
    for _ in range(40):
        for n, batch in batches.items():
            begin = time.perf_counter()
            batch.step(torch.full((n,), 5))
            best[n] = min(best[n], time.perf_counter() - begin)
    print(f"batch of 1: {best[1] * 1e3:.2f} ms, of 8: {best[8] * 1e3:.2f} ms, ratio {best[8] / best[1]:.2f}")
    assert best[8] < 2.5 * best[1]


def test_python_and_binding_take_less_than_300_microseconds_a_step(capsys):
    """20 layers, ops that return as soon as their arguments are converted."""
    model = make_model(n_embd=64, n_head=4, n_layer=20, n_positions=2048)
    decoder = fast(model)._decoder
    cache = decoder.new_cache(2048)
    sequence = cache.new_sequence()
    decoder.prefill(cache, [sequence], [torch.arange(3, 35)])
    batch = decoder.start(cache, [sequence], 1500)
    token = torch.tensor([5])
    times = []
    with ops.dry_run():
        for _ in range(1000):
            begin = time.perf_counter()
            batch.step(token)
            times.append(time.perf_counter() - begin)
    median = sorted(times)[len(times) // 2] * 1e6
    with capsys.disabled():
        print(f"\nhost overhead of a decode step, 20 layers: {median:.0f} microseconds")
    assert median < 300


@pytest.mark.parametrize(("dtype", "quantization"), KINDS, ids=KIND_IDS)
def test_resident_weights_stay_within_five_percent_of_their_type(dtype, quantization):
    hf = make_model(n_embd=512, n_head=8, n_layer=2, rotary_dim=32, vocab_size=1000, dtype=dtype)
    model = fast(hf, quantization)
    each = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}[dtype]
    embedding = hf.transformer.wte.weight.numel()
    rest = sum(p.numel() for p in hf.parameters()) - embedding
    ideal = embedding * each + rest * (1 if quantization else each)
    assert ideal <= model.memory_footprint() <= 1.05 * ideal


@pytest.mark.parametrize(("dtype", "quantization"), KINDS, ids=KIND_IDS)
def test_weights_are_the_same_from_a_file_and_from_a_model(tmp_path, dtype, quantization):
    hf = make_checkpoint(tmp_path, n_embd=128, n_head=8, rotary_dim=16, n_layer=2, dtype=dtype)
    ids = torch.randint(3, 100, (1, 20), generator=torch.Generator().manual_seed(11))
    loaded = codegen_fast.AutoModelForCausalLM.from_pretrained(tmp_path, quantization=quantization)
    assert loaded.dtype == dtype
    assert torch.equal(loaded(ids).logits, fast(hf, quantization)(ids).logits)


def test_pages_grow_and_keep_what_they_hold(small):
    decoder = fast(small)._decoder
    cache = decoder.new_cache()
    ids = torch.randint(3, 199, (200,), generator=torch.Generator().manual_seed(12))
    first = cache.new_sequence()
    decoder.prefill(cache, [first], [ids[:100]])
    others = [cache.new_sequence() for _ in range(5)]
    decoder.prefill(cache, others, [ids[i : i + 60] for i in range(5)])
    logits = decoder.prefill(cache, [first], [ids[100:]]).logits
    fresh = decoder.new_cache(300)
    whole = fresh.new_sequence()
    assert torch.equal(decoder.prefill(fresh, [whole], [ids]).logits, logits)
    for sequence in [first, *others]:
        cache.release(sequence)
    assert cache.pages_in_use == 0


def test_crop_forgets_and_recomputes(small):
    decoder = fast(small)._decoder
    cache = decoder.new_cache()
    ids = torch.randint(3, 199, (64,), generator=torch.Generator().manual_seed(13))
    sequence = cache.new_sequence()
    first = decoder.prefill(cache, [sequence], [ids]).logits
    cache.crop(sequence, 33)
    assert sequence.length == 33 and len(sequence.pages) == 3
    assert torch.equal(decoder.prefill(cache, [sequence], [ids[33:]]).logits, first)


