"""Inputs at the edge of what the ops take: each was once wrong."""

import calls
import pytest
import torch
from devices import CPU, CUDA, DEVICES, per_device

from codegen_fast import ops

BACKENDS = (CPU, *CUDA)


def draw(device, logits, *, temperature=1.0, top_k=0, top_p=1.0, rows=1, fill=0x60):
    """Tokens for `rows` draws from one row of logits, with scratch that holds garbage."""
    own = dict(device=device.memory)
    logits = torch.tensor([logits] * rows, **own)
    params = ops.SamplingParams(
        torch.full((rows,), temperature, **own), torch.full((rows,), top_k, dtype=torch.int32, **own),
        torch.full((rows,), top_p, **own), torch.full((rows,), 7, **own), torch.arange(rows, dtype=torch.int32, **own),
        torch.zeros(rows, dtype=torch.int32, **own),
    )  # fmt: skip
    out = torch.empty(rows, dtype=torch.int64, **own)
    nbytes = ops.sample_workspace(*logits.shape, device.memory.type)
    workspace = torch.full((nbytes,), fill, dtype=torch.uint8, **own)
    ops.sample(out, logits, params, workspace)
    return out.cpu()


KNOBS = (
    dict(temperature=float("inf"), top_k=200), dict(temperature=float("nan")), dict(temperature=-1.0), dict(top_k=-1),
    dict(top_p=float("nan")), dict(top_p=1.5), dict(top_p=-0.1),
)  # fmt: skip


@per_device(BACKENDS, knobs=KNOBS)
def test_parameters_out_of_range_give_no_token(device, knobs):
    assert draw(device, [5.0] + [float("-inf")] * 300, **knobs).tolist() == [-1]
    assert draw(device, [5.0, 4.0, 3.0], **knobs).tolist() == [-1]


@per_device(BACKENDS)
def test_an_infinite_largest_logit_gives_no_token(device):
    assert draw(device, [float("inf"), 1.0]).tolist() == [-1]
    assert draw(device, [float("inf"), 1.0], temperature=0.0).tolist() == [-1]


@per_device(BACKENDS)
def test_top_k_is_decided_on_the_logits(device):
    """3e-6 and 0 are the same float32 after subtracting 100; they are different logits."""
    tokens = draw(device, [100.0, 3e-6, 0.0], temperature=100.0, top_k=2, rows=60 if device.emulated else 2000)
    assert set(tokens.tolist()) == {0, 1}


@per_device(BACKENDS)
def test_more_rows_than_scratch_has_lanes(device):
    row = [0.0, 1.0, 2.0, float("-inf")]
    tokens = draw(device, row, rows=300)
    again = draw(device, row, rows=300, fill=0xFF)
    assert torch.equal(tokens, again)
    assert torch.equal(draw(device, row, rows=70), tokens[:70])
    assert set(tokens.tolist()) == {0, 1, 2}


