"""score, perplexity, embed: against transformers' logits and hidden states, and the same bits in any company.

transformers gives the expected values; it cannot be imported while our side runs.
"""

import gc
import math
import random
import sys
import threading
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from devices import CUDA, per_device
from loaded_weights import load

from codegen_fast import AutoTokenizer, chunked
from codegen_fast.config import CodeGenConfig
from codegen_fast.decoder import Decoder
from codegen_fast.demo import demo_model_path
from codegen_fast.scoring import features
from codegen_fast.scoring import rounds as score_rounds
from codegen_fast.scoring import scores as scoring
from codegen_fast.scoring.logprobs import log_probabilities

VOCAB, CONTEXT = 101, 64
MODELS = {
    "codegen": dict(seed=5),
    "gptj": dict(model_type="gptj", n_embd=96, n_head=6, seed=6),
    "wide": dict(n_embd=256, n_head=4, rotary_dim=32, n_layer=3, seed=7),
}
PROMPTS = [[5, 6, 7, 8], [9], [5, 6, 7, 8, 10, 11, 12], list(range(20, 50))]
COMPLETIONS = [[9, 10, 11], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [99], [7, 7, 7]]
TEXT = (Path(__file__).parent / "pairs.py").read_text()[:1500] + "# ünï, 中文\n"


def without_transformers(function):
    def run(*args, **options):
        with mock.patch.dict(sys.modules, {"transformers": None}):
            return function(*args, **options)

    return run


score = without_transformers(scoring.score)
perplexity = without_transformers(scoring.perplexity)
embed = without_transformers(features.embed)


