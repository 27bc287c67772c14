"""ggml, by ctransformers' GPT-J."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ctransformers.llm import LLM, Config

from bench.cpu.engines.base import Engine, Unsupported, written_once
from bench.cpu.formats import ggml
from bench.cpu.formats.source import Source

# Tokens of a prompt that go through together: 8 by itself, which is slower; of 512 its memory pool runs out.
PROMPT_BATCH = 64


class GptJ(Engine):
    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        source = Source(folder)
        path = written_once(work / f"ggml-{kind}.bin", lambda path: ggml.write(source, path, kind))
        config = Config(context_length=source.dims.n_positions, threads=threads, batch_size=PROMPT_BATCH)
        self._model = LLM(str(path), model_type="gptj", config=config)
        self.settings = {"threads": threads, "batch_size": PROMPT_BATCH, "library": "avx2"}
        self.versions = {"ctransformers": version("ctransformers")}

    def generate(self, prompts: list[list[int]], steps: int) -> list[float]:
        if len(prompts) > 1:
            raise Unsupported("runs one sequence at a time")
        self._model._context.clear()
        tokens, seconds = prompts[0], []
        for _ in range(steps):
            begin = time.perf_counter()
            self._model.eval(tokens)
            tokens = [int(self._last().argmax())]
            seconds.append(time.perf_counter() - begin)
        return seconds

    def _last(self) -> np.ndarray:
        model = self._model
        return np.ctypeslib.as_array(model.ctransformers_llm_logits_data(), (model.ctransformers_llm_logits_size(),))

    def step_logits(self, ids: list[int]) -> np.ndarray:
        self._model._context.clear()
        rows = []
        for token in ids:
            self._model.eval([token])
            rows.append(self._last().copy())
        return np.array(rows)

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.step_logits(ids)  # of a prompt it keeps the last token's only
