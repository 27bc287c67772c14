"""Threads: their number follows torch's, Python threads share a model, a forked child works, Ctrl-C interrupts."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from checkpoints import make_model

import codegen_fast
from codegen_fast import ops


@pytest.fixture(scope="module")
def model():
    return codegen_fast.accelerate(make_model(n_embd=128, n_head=8, rotary_dim=16, n_layer=3, vocab_size=199, n_positions=512))


def sampled(model, seed):
    ids = torch.arange(3, 23)[None]
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, seed=seed, max_new_tokens=60,
                          num_return_sequences=3, eos_token_id=None, pad_token_id=0)  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_is_that_of_torch(model, threads):
    torch.set_num_threads(threads)
    model(torch.arange(3, 23)[None])
    assert ops.num_threads() == threads


@pytest.mark.parametrize("number", [0, -1])
def test_a_senseless_number_of_threads_is_refused(number):
    with pytest.raises(ValueError, match=f"num_threads: expected at least 1, got {number}"):
        ops.set_num_threads(number)


@pytest.mark.parametrize("count", [2, 8])
def test_python_threads_generate_at_once_on_one_model(model, count):
    expected = [sampled(model, seed) for seed in range(count)]
    results = [None] * count

    def work(i):
        results[i] = [sampled(model, i) for _ in range(3)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(own, expected[i]) for i in range(count) for own in results[i])


def beams(model, _):
    """torch takes logits of this many rows to its threads, which a child does not have."""
    return model.generate(torch.arange(3, 23)[None], num_beams=200, max_new_tokens=2)


@pytest.mark.parametrize("generate", [sampled, beams])
def test_a_forked_child_generates(model, generate):
    expected = generate(model, 5)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        same = torch.equal(generate(model, 5), expected)
        os.write(write, b"same" if same else b"different")
        os._exit(0)
    os.close(write)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.read(read, 16) == b"same"
    os.close(read)
    assert torch.equal(generate(model, 5), expected)


def test_a_wrong_instruction_set_in_the_environment_is_an_error_at_import(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import codegen_fast.ops"], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "CODEGEN_FAST_ISA": "sse9"})  # fmt: skip
    assert done.returncode != 0
    assert "CODEGEN_FAST_ISA: 'sse9' is not available here; this machine and build run: " in done.stderr


@pytest.mark.parametrize("isa", ops.cpu_isas())
def test_the_environment_forces_an_instruction_set(tmp_path, isa):
    code = "from codegen_fast import ops; print(ops.cpu_isa())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "CODEGEN_FAST_ISA": isa})  # fmt: skip
    assert done.stdout.strip() == isa, done.stderr


def test_import_is_quick_and_touches_no_gpu(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        import torch
        begin = time.perf_counter()
        from codegen_fast import *  # every public name: they load when they are first used
        took = time.perf_counter() - begin
        assert not torch.cuda.is_initialized()
        loaded = [m for m in ("transformers", "huggingface_hub", "tqdm.auto", "matplotlib") if m in sys.modules]
        print(took, loaded)
    """)
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path) for _ in range(5)]
    took = min(float(run.stdout.split()[0]) for run in runs)
    assert all(run.stdout.strip().endswith("[]") for run in runs), runs[0].stdout + runs[0].stderr
    print(f"import codegen_fast: {took:.3f} s beyond import torch")
    assert took <= 0.3
