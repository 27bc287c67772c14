"""Loads a checkpoint in a process of its own and lets it generate, watched: python -m reliability.loads FOLDER

Prints one JSON object; what other parts of the page read through load().
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from bench.cpu.cold import forget

from .children import run_module
from .watching import Watch

_PROMPT, _TOKENS = 16, 4
_CHUNK = 16 << 20


def load(folder: Path, quantization: str | None, *, cold: bool, dtype: str = "auto") -> dict[str, Any]:
    """load_seconds and load_cpu_seconds, stopped_seconds, model_bytes, peak_bytes of the whole process, tokens, their speed.

    load_average: the system's as it began. cold: with the folder's files out of the system's cache. Where it was refused:
    error and load_average alone.
    """
    load_average = os.getloadavg()[0]
    if cold:
        forget(folder)
    asked = ["--quantization", quantization] if quantization else []
    done = run_module("reliability.loads", str(folder), "--dtype", dtype, *asked, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\nloading {folder} as {quantization or dtype} ended with {done.returncode}")
    return {"load_average": load_average, **json.loads(done.stdout.splitlines()[-1])}


def busyness(loads: list[dict[str, Any]], cores: int) -> str:
    """How busy the machine was, as a sentence of the page."""
    averages = [each["load_average"] for each in loads]
    return (f"The system's load average was {min(averages):.1f} to {max(averages):.1f} on {cores} cores as the loads began, "
            f"this work included; processor seconds are those of the processes alone.")


def read_plainly(folder: Path, *, cold: bool) -> dict[str, float]:
    """seconds, cpu_seconds and nbytes of reading a folder's weights from the first byte to the last, one file after another."""
    if cold:
        forget(folder)
    buffer, nbytes = bytearray(_CHUNK), 0
    with Watch() as watch:
        for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
            with open(path, "rb", buffering=0) as file:
                while read := file.readinto(buffer):
                    nbytes += read
    return {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds, "nbytes": nbytes}


class _Times:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Any) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


def _run(folder: str, dtype: str, quantization: str | None) -> dict[str, Any]:
    import torch

    import codegen_fast

    with Watch() as whole:
        with Watch() as loading:
            try:
                model = codegen_fast.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=dtype, quantization=quantization, device="cpu")
            except OSError as error:
                return {"error": str(error)}
        ids, times = torch.arange(100, 100 + _PROMPT)[None], _Times()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1 + _TOKENS, eos_token_id=None,
                             pad_token_id=0, streamer=times)  # fmt: skip
    inside = out.shape[1] == _PROMPT + 1 + _TOKENS and bool((out < model.config.vocab_size).all())
    return {"load_seconds": loading.seconds, "load_cpu_seconds": loading.cpu_seconds,
            "stopped_seconds": whole.stopped_seconds, "model_bytes": model.memory_footprint(),
            "load_peak_bytes": loading.peak_bytes, "peak_bytes": whole.peak_bytes, "samples": whole.samples,
            "tokens_per_second": _TOKENS / (times.at[-1] - times.at[-1 - _TOKENS]), "tokens": out[0, _PROMPT:].tolist(),
            "generated": inside}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reliability.loads", description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization")
    args = parser.parse_args()
    print(json.dumps(_run(args.folder, args.dtype, args.quantization)))


if __name__ == "__main__":
    main()
