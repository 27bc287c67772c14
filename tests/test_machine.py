"""codegen_fast.machine and codegen_fast.demo: what the machine is, its bandwidth, and where the demo model lies."""

import os
from pathlib import Path

import pytest
import torch

from codegen_fast import demo, machine, ops


def test_this_machine():
    torch.set_num_threads(1)
    found = machine.this_machine()
    assert found.cpu_name
    assert 1 <= found.cores <= os.cpu_count()
    assert found.threads == 1
    assert found.isa == ops.cpu_isa() and found.isa in found.isas
    assert found.cache_bytes is None or found.cache_bytes >= 1 << 18
    assert 1 << 28 < found.available_bytes <= found.memory_bytes
    assert found.gpus or found.why_no_gpu


def test_gpus_are_listed(monkeypatch):
    gpu = {"name": "GPU", "compute_capability": (9, 0), "memory_bytes": 1 << 30, "memory_bytes_per_second": 4.8e12}
    monkeypatch.setattr(ops, "cuda_devices", lambda: ([gpu], ""))
    assert machine.this_machine().gpus == (machine.Gpu("GPU", (9, 0), 1 << 30, 4.8e12),)


@pytest.mark.parametrize("text, name", [
    ("processor\t: 0\nmodel\t: 7\nmodel name\t: Some  CPU @ 2.0GHz\n", "Some CPU @ 2.0GHz"),
    ("processor\t: 0\nCPU implementer\t: 0x41\n", None),
    ("", None),
])
def test_cpu_name(tmp_path, monkeypatch, text, name):
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.cpu_name(tmp_path / "cpuinfo") == (name or "aarch64")
    assert machine.cpu_name(tmp_path / "missing") == "aarch64"


def _write_cache(cpus: Path, core: int, index: int, **values) -> None:
    folder = cpus / f"cpu{core}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def test_cache_bytes_counts_each_last_level_cache_once(tmp_path, monkeypatch):
    for core in range(4):
        _write_cache(tmp_path, core, 0, level=1, type="Data", size="32K", shared_cpu_list=core)
        _write_cache(tmp_path, core, 1, level=1, type="Instruction", size="64K", shared_cpu_list=core)
        pair = core // 2 * 2
        _write_cache(tmp_path, core, 2, level=3, type="Unified", size="16M", shared_cpu_list=f"{pair}-{pair + 1}")
    monkeypatch.setattr(machine, "_usable_cores", lambda: [0, 1, 2, 3])
    assert machine.cache_bytes(tmp_path) == 32 << 20
    monkeypatch.setattr(machine, "_usable_cores", lambda: [1])
    assert machine.cache_bytes(tmp_path) == 16 << 20


def test_cache_bytes_that_a_container_hides(tmp_path):
    assert machine.cache_bytes(tmp_path) is None
    core = machine._usable_cores()[0]
    _write_cache(tmp_path, core, 0, level=1, type="Data", shared_cpu_list=core)  # without its size
    assert machine.cache_bytes(tmp_path) is None


def test_read_bandwidth():
    ops.set_num_threads(2)
    assert 1e8 < machine.read_bandwidth(0.01, threads=1) < 1e13
    assert ops.num_threads() == 2


@pytest.mark.parametrize("cache, free, expected", [
    (32 << 20, 64 << 30, 128 << 20),
    (None, None, 256 << 20),
    (1 << 30, 4 << 30, 1 << 30),  # a quarter of the memory that is free
    (32 << 20, 1 << 20, 64 << 20),
])
def test_the_buffer_is_larger_than_the_cache_and_smaller_than_the_memory(monkeypatch, cache, free, expected):
    asked = []
    monkeypatch.setattr(machine, "cache_bytes", lambda: cache)
    monkeypatch.setattr(machine, "available_bytes", lambda: free)
    monkeypatch.setattr(ops, "read_bandwidth", lambda nbytes, seconds: asked.append((nbytes, seconds)) or 1e9)
    assert machine.read_bandwidth(0.25, threads=2) == 1e9
    assert asked == [(expected, 0.25)]


def test_threads_are_restored_after_an_error(monkeypatch):
    def fail(nbytes, seconds):
        raise MemoryError

    monkeypatch.setattr(ops, "read_bandwidth", fail)
    ops.set_num_threads(2)
    with pytest.raises(MemoryError):
        machine.read_bandwidth(0.25, threads=1)
    assert ops.num_threads() == 2


def test_demo_model_path(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "files", lambda package: tmp_path)
    with pytest.raises(OSError, match="the demo model is not in this installation .*demo_model"):
        demo.demo_model_path()
    (tmp_path / "demo_model").mkdir()
    (tmp_path / "demo_model" / "config.json").write_text("{}")
    assert demo.demo_model_path() == tmp_path / "demo_model"
