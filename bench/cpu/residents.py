"""The engines' workers: loaded, checked and warmed up, and kept while there is memory for all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cpu.catalogue import REFERENCE, Entry
from bench.cpu.pool import EngineFailed, PeakMemory, Unsupported, Worker

CHECKED_TOKENS = 64
_SHARE = 0.7  # of the free memory, for engines that stay loaded


class Residents:
    """The workers of a run.

    ``rows`` has a dictionary for every engine: what it is, and what became of it.
    interpreters: engine -> python, None where none has its modules. free_bytes: memory for all engines together.
    """

    def __init__(
        self,
        entries: list[Entry],
        interpreters: dict[str, str | None],
        folder: Path,
        work: Path,
        threads: int,
        model: dict[str, Any],
        free_bytes: int,
    ) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._interpreters, self._folder, self._work, self._threads = interpreters, folder, work, threads
        self._model, self._free = model, free_bytes * _SHARE
        self._workers: dict[str, Worker] = {}
        self._reference: np.ndarray | None = None  # (tokens, vocab)
        self._points: list[tuple[int, int, int]] = []
        self.rows = {entry.name: _new_row(entry, model) for entry in entries}

    @property
    def names(self) -> list[str]:
        """Those that have not failed."""
        return [name for name, row in self.rows.items() if row["status"] == "measured"]

    def new_worker(self, name: str) -> Worker:
        return Worker(
            self._interpreters[name], [name, str(self._folder), str(self._threads), str(self._work)], self._threads
        )

    def prepare(self, points: list[tuple[int, int, int]], progress: Callable[[str], None]) -> None:
        """Loads every engine once, compares its logits with transformers', and runs each of the points to warm up.

        points: (rows, context, steps).
        """
        self._points = points
        names = sorted(self._entries, key=lambda name: name != REFERENCE)  # the reference first
        for name in names:
            progress(name)
            if self._interpreters[name] is None:
                needs = ", ".join(self._entries[name].needs)
                self._fail(name, "absent", f"no interpreter has {needs} (see --peer-python)")
                continue
            self.attempt(name, lambda worker, name=name: self._check(name, worker))
        for name in self.names:
            self._complete(name)

    def attempt(self, name: str, visit: Callable[[Worker], None]) -> None:
        """Runs ``visit`` with the engine's worker, which is started if it is not kept; a failure is noted."""
        worker = self._workers.pop(name, None)
        try:
            worker = worker or self._start(name)
            visit(worker)
        except EngineFailed as error:
            self._fail(name, "failed", str(error))
        else:
            row = self.rows[name]
            held = row["held_bytes"] = max(row.get("held_bytes", 0), worker.held_bytes())
            if held <= self._free - sum(self.rows[other]["held_bytes"] for other in self._workers):
                self._workers[name] = worker
                return
        if worker is not None:
            worker.close()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _start(self, name: str) -> Worker:
        worker, row = self.new_worker(name), self.rows[name]
        try:
            with PeakMemory(worker) as memory:
                loaded = worker.ask("load")
            row.setdefault("load", []).append({"seconds": loaded["seconds"], "peak_bytes": memory.nbytes})
            row.update(settings=loaded["settings"], versions=loaded["versions"])
            for rows, context, steps in self._points:
                try:
                    worker.ask(
                        "generate", rows=rows, context=context, steps=min(steps, 3), vocab=self._model["vocab"], seed=-1
                    )
                except Unsupported as error:
                    row["notes"][f"batch {rows}"] = str(error)
        except BaseException:
            worker.close()
            raise
        return worker

    def _check(self, name: str, worker: Worker) -> None:
        """Logits of the same tokens, of the whole prompt at once and step by step, against the reference's."""
        draw = np.random.default_rng(7)
        ids = draw.integers(self._model["vocab"], size=min(CHECKED_TOKENS, self._model["n_positions"] // 2)).tolist()
        quality, reference = self.rows[name]["quality"], self._reference
        for phase in ("prefill", "decode"):
            with tempfile.NamedTemporaryFile(suffix=".npy") as file:
                try:
                    worker.ask("logits", ids=ids, phase=phase, path=file.name)
                except Unsupported as error:
                    self.rows[name]["notes"].setdefault("quality", str(error))
                    continue
                found = np.load(file.name)
            if name == REFERENCE:
                reference = self._reference = found
            if reference is not None:
                quality[phase] = compare(found, reference)
        if not quality and reference is not None:
            lengths = range(CHECKED_TOKENS // 8, len(ids) + 1, CHECKED_TOKENS // 8)
            best = worker.ask("best_tokens", prompts=[ids[:n] for n in lengths])["tokens"]
            same = [token == reference[n - 1].argmax() for n, token in zip(lengths, best, strict=True)]
            quality["prefill"] = {"same_best_token": float(np.mean(same))}

    def _complete(self, name: str) -> None:
        """What a step reads, in bytes: the engine's own count, else from its types."""
        entry, row, model = self._entries[name], self.rows[name], self._model
        settings = row["settings"]
        if "step_weight_bytes" in settings:
            row["step_weight_bytes"] = settings["step_weight_bytes"]
            row["cache_bytes_per_token"] = (
                2 * model["n_layer"] * model["n_embd"] * (4 if settings["cache"] == "float32" else 2)
            )
        else:
            row["step_weight_bytes"], row["cache_bytes_per_token"] = step_bytes(entry, model)

    def _fail(self, name: str, status: str, reason: str) -> None:
        self.rows[name].update(status=status, reason=reason)


def _new_row(entry: Entry, model: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "type": entry.type,
        "ours": entry.is_ours,
        "status": "measured",
        "reason": None,
        "notes": {},
        "quality": {},
        "settings": {},
        "versions": {},
    }


def step_bytes(entry: Entry, model: dict[str, Any]) -> tuple[float, float]:
    """Bytes of weights that a step reads, and of cache a token of context, as the engine stores them."""
    d, inner, layers = model["n_embd"], model["inner"], model["n_layer"]
    in_layers, in_head = layers * (4 * d * d + 2 * d * inner), model["vocab"] * d
    weights = (in_layers * entry.layer_bits + in_head * entry.head_bits) / 8
    vectors = 4 * (layers * (3 * d + inner) + 2 * d + model["vocab"])
    return weights + vectors, 2 * layers * d * (entry.cache_bytes or 4)


def compare(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Relative RMS error, share of tokens whose best successor is the same, KL in nats a token."""
    error = float(
        np.sqrt(np.mean((logits - reference) ** 2, dtype=np.float64) / np.mean(reference**2, dtype=np.float64))
    )
    p, q = (_log_softmax(rows) for rows in (reference, logits))
    return {
        "relative_rms_error": error,
        "same_best_token": float(np.mean(logits.argmax(-1) == reference.argmax(-1))),
        "kl": float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
