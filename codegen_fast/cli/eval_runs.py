"""codegen-fast eval humaneval and eval mtpb: from options to a run, and what is told of it."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..evaluation import settings as settings_of
from ..evaluation.comparison import compare, require_comparable
from ..evaluation.jsonl import Record
from ..evaluation.paper import paper_model
from ..evaluation.run import Run, Workers
from ..evaluation.run_folder import data_fingerprint, model_fingerprint
from ..evaluation.samplers import BENCHMARKS, SamplerSpec, kernels
from ..evaluation.tables import comparison_table, run_table
from ..loading import choose_device
from ..weights.hub import resolve
from .arguments import PROGRAM
from .models import locate, read_config
from .options import QUANTIZATIONS, UsageError
from .output import emit
from .progress import Bar

# Modules that programs of MTPB are asked to use, and the packages they come with.
_MTPB_MODULES = {"pandas": "pandas", "sklearn": "scikit-learn"}


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Samples what is missing, runs programs if that is allowed, and prints a table."""
    benchmark = arguments.eval_command
    settings = _settings(benchmark, arguments)
    problems = _chosen(BENCHMARKS[benchmark].read_problems(arguments.data), BENCHMARKS[benchmark].ID, arguments)
    plot = getattr(arguments, "plot", None)
    if (arguments.compare is not None or plot is not None) and not arguments.allow_code_execution:
        raise UsageError(f"{'--compare' if plot is None else '--plot'} needs the programs' verdicts: give "
                         "--allow-code-execution as well")
    if plot is not None:
        from ..evaluation.plot import require_drawable

        require_drawable(plot)
    if arguments.workers is not None and arguments.ray is None:
        raise UsageError("--workers goes with --ray: in one process all samples of a problem share its prompt's cache")
    if arguments.compare == arguments.quantization:
        raise UsageError(f"--compare {arguments.compare} is what this run has: name another quantisation or a folder")
    if arguments.compare is not None and arguments.compare not in QUANTIZATIONS:  # before days of sampling
        require_comparable(_folder(arguments), benchmark, [problem[BENCHMARKS[benchmark].ID] for problem in problems],
                           arguments.compare)
    make_executor = _executor(arguments) if arguments.allow_code_execution else None
    if benchmark == "mtpb" and make_executor is not None:
        _warn_of_missing_modules(problems)

    run = _make_run(arguments, settings, problems)
    summary = run.do(Bar(), _workers(arguments), make_executor)
    emit(run_table(benchmark, summary, run.paper, str(run.folder)))
    if plot is not None:
        from ..evaluation.plot import draw

        draw(plot, summary, run.about["model"], run.paper)
    if arguments.compare is not None:
        _compare(arguments, run, make_executor)
    return 0


