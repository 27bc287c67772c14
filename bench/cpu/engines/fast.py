"""codegen_fast, through the loop that ``generate`` runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import codegen_fast
from bench.cpu.engines.base import Engine
from codegen_fast import ops
from codegen_fast.generation.stopping import Emitted
from codegen_fast.generation.streaming import TokenStream

FLOATS = ("float32", "float16", "bfloat16")


def load(folder: Path, kind: str) -> codegen_fast.CodeGenForCausalLM:
    """A quantised model keeps its embedding and its cache in float16."""
    dtype, quantization = (getattr(torch, kind), None) if kind in FLOATS else (torch.float16, kind)
    return codegen_fast.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization=quantization, device="cpu"
    )


class Fast(Engine):
    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        torch.set_num_threads(threads)
        self.model = load(folder, kind)
        weights = self.model._decoder.weights
        self.settings = {
            "threads": threads,
            "isa": ops.cpu_isa(),
            "build": ops.build_info(),
            "cache": str(self.model.dtype)[6:],
            "step_weight_bytes": weights.nbytes() - weights.embedding.nbytes,
        }
        self.versions = {"codegen_fast": codegen_fast.__version__, "torch": version("torch")}

    def generate(self, prompts: list[list[int]], steps: int) -> list[float]:
        times = [time.perf_counter()]
        for _ in self.events(prompts, steps):
            times.append(time.perf_counter())
        return [after - before for before, after in zip(times, times[1:])]

    def events(self, prompts: list[list[int]], steps: int) -> Iterator[Emitted]:
        """The loop's events, one for the prompts and one a step."""
        ids = torch.tensor(prompts)
        knobs = {
            "max_new_tokens": steps,
            "max_length": None,
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        return self.model._generation(ids, torch.ones_like(ids), None, knobs, TokenStream(None)).events()

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.model(torch.tensor([ids])).logits[0].numpy()

    def step_logits(self, ids: list[int]) -> np.ndarray:
        decoder = self.model._decoder
        cache = decoder.new_cache(len(ids) + 1)
        sequence = cache.new_sequence()
        first = decoder.prefill(cache, [sequence], [torch.tensor(ids[:1])]).logits.numpy()
        batch = decoder.start(cache, [sequence], len(ids))
        rest = [batch.step(torch.tensor([token])).numpy().copy() for token in ids[1:]]
        return np.concatenate([first, *rest])
