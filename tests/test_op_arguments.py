"""What every op refuses: shapes, strides, places and ragged batches that do not fit, each named in the message."""

from __future__ import annotations

import calls
import pytest
import torch
from devices import CPU, CUDA, GPU, Device, per_device

from codegen_fast import ops

BACKENDS = (CPU, *CUDA)


def norm(device: Device, width: int = 16) -> ops.Norm:
    return calls.norm_of(device, (torch.ones(width), torch.zeros(width), 1e-5))


def zeros(device: Device, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Activations, unless another type is asked for."""
    return torch.zeros(shape, dtype=dtype or device.act, device=device.memory)


@per_device(BACKENDS)
def test_wrong_shapes_are_named_with_both_shapes(device):
    out = zeros(device, 2, 16)
    with pytest.raises(ValueError, match=r"^out: expected shape \(3, 16\), got \(2, 16\)"):
        ops.layer_norm(out, zeros(device, 3, 16), norm(device))
    with pytest.raises(ValueError, match=r"^norm.weight: expected shape \(16,\), got \(8,\)"):
        ops.layer_norm(out, zeros(device, 2, 16), norm(device, 8))
    with pytest.raises(ValueError, match=r"^\w+: expected shape \(.*\), got \(16,\)"):
        ops.layer_norm(zeros(device, 16), zeros(device, 16), norm(device))
    with pytest.raises(ValueError, match=r"^\w+: expected shape \(.*\), got \(\)"):
        ops.layer_norm(zeros(device), zeros(device), norm(device))
    with pytest.raises(ValueError, match=r"^x: expected shape \(2, 17\), got \(2, 16\)"):
        ops.embed(out, zeros(device, 2, dtype=torch.int64), zeros(device, 5, 17))
    with pytest.raises(ValueError, match=r"^x: has 7 dimensions"):
        ops.layer_norm(out, zeros(device, 1, 1, 1, 1, 1, 2, 16), norm(device))


@per_device(BACKENDS)
def test_strides_are_checked(device):
    for x in (zeros(device, 16, 2).T, zeros(device, 2, 32)[:, ::2]):
        with pytest.raises(ValueError, match="^x: expected .*, got strides .*contiguous"):
            ops.layer_norm(zeros(device, 2, 16), x, norm(device))
        with pytest.raises(ValueError, match="^out: expected .*, got strides .*contiguous"):
            ops.layer_norm(x, zeros(device, 2, 16), norm(device))


@per_device(BACKENDS)
def test_outputs_whose_rows_overlap_are_refused(device):
    for out in (zeros(device, 1, 16).expand(2, 16), zeros(device, 32).as_strided((2, 16), (8, 1))):
        with pytest.raises(ValueError, match="^out: "):
            ops.layer_norm(out, zeros(device, 2, 16), norm(device))


def product_arguments(device: Device):
    """Valid arguments of output_product and of input_product, by name."""
    own = dict(dtype=torch.float32, device=device.memory)
    kind = device.types[0].kind
    w_out = calls.pack(device, [[torch.randn(16, 16), torch.randn(16, 24)]], kind)
    w_in = calls.pack(device, [[torch.randn(n, 16)] for n in (16, 16, 16, 24)], kind)
    pool = calls.Pool(device.act, 16, seed=0, tokens=(4,), device=device)
    outward = dict(
        x=zeros(device, 4, 16), act=zeros(device, 4, 40), w_out=w_out, bias_out=torch.zeros(16, **own), decode=True,
        workspace=calls.scratch(device, ops.output_product_workspace(4, w_out)).tensor,
    )  # fmt: skip
    inward = dict(
        q_out=zeros(device, 4, 16), act=zeros(device, 4, 40), cache=pool.pages,
        x=torch.randn(4, 16).to(device.memory, device.act), norm=norm(device), w_in=w_in,
        bias_in=torch.zeros(24, **own), rotary=torch.zeros(96, 4, **own), n_head=4,
        batch=calls.make_batch(device, pool.sequences([(0, 4)])), decode=True,
        workspace=calls.scratch(device, ops.input_product_workspace(4, w_in)).tensor,
    )  # fmt: skip
    return outward, inward


def f32(device: Device, *shape: int) -> torch.Tensor:
    return zeros(device, *shape, dtype=torch.float32)


OUTWARD_ERRORS = {
    "act": (lambda device: zeros(device, 4, 41), r"act: expected shape \(.*, 40\), got \(4, 41\)"),
    "x": (lambda device: zeros(device, 4, 17), r"\w+: expected shape"),
    "bias_out": (lambda device: f32(device, 17), r"bias_out: expected shape \(16,\), got \(17,\)"),
    "w_out": (lambda device: None, "output_product"),
    "workspace": (lambda device: f32(device, 0), "workspace: expected dtype uint8, got float32"),
}
INWARD_ERRORS = {
    "q_out": (lambda device: zeros(device, 5, 16), r"q_out: expected shape \(4, 16\), got \(5, 16\)"),
    "act": (lambda device: zeros(device, 4, 24), r"act: expected shape \(4, 40\), got \(4, 24\)"),
    "cache": (lambda device: zeros(device, 2, 3, 32), r"\w+: expected shape"),
    "x": (lambda device: zeros(device, 4, 15), r"\w+: expected shape"),
    "bias_in": (lambda device: f32(device, 23), r"bias_in: expected shape \(24,\), got \(23,\)"),
    "rotary": (lambda device: f32(device, 96), r"rotary: expected shape"),
    "n_head": (lambda device: 5, "n_head"),
    "batch": (lambda device: calls.make_batch(device, []), r"\w+: expected"),
    "workspace": (lambda device: f32(device, 0), "workspace: expected dtype uint8, got float32"),
}


@per_device(BACKENDS, wrong=tuple(OUTWARD_ERRORS))
def test_arguments_of_output_product(device, wrong):
    arguments, _ = product_arguments(device)
    ops.output_product(**arguments)
    make, message = OUTWARD_ERRORS[wrong]
    with pytest.raises((ValueError, TypeError), match=message):
        ops.output_product(**{**arguments, wrong: make(device)})


@per_device(BACKENDS, wrong=tuple(INWARD_ERRORS))
def test_arguments_of_input_product(device, wrong):
    _, arguments = product_arguments(device)
    ops.input_product(**arguments)
    make, message = INWARD_ERRORS[wrong]
    with pytest.raises((ValueError, TypeError), match=message):
        ops.input_product(**{**arguments, wrong: make(device)})


@per_device(BACKENDS)
def test_only_a_prefill_may_leave_out_the_queries_and_then_the_mlp_too(device):
    _, arguments = product_arguments(device)
    none = {name: arguments[name][:0] for name in ("q_out", "act")}
    ops.input_product(**{**arguments, **none, "decode": False})
    with pytest.raises(ValueError, match=r"q_out: expected shape \(4, 16\), got \(0, 16\)"):
        ops.input_product(**{**arguments, **none})
    for name, width in (("q_out", 16), ("act", 40)):
        with pytest.raises(ValueError, match=rf"{name}: expected shape \(4, {width}\), got \(0, {width}\)"):
            ops.input_product(**{**arguments, name: none[name], "decode": False})


@per_device(CUDA, name=("x", "act", "q_out", "cache", "w_in", "w_out"))
def test_types_that_cuda_does_not_take(device, name):
    """float32 activations, and a type of another operand's."""
    for arguments, op in zip(product_arguments(device), (ops.output_product, ops.input_product)):
        if name not in arguments:
            continue
        wrong = [device.acts[1], torch.float32]
        for dtype in wrong if not name.startswith("w_") else wrong[:1]:
            if name.startswith("w_"):
                value = calls.new_weight(device, "bfloat16", arguments[name].sections, arguments[name].segments)
            else:
                value = arguments[name].to(dtype)
            with pytest.raises(TypeError, match=r"^\w+: expected .*(float16|bfloat16)"):
                op(**{**arguments, name: value})


@per_device(CUDA)
def test_float32_weights_are_refused_on_cuda(device):
    with pytest.raises((TypeError, ValueError), match="float32"):
        calls.new_weight(device, "float32", (16,), (16,))
    with pytest.raises((TypeError, ValueError), match="float32"):
        ops.packed_weight_nbytes("float32", (16,), (16,), device.memory.type)


@per_device(CUDA)
def test_other_ops_refuse_float32_activations_on_cuda(device):
    x = f32(device, 2, 16)
    with pytest.raises(TypeError, match=r"^(x|out): expected float16 or bfloat16 on CUDA, got float32"):
        ops.layer_norm(x, x, norm(device))
    with pytest.raises(TypeError, match="^x: expected float16 or bfloat16 on CUDA, got float32"):
        ops.embed(x, zeros(device, 2, dtype=torch.int64), zeros(device, 5, 16))
    pages = torch.zeros(8, ops.kv_page_size(device.memory.type), 32, device=device.memory)
    batch = calls.make_batch(device, [])
    workspace = calls.scratch(device, 0).tensor
    with pytest.raises(TypeError, match="^q: expected float16 or bfloat16 on CUDA, got float32"):
        ops.attention(f32(device, 0, 40), f32(device, 0, 16), pages, 4, batch, True, workspace)


@per_device(BACKENDS)
def test_a_workspace_that_is_too_small_is_refused(device):
    outward, inward = product_arguments(device)
    for op, arguments in ((ops.output_product, outward), (ops.input_product, inward)):
        if len(arguments["workspace"]):
            with pytest.raises(ValueError, match="^workspace: "):
                op(**{**arguments, "workspace": arguments["workspace"][:-1]})


@per_device(BACKENDS, n_head=(0, -4, 3, 32))
def test_impossible_numbers_of_heads(device, n_head):
    _, arguments = product_arguments(device)
    with pytest.raises(ValueError, match="n_head"):
        ops.input_product(**{**arguments, "n_head": n_head})


PLACES = (
    dict(section=4, row=0, segment=0), dict(section=-1, row=0, segment=0), dict(section=0, row=0, segment=1),
    dict(section=0, row=0, segment=-1), dict(section=0, row=13, segment=0), dict(section=0, row=-1, segment=0),
    dict(section=0, row=2**62, segment=0),
)  # fmt: skip


@per_device(BACKENDS, kind=lambda device: (device.types[0].kind, "int8"), place=PLACES)
def test_places_outside_of_a_weight(device, kind, place):
    w = calls.new_weight(device, kind, (16, 16, 16, 24), (16,))
    with pytest.raises(ValueError, match="section|segment|row"):
        ops.pack(w, f32(device, 4, 16), ops.new_pack_status(device.memory), **place)
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


# What lies on a GPU cannot be looked at: there only shapes are checked, and tokens that fit nowhere are idle.
SHAPES_ONLY = ("num_tokens is not x's", "start has no end", "table of another batch")


@per_device(
    BACKENDS, change=tuple(BAD_BATCHES), where=lambda device, change: device is CPU or change in SHAPES_ONLY
)
def test_ragged_batches_that_do_not_fit(device, change):
    values = {"start": [0, 4], "lens": [4], "table": [[1, 2]], "num_tokens": 4, "max_seq_len": 90}
    values.update(BAD_BATCHES[change][0])
    _, arguments = product_arguments(device)
    pages = zeros(device, 8, ops.kv_page_size(device.memory.type), 32)
    own = dict(dtype=torch.int32, device=device.memory)
    integers = [torch.tensor(values[name], **own) for name in ("start", "lens", "table")]
    batch = ops.Batch(*integers, values["num_tokens"], values["max_seq_len"])
    with pytest.raises(ValueError, match=BAD_BATCHES[change][1]):
        ops.input_product(**{**arguments, "batch": batch, "cache": pages})
    act = calls.fenced(device, (4, 40), device.act)
    workspace = calls.scratch(device, ops.attention_workspace(4, 4, 4, 90, device.memory.type)).tensor
    with pytest.raises(ValueError, match=BAD_BATCHES[change][1]):
        ops.attention(act.tensor, zeros(device, 4, 16), pages, 4, batch, True, workspace)
    assert act.tensor.isnan().all() and (pages == 0).all()


@per_device(BACKENDS)
def test_sequences_longer_than_the_rotary_table(device):
    _, arguments = product_arguments(device)
    with pytest.raises(ValueError, match="^rotary: "):
        ops.input_product(**{**arguments, "rotary": f32(device, 3, 4)})


@per_device(BACKENDS)
def test_pages_are_copied_one_to_one(device):
    pages = zeros(device, 8, ops.kv_page_size(device.memory.type), 32)
    ids = (torch.tensor(ids, dtype=torch.int32, device=device.memory) for ids in ([0, 1], [2]))
    with pytest.raises(ValueError, match=r"^\w+: expected shape"):
        ops.copy_pages(pages, *ids)


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [([8], [2], "source"), ([0], [8], "destination"), ([-1], [2], "source"), ([0], [-1], "destination")],
)
def test_pages_that_do_not_exist_are_not_copied(source, destination, message):
    pages = torch.zeros(8, ops.kv_page_size(), 32)
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.copy_pages(pages, *(torch.tensor(ids, dtype=torch.int32) for ids in (source, destination)))


