"""The model that ships with the package: a real checkpoint that transformers loads too, and what int8 costs on it."""

from pathlib import Path

import pytest
import torch
from devices import CPU, CUDA, per_device
from transformers import AutoModelForCausalLM, AutoTokenizer

import codegen_fast
from codegen_fast.demo import demo_model_path

MB = 10**6
# Code that the model was not trained on: this test's own folder.
TEXT = "\n\n".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py"))[:6])


@pytest.fixture(scope="module")
def tokens():
    tokenizer = codegen_fast.AutoTokenizer.from_pretrained(demo_model_path())
    return tokenizer(TEXT[:20000], return_tensors="pt").input_ids[:, :1500].split(250, dim=1)


@pytest.fixture(scope="module")
def in_float32():
    return codegen_fast.AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)


def test_it_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in demo_model_path().iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert sum(files.values()) <= 10 * MB


def test_transformers_loads_it_and_agrees(tokens, in_float32):
    theirs = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()
    with torch.no_grad():
        expected, got = theirs(tokens[0]).logits, in_float32(tokens[0]).logits
        assert float((got - expected).norm() / expected.norm()) <= 2e-5
        prompt = tokens[1][:, :60]
        mask = torch.ones_like(prompt)
        assert torch.equal(in_float32.generate(prompt, attention_mask=mask, max_new_tokens=40),
                           theirs.generate(prompt, attention_mask=mask, max_new_tokens=40, do_sample=False))  # fmt: skip


def test_both_tokenizers_agree():
    ours, theirs = (load.from_pretrained(demo_model_path()) for load in (codegen_fast.AutoTokenizer, AutoTokenizer))
    ids = ours(TEXT)["input_ids"]
    assert ids == theirs(TEXT)["input_ids"]
    assert ours.decode(ids) == TEXT


def mean_kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """KL(reference || other) in nats a token, from logits (..., V)."""
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_int8_costs_at_most_five_thousandths_of_a_nat(tokens, in_float32):
    """The bound of w8a8: weights and activations in int8."""
    int8 = codegen_fast.AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, quantization="int8")
    kl = sum(mean_kl(in_float32(ids).logits, int8(ids).logits) for ids in tokens) / len(tokens)
    print(f"int8 on the demo model: KL {kl:.2e} nats a token")
    assert kl <= 5e-3


def test_int8_prefill_and_steps_agree(tokens, in_float32):
    int8 = codegen_fast.AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, quantization="int8")
    ids = tokens[2][:, :80]
    whole = int8(ids).logits
    past, rows = None, []
    for token in ids.split(1, dim=1):
        out = int8(token, past_key_values=past, use_cache=True)
        past = out.past_key_values
        rows.append(out.logits)
    assert mean_kl(whole, torch.cat(rows, 1)) <= 5e-3


def test_float16_on_disk_loses_nothing_when_kept(tokens, in_float32):
    kept = codegen_fast.AutoModelForCausalLM.from_pretrained(demo_model_path())
    assert kept.dtype == torch.float16
    assert mean_kl(in_float32(tokens[3]).logits, kept(tokens[3]).logits) <= 1e-5


@per_device(
    CUDA, entered=False, dtype=(torch.float16, torch.bfloat16),
    where=lambda device, dtype: not device.emulated or dtype == torch.float16,
)  # fmt: skip
def test_int8_on_cuda(device, dtype, tokens, in_float32):
    """Prefill within the bound of w8a8, steps, whose activations stay as they are, within that of w8a16."""
    chunks = [tokens[0][:, :40]] if device.emulated else tokens
    with CPU.running():
        expected = [in_float32(ids).logits[0] for ids in chunks]
    prefill = steps = 0.0
    with device.running():
        int8 = codegen_fast.AutoModelForCausalLM.from_pretrained(
            demo_model_path(), dtype=dtype, quantization="int8", device=device.memory
        )
        for ids, logits in zip(chunks, expected):
            prefill += mean_kl(logits, int8(ids).logits[0].cpu()) / len(chunks)
            decoder = int8._decoder
            cache = decoder.new_cache()
            batch = decoder.start(cache, [cache.new_sequence()], ids.shape[1])
            rows = torch.cat([batch.step(token.to(decoder.device)).cpu().clone() for token in ids[0].split(1)])
            batch.close()
            steps += mean_kl(logits, rows) / len(chunks)
    print(f"int8 on the demo model: KL {prefill:.2e} nats a token in prefill, {steps:.2e} in steps")
    assert prefill <= 5e-3 and steps <= 1e-3
