"""What is measured, part by part; every part adds to the result."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cpu import cold, rounds
from bench.cpu.catalogue import OURS
from bench.cpu.ceiling import beside
from bench.cpu.pool import EngineFailed, Unsupported, Worker
from bench.cpu.residents import Residents

Result = dict[str, Any]
PARTS = ("decode", "prefill", "stages", "cold", "kernels")
STAGED = (1, 8)  # batches whose steps are taken apart


class Run:
    """A run's workers and settings. progress: told what is measured next."""

    def __init__(self, result: Result, residents: Residents, ceiling: Worker, progress: Callable[[str], None]) -> None:
        self.result, self._residents, self._ceiling, self._progress = result, residents, ceiling, progress
        self._settings, self._model = result["settings"], result["model"]

    def measure_ceiling(self) -> list[dict[str, Any]]:
        self._progress("ceiling")
        return self._ceiling.ask("measure", seconds=self._settings["ceiling_seconds"])["rows"]

    def moment(self) -> float:
        """The ceiling of this moment, bytes a second."""
        return self._ceiling.ask("moment", seconds=self._settings["ceiling_seconds"])["bytes_per_second"]

    # ---- Engines in turns ----

    def decode(self) -> None:
        points = [(batch, context, self._settings["steps"] + 1) for batch, context in self._settings["decode"]]
        self._in_turns("decode", points, self._decode_seconds)

    def prefill(self) -> None:
        self._in_turns(
            "prefill",
            [(1, length, 1) for length in self._settings["prefill"] for _ in range(2)],
            lambda seconds: seconds,
        )

    @staticmethod
    def _decode_seconds(seconds: list[float]) -> list[float]:
        return seconds[1:]  # the first is the prompt's

    def _in_turns(
        self, part: str, points: list[tuple[int, int, int]], take: Callable[[list[float]], list[float]]
    ) -> None:
        rows = self._residents.rows

        def visit(name: str, number: int) -> None:
            first, tries = len(self.result["samples"]), itertools.count(1)

            def attempt() -> None:
                tried = next(tries)
                self._progress(f"{part}, round {number + 1}: {name}" + (f", visit {tried}" if tried > 1 else ""))
                del self.result["samples"][first:]
                if name in self._residents.names:  # it has not failed
                    self._residents.attempt(name, lambda worker: ask(name, worker, number))

            _, ceiling, steady = beside(attempt, self.moment)
            for sample in self.result["samples"][first:]:
                sample.update(ceiling=ceiling, steady=steady)

        def ask(name: str, worker: Worker, number: int) -> None:
            # A worker that was stopped wakes first.
            worker.ask(
                "generate", rows=1, context=min(32, points[0][1]), steps=3, vocab=self._model["vocab"], seed=number
            )
            for at, (batch, context, steps) in enumerate(points):
                try:
                    reply = worker.ask("generate", rows=batch, context=context, steps=steps, vocab=self._model["vocab"],
                                       seed=1000 * number + at)  # fmt: skip
                except Unsupported as error:
                    rows[name]["notes"][f"batch {batch}"] = str(error)
                    continue
                self.result["samples"].append({"part": part, "engine": name, "batch": batch, "context": context,
                                               "round": number, "seconds": take(reply["seconds"])})  # fmt: skip

        done = self.result["rounds"][part] = []  # grows by whole rounds: an interruption loses the one it falls into
        for each in rounds.run(self._residents.names, self._settings["rounds"], visit, self.measure_ceiling):
            done.append(each)

    # ---- Ours alone ----

    def stages(self) -> None:
        contexts = sorted({context for _, context in self._settings["decode"]})
        for name in [name for name in self._residents.names if name.startswith(OURS)]:
            self._progress(f"stages: {name}")
            self._residents.attempt(name, lambda worker, name=name: self._stages_of(name, worker, contexts))

    def _stages_of(self, name: str, worker: Worker, contexts: list[int]) -> None:
        for batch in STAGED:
            for context in contexts:
                if (batch, context) in self._settings["decode"]:
                    found = worker.ask("stages", context=context, rows=batch, steps=self._settings["steps"],
                                       vocab=self._model["vocab"])  # fmt: skip
                    self.result["stages"].append({"engine": name, "batch": batch, "context": context, **found})

    def kernels(self) -> None:
        settings = self._settings
        with Worker(settings["python"], ["kernels", str(settings["threads"])], settings["threads"]) as worker:
            for model in settings["kernel_models"]:
                for kind in settings["kernel_kinds"]:
                    self._progress(f"kernels: {model} {kind}")
                    try:
                        found = worker.ask("measure", model=model, kind=kind, tokens=settings["kernel_tokens"],
                                           seconds=settings["kernel_seconds"])["rows"]  # fmt: skip
                    except EngineFailed as error:
                        self.result["kernels_failed"] = [
                            *self.result.get("kernels_failed", ()),
                            f"{model} {kind}: {error}",
                        ]
                        continue
                    self.result["kernels"] += found

    # ---- Cold processes ----

    def cold(self, folder: Path, work: Path) -> None:
        """Reading the checkpoint once, then every engine of --cold, in turns; files out of the cache each time."""
        names = [name for name in self._residents.names if any(pattern in name for pattern in self._settings["cold"])]
        for number, order in enumerate(rounds.in_turns(["", *names], self._settings["cold_rounds"])):
            for name in order:
                self._progress(f"cold, round {number + 1}: {name or 'reading'}")
                if not name:
                    self.result["cold_reads"].append({**cold.read_once(folder), "round": number})
                    continue
                for files in (folder, work):
                    cold.forget(files)
                try:
                    with self._residents.new_worker(name) as worker:
                        found = cold.first_token(worker, self._model["vocab"], number)
                except EngineFailed as error:
                    self._residents.rows[name]["notes"]["cold"] = str(error)
                    continue
                self.result["cold"].append({"engine": name, "round": number, **found})
