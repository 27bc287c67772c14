"""The caller's floating-point mode changes no bit, and is left as it was."""

import pytest
import torch
from checkpoints import make_model

import codegen_fast
from codegen_fast import ops


@pytest.fixture
def flushed():
    """torch tells the processor to treat subnormals as zero: on this thread, not on threads that run already."""
    ops.set_num_threads(2)
    if not torch.set_flush_denormal(True):
        pytest.fail("this machine cannot flush subnormals")
    yield
    torch.set_flush_denormal(False)


def products(threads, weight, x):
    """Bits of logits of the size of subnormal numbers."""
    ops.set_num_threads(threads)
    norm = ops.Norm(torch.ones(64), torch.zeros(64), 1e-5)
    logits = torch.full((1, 2048), float("nan"))
    workspace = torch.empty(ops.lm_head_workspace(1, weight), dtype=torch.uint8)
    rows = torch.zeros(1, dtype=torch.int32)
    ops.lm_head(logits, x, rows, norm, weight, torch.zeros(2048), True, workspace)
    return logits.view(torch.int32)


@pytest.mark.parametrize("isa", ops.cpu_isas())
def test_flushing_subnormals_changes_no_bit(isa, flushed):
    torch.set_flush_denormal(False)
    generator = torch.Generator().manual_seed(0)
    values, x = torch.randn(2048, 64, generator=generator) * 1e-39, torch.randn(1, 64, generator=generator)
    with ops.forced_isa(isa):
        weight = ops.new_packed_weight("float32", (2048,), (64,))
        ops.pack(weight, values, ops.new_pack_status())
        expected = products(1, weight, x)
        assert int(((expected & 0x7F800000) == 0).sum()) > 100, "the case has no subnormal logits"
        torch.set_flush_denormal(True)
        for threads in (1, 2, 2, 2):
            assert torch.equal(products(threads, weight, x), expected)
    # and the mode is the caller's again
    assert float(torch.tensor(1e-39) * 1.0) == 0.0


def test_subnormal_halves_survive_packing(flushed):
    values = torch.tensor([[2.0**-24, 2.0**-20, 6.1e-5, -(2.0**-17)]]).half()
    torch.set_flush_denormal(True)
    for isa in ops.cpu_isas():
        with ops.forced_isa(isa):
            weight = ops.new_packed_weight("float32", (1,), (4,))
            ops.pack(weight, values, ops.new_pack_status())
            bits = ops.unpack(weight, 1, torch.float16).view(torch.int16)
            assert torch.equal(bits, values.view(torch.int16))


def test_a_model_generates_the_same_tokens(flushed):
    torch.set_flush_denormal(False)
    model = codegen_fast.accelerate(make_model(n_embd=128, n_head=8, rotary_dim=16, n_layer=2, vocab_size=199))
    ids = torch.arange(3, 13)[None]
    expected = model(ids).logits
    torch.set_flush_denormal(True)
    assert torch.equal(model(ids).logits, expected)
