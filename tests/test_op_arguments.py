"""What every op refuses: shapes, strides, places and ragged batches that do not fit, each named in the message."""

from __future__ import annotations

import calls
import pytest
import torch
from fences import Fenced, Scratch

from codegen_fast import ops


def norm(width: int = 16) -> ops.Norm:
    return ops.Norm(torch.ones(width), torch.zeros(width), 1e-5)


def test_wrong_shapes_are_named_with_both_shapes():
    out = torch.empty(2, 16)
    with pytest.raises(ValueError, match=r"^out: expected shape \(3, 16\), got \(2, 16\)"):
        ops.layer_norm(out, torch.zeros(3, 16), norm())
    with pytest.raises(ValueError, match=r"^norm.weight: expected shape \(16,\), got \(8,\)"):
        ops.layer_norm(out, torch.zeros(2, 16), norm(8))
    with pytest.raises(ValueError, match=r"^\w+: expected shape \(.*\), got \(16,\)"):
        ops.layer_norm(torch.zeros(16), torch.zeros(16), norm())
    with pytest.raises(ValueError, match=r"^\w+: expected shape \(.*\), got \(\)"):
        ops.layer_norm(torch.zeros(()), torch.zeros(()), norm())
    with pytest.raises(ValueError, match=r"^x: expected shape \(2, 17\), got \(2, 16\)"):
        ops.embed(out, torch.zeros(2, dtype=torch.int64), torch.zeros(5, 17))
    with pytest.raises(ValueError, match=r"^x: has 7 dimensions"):
        ops.layer_norm(out, torch.zeros(1, 1, 1, 1, 1, 2, 16), norm())


def test_strides_are_checked():
    for x in (torch.zeros(16, 2).T, torch.zeros(2, 32)[:, ::2]):
        with pytest.raises(ValueError, match="^x: expected .*, got strides .*contiguous"):
            ops.layer_norm(torch.empty(2, 16), x, norm())
        with pytest.raises(ValueError, match="^out: expected .*, got strides .*contiguous"):
            ops.layer_norm(x, torch.empty(2, 16), norm())


def test_outputs_whose_rows_overlap_are_refused():
    with pytest.raises(ValueError, match="^out: "):
        ops.layer_norm(torch.zeros(1, 16).expand(2, 16), torch.zeros(2, 16), norm())
    with pytest.raises(ValueError, match="^out: "):
        ops.layer_norm(torch.zeros(32).as_strided((2, 16), (8, 1)), torch.zeros(2, 16), norm())


def product_arguments():
    """Valid arguments of output_product and of input_product, by name."""
    w_out = calls.pack([[torch.randn(16, 16), torch.randn(16, 24)]], "float32")
    w_in = calls.pack([[torch.randn(n, 16)] for n in (16, 16, 16, 24)], "float32")
    pool = calls.Pool(torch.float32, 16, seed=0, tokens=(4,))
    outward = dict(
        x=torch.zeros(4, 16), act=torch.zeros(4, 40), w_out=w_out, bias_out=torch.zeros(16), decode=True,
        workspace=Scratch(ops.output_product_workspace(4, w_out)).tensor,
    )  # fmt: skip
    inward = dict(
        q_out=torch.zeros(4, 16), act=torch.zeros(4, 40), cache=pool.pages, x=torch.randn(4, 16), norm=norm(),
        w_in=w_in, bias_in=torch.zeros(24), rotary=torch.zeros(96, 4), n_head=4,
        batch=calls.make_batch(pool.sequences([(0, 4)])), decode=True,
        workspace=Scratch(ops.input_product_workspace(4, w_in)).tensor,
    )  # fmt: skip
    return outward, inward


