"""Which device a model runs on, in which type, what moving it does, and the sentence for every reason why not."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from checkpoints import make_checkpoint, make_model
from devices import CPU, CUDA, EMULATED, GPU, per_device
from loaded_weights import load as load_on_cpu

import codegen_fast
from codegen_fast import AutoModelForCausalLM, decoder, loading, memory, ops
from codegen_fast.cache import PagedCache
from codegen_fast.cli import info
from codegen_fast.config import CodeGenConfig
from codegen_fast.machine import Gpu, Machine
from codegen_fast.weights import convert, load_weights, open_checkpoint, save_checkpoint

FOUND = {"name": "NVIDIA H200", "compute_capability": (9, 0), "memory_bytes": 141 << 30,
         "memory_bytes_per_second": 4.8e12}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8]])
best_device = loading._best_device  # as it is: for other tests conftest.py puts the CPU in its place


@pytest.fixture
def gpus(monkeypatch):
    """Makes it look as if there were GPUs: gpus(number, what is patched)."""

    def look(number=1, *, torch_cuda="13.0", torch_sees=True, why_unusable="", current=0, why_none="no NVIDIA driver"):
        monkeypatch.setattr(ops, "cuda_devices", lambda: ([FOUND] * number, "" if number else why_none))
        monkeypatch.setattr(ops, "why_unusable", lambda index: why_unusable)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_sees)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)

    return look


# ---- Choosing ----------------------------------------------------------------------------------


def test_auto_takes_a_gpu_where_one_can_be_used(gpus):
    gpus(0, torch_sees=False)
    assert best_device() == torch.device("cpu")
    gpus(1)
    assert best_device() == torch.device("cuda:0")
    gpus(2, current=1)
    assert best_device() == torch.device("cuda:1")
    assert loading.choose_device("cpu", None) == torch.device("cpu")
    assert loading.choose_device("auto", {"": 0}) == torch.device("cuda:0")


def test_names_of_gpus(gpus):
    gpus(2, current=1)
    for given, index in (("cuda", 1), ("cuda:0", 0), ("cuda:1", 1), (0, 0), (torch.device("cuda:1"), 1)):
        assert loading.parse_device(given) == torch.device("cuda", index)


@pytest.mark.parametrize(("machine", "device", "reason"), [
    (dict(number=0), "cuda", "no NVIDIA driver"),
    (dict(number=1), "cuda:1", "this machine has cuda:0"),
    (dict(number=3), 5, "this machine has cuda:0 to cuda:2"),
    (dict(torch_cuda=None, torch_sees=False), "cuda",
     f"this torch ({torch.__version__}) was built without CUDA, install one with it"),
    (dict(torch_sees=False), "cuda", f"torch {torch.__version__} (CUDA 13.0) finds no GPU, its driver may be too old"),
    (dict(why_unusable="this build has no kernels for compute capability 7.5"), "cuda:0",
     "this build has no kernels for compute capability 7.5"),
])  # fmt: skip
def test_a_gpu_that_cannot_be_used_says_why(gpus, machine, device, reason):
    gpus(**machine)
    with pytest.raises(ValueError) as caught:
        loading.parse_device(device)
    assert str(caught.value) == f"device={device!r} cannot be used: {reason}; use device='cpu'"


NO_NVCC = "built without CUDA: off (no nvcc)"
OLD_DRIVER = "CUDA driver version is insufficient for CUDA runtime version (driver for CUDA 11.4, this build has 12.4)"


@pytest.mark.parametrize(("machine", "reason"), [
    (dict(torch_cuda=None, torch_sees=False), r"the GPU \(NVIDIA H200\) cannot be used: this torch \("),
    (dict(why_unusable="out of order"), r"the GPU \(NVIDIA H200\) cannot be used: out of order; device='cpu'"),
    (dict(number=0, why_none=NO_NVCC), f"the GPU cannot be used: {re.escape(NO_NVCC)}; device='cpu'"),
    (dict(number=0, torch_sees=False, why_none=OLD_DRIVER), f"GPU cannot be used: {re.escape(OLD_DRIVER)}; device="),
])  # fmt: skip
def test_auto_says_why_it_leaves_a_gpu_alone(gpus, machine, reason):
    gpus(**machine)
    with pytest.warns(UserWarning, match=f"the model runs on the CPU, because .*{reason}"):
        assert best_device() == torch.device("cpu")


def test_without_the_cuda_part_the_reason_is_the_builds():
    if ops.build_info()["cuda"].startswith("on "):
        pytest.skip("built with CUDA")
    assert ops.why_unusable(0).startswith("built without CUDA: off (")
    with pytest.raises(ValueError, match=r"device='cuda' cannot be used: built without CUDA: off \(.*use device='cpu'"):
        loading.parse_device("cuda")


# ---- Types -------------------------------------------------------------------------------------


@per_device((CPU,))
def test_the_cpu_keeps_every_type(device):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert loading.choose_model_dtype(None, dtype, device.memory) == dtype
        assert loading.choose_model_dtype(dtype, torch.float16, device.memory) == dtype
        assert ops.activation_dtype(dtype, device.memory) == torch.float32


@per_device(CUDA)
def test_cuda_computes_in_half_types(device):
    for dtype in (torch.float16, torch.bfloat16):
        assert loading.choose_model_dtype(None, dtype, device.memory) == dtype
        assert loading.choose_model_dtype(dtype, torch.float32, device.memory) == dtype
        assert ops.activation_dtype(dtype, device.memory) == dtype
    with pytest.warns(UserWarning, match="is float32 and will run as float16"):
        assert loading.choose_model_dtype(None, torch.float32, device.memory) == torch.float16
    with pytest.raises(ValueError, match="torch.float16 or torch.bfloat16, or device='cpu'"):
        loading.choose_model_dtype(torch.float32, torch.float16, device.memory)


@per_device(CUDA)
def test_a_float32_checkpoint_is_loaded_as_float16(device, tmp_path):
    make_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="is float32 and will run as float16"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, device=device.memory)
    assert model.dtype == torch.float16 and model.device.type == device.memory.type
    with pytest.raises(ValueError, match="dtype=torch.float32 is not supported"):
        AutoModelForCausalLM.from_pretrained(tmp_path, device=device.memory, dtype=torch.float32)
    with pytest.raises(ValueError, match="dtype=torch.float32 is not supported"):
        model.float()
    assert model.bfloat16().dtype == torch.bfloat16 and model(IDS).logits.isfinite().all()
    if device is EMULATED:  # else a model in CPU memory belongs on the CPU
        with pytest.warns(UserWarning, match="will run as float16"):
            assert codegen_fast.accelerate(make_model()).dtype == torch.float16


# ---- Memory ------------------------------------------------------------------------------------

CONFIG = dict(model_type="codegen", vocab_size=100, n_positions=64, n_embd=64, n_head=4, n_layer=2, rotary_dim=8)


def test_free_memory_of_a_gpu_counts_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400)
    assert memory.available_bytes("cuda:0") == 1300


def test_too_small_a_gpu_is_refused_before_loading(monkeypatch):
    config = CodeGenConfig.from_dict(CONFIG)
    monkeypatch.setattr(ops, "packed_weight_nbytes", lambda kind, sections, segments, device: 10**9)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9)
    with pytest.raises(OSError) as caught:
        memory.check_fits(config, torch.float16, None, device=torch.device("cuda:0"), scratch=0, where="folder x")
    assert str(caught.value) == ("folder x as float16 needs 5.00 GB of cuda:0, 1.00 GB free; "
                                 "device='cpu' takes the machine's memory instead")  # fmt: skip


def test_a_cache_that_does_not_fit(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache = PagedCache(2, 64, torch.float32)
    sequence = cache.new_sequence()
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(OSError, match="cache of .* does not fit the memory of cpu: ask for fewer rows or tokens"):
        cache.reserve([sequence], [1000])
    assert cache.pages_in_use == 0


@per_device((CPU, EMULATED))
def test_full_memory_is_one_sentence(device, monkeypatch):
    """Whatever found it full; on a GPU torch would say it in ten."""
    model = codegen_fast.accelerate(make_model(dtype=torch.float16))

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder, "Scratch", full)
    for call in (model, lambda ids: model.generate(ids, max_new_tokens=2)):
        with pytest.raises(OSError, match="^the memory of cpu is full: ask for fewer rows or tokens .*device='cpu'$"):
            call(IDS)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(OSError, match="the memory of cpu is full"):
        model.to(torch.bfloat16)


# ---- Moving ------------------------------------------------------------------------------------


@per_device((CPU, EMULATED), quantization=(None, "int8", "int4"),
            where=lambda device, quantization: device is CPU or quantization != "int4")  # fmt: skip
def test_moved_weights_are_the_same(device, quantization):
    """To the same memory: two kinds of it are on a GPU's machine only."""
    own = torch.float32 if device is CPU else torch.bfloat16
    model = codegen_fast.accelerate(make_model(dtype=own), quantization=quantization)
    weights = model._decoder.weights
    moved = convert._moved(weights, own, torch.device("cpu"))
    assert torch.equal(moved.embedding, weights.embedding) and moved.nbytes() == weights.nbytes()
    assert (moved.dtype, moved.quantization) == (own, quantization)
    expected = model(IDS).logits
    model._decoder = codegen_fast.decoder.Decoder(model.config, moved, torch.device("cpu"))
    assert torch.equal(model(IDS).logits, expected)


