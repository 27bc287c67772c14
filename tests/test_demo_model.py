"""The model that ships with the package: a real checkpoint that transformers loads too, and what quantisations cost on it."""

import math
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


# int8: the bound of w8a8. int4: what weights of 4 bits lose (3.3e-2 to 5e-2 in groups of 32 to 128 columns), with a margin.
@pytest.mark.parametrize(("quantization", "most"), [("int8", 5e-3), ("int4", 0.05), ("int4-g64", 0.06), ("int4-g128", 0.075)])
def test_what_a_quantisation_costs(tokens, in_float32, quantization, most):
    """In nats a token and, of the tokens that are there, in bits a byte."""
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(
        demo_model_path(), dtype=torch.float32, quantization=quantization
    )
    kl, bits = 0.0, {"float32": 0.0, quantization: 0.0}
    for ids in tokens:
        expected, got = in_float32(ids).logits, model(ids).logits
        kl += mean_kl(expected, got) / len(tokens)
        for name, logits in (("float32", expected), (quantization, got)):
            nats = torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum")
            bits[name] += float(nats) / math.log(2)
    tokenizer = codegen_fast.AutoTokenizer.from_pretrained(demo_model_path())
    nbytes = sum(len(tokenizer.decode(ids[0, 1:]).encode()) for ids in tokens)
    of = {name: total / nbytes for name, total in bits.items()}
    print(f"{quantization} on the demo model: KL {kl:.2e} nats a token; {of[quantization]:.4f} bits a byte, "
          f"float32 {of['float32']:.4f}")  # fmt: skip
    assert kl <= most
    assert of[quantization] <= of["float32"] * (1 + most)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_prefill_and_steps_agree(tokens, quantization):
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(
        demo_model_path(), dtype=torch.float32, quantization=quantization
    )
    ids = tokens[2][:, :80]
    whole = model(ids).logits
    past, rows = None, []
    for token in ids.split(1, dim=1):
        out = model(token, past_key_values=past, use_cache=True)
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
