"""transformers: eager, compiled with a static cache, and with torch's dynamic int8."""

from __future__ import annotations

import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import CodeGenForCausalLM, DynamicCache, StaticCache
from transformers.utils import logging

from bench.cpu.engines.base import Engine


class Eager(Engine):
    """A dynamic cache, one call a step."""

    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.model = CodeGenForCausalLM.from_pretrained(folder, dtype=getattr(torch, kind)).eval()
        self.settings = {"threads": threads, "cache": f"dynamic, {kind}"}
        self.versions = {"transformers": version("transformers"), "torch": version("torch")}

    def _cache(self, rows: int, length: int):
        return DynamicCache(config=self.model.config)

    def _step(self, **inputs):
        return self.model(**inputs)

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], steps: int) -> list[float]:
        ids = torch.tensor(prompts)
        past = self._cache(len(prompts), ids.shape[1] + steps)
        begin = time.perf_counter()
        tokens = (
            self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        )
        seconds = [time.perf_counter() - begin]
        for step in range(steps - 1):
            begin = time.perf_counter()
            position = torch.full((1, 1), ids.shape[1] + step)
            out = self._step(input_ids=tokens[:, None], past_key_values=past, use_cache=True, position_ids=position)
            tokens = out.logits[:, -1].argmax(-1)
            tokens[0].item()
            seconds.append(time.perf_counter() - begin)
        return seconds

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> np.ndarray:
        return self.model(torch.tensor([ids])).logits[0].float().numpy()


class Compiled(Eager):
    """torch.compile of a step over a static cache; prompts run eagerly, since each length would be compiled anew."""

    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        super().__init__(folder, kind, threads, work)
        self._compiled = torch.compile(self.model, fullgraph=True, dynamic=False)
        self._caches: dict[tuple[int, int], StaticCache] = {}
        self.settings["cache"] = f"static, {kind}"
        self.settings["compile"] = "torch.compile(fullgraph=True, dynamic=False) of the step"

    def _cache(self, rows: int, length: int):
        length = -(-length // 64) * 64  # few shapes: each is compiled once
        if (rows, length) not in self._caches:
            self._caches[rows, length] = StaticCache(config=self.model.config, max_cache_len=length)
        cache = self._caches[rows, length]
        cache.reset()
        return cache

    def _step(self, **inputs):
        return self._compiled(**inputs)


class DynamicInt8(Eager):
    """torch's own dynamic quantisation of every linear layer, activations quantised a tensor at a time."""

    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        super().__init__(folder, "float32", threads, work)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = torch.ao.quantization.quantize_dynamic(self.model, {torch.nn.Linear}, dtype=torch.qint8)
        self.settings["quantized_engine"] = torch.backends.quantized.engine