@per_device((EMULATED, GPU), entered=False)
def test_int8_goes_between_devices_by_rows(device, tmp_path):
    """What a GPU saves, a CPU loads bit for bit; groups of columns are a CPU's own, and refused with what to do."""
    make_checkpoint(tmp_path / "in", dtype=torch.bfloat16)
    config = CodeGenConfig.from_folder(tmp_path / "in")
    with device.running():
        on_device = load_weights(config, open_checkpoint(tmp_path / "in"), dtype=torch.bfloat16, quantization="int8",
                                 device=device.memory)
        assert on_device.quantization == "int8"
        save_checkpoint(tmp_path / "rows", config, on_device)
        place = {"section": 0, "row": 0, "segment": 0}
        codes, scales = ops.unpack_quantized(on_device.layers[0].w_in, 8, **place)
    on_cpu = load_on_cpu(tmp_path / "rows")
    assert on_cpu.quantization == "int8-row"
    for here, there in zip(ops.unpack_quantized(on_cpu.layers[0].w_in, 8, **place), (codes, scales), strict=True):
        assert torch.equal(here, there.cpu())
    save_checkpoint(tmp_path / "groups", config, load_on_cpu(tmp_path / "in", quantization="int8"))
    with device.running(), pytest.raises(NotImplementedError, match="scales for every 32 columns.*'int8-row'"):
        load_weights(CodeGenConfig.from_folder(tmp_path / "groups"), open_checkpoint(tmp_path / "groups"),
                     dtype=torch.bfloat16, device=device.memory)


