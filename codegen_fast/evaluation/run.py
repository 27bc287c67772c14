"""A run of HumanEval or MTPB: what is missing is sampled, what is not judged is run, and all is summed up."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from . import summaries
from .jsonl import Journal, Record
from .paper import PaperModel
from .records import is_result, is_sample
from .run_folder import SUMMARY_FILE, RunFolder
from .samplers import BENCHMARKS, SamplerSpec
from .units import Unit, missing_units
from .verdicts import Executor, judge


class Progress(Protocol):
    """Is told what has been done; see codegen_fast.cli.progress."""

    def begin(self, what: str, total: int, done: int) -> None: ...
    def advance(self, tokens: int) -> None: ...
    def end(self) -> None: ...


class Workers(Protocol):
    def run(self, units: list[Unit]) -> Iterator[tuple[float, Record]]: ...


@dataclass(frozen=True)
class Run:
    """settings: all of them, "benchmark" among them; checked: what completions follow from beside the settings."""

    spec: SamplerSpec
    folder: Path
    settings: dict[str, Any]
    checked: dict[str, Any]
    paper: PaperModel | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def do(self, progress: Progress, make_workers: Callable[[SamplerSpec], AbstractContextManager[Workers]],
           make_executor: Callable[[], AbstractContextManager[Executor]] | None) -> dict[str, Any]:
        """Goes on from what the folder holds, and returns its summary.

        make_executor: None leaves the programs alone, and the summary then has no pass rates.
        """
        with RunFolder(self.folder, {**self.settings, **self.checked}, self.about) as folder, ExitStack() as stack:
            fields = BENCHMARKS[self.settings["benchmark"]].JUDGED
            samples = {temperature: self._journal(stack, f"samples-t{temperature:g}.jsonl",
                                                  lambda record: is_sample(record, fields))
                       for temperature in self.settings["temperature"]}
            self._sample(samples, progress, make_workers)
            summary: dict[str, Any] = {"settings": folder.settings,
                                       "samples": summaries.of_samples(_records(samples))}
            if self.settings["benchmark"] == "mtpb":
                summary["prompt_perplexity"] = summaries.prompt_perplexities(_records(samples))
            if make_executor is not None:
                seconds = self.settings["seconds"]
                results = {temperature: self._journal(stack, f"results-t{temperature:g}-{seconds:g}s.jsonl", is_result)
                           for temperature in samples}
                self._judge(samples, results, progress, make_executor)
                summary.update(self._estimates(samples, results))
            folder.write(SUMMARY_FILE, summary)
            return summary

    def _journal(self, stack: ExitStack, name: str, is_whole: Callable[[Record], bool]) -> Journal:
        key = BENCHMARKS[self.settings["benchmark"]].record_key(self.spec.problems)
        journal = Journal(self.folder / name, key, is_whole)
        stack.callback(journal.close)
        return journal

    def _sample(self, samples: dict[float, Journal], progress: Progress,
                make_workers: Callable[[SamplerSpec], AbstractContextManager[Workers]]) -> None:
        cases = BENCHMARKS[self.settings["benchmark"]].cases(self.spec.problems)
        units = missing_units(samples, cases, self.settings["n"], lambda temperature: samples[temperature].records)
        if units:
            total = len(cases) * self.settings["n"] * len(samples)
            progress.begin("samples", total, total - sum(len(unit.samples) for unit in units))
            try:
                with make_workers(self.spec) as workers:
                    for temperature, record in workers.run(units):
                        if samples[temperature].append(record):
                            progress.advance(record["tokens"])
            finally:
                progress.end()
        for journal in samples.values():
            journal.settle()

    def _judge(self, samples: dict[float, Journal], results: dict[float, Journal], progress: Progress,
               make_executor: Callable[[], AbstractContextManager[Executor]]) -> None:
        benchmark = BENCHMARKS[self.settings["benchmark"]]
        names = [(temperature, key) for temperature, journal in samples.items()
                 for key in sorted(journal.records.keys() - results[temperature].records.keys())]
        if names:
            total = sum(len(journal.records) for journal in samples.values())
            progress.begin("programs", total, total - len(names))
            items = ((name, benchmark.program_of(self.spec.problems[name[1][0]], samples[name[0]].records[name[1]],
                                                 self.settings["seconds"])) for name in names)
            try:
                with make_executor() as executor:
                    for (temperature, key), verdict in judge(items, executor):
                        record = samples[temperature].records[key]
                        results[temperature].append(benchmark.verdict_record(record, verdict))
                        progress.advance(0)
            finally:
                progress.end()
        for journal in results.values():
            journal.settle()

    def _estimates(self, samples: dict[float, Journal], results: dict[float, Journal]) -> dict[str, Any]:
        problems = self.spec.problems
        if self.settings["benchmark"] == "humaneval":
            return summaries.of_humaneval(problems, _records(results), self.settings["k"], self.paper)
        return summaries.of_mtpb(problems, _records(results), self.paper)


def _records(journals: dict[float, Journal]) -> dict[float, Iterable[Record]]:
    return {temperature: journal.records.values() for temperature, journal in journals.items()}