def decoder_of(folder, dtype=None, quantization=None, device="cpu"):
    weights = load(folder, dtype, quantization=quantization, device=device)
    return Decoder(CodeGenConfig.from_folder(folder), weights, device)


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    """(transformers' model in float64, our decoder in float32)."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = make_checkpoint(folder, **MODELS[request.param])
    return theirs.double(), decoder_of(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, seed=5)
    return folder


@pytest.fixture(scope="module")
def decoder(folder):
    return decoder_of(folder)


@pytest.fixture(scope="module")
def demo():
    """(tokenizer, decoder) of the model that ships with the package."""
    return AutoTokenizer.from_pretrained(demo_model_path()), decoder_of(demo_model_path(), torch.float32)


@torch.no_grad()
def reference(theirs, prompt, completion):
    """(log-probabilities (n, V) float64 where the completion's tokens stand, bound of the error)."""
    logits = theirs(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1:-1]
    # The logits' bound, for the token's own and for the sum of all.
    return logits.log_softmax(-1), 2 * 2e-5 * float(logits.abs().max())


def equal(one, other):
    """Whether two scores, or lists of them, have the same bits."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    parts = [(getattr(one, name), getattr(other, name))
             for name in ("token_ids", "token_logprobs", "top_ids", "top_logprobs")]
    return all(a is b is None or torch.equal(a, b) for a, b in parts)


# ---- score ---------------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_transformers(both):
    theirs, ours = both
    for prompt, completion, got in zip(PROMPTS, COMPLETIONS, score(ours, PROMPTS, COMPLETIONS, top_k=4)):
        expected, bound = reference(theirs, prompt, completion)
        own = expected[range(len(completion)), completion]
        assert got.token_ids.tolist() == completion and len(got) == len(completion)
        assert got.token_logprobs.dtype == got.top_logprobs.dtype == torch.float32
        assert got.token_logprobs.shape == (len(completion),) and got.top_ids.shape == (len(completion), 4)
        assert float((got.token_logprobs - own).abs().max()) <= bound
        assert got.sum == pytest.approx(float(own.sum()), abs=bound * len(own))
        assert got.mean == pytest.approx(float(own.mean()), abs=bound)
        best = expected.topk(4)
        assert torch.equal(got.top_ids, best.indices)
        assert float((got.top_logprobs - best.values).abs().max()) <= bound


def test_a_whole_text_is_scored_from_its_second_token_on(both):
    theirs, ours = both
    for ids, got in zip(PROMPTS[2:], score(ours, PROMPTS[2:])):
        expected, bound = reference(theirs, ids[:1], ids[1:])
        assert got.token_ids.tolist() == ids[1:]
        assert float((got.token_logprobs - expected[range(len(ids) - 1), ids[1:]]).abs().max()) <= bound


@pytest.mark.parametrize("batch_tokens", [1, 9, 40, 2048])
def test_company_changes_no_bit(decoder, batch_tokens):
    """Whatever is scored together, in which order, and however rounds and blocks of logits are cut."""
    rng = random.Random(batch_tokens)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))] for _ in range(8)]
    completions = [[[rng.randrange(VOCAB) for _ in range(rng.choice([1, 1, 2, 13, 34]))]
                    for _ in range(rng.choice([1, 2, 5]))] for _ in prompts]
    prompts.append(prompts[0])
    completions.append([[1, 2, 3]])
    alone = [[score(decoder, p, c, top_k=3) for c in own] for p, own in zip(prompts, completions)]
    rows = rng.choice([1, 5, 256])
    with mock.patch.object(score_rounds, "LOGITS_ROWS", rows), mock.patch.object(chunked, "PREFILL_CHUNK", 17):
        together = score(decoder, prompts, completions, top_k=3, batch_tokens=batch_tokens)
        order = rng.sample(range(len(prompts)), len(prompts))
        shuffled = score(decoder, [prompts[i] for i in order], [completions[i] for i in order], top_k=3,
                         batch_tokens=batch_tokens)
    for i, own in enumerate(alone):
        assert equal(own, together[i])
        assert equal(own, shuffled[order.index(i)])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(decoder, threads):
    first = score(decoder, PROMPTS, COMPLETIONS, top_k=2)
    torch.set_num_threads(threads)
    assert equal(first, score(decoder, PROMPTS, COMPLETIONS, top_k=2))


def test_a_prompt_is_computed_once(decoder):
    prompt, completions = list(range(30)), [[i, i + 1, i + 2] for i in range(10, 20)]
    before = decoder.prefilled_tokens
    shared = score(decoder, prompt, completions, top_k=2)
    assert decoder.prefilled_tokens - before == 30 + 10 * 2
    before = decoder.prefilled_tokens
    again = score(decoder, [prompt] * 10, completions, top_k=2, batch_tokens=50)  # equal prompts, and several rounds
    assert decoder.prefilled_tokens - before == 30 + 10 * 2
    separate = [score(decoder, prompt, own, top_k=2) for own in completions]
    assert equal(shared, separate) and equal(again, separate)


def test_results_have_the_shape_of_what_is_given(decoder):
    one = score(decoder, [5, 6], [7, 8])
    assert isinstance(one, score_rounds.Score) and one.top_ids is None
    for prompt in ((5, 6), torch.tensor([5, 6]), np.array([5, 6]), torch.tensor([5, 6], dtype=torch.int32)):
        assert equal(score(decoder, prompt, torch.tensor([7, 8])), one)
    for prompts, completions in (([[5, 6]], [[7, 8]]), (torch.tensor([[5, 6]]), torch.tensor([[7, 8]])),
                                 ([torch.tensor([5, 6])], [torch.tensor([7, 8])]), ([5, 6], [[7, 8]]),
                                 ([5, 6], torch.tensor([[7, 8]]))):
        got = score(decoder, prompts, completions)
        assert len(got) == 1 and equal(got[0], one)
    nested = score(decoder, [[5, 6], [9]], [[[7, 8], [7]], [7]])
    assert equal(nested[0][0], one) and len(nested[0][1]) == 1 and isinstance(nested[1], score_rounds.Score)
    assert isinstance(score(decoder, [5, 6, 7]), score_rounds.Score) and len(score(decoder, [[5, 6, 7]])) == 1


def test_texts(demo):
    """Prompt and completion are tokenised each by itself."""
    tokenizer, ours = demo
    prompts, completions = ["def add(a, b):", "import "], [["\n    return a + b", "\n    pass"], "os"]
    got = score(ours, prompts, completions, find_tokenizer=lambda: tokenizer)
    ids = [tokenizer(text)["input_ids"] for text in prompts]
    expected = score(ours, ids, [[tokenizer(c)["input_ids"] for c in completions[0]], tokenizer("os")["input_ids"]])
    assert equal(got, expected)


class WithBos:
    """A tokenizer that puts a token before each text, unless told that none begins there."""

    bos_token_id = 50

    def __init__(self, tokenizer):
        self.convert_ids_to_tokens = tokenizer.convert_ids_to_tokens
        self._encode = tokenizer.encode

    def __call__(self, text, *, add_special_tokens=True, verbose=True):
        return {"input_ids": [self.bos_token_id] * add_special_tokens + self._encode(text)}


def test_what_a_tokenizer_puts_before_a_text_is_no_part_of_completions(demo):
    tokenizer, ours = demo
    prompt, completion = [50, *tokenizer.encode("def f")], tokenizer.encode("(x):")
    got = score(ours, "def f", "(x):", find_tokenizer=lambda: WithBos(tokenizer))
    assert equal(got, score(ours, prompt, completion))


@pytest.mark.parametrize("dtype, quantization", [(torch.float32, None), (torch.bfloat16, None), (torch.float16, None),
                                                 (torch.float32, "int8"), (torch.float32, "int4")])
def test_every_type_has_the_bits_of_its_logits(folder, dtype, quantization):
    ours = decoder_of(folder, dtype, quantization)
    for prompt, completion, got in zip(PROMPTS, COMPLETIONS, score(ours, PROMPTS, COMPLETIONS)):
        cache, ids = ours.new_cache(), torch.tensor([*prompt, *completion])
        logits = ours.prefill(cache, [cache.new_sequence()], [ids], logits="all").logits
        expected = logits.log_softmax(-1)[range(len(prompt) - 1, len(ids) - 1), completion]
        assert torch.equal(got.token_logprobs, expected)


@per_device(CUDA)
def test_cuda(folder, device):
    ours = decoder_of(folder, device.act, device=device.memory)
    prompt, completions = [5, 6, 7, 8, 9], [[10, 11, 12], [13], [14, 15]]
    shared = score(ours, prompt, completions, top_k=2)
    cache = ours.new_cache()
    logits = ours.prefill(cache, [cache.new_sequence()], [torch.tensor(prompt + completions[0])], logits="all").logits
    expected = logits[4:7].log_softmax(-1).cpu()
    assert torch.equal(shared[0].token_logprobs, expected[range(3), completions[0]])
    assert torch.equal(shared[0].top_ids, expected.topk(2).indices)
    separate = [score(ours, prompt, own, top_k=2) for own in completions]
    assert equal(shared, separate)
    mean, alone = embed(ours, [prompt, [3, 4]]), embed(ours, prompt)
    assert mean.dtype == torch.float32 and torch.equal(mean[:1], alone)


# ---- log_probabilities ---------------------------------------------------------------------------


def test_alternatives_fall_and_equal_ones_stand_by_id():
    logits = torch.tensor([[1.0, 3, 3, 2, 3, 0], [0, 0, 0, 0, 0, 0], [5, 1, 4, 2, 3, 0]])
    expected = [[1, 2, 4, 3, 0, 5], [0, 1, 2, 3, 4, 5], [0, 2, 4, 3, 1, 5]]
    for k in range(7):
        own, ids, best = log_probabilities(logits, torch.tensor([0, 5, 2]), k)
        assert ids.tolist() == [row[:k] for row in expected]
        exact = logits.double().log_softmax(-1)
        assert best.shape == (3, k) and torch.allclose(best.double(), exact.gather(1, ids), atol=1e-6)
        assert torch.allclose(own.double(), exact[range(3), [0, 5, 2]], atol=1e-6)
    own, _, _ = log_probabilities(logits, torch.tensor([0, 1, 2, 3]), 0, torch.tensor([2, 2, 0, 1]))
    assert torch.allclose(own.double(), exact[[2, 2, 0, 1], [0, 1, 2, 3]], atol=1e-6)


# ---- perplexity ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens, window, stride", [
    (60, None, None), (64, None, 3), (200, None, None), (200, 16, 5), (200, 16, 1), (97, 16, 16), (150, 33, 32),
    (2, 2, 1)])
def test_perplexity_of_windows(both, tokens, window, stride):
    """Every token given what is before it in the first window that reaches it, each window computed by itself."""
    theirs, ours = both
    ids = np.random.default_rng(tokens).integers(0, VOCAB, tokens).tolist()
    size = window or CONTEXT
    step = stride or size // 2
    nll, seen = [], 1
    for begin in range(0, tokens, step):
        end = min(begin + size, tokens)
        first = max(seen, begin + 1)
        if first < end:
            expected, bound = reference(theirs, ids[begin:first], ids[first:end])
            nll += (-expected[range(end - first), ids[first:end]]).tolist()
        seen = end
        if end == tokens:
            break
    got = perplexity(ours, ids, window=window, stride=stride)
    assert got.num_tokens == len(nll) == (tokens - 1 if step < size else tokens - -(-tokens // size))
    assert got.mean_nll == pytest.approx(np.mean(nll), abs=1e-4)
    assert got.perplexity == pytest.approx(math.exp(got.mean_nll)) and got.bits_per_byte is None


def test_perplexity_of_several_texts_is_over_all_their_tokens(decoder):
    texts = [list(range(10)), list(range(30, 55))]
    alone = [perplexity(decoder, ids) for ids in texts]
    got = perplexity(decoder, texts)
    assert got.num_tokens == 9 + 24
    assert got.mean_nll == pytest.approx((9 * alone[0].mean_nll + 24 * alone[1].mean_nll) / 33)


def test_bits_per_byte(demo):
    tokenizer, ours = demo
    ids = tokenizer(TEXT)["input_ids"]
    got = perplexity(ours, TEXT, find_tokenizer=lambda: tokenizer, window=100)
    by_ids = perplexity(ours, ids, window=100)
    assert (got.mean_nll, got.num_tokens) == (by_ids.mean_nll, len(ids) - 1) and by_ids.bits_per_byte is None
    scored = len(TEXT.encode()) - len(tokenizer.decode(ids[:1]).encode())
    assert got.bits_per_byte == pytest.approx(got.mean_nll * got.num_tokens / math.log(2) / scored)
    assert 0.5 < got.bits_per_byte < 8
    begun = perplexity(ours, TEXT, find_tokenizer=lambda: WithBos(tokenizer), window=100)
    assert begun.num_tokens == len(ids)
    assert begun.bits_per_byte == pytest.approx(begun.mean_nll * len(ids) / math.log(2) / len(TEXT.encode()))
    apart = perplexity(ours, TEXT, find_tokenizer=lambda: tokenizer, window=64, stride=64)
    starts = ids[::64]
    assert apart.num_tokens == len(ids) - len(starts)
    scored = len(TEXT.encode()) - sum(map(len, tokenizer.convert_ids_to_tokens(starts)))
    assert apart.bits_per_byte == pytest.approx(apart.mean_nll * apart.num_tokens / math.log(2) / scored)


# ---- embed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [-1, 0, 1, -2])
def test_features_are_the_hidden_states_of_transformers(both, layer):
    theirs, ours = both
    with torch.no_grad():
        states = [theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0] for ids in PROMPTS]
    for pooling, pool in (("mean", lambda own: own.mean(0)), ("last", lambda own: own[-1])):
        expected = torch.stack([pool(own) for own in states])
        got = embed(ours, PROMPTS, pooling=pooling, layer=layer)
        assert got.shape == expected.shape and got.dtype == torch.float32
        assert float((got - expected).abs().max() / expected.abs().max()) <= 2e-5
        unit = embed(ours, PROMPTS, pooling=pooling, layer=layer, normalize=True)
        assert torch.allclose(unit.norm(dim=1), torch.ones(len(PROMPTS)))
        assert torch.allclose(unit * got.norm(dim=1, keepdim=True), got, atol=1e-5)


def test_the_last_layer_has_two_names(decoder):
    assert torch.equal(embed(decoder, PROMPTS), embed(decoder, PROMPTS, layer=decoder.config.n_layer))


@pytest.mark.parametrize("pooling", features.POOLINGS)
@pytest.mark.parametrize("batch_tokens", [1, 20, 2048])
def test_features_do_not_depend_on_company(decoder, pooling, batch_tokens):
    alone = torch.cat([embed(decoder, ids, pooling=pooling) for ids in PROMPTS])
    with mock.patch.object(chunked, "PREFILL_CHUNK", 11):
        assert torch.equal(embed(decoder, PROMPTS, pooling=pooling, batch_tokens=batch_tokens), alone)


def test_features_of_texts(demo):
    tokenizer, ours = demo
    ids = [tokenizer(text)["input_ids"] for text in ("def f(x):", "import os\n")]
    assert torch.equal(embed(ours, ["def f(x):", "import os\n"], find_tokenizer=lambda: tokenizer), embed(ours, ids))


# ---- Memory, interruptions, threads --------------------------------------------------------------


@pytest.fixture
def caches(monkeypatch):
    """Every cache that decoders make."""
    made = []
    monkeypatch.setattr(Decoder, "new_cache", lambda self, *args, new=Decoder.new_cache: made.append(new(self, *args))
                        or made[-1])
    return made


def test_memory_is_bounded(tmp_path, caches, monkeypatch):
    """By blocks of logits, and by the tokens of a round in the cache; all pages come back."""
    make_checkpoint(tmp_path, seed=5, n_positions=1024)
    ours = decoder_of(tmp_path)
    blocks = []
    run_lm_head = Decoder.run_lm_head
    monkeypatch.setattr(Decoder, "run_lm_head", lambda self, out, *rest: blocks.append(len(out))
                        or run_lm_head(self, out, *rest))
    rng = random.Random(0)
    texts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (900, 10, 700, 300, 300, 300)]
    score(ours, texts, batch_tokens=1000)
    score(ours, [5] * 100, [[rng.randrange(VOCAB) for _ in range(50)] for _ in range(60)], batch_tokens=1000)
    perplexity(ours, texts[0] * 3, batch_tokens=1000)
    embed(ours, texts, batch_tokens=1000)
    assert max(blocks) == score_rounds.LOGITS_ROWS
    assert len(caches) == 4
    for cache in caches:
        assert cache.pages_in_use == 0
        # A page more for each sequence: its last is not full, and the one it shares is copied.
        assert cache.num_pages <= 2 * cache.pages_for(1000 + 2 * 20 * cache.page_size)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_call_leaves_nothing_behind(decoder, caches, error):
    expected = score(decoder, PROMPTS, COMPLETIONS)
    caches.clear()
    with mock.patch.object(score_rounds, "log_probabilities", side_effect=error), pytest.raises(error) as caught:
        score(decoder, PROMPTS, COMPLETIONS)
    cache = weakref.ref(caches.pop())
    del caught
    gc.collect()
    assert cache() is None
    assert equal(expected, score(decoder, PROMPTS, COMPLETIONS))


def test_two_threads(decoder):
    expected, got = score(decoder, PROMPTS, COMPLETIONS, top_k=2), {}

    def work(name):
        got[name] = [score(decoder, PROMPTS, COMPLETIONS, top_k=2) for _ in range(5)]

    with mock.patch.dict(sys.modules, {"transformers": None}):
        threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 2 and all(equal(expected, one) for results in got.values() for one in results)


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, error, message", [
    (([5], []), ValueError, r"completions is empty: expected at least one token"),
    (([[5], [6]], [[7], []]), ValueError, r"completions\[1\] is empty: expected at least one token"),
    (([[5], [6]], [[7], [[7], []]]), ValueError, r"completions\[1\]\[1\] is empty"),
    (([[5], []], [[7], [8]]), ValueError, r"prompts\[1\] is empty: .* at least one token"),
    (([], []), ValueError, r"prompts is empty"),
    (([[5], [6]], [[7]]), ValueError, r"completions holds 1 for 2 prompts: expected"),
    (([[5], [6]], [7, 8]), ValueError, r"completions holds one for 2 prompts: expected"),
    (([5] * 60, [6] * 5), ValueError, r"prompts and completions have 60 and 5 tokens, .* context of 64 tokens"),
    (([[5] * 60], [[[6], [6] * 5]]), ValueError, r"prompts\[0\] and completions\[0\]\[1\] have 60 and 5 tokens"),
    (([5] * 65,), ValueError, r"prompts has 65 tokens, .* context of 64 tokens"),
    (([5],), ValueError, r"prompts has 1 tokens: .* needs two"),
    (([5, 101], [6]), ValueError, r"prompts\[1\] is token id 101, outside the vocabulary: ids are 0 to 100"),
    (([5], [[6], [7, -1]]), ValueError, r"completions\[1\]\[1\] is token id -1, outside the vocabulary"),
    (([5, 6.5], [6]), TypeError, r"prompts\[1\] is 6.5, expected an int"),
    ((torch.tensor([5.0, 6.0]), [6]), TypeError, r"prompts\[0\] is 5.0, expected an int"),
    (("def f", "x"), ValueError, r"prompts is text, and there is no tokenizer: pass tokenizer="),
    (([5], "x"), ValueError, r"completions is text, and there is no tokenizer"),
    (({"input_ids": [[5]]}, [6]), TypeError, r"prompts must be a text or a list or tensor of token ids, got dict"),
    ((torch.tensor(5), [6]), ValueError, r"prompts has shape \(\): expected one dimension"),
    ((torch.ones(2, 1, 1, dtype=torch.long), [[6], [6]]), ValueError, r"prompts\[0\] has shape \(1, 1\)"),
    ((7, [6]), TypeError, r"prompts must be a text .* got int"),
])
def test_errors_of_score(decoder, arguments, error, message):
    with pytest.raises(error, match=message):
        score(decoder, *arguments)


@pytest.mark.parametrize("function, arguments, message", [
    (score, dict(prompts=[5, 6], top_k=-1), r"top_k=-1 is not allowed: expected 0 to 101"),
    (score, dict(prompts=[5, 6], top_k=102), r"top_k=102 is not allowed: expected 0 to 101"),
    (score, dict(prompts=[5, 6], top_k=True), r"top_k=True is not allowed"),
    (score, dict(prompts=[5, 6], batch_tokens=0), r"batch_tokens=0 is not allowed"),
    (perplexity, dict(text=[5, 6], window=65), r"window=65 is not allowed: expected 2 to 64"),
    (perplexity, dict(text=[5, 6], window=1), r"window=1 is not allowed"),
    (perplexity, dict(text=[5, 6], window=10, stride=11), r"stride=11 is not allowed: expected 1 to 10"),
    (perplexity, dict(text=[5, 6], stride=0), r"stride=0 is not allowed"),
    (perplexity, dict(text=[5, 6], batch_tokens=1.5), r"batch_tokens=1.5 is not allowed"),
    (perplexity, dict(text=[5]), r"text has 1 tokens: perplexity needs two"),
    (perplexity, dict(text=[[5, 6], []]), r"text\[1\] has 0 tokens"),
    (perplexity, dict(text="x"), r"text is text, and there is no tokenizer"),
    (embed, dict(inputs=[5], pooling="max"), r"pooling='max' is not allowed: expected one of 'mean', 'last'"),
    (embed, dict(inputs=[5], layer=3), r"layer=3 is not allowed: .* -3 to 2"),
    (embed, dict(inputs=[5], layer=-4), r"layer=-4 is not allowed"),
    (embed, dict(inputs=[]), r"inputs is empty"),
    (embed, dict(inputs=[[5], []]), r"inputs\[1\] is empty: features need at least one token"),
    (embed, dict(inputs=[5] * 65), r"inputs has 65 tokens, .* context of 64 tokens"),
    (embed, dict(inputs=["x"]), r"inputs\[0\] is text, and there is no tokenizer"),
])
def test_other_errors(decoder, function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(decoder, **arguments)