@per_device((EMULATED, GPU), entered=False)
def test_int4_is_refused_on_a_gpu_before_anything_is_read(device, tmp_path):
    """A model of bfloat16, so that nothing else stands against it."""
    message = f"quantization='int4' runs on the CPU only: use quantization='int8' on {device.memory}, or device='cpu'"
    model = make_checkpoint(tmp_path, dtype=torch.bfloat16)
    on_cpu = codegen_fast.accelerate(model, quantization="int4")
    on_cpu.save_pretrained(tmp_path / "int4")
    expected = on_cpu(IDS).logits
    source = type("Unread", (), {"describe": lambda self: "a checkpoint"})()
    with device.running():
        for config in (CodeGenConfig.from_folder(tmp_path), CodeGenConfig.from_folder(tmp_path / "int4")):
            with pytest.raises(NotImplementedError, match=message):
                load_weights(config, source, dtype=torch.bfloat16, device=device.memory,
                             quantization=None if config.quantization else "int4")
        with pytest.raises(TypeError, match="holds weights as float16, bfloat16 or int8, not as int4"):
            ops.new_packed_weight("int4", (64,), (64,), device.memory)
        if device is GPU:
            with pytest.raises(NotImplementedError, match=message):
                on_cpu.cuda()
    assert torch.equal(on_cpu(IDS).logits, expected)


