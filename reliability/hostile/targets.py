"""What reads strangers' files: each target with its seeds, the files of them that are damaged, and how it is called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from codegen_fast import AutoModelForCausalLM, AutoTokenizer
from codegen_fast.cli.info import model_lines
from codegen_fast.config import CodeGenConfig
from codegen_fast.evaluation import humaneval, mtpb
from codegen_fast.evaluation.comparison import compare
from codegen_fast.evaluation.run import Run
from codegen_fast.evaluation.run_folder import data_fingerprint, model_fingerprint
from codegen_fast.evaluation.samplers import SamplerSpec
from codegen_fast.evaluation.tables import run_table
from codegen_fast.generation.config import GenerationConfig
from codegen_fast.machine import this_machine

from . import seeds
from .verdicts import READ, REFUSED

_TEXT = "def add(left, right):\n    return left + right  # é漢 <|endoftext|>\n"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Target:
    """read: (the damaged folder, a folder to write to); damaged: patterns of file names."""

    name: str
    read: Callable[[Path, Path], None]
    seeds: tuple[str, ...]
    damaged: tuple[str, ...]
    replaced: float = 0.04  # of all damage: something else in the file's place; 0 where the user names the file
    writes: bool = False    # into the folder itself
    sound: str = READ       # what comes of an undamaged seed


def _read_config(folder: Path, out: Path) -> None:
    config = CodeGenConfig.from_folder(folder)
    list(model_lines("model", config, _machine(), 1e10, _CPU))
    json.dumps(config.to_dict())


def _read_model(folder: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, device="cpu")
    model_fingerprint(folder)
    if model.config.n_positions >= 8 and torch.isfinite(model(torch.tensor([[1, 2]])).logits).all():
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, seed=0)


def _read_generation_config(folder: Path, out: Path) -> None:
    model = _small_model(folder.parent / "seeds" / "safetensors")
    model.generation_config = GenerationConfig.from_folder(folder, model.config.to_dict())
    model.generate(torch.tensor([[4, 5]]), seed=0)


def _read_tokenizer(folder: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(_TEXT)["input_ids"]
    tokenizer.decode(ids)
    tokenizer.decode(ids, skip_special_tokens=True)
    tokenizer([_TEXT, "x"], padding=tokenizer.pad_token is not None)
    repr(tokenizer)
    tokenizer.save_pretrained(out / "saved")


def _read_humaneval(folder: Path, out: Path) -> None:
    problems = humaneval.read_problems(str(next(folder.glob("data*"))))
    data_fingerprint(problems)
    for problem in problems:
        humaneval.program_of(problem, {"completion": "x"}, 1.0).source("mark")


def _read_mtpb(folder: Path, out: Path) -> None:
    problems = mtpb.read_problems(str(folder / "data.jsonl"))
    data_fingerprint(problems)
    for index, case in mtpb.cases(problems):
        problem = problems[index]
        "".join(map(mtpb.wrap, mtpb.turns(problem, case)))
        record = {"completions": "x", "gold_output": problem["outputs"][case]}
        mtpb.program_of(problem, record, 1.0).source("mark")


def _read_run(folder: Path, out: Path) -> None:
    """Goes on with a run that somebody else began. Nothing is computed and no program is run: both are played."""
    settings = {**seeds.RUN_SETTINGS, "temperature": tuple(seeds.RUN_SETTINGS["temperature"])}
    spec = SamplerSpec("model", "auto", None, "cpu", None, settings, seeds.problems())
    summary = Run(spec, folder, settings, {}).do(_Silent(), _played_workers, _played_executor)
    run_table("humaneval", summary, None, str(folder))


def _compare_runs(folder: Path, out: Path) -> None:
    compare(folder, folder.parent / "seeds" / "run")


@cache
def _machine() -> Any:
    return this_machine()


@cache
def _small_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, device="cpu")


class _Silent:
    def begin(self, what: str, total: int, done: int) -> None: ...

    def advance(self, tokens: int) -> None: ...

    def end(self) -> None: ...


class _PlayedWorkers:
    def __init__(self, spec: SamplerSpec) -> None:
        self._problems = spec.problems

    def run(self, units: list[Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        for unit in units:
            for sample in unit.samples:
                yield unit.temperature, {"task_id": self._problems[unit.problem]["task_id"], "completion": "    return x\n",
                                         "sample": sample, "tokens": 1, "finish_reason": "stop"}


class _PlayedExecutor:
    def submit(self, source: str, *, seconds: float | None = None, stdin: str = "") -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(SimpleNamespace(status="timed out", stdout="", detail=""))
        return future


@contextmanager
def _played_workers(spec: SamplerSpec) -> Iterator[_PlayedWorkers]:
    yield _PlayedWorkers(spec)


@contextmanager
def _played_executor() -> Iterator[_PlayedExecutor]:
    yield _PlayedExecutor()


_TOKENIZER_FILES = ("*.json", "merges.txt")
_CHECKPOINTS = ("safetensors", "bin", "sharded", "sharded_bin", "int8", "int4")
TARGETS: dict[str, Target] = {target.name: target for target in (
    Target("config.json", _read_config, ("safetensors",), ("config.json",)),
    Target("config.json and weights", _read_model, ("safetensors", "bin", "int8"), ("config.json",)),
    Target("safetensors", _read_model, ("safetensors",), ("model.safetensors",)),
    Target("torch .bin", _read_model, ("bin",), ("pytorch_model.bin",)),
    Target("torch .bin, old format", _read_model, ("old_bin",), ("pytorch_model.bin",), sound=REFUSED),
    Target("index and shards", _read_model, ("sharded", "sharded_bin"), ("*.index.json",)),
    Target("saved quantised checkpoint", _read_model, ("int8", "int8-row", "int4"), ("config.json", "model.safetensors")),
    # A target of its own: with one more seed the numbers of the one above would mean other inputs than in its records.
    Target("saved packed checkpoint", _read_model, ("packed",), ("config.json", "model.safetensors")),
    Target("generation_config.json", _read_generation_config, ("generation_config",), ("generation_config.json",)),
    Target("tokenizer.json", _read_tokenizer, ("tokenizer_json",), _TOKENIZER_FILES),
    Target("vocab.json and merges.txt", _read_tokenizer, ("tokenizer_files",), _TOKENIZER_FILES),
    Target("HumanEval data", _read_humaneval, ("humaneval", "humaneval_gz"), ("data.jsonl*",), replaced=0.0),
    Target("MTPB data", _read_mtpb, ("mtpb",), ("data.jsonl",), replaced=0.0),
    Target("run gone on with", _read_run, ("run",), ("*",), writes=True),
    Target("run compared", _compare_runs, ("run",), ("settings.json", "summary.json")),
    Target("links and devices, weights", _read_model, _CHECKPOINTS, ("*",), replaced=1.0),
    Target("links and devices, tokenizers", _read_tokenizer, ("tokenizer_json", "tokenizer_files"), ("*",), replaced=1.0),
    Target("links and devices, runs", _read_run, ("run",), ("*",), replaced=1.0, writes=True),
)}