def _settings(benchmark: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The preset's, with what the options say instead."""
    chosen = settings_of.preset(benchmark, arguments.preset)
    given = {name: value for name in chosen if (value := getattr(arguments, name, None)) is not None}
    settings = {"benchmark": benchmark, "preset": arguments.preset, **chosen, **given}
    if "k" in chosen and "k" not in given:
        settings["k"] = tuple(k for k in chosen["k"] if k <= settings["n"])
    settings_of.require_consistent(settings)
    return settings


def _chosen(problems: list[Record], identity: str, arguments: argparse.Namespace) -> list[Record]:
    if arguments.limit is not None:
        return problems[:arguments.limit]
    if arguments.only is None:
        return problems
    known = {problem[identity] for problem in problems}
    for name in arguments.only:
        if name not in known:
            raise ValueError(f"--only {name}: no problem has this {identity}; the first is {problems[0][identity]}")
    return [problem for problem in problems if problem[identity] in arguments.only]


def _make_run(arguments: argparse.Namespace, settings: dict[str, Any], problems: list[Record]) -> Run:
    location = locate(arguments.model)
    folder, config = read_config(location)
    if arguments.ray is None:
        folder = resolve(location)  # the weights too
    device, threads, computing = _where(arguments)
    spec = SamplerSpec(model=os.path.abspath(location) if Path(location).is_dir() else str(location), dtype=arguments.dtype,
                       quantization=None if arguments.quantization == "none" else arguments.quantization,
                       device=device, threads=threads, settings=settings, problems=problems)
    checked = {"problems": f"{len(problems)}, {data_fingerprint(problems)}", "dtype": arguments.dtype,
               "weights": model_fingerprint(folder), "quantization": arguments.quantization, "kernels": computing}
    about = {"model": arguments.model, "codegen_fast": __version__, "torch": version("torch")}
    paper = paper_model(f"{arguments.model} {config.to_dict().get('_name_or_path', '')}", config)
    return Run(spec, _folder(arguments), settings, checked, paper, about)


def _folder(arguments: argparse.Namespace) -> Path:
    """humaneval-codegen-350M-mono-int8, in the folder where the command is given, unless --out names one."""
    if arguments.out is not None:
        return Path(arguments.out)
    words = [arguments.eval_command, Path(arguments.model).resolve().name, arguments.quantization]
    return Path("-".join(word for word in words if word != "none"))


def _where(arguments: argparse.Namespace) -> tuple[str, int | None, str]:
    """Device and threads of a process that samples, and what it computes with, which rounding depends on."""
    if arguments.ray is None:
        return arguments.device, arguments.threads, kernels(choose_device(arguments.device, None))
    if arguments.device.startswith("cuda:"):
        raise UsageError(f"--device {arguments.device} does not go with --ray: Ray chooses which GPU a worker gets; "
                         "use --device cuda")
    if arguments.ray != "local" and arguments.device == "auto":
        raise UsageError(f"--ray {arguments.ray}: say what its workers shall compute on, --device cpu or --device cuda; "
                         "which GPUs they have is not known here")
    if arguments.ray != "local":
        return arguments.device, arguments.threads, f"Ray, {arguments.device}"
    device = choose_device(arguments.device, None)
    # Ray would give each worker one thread.
    threads = arguments.threads or max(1, torch.get_num_threads() // (arguments.workers or 1))
    return device.type, threads, kernels(device)


def _workers(arguments: argparse.Namespace) -> Callable[[SamplerSpec], AbstractContextManager[Workers]]:
    if arguments.ray is None:
        return _this_process
    from ..evaluation.ray_workers import RayWorkers

    return lambda spec: RayWorkers(spec, arguments.ray, arguments.workers or 1)


@contextmanager
def _this_process(spec: SamplerSpec) -> Iterator[Workers]:
    yield spec.build()


def _executor(arguments: argparse.Namespace) -> Callable[[], AbstractContextManager[Any]]:
    from ..execution import Executor, describe_isolation
    from ..execution.isolation import best_isolation
    from ..execution.worker import SandboxRefused

    try:
        best_isolation()
    except SandboxRefused as error:  # before days of sampling
        raise OSError(f"--allow-code-execution: {error}") from None

    def make() -> AbstractContextManager[Any]:
        for sentence in describe_isolation():
            print(f"{PROGRAM}: programs: {sentence}", file=sys.stderr)
        # Every program of MTPB imports numpy, which takes longer than most of what they do.
        return Executor(workers=arguments.processes,
                        preload=("numpy",) if arguments.eval_command == "mtpb" else ())

    return make


def _warn_of_missing_modules(problems: list[Record]) -> None:
    prompts = " ".join(prompt for problem in problems for prompt in problem["prompts"]).lower()
    for module, package in _MTPB_MODULES.items():
        if (module in prompts or package in prompts) and find_spec(module) is None:
            warnings.warn(f"some of the problems want {module}, which is not installed: their programs will fail (pip "
                          f"install {package})", UserWarning, stacklevel=2)


def _compare(arguments: argparse.Namespace, run: Run, make_executor: Any) -> None:
    other = arguments.compare
    if other in QUANTIZATIONS:
        spec = replace(run.spec, quantization=None if other == "none" else other)
        named = run.folder if run.folder.name not in ("", "..") else run.folder.resolve()
        second = replace(run, spec=spec, folder=named.with_name(f"{named.name}-{other}"),
                         checked={**run.checked, "quantization": other})
        second.do(Bar(), _workers(arguments), make_executor)
        other = str(second.folder)
    emit("\n" + comparison_table(str(run.folder), other, compare(run.folder, other)))