def test_int4_on_a_gpu_is_refused_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(ops, "backend", lambda device: torch.device(device).type)
    monkeypatch.setattr("codegen_fast.model.choose_device", lambda device, device_map: torch.device("cuda", 0))
    monkeypatch.setattr("codegen_fast.model.resolve", lambda *args, **options: pytest.fail("asked for the files"))
    with pytest.raises(NotImplementedError, match="runs on the CPU only: use quantization='int8' on cuda:0, or device="):
        AutoModelForCausalLM.from_pretrained("Salesforce/codegen-6B-mono", quantization="int4", device="cuda")


@per_device((GPU,), quantization=(None, "int8"))
def test_to_a_gpu_and_back(device, quantization, tmp_path):
    model = codegen_fast.accelerate(make_model(dtype=torch.float16), quantization=quantization)
    logits = model(IDS).logits
    saved = {"before": tmp_path / "before", "on": tmp_path / "on"}
    model.save_pretrained(saved["before"], packed=False)
    assert model.cuda() is model and model.device.type == "cuda"
    on_gpu = model(IDS.cuda()).logits
    assert on_gpu.device == model.device and (on_gpu.cpu() - logits).norm() <= 0.02 * logits.norm()
    with pytest.raises(OSError, match="needs"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_bytes", lambda device: 1000)
        model.to("cpu")
    model.save_pretrained(saved["on"])
    for name in ("model.safetensors", "config.json"):
        assert (saved["before"] / name).read_bytes() == (saved["on"] / name).read_bytes()
    assert torch.equal(model.cpu()(IDS).logits, logits)
    with pytest.warns(UserWarning, match="float16"):
        assert model.float().to("cuda").dtype == torch.float16


@per_device((GPU,))
def test_ids_may_lie_anywhere(device, tmp_path):
    make_checkpoint(tmp_path, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device="cuda")
    assert model.device == torch.device("cuda", torch.cuda.current_device())
    expected = model.generate(IDS, max_new_tokens=5)
    assert expected.device == model.device
    assert torch.equal(model.generate(IDS.cuda(), torch.ones_like(IDS).cuda(), max_new_tokens=5), expected)
    first, second = (model(ids, labels=ids).loss for ids in (IDS, IDS.cuda()))
    assert first.device == model.device and torch.equal(first, second)
    past = model(IDS[:, :2]).past_key_values
    assert model(IDS[:, 2:].cuda(), past_key_values=past).logits.device == model.device
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(model.generate(IDS, max_new_tokens=5), expected)


# ---- What the command line says ----------------------------------------------------------------


def machine_with_a_gpu() -> Machine:
    return Machine(cpu_name="CPU", cores=2, isa="avx2", isas=("avx2",), threads=2, cache_bytes=1 << 40,
                   memory_bytes=1 << 40, available_bytes=1 << 40, gpus=(Gpu(**FOUND),), why_no_gpu="")  # fmt: skip


def test_info_predicts_what_the_gpu_allows(monkeypatch):
    config = CodeGenConfig.from_dict(CONFIG)
    real = ops.packed_weight_nbytes
    monkeypatch.setattr(ops, "packed_weight_nbytes", lambda *arguments: real(*arguments[:3]))
    monkeypatch.setattr(info, "available_bytes", lambda device: 100_000)
    lines = list(info.model_lines("x", config, machine_with_a_gpu(), 1e9, torch.device("cuda:0")))
    assert "runs on      cuda:0, NVIDIA H200; on the CPU with device='cpu'" in lines
    table = {line.split()[0]: line for line in lines[-3:]}
    assert list(table) == ["float16", "bfloat16", "int8"]
    read = memory.model_bytes(config, torch.float16) - 2 * 100 * 64
    assert f" {4.8e12 / read:.0f}" in table["float16"] and all("does not fit" in line for line in table.values())


def test_info_names_a_gpu_that_cannot_be_used(gpus):
    gpus(why_unusable="out of order")
    lines = list(info.machine_lines(machine_with_a_gpu(), 1e9))
    assert lines[-1].startswith("gpu          NVIDIA H200, compute capability 9.0, ")
    assert lines[-1].endswith("4800 GB/s (by its data sheet); cannot be used: out of order")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loading.why_unusable(0) == "out of order"