@per_device(BACKENDS, name=("temperature", "top_k", "top_p", "seed", "sample_index", "position"))
def test_sampling_parameters_have_one_entry_a_row(device, name):
    dtypes = dict(temperature=torch.float32, top_k=torch.int32, top_p=torch.float32, seed=torch.int64,
                  sample_index=torch.int32, position=torch.int32)  # fmt: skip
    values = {key: zeros(device, 3, dtype=dtype) for key, dtype in dtypes.items()}
    out, logits = zeros(device, 3, dtype=torch.int64), torch.randn(3, 10).to(device.memory)
    workspace = calls.scratch(device, ops.sample_workspace(3, 10, device.memory.type)).tensor
    ops.sample(out, logits, ops.SamplingParams(**values), workspace)
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \(3,\), got \(2,\)"):
        ops.sample(out, logits, ops.SamplingParams(**{**values, name: values[name][:2]}), workspace)
    values[name] = zeros(device, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match=rf"^{name}: expected dtype .*, got uint8"):
        ops.sample(out, logits, ops.SamplingParams(**values), workspace)


@per_device((GPU,))  # in the emulator all tensors count as the GPU's
def test_operands_of_two_devices_are_refused(device):
    with pytest.raises(ValueError, match="^x: expected device cuda:0, got cpu"):
        ops.layer_norm(zeros(device, 2, 16), torch.zeros(2, 16, dtype=device.act), norm(device))
    with pytest.raises(ValueError, match="^norm.weight: expected device cuda:0, got cpu"):
        ops.layer_norm(zeros(device, 2, 16), zeros(device, 2, 16), norm(CPU))