OUTWARD_ERRORS = {
    "act": (lambda: torch.zeros(4, 41), r"act: expected shape \(.*, 40\), got \(4, 41\)"),
    "x": (lambda: torch.zeros(4, 17), r"\w+: expected shape"),
    "bias_out": (lambda: torch.zeros(17), r"bias_out: expected shape \(16,\), got \(17,\)"),
    "w_out": (lambda: None, "output_product"),
    "workspace": (lambda: torch.zeros(0, dtype=torch.float32), "workspace: expected dtype uint8, got float32"),
}
INWARD_ERRORS = {
    "q_out": (lambda: torch.zeros(5, 16), r"q_out: expected shape \(4, 16\), got \(5, 16\)"),
    "act": (lambda: torch.zeros(4, 24), r"act: expected shape \(4, 40\), got \(4, 24\)"),
    "cache": (lambda: torch.zeros(2, 3, 32), r"\w+: expected shape"),
    "x": (lambda: torch.zeros(4, 15), r"\w+: expected shape"),
    "bias_in": (lambda: torch.zeros(23), r"bias_in: expected shape \(24,\), got \(23,\)"),
    "rotary": (lambda: torch.zeros(96), r"rotary: expected shape"),
    "n_head": (lambda: 5, "n_head"),
    "batch": (lambda: calls.make_batch([]), r"\w+: expected"),
    "workspace": (lambda: torch.zeros(0), "workspace: expected dtype uint8, got float32"),
}


@pytest.mark.parametrize("wrong", OUTWARD_ERRORS)
def test_arguments_of_output_product(wrong):
    arguments, _ = product_arguments()
    ops.output_product(**arguments)
    make, message = OUTWARD_ERRORS[wrong]
    with pytest.raises((ValueError, TypeError), match=message):
        ops.output_product(**{**arguments, wrong: make()})


@pytest.mark.parametrize("wrong", INWARD_ERRORS)
def test_arguments_of_input_product(wrong):
    _, arguments = product_arguments()
    ops.input_product(**arguments)
    make, message = INWARD_ERRORS[wrong]
    with pytest.raises((ValueError, TypeError), match=message):
        ops.input_product(**{**arguments, wrong: make()})


def test_a_workspace_that_is_too_small_is_refused():
    outward, inward = product_arguments()
    for op, arguments in ((ops.output_product, outward), (ops.input_product, inward)):
        if len(arguments["workspace"]):
            with pytest.raises(ValueError, match="^workspace: "):
                op(**{**arguments, "workspace": arguments["workspace"][:-1]})


@pytest.mark.parametrize("n_head", [0, -4, 3, 32])
def test_impossible_numbers_of_heads(n_head):
    _, arguments = product_arguments()
    with pytest.raises(ValueError, match="n_head"):
        ops.input_product(**{**arguments, "n_head": n_head})


