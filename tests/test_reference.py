"""The reference against independent authorities: transformers in float64, and published test vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import quantised
import reference
import torch
from transformers import CodeGenConfig, CodeGenForCausalLM, GPTJConfig, GPTJForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.codegen import modeling_codegen
from transformers.models.gptj import modeling_gptj


class WideTorch:
    """torch with float32 widened: transformers casts q and k to torch.float32 inside attention."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


SHAPES = {
    "head_dim_16": dict(n_embd=64, n_head=4, rotary_dim=8, n_layer=2, vocab_size=101),
    "head_dim_20_odd_inner": dict(n_embd=80, n_head=4, rotary_dim=20, n_layer=3, vocab_size=7, n_inner=131),
    "head_dim_64": dict(n_embd=512, n_head=8, rotary_dim=32, n_layer=1, vocab_size=333),
    "head_dim_80": dict(n_embd=320, n_head=4, rotary_dim=64, n_layer=5, vocab_size=50),
    "32_heads": dict(n_embd=256, n_head=32, rotary_dim=2, n_layer=2, vocab_size=99),
}


def checkpoint(config_class, model_class, shape: dict) -> torch.nn.Module:
    """A model in float64 whose weights are large enough that every part of it decides the logits."""
    torch.manual_seed(1)
    model = model_class(config_class(n_positions=64, n_ctx=64, **shape)).double().eval()
    for name, parameter in model.named_parameters():
        scale = 1.0 if "ln_" in name or "bias" in name or "wte" in name else 2.0 / math.sqrt(parameter.shape[-1])
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * scale
    return model


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def check_model(config_class, model_class, module, shape, monkeypatch):
    torch.set_num_threads(1)  # small shapes: threads would only wait for each other
    model = checkpoint(config_class, model_class, shape)
    exact = reference.rotary_table(64, shape["rotary_dim"])
    sine_first = torch.cat([exact[:, shape["rotary_dim"] // 2 :], exact[:, : shape["rotary_dim"] // 2]], dim=1)
    for block in model.transformer.h:  # transformers computes this table in float32
        block.attn.embed_positions = sine_first
    monkeypatch.setattr(module, "torch", WideTorch())
    ids = torch.randint(0, shape["vocab_size"], (17,))
    with torch.no_grad():
        expected = model(ids[None], output_hidden_states=True)
        got = reference.forward(model.config, dict(model.state_dict()), ids)
    assert relative_error(got.logits, expected.logits[0]) < 1e-12
    assert len(got.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(got.hidden_states, expected.hidden_states):
        assert relative_error(ours, theirs[0]) < 1e-12


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_codegen_equals_transformers_in_float64(shape, monkeypatch):
    check_model(CodeGenConfig, CodeGenForCausalLM, modeling_codegen, shape, monkeypatch)


def test_gptj_equals_transformers_in_float64(monkeypatch):
    check_model(GPTJConfig, GPTJForCausalLM, modeling_gptj, SHAPES["head_dim_20_odd_inner"], monkeypatch)


def test_float32_rotary_table_is_that_of_transformers():
    theirs = modeling_codegen.create_sinusoidal_positions(2048, 64)
    ours = reference.rotary_table(2048, 64, torch.float32)
    assert torch.equal(ours, torch.cat([theirs[:, 32:], theirs[:, :32]], dim=1))
    # At position 2047 an angle is off by at most 2047 * 2^-24 (frequency) + 2^-14 (rounding of the angle itself).
    assert (ours.double() - reference.rotary_table(2048, 64)).abs().max() < 2047 * 2**-24 + 2**-13


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, words):
    """The vectors of Random123's kat_vectors."""
    assert reference.philox4x32_10(counter, key) == words


def test_uniform_is_in_the_unit_interval_and_reads_the_seed_as_unsigned():
    draws = [reference.uniform(seed, 3, position) for seed in (-1, 0, 2**63 - 1) for position in range(200)]
    assert all(0 <= u < 1 for u in draws) and len(set(draws)) == len(draws)
    assert abs(np.mean(draws) - 0.5) < 5 / math.sqrt(12 * len(draws))
    assert reference.uniform(-1, 0, 5) == reference.uniform(2**64 - 1, 0, 5)


@pytest.mark.parametrize("top_k", [0, 1, 5, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3, 1e-6])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_distribution_equals_the_warpers_of_transformers(temperature, top_k, top_p):
    torch.manual_seed(top_k)
    logits = 3 * torch.randn(150)  # continuous: no ties, where the order among equals is transformers' own
    scores = logits.double()[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    ours = reference.distribution(logits, temperature, top_k, top_p)
    assert torch.allclose(ours, torch.softmax(scores[0], 0), rtol=1e-12, atol=0)


def test_ties_of_the_kth_largest_stay_and_the_nucleus_takes_the_lower_id():
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0, -1.0])
    assert torch.nonzero(reference.distribution(logits, 1.0, 2, 1.0)).flatten().tolist() == [1, 2, 3]
    assert torch.nonzero(reference.distribution(logits, 1.0, 2, 0.5)).flatten().tolist() == [1, 2]
    assert torch.nonzero(reference.distribution(logits, 1.0, 0, 1e-9)).flatten().tolist() == [1]


def test_quantised_rows():
    w = torch.tensor([[1.0, -2.0, 0.5, 127.0], [0.0, 0.0, 0.0, 0.0], [254.0, 1.0, 3.0, -254.0]])
    codes, scale = quantised.quantize_rows(w)
    assert codes.tolist() == [[1, -2, 0, 127], [0, 0, 0, 0], [127, 0, 2, -127]]  # 0.5 and 1.5 go to the even code
    assert scale.tolist() == [1.0, 0.0, 2.0]
    noise = torch.randn(50, 300)
    codes, scale = quantised.quantize_rows(noise)
    # Half a step, and the two roundings of the product.
    assert ((codes * scale[:, None] - noise).abs() <= scale[:, None] * (0.5 + 127 * 2**-22)).all()


def test_quantised_activations_are_cut_into_groups_and_padded_segments():
    x = torch.randn(3, 70 + 131)
    codes, scales = quantised.quantize_activations(x, (70, 131))
    assert codes.shape == (3, 72 + 132) and scales.shape == (3, 2 + 3)
    assert (codes[:, 70:72] == 0).all() and (codes[:, 72 + 131 :] == 0).all()
    for first, group, width in [(0, 0, 64), (64, 1, 6), (72, 2, 64), (136, 3, 64), (200, 4, 3)]:
        column = first if first < 72 else first - 2
        back = codes[:, first : first + width] * scales[:, group, None]
        original = x[:, column : column + width]
        assert torch.equal(original.abs().amax(1) / 127, scales[:, group])
        assert ((back - original).abs() <= scales[:, group, None] * 0.5001).all()


@pytest.mark.parametrize("mode", ["w8a16", "w8a8"])
def test_quantised_products_are_near_the_exact_one(mode):
    torch.manual_seed(0)
    x, w = torch.randn(5, 200), torch.randn(30, 200)
    exact = reference.product(x, w)
    # A code is off by at most half a step: 0.5 amax / 127 of a row or group, amax < 4.5 here.
    step = 0.5 * 4.5 / 127
    bound = step * (x.abs().sum(1)[:, None] + (w.abs().sum(1)[None, :] if mode == "w8a8" else 0)) + step**2 * 200
    for group in (64, None):
        got = reference.product(x, w, reference.Arithmetic(mode, group))
        assert ((got - exact).abs() <= bound).all()
        assert relative_error(got, exact) < 0.02


def test_the_normalised_row_is_rounded_where_activations_are_narrow():
    torch.manual_seed(0)
    x, w, norm = torch.randn(5, 48), torch.randn(30, 48), (torch.randn(48), torch.randn(48), 1e-5)
    for act in (torch.float16, torch.bfloat16):
        h = reference.layer_norm(x, *norm).to(act)
        got = reference.lm_head(x, torch.arange(5), norm, w, torch.zeros(30), reference.Arithmetic(act=act))
        assert torch.equal(got, reference.product(h, w)) and not torch.equal(h.double(), reference.layer_norm(x, *norm))


def test_one_scale_for_all_of_a_segment():
    x = torch.randn(3, 70 + 131)
    codes, scales = quantised.quantize_activations(x, (70, 131), None, 64)
    assert codes.shape == (3, 128 + 192) and scales.shape == (3, 2)
    assert torch.equal(scales, torch.stack([x[:, :70].abs().amax(1), x[:, 70:].abs().amax(1)], 1) / 127)
    assert (codes[:, 70:128] == 0).all() and (codes[:, 128 + 131 :] == 0).all()


def test_attention_of_a_chunk_equals_that_of_the_whole():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 11, 2, 6, dtype=torch.float64)
    whole = reference.attention([q], [k], [v])[0]
    parts = reference.attention([q[:4], q[4:7], q[7:]], [k[:4], k[:7], k], [v[:4], v[:7], v])
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-13, atol=1e-14)
