"""The binding: what it takes, what it refuses and in which words, and that nothing stays behind after an error."""

from __future__ import annotations

import gc
import sys
import threading
import time

import calls
import numpy as np
import pytest
import torch
from devices import CPU
from fences import Fenced, Scratch, bits
from torch._subclasses.fake_tensor import FakeTensorMode

from codegen_fast import ops


class Subclass(torch.Tensor):
    pass


class ParameterSubclass(torch.nn.Parameter):
    pass


def norm(width: int = 16) -> ops.Norm:
    return ops.Norm(torch.ones(width), torch.zeros(width), 1e-5)


# ---- Which objects -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "type_name"),
    [
        (lambda: torch.zeros(2, 16).as_subclass(Subclass), "Subclass"),
        (lambda: ParameterSubclass(torch.zeros(2, 16), requires_grad=False), "ParameterSubclass"),
        (lambda: FakeTensorMode().from_tensor(torch.zeros(2, 16)), "FakeTensor"),
        (lambda: np.zeros((2, 16), np.float32), "numpy.ndarray"),
        (lambda: [[0.0] * 16] * 2, "list"),
        (lambda: None, "NoneType"),
        (lambda: 3.0, "float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_tensors_and_parameters_are_taken(make, type_name):
    with pytest.raises(TypeError, match=rf"^x: expected a torch.Tensor, got (\w+\.)*{type_name}"):
        ops.layer_norm(torch.empty(2, 16), make(), norm())


def test_parameters_without_grad_are_taken():
    x = torch.nn.Parameter(torch.randn(2, 16), requires_grad=False)
    out = torch.empty(2, 16)
    ops.layer_norm(out, x, norm())
    assert torch.equal(bits(out), bits(calls.layer_norm(CPU, x.data, (torch.ones(16), torch.zeros(16), 1e-5))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.int16, torch.uint16, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"^x: dtype {dtype} is not supported; expected float32, float16, bfloat16"):
        ops.layer_norm(torch.empty(2, 16), torch.zeros(2, 16).to(dtype), norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.int64], ids=str)
def test_dtypes_that_an_op_does_not_take_are_refused(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=f"^x: expected dtype float32, got {name}"):
        ops.layer_norm(torch.empty(2, 16), torch.zeros(2, 16, dtype=dtype), norm())
    if dtype != torch.int64:
        with pytest.raises(TypeError, match=f"^ids: expected dtype int64, got {name}"):
            ops.embed(torch.empty(2, 16), torch.zeros(2, dtype=dtype), torch.zeros(5, 16))


def test_tensors_that_require_grad_are_refused():
    leaf = torch.zeros(2, 16, requires_grad=True)
    for x in (leaf, leaf * 2, torch.nn.Parameter(torch.zeros(2, 16))):
        with pytest.raises(ValueError, match="^x: requires grad.*detach"):
            ops.layer_norm(torch.empty(2, 16), x, norm())
        with pytest.raises(ValueError, match="^out: requires grad"), torch.no_grad():
            ops.layer_norm(x, torch.empty(2, 16), norm())
        ops.layer_norm(torch.empty(2, 16), x.detach(), norm())
    with pytest.raises(ValueError, match="^norm.weight: requires grad"):
        ops.Norm(torch.ones(16, requires_grad=True), torch.zeros(16), 1e-5)


def test_lazy_views_are_refused():
    with pytest.raises(ValueError, match="^x: is a lazily negated view; pass .resolve_neg"):
        ops.layer_norm(torch.empty(2, 16), torch._neg_view(torch.zeros(2, 16)), norm())
    imaginary = torch.zeros(2, 16, dtype=torch.complex64).conj().imag  # the view of a conjugate that torch negates
    assert imaginary.is_neg()
    with pytest.raises(ValueError, match="^x: is a lazily negated view"):
        ops.layer_norm(torch.empty(2, 16), imaginary, norm())
    for x in (torch.zeros(2, 16, dtype=torch.complex64), torch.zeros(2, 16, dtype=torch.complex64).conj()):
        with pytest.raises(TypeError, match="^x: "):
            ops.layer_norm(torch.empty(2, 16), x, norm())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(2, 16).to_sparse(), lambda: torch.zeros(2, 16).to_sparse_csr()], ids=["coo", "csr"]
)
def test_tensors_that_are_not_strided_are_refused(make):
    with pytest.raises(TypeError, match="^x: "):
        ops.layer_norm(torch.empty(2, 16), make(), norm())


