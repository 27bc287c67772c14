"""The 350M model in its true shape, with random weights: loads and generates in every weight type, within the memory
that the type takes."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

MB = 1 << 20
TOOL = Path(__file__).parent.parent / "tools" / "make_checkpoint.py"

# In a process of its own, whose highest resident memory (without mapped files) a thread records while loading.
_RUN = textwrap.dedent("""
    import json, sys, threading, time
    import torch
    import codegen_fast

    def resident():
        with open("/proc/self/status") as status:
            return sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem"))) * 1024

    torch.set_num_threads(2)
    before = peak = resident()
    loaded = threading.Event()

    def watch():
        global peak
        while not loaded.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=sys.argv[2], quantization=sys.argv[3] or None)
    loaded.set()
    watcher.join()
    ids = torch.arange(100, 132)[None]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    print(json.dumps({"tokens": out.shape[1] - ids.shape[1], "model": model.memory_footprint(), "peak": peak - before,
                      "inside": bool((out < model.config.vocab_size).all())}))
""")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("350M") / "checkpoint"
    subprocess.run([sys.executable, str(TOOL), "350M", str(folder)], check=True, capture_output=True, cwd=folder.parent)
    yield folder
    for file in folder.iterdir():  # 700 MB that pytest would keep
        file.unlink()


@pytest.mark.parametrize(("dtype", "quantization", "bytes_each"),
                         [("float32", "", 4), ("bfloat16", "", 2), ("float16", "", 2), ("float16", "int8", 8.5 / 8)])  # fmt: skip
def test_350m_loads_and_generates(checkpoint, tmp_path, without_gpus, dtype, quantization, bytes_each):
    done = subprocess.run([sys.executable, "-c", _RUN, str(checkpoint), dtype, quantization], capture_output=True,
                          text=True, cwd=tmp_path, env=without_gpus)  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print({k: round(v / MB) if k in ("model", "peak") else v for k, v in seen.items()})
    embedding, rest = 51200 * 1024, 304_285_696
    kept = 4 if dtype == "float32" else 2  # bytes of an embedding's value: it is never quantised
    ideal = embedding * kept + rest * bytes_each
    largest = 51200 * 1024 * 2  # the file's largest tensor, float16
    assert seen["tokens"] == 64 and seen["inside"]
    assert seen["model"] <= 1.05 * ideal
    # 32 MB: the interpreter, lazily imported modules, the tokenizer's and the threads' own memory
    assert seen["peak"] <= seen["model"] + largest + 32 * MB