@per_device(DEVICES)
def test_a_split_of_keys_that_overflow_weighs_nothing(device):
    """256 keys whose scores are -infinity, beside 44 that are finite."""
    d, length, page = 16, 300, ops.kv_page_size(device.memory.type)
    dtype = torch.float32 if device.backend == "cpu" else torch.bfloat16  # float16 is too narrow for such scores
    own = dict(dtype=dtype, device=device.memory)
    kind = str(dtype).removeprefix("torch.")
    w_in = calls.new_weight(device, kind, (d, d, d, d), (d,))
    pages = torch.zeros(-(-length // page), page, 2 * d, **own)
    table = torch.arange(len(pages), dtype=torch.int32, device=device.memory)[None]

    def batch(tokens, total):
        ends = torch.tensor([0, tokens, total], dtype=torch.int32, device=device.memory)
        return ops.Batch(ends[:2], ends[2:], table, tokens, length)

    # Keys and values arrive through the product: x normalised times the weight. Values are 1 everywhere.
    x = torch.randn(length, d, generator=torch.Generator().manual_seed(0)).to(**own)
    q, act = torch.empty(length, d, **own), torch.zeros(length, 2 * d, **own)
    ones = calls.norm_of(device, (torch.zeros(d), torch.ones(d), 1e-5))  # h = 1, so a row of weights sums up
    zeros, table_of_angles = torch.zeros(d, device=device.memory), torch.zeros(length, 2, device=device.memory)
    for first, last, key in ((0, 256, -3e38), (256, length, 0.5)):
        for section, value in ((1, key / d), (2, 1.0 / d)):
            rows = torch.full((d, d), value, device=device.memory)
            ops.pack(w_in, rows, ops.new_pack_status(device.memory), section=section)
        n = last - first
        workspace = calls.scratch(device, ops.input_product_workspace(n, w_in)).tensor
        ops.input_product(q[:n], act[:n], pages, x[:n], ones, w_in, zeros, table_of_angles, 1, batch(n, last), False,
                          workspace)  # fmt: skip
    out = torch.zeros(1, 2 * d, **own)
    workspace = calls.scratch(device, ops.attention_workspace(1, 1, d, length, device.memory.type)).tensor
    for decode in (True, False):
        for surroundings in device.variations():
            with surroundings():
                ops.attention(out, torch.ones(1, d, **own), pages, 1, batch(1, length), decode, workspace)
                assert torch.allclose(out[0, :d].float().cpu(), torch.ones(d), rtol=1e-6)


def test_copy_pages_checks_before_it_copies():
    pages = torch.arange(4.0)[:, None, None].expand(4, ops.kv_page_size(), 8).contiguous()
    before = pages.clone()
    with pytest.raises(ValueError, match="source: page 9 is not one of the cache's 4"):
        ops.copy_pages(pages, torch.tensor([0, 9], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match="destination: page 2 is its own source"):
        ops.copy_pages(pages, torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32))
    assert torch.equal(pages, before)


@per_device(BACKENDS, sizes=(((2**40,), (2**40,)), ((2**63 - 1,), (1,)), ((0,), (4,)), ((4,), (-1,))))
def test_sizes_that_no_weight_has(device, sizes):
    with pytest.raises(ValueError, match=r"(sections|segments): expected sizes from 1 to 2\^28"):
        ops.packed_weight_nbytes("float16", *sizes, device.memory.type)


@per_device(BACKENDS)
def test_a_row_far_beyond_a_section(device):
    weight = calls.new_weight(device, "float16", (8,), (8,))
    rows, status = torch.ones(3, 8, device=device.memory), ops.new_pack_status(device.memory)
    with pytest.raises(ValueError, match="3 rows from row 9223372036854775807 on do not fit a section of 8 rows"):
        ops.pack(weight, rows, status, row=2**63 - 1)


@per_device(BACKENDS)
def test_memory_that_is_not_aligned(device):
    own = dict(device=device.memory)
    kind = str(device.act).removeprefix("torch.")
    weight = calls.new_weight(device, kind, (32,), (8,))
    x, logits = torch.zeros(1, 8, dtype=device.act, **own), torch.zeros(1, 32, **own)
    workspace = torch.empty(ops.lm_head_workspace(1, weight) + 16, dtype=torch.uint8, **own)
    norm = calls.norm_of(device, (torch.ones(8), torch.zeros(8), 1e-5))
    args = (logits, x, torch.zeros(1, dtype=torch.int32, **own), norm, weight, torch.zeros(32, **own))
    for decode in (True, False):
        if ops.lm_head_workspace(1, weight):
            with pytest.raises(ValueError, match="workspace: expected memory that begins on a multiple of 16 bytes"):
                ops.lm_head(*args, decode, workspace[1:])
    data = torch.empty(len(weight.data) + 64, dtype=torch.uint8, **own)
    offset = -data.data_ptr() % 64 + 1
    crooked = ops.PackedWeight(kind, (32,), (8,), data[offset : offset + len(weight.data)], None)
    with pytest.raises(ValueError, match="data: expected memory that begins on a multiple of 64 bytes"):
        ops.pack(crooked, torch.zeros(32, 8, **own), ops.new_pack_status(device.memory))