def test_tensors_of_other_devices_are_refused():
    with pytest.raises((TypeError, ValueError), match="^x: .*(meta|device|no memory)"):
        ops.layer_norm(torch.empty(2, 16), torch.zeros(2, 16, device="meta"), norm())
    with pytest.raises((TypeError, ValueError), match="^norm.bias: "):
        ops.Norm(torch.ones(16), torch.zeros(16, device="meta"), 1e-5)


def test_empty_tensors_have_no_memory_and_are_taken():
    assert torch.empty(0, 16).data_ptr() == 0
    assert calls.layer_norm(CPU, torch.empty(0, 16), (torch.ones(16), torch.zeros(16), 1e-5)).shape == (0, 16)
    ops.embed(torch.empty(0, 16), torch.empty(0, dtype=torch.int64), torch.zeros(5, 16))
    # A vocabulary of nothing has no row to give.
    x = torch.zeros(1, 16)
    ops.embed(x, torch.zeros(1, dtype=torch.int64), torch.empty(0, 16))
    assert x.isnan().all()


def test_unknown_and_missing_arguments():
    with pytest.raises(TypeError):
        ops.layer_norm(torch.empty(2, 16), torch.zeros(2, 16))
    with pytest.raises(TypeError):
        ops.layer_norm(torch.empty(2, 16), torch.zeros(2, 16), norm(), 3)
    with pytest.raises(TypeError):
        ops.layer_norm(torch.empty(2, 16), torch.zeros(2, 16), (torch.ones(16), torch.zeros(16), 1e-5))


# ---- Lifetimes, threads and errors --------------------------------------------------------------


def test_operands_keep_their_tensors_alive():
    x = torch.randn(3, 16)
    bound = ops.Norm(torch.full((16,), 2.0), torch.full((16,), 0.5), 1e-5)
    expected = calls.layer_norm(CPU, x, (torch.full((16,), 2.0), torch.full((16,), 0.5), 1e-5))
    gc.collect()
    rubbish = [torch.full((16,), float("nan")) for _ in range(200)]  # takes the place of anything that was freed
    out = torch.empty(3, 16)
    ops.layer_norm(out, x, bound)
    assert len(rubbish) == 200 and torch.equal(out, expected)


def test_an_error_writes_nothing_and_leaves_nothing_behind():
    out = Fenced((2, 16), torch.float32)
    for _ in range(100):
        with pytest.raises(ValueError):
            ops.layer_norm(out.tensor, torch.zeros(3, 16), norm())
        with pytest.raises(TypeError):
            ops.layer_norm(out.tensor, torch.zeros(2, 16).to_sparse(), norm())
    assert out.tensor.isnan().all()
    x = torch.randn(2, 16)
    ops.layer_norm(out.tensor, x, norm())
    assert torch.equal(out.check(), calls.layer_norm(CPU, x, (torch.ones(16), torch.zeros(16), 1e-5)))


def test_references_are_given_back():
    x, out, bound = torch.randn(2, 16), torch.empty(2, 16), norm()
    before = [sys.getrefcount(t) for t in (x, out, bound)]
    for _ in range(50):
        ops.layer_norm(out, x, bound)
        with pytest.raises(ValueError):
            ops.layer_norm(out, x[:1], bound)
    assert [sys.getrefcount(t) for t in (x, out, bound)] == before


def test_other_python_threads_run_during_an_op():
    """An op of a second or so, while another thread counts: with the GIL held it could not count at all."""
    w = ops.new_packed_weight("float32", (2048,), (2048, 8))
    tokens = 256
    x, act, bias = torch.zeros(tokens, 2048), torch.zeros(tokens, 2056), torch.zeros(2048)
    workspace = Scratch(ops.output_product_workspace(tokens, w)).tensor
    done, counts = threading.Event(), []

    def count():
        while not done.is_set():
            counts.append(time.perf_counter())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    while time.perf_counter() - start < 0.3:
        first = time.perf_counter()
        ops.output_product(x, act, w, bias, False, workspace)
        last = time.perf_counter()
    done.set()
    counter.join()
    inside = sum(first < t < last for t in counts)
    # The machine may be busy; one tick inside a single call is proof enough, an op without the GIL allows many.
    assert inside >= 1, f"no tick during an op of {last - first:.3f} s"


def test_several_python_threads_may_call_at_once():
    w = calls.pack(CPU, [[torch.randn(64, 48), torch.randn(64, 100)]], "float32")
    acts = [torch.randn(5, 148) for _ in range(4)]
    bias, x = torch.zeros(64), torch.zeros(5, 64)
    expected = [calls.output_product(CPU, x, act, w, bias, "decode") for act in acts]
    failures = []

    def work(i):
        for _ in range(50):
            if not torch.equal(calls.output_product(CPU, x, acts[i], w, bias, "decode"), expected[i]):
                failures.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
