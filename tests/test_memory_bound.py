"""Memory while loading: peak (anonymous + shared) = final model + one tensor; and what the machine says is free."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from checkpoints import write_tensors

from codegen_fast import memory
from codegen_fast.config import CodeGenConfig
from codegen_fast.weights import layout

MB = 1 << 20
# 420 MB in float32; its largest tensor, 17 MB, is a 25th of that: a second copy of anything large shows.
CONFIG = {"model_type": "codegen", "vocab_size": 2000, "n_positions": 64, "n_embd": 1024, "n_head": 16, "n_layer": 8,
          "rotary_dim": 32}
LARGEST = 4 * 1024 * 1024
# Of the allocator, the interpreter and thread stacks.
SLACK = 6 * MB


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders with the same float32 model, as .safetensors and as .bin."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("safetensors", "bin")}
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(LARGEST, generator=generator)
    tensors = {spec.name: noise[:torch.Size(spec.shape).numel()].view(spec.shape)
               for spec in layout.expected_tensors(CodeGenConfig.from_dict(CONFIG))}
    for name, folder in folders.items():
        (folder / "config.json").write_text(json.dumps(CONFIG))
        write_tensors(folder, {key: tensor.clone() for key, tensor in tensors.items()}, name)
    yield folders
    for folder in folders.values():  # not kept like other tests' folders: they are large
        for file in folder.iterdir():
            file.unlink()


# Loads in a process of its own, where a thread watches the memory, and prints what it saw.
_LOAD = textwrap.dedent("""
    import json, sys, threading
    import torch
    from codegen_fast.config import CodeGenConfig
    from codegen_fast.weights import load_weights, open_checkpoint

    def resident():
        with open("/proc/self/status") as status:
            return sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem"))) * 1024

    folder, dtype, quantization = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3] or None
    torch.set_num_threads(2)
    config, source = CodeGenConfig.from_folder(folder), open_checkpoint(folder)
    before = peak = resident()
    samples, done = 0, threading.Event()

    def watch():
        global peak, samples
        while not done.wait(0.001):
            peak, samples = max(peak, resident()), samples + 1

    thread = threading.Thread(target=watch)
    thread.start()
    weights = load_weights(config, source, dtype=dtype, quantization=quantization, progress=False)
    done.set()
    thread.join()
    print(json.dumps({"model": weights.nbytes(), "peak": peak - before, "after": resident() - before,
                      "samples": samples}))
""")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype, quantization, file_layout", [
    ("float32", "", "safetensors"), ("float16", "", "bin"), ("bfloat16", "", "safetensors"), ("float16", "int8", "bin"),
    ("float32", "int8", "safetensors"), ("float32", "int4", "safetensors")])
def test_peak_is_the_model_and_one_tensor(checkpoints, dtype, quantization, file_layout):
    done = subprocess.run([sys.executable, "-c", _LOAD, checkpoints[file_layout], dtype, quantization],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    config = CodeGenConfig.from_dict(CONFIG)
    elements = sum(torch.Size(spec.shape).numel() for spec in layout.expected_tensors(config))
    element_bytes = 8.5 / 8 if quantization else getattr(torch, dtype).itemsize
    embedding = config.vocab_size * config.n_embd * (getattr(torch, dtype).itemsize - element_bytes)
    print({name: round(value / MB, 1) for name, value in seen.items() if name != "samples"})
    assert seen["samples"] > 20
    assert seen["model"] <= 1.05 * (elements * element_bytes + embedding)
    assert seen["after"] <= 1.05 * seen["model"] + SLACK
    assert seen["peak"] <= seen["model"] + 4 * LARGEST + SLACK


# ---- What is free --------------------------------------------------------------------------------


def test_this_machine_says_what_is_free():
    assert memory.available_bytes() is None or memory.available_bytes() > 0


def group(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_the_limits_of_control_groups_count(tmp_path):
    """Version 2: each group above the process has a say, page cache is as good as free."""
    group(tmp_path / "a" / "b", {
        "memory.max": "max\n", "memory.current": "9000\n", "memory.stat": "inactive_file 10\n"})
    group(tmp_path / "a", {
        "memory.max": "10000\n", "memory.current": "9000\n", "memory.stat": "anon 5\ninactive_file 700\n"})
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert list(memory._cgroup_available(tmp_path / "cgroup", tmp_path)) == [1700]


def test_control_groups_of_version_1_count_and_the_host_s_paths_do_not_matter(tmp_path):
    group(tmp_path / "memory", {"memory.limit_in_bytes": "5000\n", "memory.usage_in_bytes": "6000\n",
                                "memory.stat": "total_inactive_file 200\n"})
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/0123\n0::/\n")
    assert list(memory._cgroup_available(tmp_path / "cgroup", tmp_path)) == [0]
    assert list(memory._cgroup_available(tmp_path / "none", tmp_path)) == []


def test_without_proc_the_system_is_asked(monkeypatch):
    monkeypatch.setattr(memory, "_meminfo_available", lambda: None)
    monkeypatch.setattr(memory, "_cgroup_available", lambda: iter(()))
    assert memory.available_bytes() > 0
    monkeypatch.setattr(memory.os, "sysconf_names", {})
    assert memory.available_bytes() is None


def test_sizes_are_readable():
    sizes = (1_234_567_890, 9_994_000_000, 9_996_000_000, 32_123_456_789, 99_960_000_000, 10**15)
    assert [memory.gigabytes(n) for n in sizes] == ["1.23 GB", "9.99 GB", "10.0 GB", "32.1 GB", "100 GB", "1000000 GB"]