@pytest.mark.parametrize(
    "place",
    [
        dict(section=4, row=0, segment=0), dict(section=-1, row=0, segment=0), dict(section=0, row=0, segment=1),
        dict(section=0, row=0, segment=-1), dict(section=0, row=13, segment=0), dict(section=0, row=-1, segment=0),
        dict(section=0, row=2**62, segment=0),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_places_outside_of_a_weight(place, kind):
    w = ops.new_packed_weight(kind, (16, 16, 16, 24), (16,))
    with pytest.raises(ValueError, match="section|segment|row"):
        ops.pack(w, torch.zeros(4, 16), ops.new_pack_status(), **place)
    with pytest.raises(ValueError, match="section|segment|row"):
        ops.unpack(w, 4, torch.float32, **place)


@pytest.mark.parametrize(
    ("kind", "sections", "segments", "message"),
    [
        ("float64", (4,), (4,), "kind: 'float64'"),
        ("float32", (), (4,), "sections: "),
        ("float32", (4,) * 5, (4,), "sections: "),
        ("float32", (4,), (), "segments: "),
        ("float32", (4,), (4,) * 3, "segments: "),
        ("float32", (0,), (4,), "sections: .*got 0"),
        ("float32", (4,), (-4,), "segments: .*got -4"),
    ],
)
def test_impossible_weights(kind, sections, segments, message):
    with pytest.raises(ValueError, match=message):
        ops.new_packed_weight(kind, sections, segments)


BAD_BATCHES = {
    "page beyond the cache": (dict(table=[[10**6, 2]]), r"^page_table: sequence 0 names page 1000000, the cache has 8"),
    "negative page": (dict(table=[[-1, 2]]), r"^page_table: sequence 0 names page -1, the cache has 8"),
    "too few pages": (dict(lens=[90]), r"^page_table: sequence 0 of length 90 needs \d+ pages, the table has 2"),
    "more tokens than x has": (dict(start=[0, 5], lens=[5]), r"^num_tokens: expected 5 .*, got 4"),
    "fewer tokens than x has": (dict(start=[0, 3]), r"^num_tokens: expected 3 .*, got 4"),
    "first token is not 0": (dict(start=[1, 4]), r"^query_start: expected to begin with 0, got 1"),
    "start falls": (dict(start=[0, 5, 4], lens=[4, 4], table=[[1, 2], [3, 4]]), r"^(query_start|seq_lens): "),
    "shorter than its new tokens": (dict(lens=[3]), r"^seq_lens: sequence 0 has length 3, expected 4"),
    "negative length": (dict(lens=[-1]), r"^seq_lens: sequence 0 has length -1"),
    "longer than max_seq_len": (dict(max_seq_len=3), r"^seq_lens: sequence 0 has length 4, expected 4.* to 3"),
    "num_tokens is not x's": (dict(num_tokens=3), r"^(num_tokens|x|q|q_out|act|query_start): "),
    "start has no end": (dict(start=[0]), r"^query_start: expected shape \(2,\), got \(1,\)"),
    "table of another batch": (dict(table=[[1, 2]] * 2), r"^page_table: expected shape"),
}


@pytest.mark.parametrize("change", BAD_BATCHES)
def test_ragged_batches_that_do_not_fit(change):
    values = {"start": [0, 4], "lens": [4], "table": [[1, 2]], "num_tokens": 4, "max_seq_len": 90}
    values.update(BAD_BATCHES[change][0])
    _, arguments = product_arguments()
    pages = torch.zeros(8, ops.kv_page_size(), 32)
    integers = [torch.tensor(values[name], dtype=torch.int32) for name in ("start", "lens", "table")]
    batch = ops.Batch(*integers, values["num_tokens"], values["max_seq_len"])
    with pytest.raises(ValueError, match=BAD_BATCHES[change][1]):
        ops.input_product(**{**arguments, "batch": batch, "cache": pages})
    act = Fenced((4, 40), torch.float32)
    workspace = Scratch(ops.attention_workspace(4, 4, 4, 90)).tensor
    with pytest.raises(ValueError, match=BAD_BATCHES[change][1]):
        ops.attention(act.tensor, torch.zeros(4, 16), pages, 4, batch, True, workspace)
    assert act.tensor.isnan().all() and (pages == 0).all()


def test_sequences_longer_than_the_rotary_table():
    _, arguments = product_arguments()
    with pytest.raises(ValueError, match="^rotary: "):
        ops.input_product(**{**arguments, "rotary": torch.zeros(3, 4)})


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ([0, 1], [2], r"\w+: expected shape"),
        ([8], [2], "source"),
        ([0], [8], "destination"),
        ([-1], [2], "source"),
        ([0], [-1], "destination"),
    ],
)
def test_pages_that_do_not_exist_are_not_copied(source, destination, message):
    pages = torch.zeros(8, ops.kv_page_size(), 32)
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.copy_pages(pages, *(torch.tensor(ids, dtype=torch.int32) for ids in (source, destination)))


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "seed", "sample_index", "position"])
def test_sampling_parameters_have_one_entry_a_row(name):
    dtypes = dict(temperature=torch.float32, top_k=torch.int32, top_p=torch.float32, seed=torch.int64,
                  sample_index=torch.int32, position=torch.int32)  # fmt: skip
    values = {key: torch.zeros(3, dtype=dtype) for key, dtype in dtypes.items()}
    out, logits = torch.zeros(3, dtype=torch.int64), torch.randn(3, 10)
    workspace = Scratch(ops.sample_workspace(3, 10)).tensor
    ops.sample(out, logits, ops.SamplingParams(**values), workspace)
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \(3,\), got \(2,\)"):
        ops.sample(out, logits, ops.SamplingParams(**{**values, name: values[name][:2]}), workspace)
    with pytest.raises(TypeError, match=rf"^{name}: expected dtype .*, got uint8"):
        ops.sample(out, logits, ops.SamplingParams(**{**values, name: torch.zeros(3, dtype=torch.uint8)}), workspace)
