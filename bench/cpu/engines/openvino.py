"""OpenVINO: its GenAI pipeline, and its runtime driven step by step over the same graph."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai

from bench.cpu.engines.base import Engine, written_once
from bench.cpu.formats import openvino_ir
from bench.cpu.formats.source import Source

# Columns of an activation that share a scale: with 128 instead of its 32, prompts and batches run a tenth faster and
# int4 steps a sixth; without quantised activations (0), a fifth slower.
_GROUP = 128
# Computed in float32 where the weights are floats; else as OpenVINO chooses (bfloat16 where the processor has it).
_FLOAT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
_PRECISIONS = {"float32": _FLOAT, "float16": {**_FLOAT, "KV_CACHE_PRECISION": "f16"}}
_ASKED = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_NUM_THREADS")


def _graph(folder: Path, kind: str, work: Path) -> Path:
    return written_once(work / f"openvino-ir-{kind}", lambda path: openvino_ir.write(Source(folder), path, kind))


def _options(kind: str, threads: int) -> dict[str, object]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP,
        **_PRECISIONS.get(kind, {}),
    }


class Runtime(Engine):
    """Its runtime alone: the cache is the graph's state, the most likely token is found outside of it."""

    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        path = _graph(folder, kind, work)
        compiled = ov.Core().compile_model(path / "openvino_model.xml", "CPU", _options(kind, threads))
        self._request = compiled.create_infer_request()
        self.settings = {name: _text(compiled.get_property(name)) for name in _ASKED}
        self.versions = {"openvino": ov.__version__}

    def _infer(self, ids: np.ndarray, past: int) -> np.ndarray:
        rows, new = ids.shape
        self._request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones((rows, past + new), np.int64),
                "position_ids": np.tile(np.arange(past, past + new), (rows, 1)),
                "beam_idx": np.arange(rows, dtype=np.int32),
            }
        )
        return self._request.get_tensor("logits").data

    def generate(self, prompts: list[list[int]], steps: int) -> list[float]:
        self._request.reset_state()
        ids, past, seconds = np.array(prompts, dtype=np.int64), 0, []
        for _ in range(steps):
            begin = time.perf_counter()
            tokens = self._infer(ids, past)[:, -1].argmax(-1)
            seconds.append(time.perf_counter() - begin)
            past, ids = past + ids.shape[1], tokens[:, None].astype(np.int64)
        return seconds

    def logits(self, ids: list[int]) -> np.ndarray:
        self._request.reset_state()
        return self._infer(np.array([ids], dtype=np.int64), 0)[0].astype(np.float32)

    def step_logits(self, ids: list[int]) -> np.ndarray:
        self._request.reset_state()
        rows = [self._infer(np.array([[token]], dtype=np.int64), past)[0].copy() for past, token in enumerate(ids)]
        return np.concatenate(rows).astype(np.float32)


class GenAI(Engine):
    """The pipeline that its users call: paged attention, continuous batching. It counts the seconds itself."""

    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        path = _graph(folder, kind, work)
        self._pipeline = openvino_genai.LLMPipeline(path, "CPU", **_options(kind, threads))
        self.settings = {name: str(value) for name, value in _options(kind, threads).items()}
        self.versions = {"openvino_genai": openvino_genai.__version__, "openvino": ov.__version__}

    def generate(self, prompts: list[list[int]], steps: int) -> list[float]:
        begin = time.perf_counter()
        result = self._run(prompts, steps)
        whole = time.perf_counter() - begin
        times = list(result.perf_metrics.raw_metrics.m_new_token_times)
        steps_after = [(after - before) * 1e-3 for before, after in zip(times, times[1:])]  # it counts milliseconds
        return [whole - sum(steps_after), *steps_after]

    def best_tokens(self, prompts: list[list[int]]) -> list[int]:
        return [self._run([prompt], 1).tokens[0][0] for prompt in prompts]

    def _run(self, prompts: list[list[int]], steps: int) -> openvino_genai.EncodedResults:
        ids = np.array(prompts, dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        return self._pipeline.generate(
            inputs, max_new_tokens=steps, ignore_eos=True, do_sample=False, apply_chat_template=False
        )


def _text(value: object) -> str:
    return str(value).removeprefix("<Type: '").removesuffix("'>")
