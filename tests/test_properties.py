"""A few hundred of the random cases of tests/properties; ten thousand are recorded by python -m reliability.properties.
About 20 s."""

from __future__ import annotations

import pytest
import torch
from devices import CPU, per_device
from fences import FENCE
from properties import PROPERTIES, CaseFailed, run_case

from codegen_fast import ops


@per_device(op=tuple(PROPERTIES), entered=False)
def test_random_cases(device, op):
    for number in range(2 if device.emulated else 8):
        run_case(f"{device.name}/{op}/{number}")


def wrong_number(out, x, norm):
    LAYER_NORM(out, x, norm)
    if out.numel():
        out[-1, -1] += 1e-3 + out[-1, -1].abs() * 1e-3


def written_input(out, x, norm):
    LAYER_NORM(out, x, norm)
    if x.numel():
        x[0, 0] = 0.25


def written_beside(out, x, norm):
    LAYER_NORM(out, x, norm)
    torch.as_strided(out, (1,), (1,), FENCE - 1)[0] = 1.0


def counting_threads(out, x, norm):
    LAYER_NORM(out, x, norm)
    out.copy_(out.view(torch.int32).bitwise_xor(int(ops.num_threads() == 1)).view(torch.float32))


def depending_on_company(out, x, norm):
    LAYER_NORM(out, x, norm)
    out.copy_(out.view(torch.int32).bitwise_xor(int(len(out) < 3)).view(torch.float32))


def losing_nan(out, x, norm):
    LAYER_NORM(out, x.nan_to_num(), norm)


def packing_beside(weight, source, status, **place):
    PACK(weight, source, status, **place)
    data = weight.data
    data.as_strided((1,), (1,), data.storage_offset() + len(data))[0] = 1


def copying_by_threads(pages, source, destination):
    COPY_PAGES(pages, source, destination)
    if ops.num_threads() == 1 and len(destination):
        pages[destination[0]] = 0


def quantizing_by_company(q, scales, x, weight):
    QUANTIZE(q, scales, x, weight)
    if len(x) == 1:
        q.add_(1)


LAYER_NORM, PACK, COPY_PAGES, QUANTIZE = ops.layer_norm, ops.pack, ops.copy_pages, ops.quantize_activations
WRONG = {wrong_number: "layer_norm.* is .* expected", written_input: "an input of .* was written",
         written_beside: "was written and must not be", counting_threads: "other bits",
         depending_on_company: "differ from those of the whole", losing_nan: "NaN was lost"}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_op_is_found_and_named(monkeypatch, wrong):
    monkeypatch.setattr(ops, "layer_norm", wrong)
    with pytest.raises(CaseFailed, match=rf"reliability\.properties --case {CPU.name}/layer_norm/\d+\n[^\0]*{WRONG[wrong]}"):
        for number in range(20):
            run_case(f"{CPU.name}/layer_norm/{number}")


@pytest.mark.parametrize(("op", "wrong", "told"), [
    ("pack", packing_beside, "bytes outside of the workspace were written"),
    ("copy_pages", copying_by_threads, "other bits"),
    ("quantize_activations", quantizing_by_company, "differ from those of the whole"),
])  # fmt: skip
def test_ops_that_store_and_copy_are_asked_the_same(monkeypatch, op, wrong, told):
    monkeypatch.setattr(ops, op, wrong)
    with pytest.raises(CaseFailed, match=rf"--case {CPU.name}/{op}/\d+\n[^\0]*{told}"):
        for number in range(30):
            run_case(f"{CPU.name}/{op}/{number}")


@pytest.mark.parametrize("name", ["cpu-sse9/sample/1", f"{CPU.name}/samples/1", f"{CPU.name}/sample/x", "7"])
def test_cases_that_there_are_none_of(name):
    with pytest.raises(ValueError, match="expected DEVICE/OP/NUMBER with one of the devices"):
        run_case(name)
