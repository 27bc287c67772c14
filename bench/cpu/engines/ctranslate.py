"""CTranslate2, with the libraries that it chooses by itself.

Tried on an AMD Zen 5: CT2_USE_MKL=1, int8 ten times slower; CT2_FORCE_CPU_ISA=AVX512, int8 the same, float32
a fifth slower.
"""

from __future__ import annotations

import time
from pathlib import Path

import ctranslate2
import numpy as np

from bench.cpu.engines.base import Engine, written_once
from bench.cpu.formats import ctranslate
from bench.cpu.formats.source import Source


class CTranslate2(Engine):
    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        supported = ctranslate2.get_supported_compute_types("cpu")
        if kind not in supported:
            raise ValueError(
                f"compute type {kind} is not supported on this CPU (supported: {', '.join(sorted(supported))})"
            )
        stored = "int8" if kind == "int8" else None
        path = written_once(work / f"ctranslate2-{stored or 'float32'}",
                            lambda path: ctranslate.write(Source(folder), path, stored))  # fmt: skip
        self._generator = ctranslate2.Generator(str(path), compute_type=kind, inter_threads=1, intra_threads=threads)
        self.settings = {"intra_threads": threads, "inter_threads": 1, "compute_type": self._generator.compute_type}
        self.versions = {"ctranslate2": ctranslate2.__version__}

    def generate(self, prompts: list[list[int]], steps: int) -> list[float]:
        times: dict[int, float] = {}  # step -> of its first row

        def note(result) -> bool:
            times.setdefault(result.step, time.perf_counter())
            return False

        begin = time.perf_counter()
        self._generator.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts], max_length=steps, min_length=steps,
            include_prompt_in_result=False, callback=note,
        )  # fmt: skip
        marks = [begin, *(times[step] for step in sorted(times))]
        return [after - before for before, after in zip(marks, marks[1:])]

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.array(self._generator.forward_batch([ids]))[0]
