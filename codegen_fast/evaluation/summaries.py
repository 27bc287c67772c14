"""What a run's verdicts come to: the numbers of summary.json."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .estimates import best_temperature, interval, pass_at_k_of_problems
from .jsonl import Record
from .paper import PaperModel

# Of one run, by temperature.
Samples = Mapping[float, Iterable[Record]]


def of_samples(samples: Samples) -> dict[str, Any]:
    """Tokens, and why samples ended."""
    told = {}
    for temperature, records in samples.items():
        records = list(records)
        reasons = Counter(reason for record in records
                          for reason in record.get("finish_reasons", [record.get("finish_reason")]))
        told[f"{temperature:g}"] = {"samples": len(records), "tokens": sum(record["tokens"] for record in records),
                                    "finish_reasons": dict(sorted(reasons.items()))}
    return told


def of_humaneval(problems: list[Record], results: Samples, ks: Iterable[int], paper: PaperModel | None
                 ) -> dict[str, Any]:
    """pass@k at every temperature, and at the best one for each k as the paper takes it. Figures in percent."""
    counts = {temperature: _counts(problems, "task_id", records) for temperature, records in results.items()}
    table: dict[str, Any] = {}
    for k in ks:
        values = {temperature: 100 * pass_at_k_of_problems(list(own.values()), k)
                  for temperature, own in counts.items()}
        best = best_temperature({temperature: float(each.mean()) for temperature, each in values.items()})
        table[str(k)] = {
            "by_temperature": {f"{temperature:g}": float(each.mean()) for temperature, each in values.items()},
            "best_temperature": best, "best": asdict(interval(values[best])),
            "paper": None if paper is None else paper.humaneval(k)}
    return {"pass_at_k": table, "counts": _by_name(counts)}


def of_mtpb(problems: list[Record], results: Samples, paper: PaperModel | None) -> dict[str, Any]:
    """Pass rates in percent: of all programs, by number of turns, by problem."""
    counts = {temperature: _counts(problems, "id", records) for temperature, records in results.items()}
    rates = {}
    for temperature, own in counts.items():
        turns: dict[int, list[tuple[int, int]]] = {}
        for problem in problems:
            turns.setdefault(len(problem["prompts"]), []).append(own[problem["id"]])
        rates[temperature] = {
            "overall": _rate(own.values()), "interval": asdict(interval(np.array([_rate([each])
                                                                                 for each in own.values()]))),
            "by_turns": {str(number): {"problems": len(each), "rate": _rate(each)}
                         for number, each in sorted(turns.items())},
            "by_problem": {name: _rate([each]) for name, each in own.items()}}
    best = best_temperature({temperature: each["overall"] for temperature, each in rates.items()})
    return {"pass_rate": {f"{temperature:g}": each for temperature, each in rates.items()}, "best_temperature": best,
            "paper": None if paper is None else paper.mtpb(), "counts": _by_name(counts)}


def prompt_perplexities(samples: Samples) -> dict[str, Any]:
    """exp of the mean negative log-likelihood of the prompts' tokens, turn by turn and all at once, where known."""
    told = {}
    for temperature, records in samples.items():
        scored = [record for record in records if record.get("prompt_tokens")]
        told[f"{temperature:g}"] = {name: _perplexity(scored, field) for name, field in
                                    (("multi_turn", "prompt_nll"), ("single_turn", "single_turn_prompt_nll"))}
    return told


def _perplexity(records: list[Record], field: str) -> float | None:
    known = [record for record in records if record.get(field) is not None]
    tokens = sum(record["prompt_tokens"] for record in known)
    return math.exp(math.fsum(record[field] for record in known) / tokens) if tokens else None


def _counts(problems: list[Record], name: str, results: Iterable[Record]) -> dict[str, tuple[int, int]]:
    """(programs, those that passed) of every problem, in their order."""
    totals: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for record in results:
        totals[record[name]] += 1
        passed[record[name]] += record["passed"]
    return {problem[name]: (totals[problem[name]], passed[problem[name]]) for problem in problems}


def _rate(counts: Iterable[tuple[int, int]]) -> float:
    totals, passed = map(sum, zip(*counts))
    return 100 * passed / totals


def _by_name(counts: Mapping[float, dict[str, tuple[int, int]]]) -> dict[str, Any]:
    return {f"{temperature:g}": {name: list(each) for name, each in own.items()} for temperature, own in counts.items()}
