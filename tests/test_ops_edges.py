"""Inputs at the edge of what the ops take: each was once wrong."""

import pytest
import torch

from codegen_fast import ops


def draw(logits, *, temperature=1.0, top_k=0, top_p=1.0, rows=1, fill=0x60):
    """Tokens for `rows` draws from one row of logits, with scratch that holds garbage."""
    logits = torch.tensor([logits] * rows)
    params = ops.SamplingParams(
        torch.full((rows,), temperature), torch.full((rows,), top_k, dtype=torch.int32), torch.full((rows,), top_p),
        torch.full((rows,), 7), torch.arange(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32),
    )  # fmt: skip
    out = torch.empty(rows, dtype=torch.int64)
    workspace = torch.full((ops.sample_workspace(*logits.shape),), fill, dtype=torch.uint8)
    ops.sample(out, logits, params, workspace)
    return out


@pytest.mark.parametrize(
    "knobs",
    [dict(temperature=float("inf"), top_k=200), dict(temperature=float("nan")), dict(temperature=-1.0),
     dict(top_k=-1), dict(top_p=float("nan")), dict(top_p=1.5), dict(top_p=-0.1)],
    ids=str,
)  # fmt: skip
def test_parameters_out_of_range_give_no_token(knobs):
    assert draw([5.0] + [float("-inf")] * 300, **knobs).tolist() == [-1]
    assert draw([5.0, 4.0, 3.0], **knobs).tolist() == [-1]


def test_an_infinite_largest_logit_gives_no_token():
    assert draw([float("inf"), 1.0]).tolist() == [-1]
    assert draw([float("inf"), 1.0], temperature=0.0).tolist() == [-1]


def test_top_k_is_decided_on_the_logits():
    """3e-6 and 0 are the same float32 after subtracting 100; they are different logits."""
    tokens = draw([100.0, 3e-6, 0.0], temperature=100.0, top_k=2, rows=2000)
    assert set(tokens.tolist()) == {0, 1}


def test_more_rows_than_scratch_has_lanes():
    row = [0.0, 1.0, 2.0, float("-inf")]
    tokens = draw(row, rows=300)
    again = draw(row, rows=300, fill=0xFF)
    assert torch.equal(tokens, again)
    assert torch.equal(draw(row, rows=70), tokens[:70])
    assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("isa", ops.cpu_isas())
def test_a_split_of_keys_that_overflow_weighs_nothing(isa):
    """256 keys whose scores are -infinity, beside 44 that are finite."""
    d, length, page = 16, 300, ops.kv_page_size()
    w_in = ops.new_packed_weight("float32", (d, d, d, d), (d,))
    pages = torch.zeros(-(-length // page), page, 2 * d)
    table = torch.arange(len(pages), dtype=torch.int32)[None]

    def batch(tokens, total):
        return ops.Batch(torch.tensor([0, tokens], dtype=torch.int32), torch.tensor([total], dtype=torch.int32), table,
                         tokens, length)  # fmt: skip

    # Keys and values arrive through the product: x normalised times the weight. Values are 1 everywhere.
    x = torch.randn(length, d, generator=torch.Generator().manual_seed(0))
    q, act = torch.empty(length, d), torch.zeros(length, 2 * d)
    ones = ops.Norm(torch.zeros(d), torch.ones(d), 1e-5)  # h = 1, so a row of weights sums up
    with ops.forced_isa(isa):
        for first, last, key in ((0, 256, -3e38), (256, length, 0.5)):
            ops.pack(w_in, torch.full((d, d), key / d), ops.new_pack_status(), section=1)
            ops.pack(w_in, torch.full((d, d), 1.0 / d), ops.new_pack_status(), section=2)
            n = last - first
            workspace = torch.empty(ops.input_product_workspace(n, w_in), dtype=torch.uint8)
            ops.input_product(q[:n], act[:n], pages, x[:n], ones, w_in, torch.zeros(d), torch.zeros(length, 2), 1,
                              batch(n, last), False, workspace)  # fmt: skip
        out = torch.zeros(1, 2 * d)
        workspace = torch.empty(ops.attention_workspace(1, 1, d, length), dtype=torch.uint8)
        for threads in (1, 2):
            ops.set_num_threads(threads)
            ops.attention(out, torch.ones(1, d), pages, 1, batch(1, length), True, workspace)
            assert torch.allclose(out[0, :d], torch.ones(d), rtol=1e-6)


def test_copy_pages_checks_before_it_copies():
    pages = torch.arange(4.0)[:, None, None].expand(4, ops.kv_page_size(), 8).contiguous()
    before = pages.clone()
    with pytest.raises(ValueError, match="source: page 9 is not one of the cache's 4"):
        ops.copy_pages(pages, torch.tensor([0, 9], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match="destination: page 2 is its own source"):
        ops.copy_pages(pages, torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32))
    assert torch.equal(pages, before)


@pytest.mark.parametrize("sizes", [((2**40,), (2**40,)), ((2**63 - 1,), (1,)), ((0,), (4,)), ((4,), (-1,))])
def test_sizes_that_no_weight_has(sizes):
    with pytest.raises(ValueError, match=r"(sections|segments): expected sizes from 1 to 2\^28"):
        ops.packed_weight_nbytes("float32", *sizes)


def test_a_row_far_beyond_a_section():
    weight = ops.new_packed_weight("float32", (8,), (8,))
    with pytest.raises(ValueError, match="3 rows from row 9223372036854775807 on do not fit a section of 8 rows"):
        ops.pack(weight, torch.ones(3, 8), ops.new_pack_status(), row=2**63 - 1)


def test_memory_that_is_not_aligned():
    weight = ops.new_packed_weight("float32", (32,), (8,))
    x, logits = torch.zeros(1, 8), torch.zeros(1, 32)
    workspace = torch.empty(ops.lm_head_workspace(1, weight) + 16, dtype=torch.uint8)
    args = (logits, x, torch.zeros(1, dtype=torch.int32), ops.Norm(torch.ones(8), torch.zeros(8), 1e-5), weight,
            torch.zeros(32), True)  # fmt: skip
    with pytest.raises(ValueError, match="workspace: expected memory that begins on a multiple of 16 bytes"):
        ops.lm_head(*args, workspace[1:])
    data = torch.empty(len(weight.data) + 64, dtype=torch.uint8)
    offset = -data.data_ptr() % 64 + 1
    crooked = ops.PackedWeight("float32", (32,), (8,), data[offset : offset + len(weight.data)], None)
    with pytest.raises(ValueError, match="data: expected memory that begins on a multiple of 64 bytes"):
        ops.pack(crooked, torch.zeros(32, 8), ops.new_pack_status())
