"""The Multi-Turn Programming Benchmark: its problems, conversations with a model, and the programs that come of them.

The protocol is that of the benchmark's published scripts (salesforce/CodeGen, mtpb_sample.py and mtpb_exec.py).
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from ..memory import available_bytes, cache_bytes
from ..strangers import one_line
from .jsonl import Record, as_number, read_records, require_fields
from .rows import Completer, Prompt, problem_seed, runs_of
from .units import Unit
from .verdicts import Program, Verdict

PREFIX = "# Import libraries.\n\nimport numpy as np\n\n"
ID = "id"
JUDGED = {"completions": str, "gold_output": object}  # of a sample
_FIELDS = {"id": str, "prompts": list, "inputs": list, "outputs": list}
_AT_ONCE = 256  # conversations: as many as keep the machine busy in every turn
_SHARE = 0.25   # of the free memory, for caches between turns


def read_problems(data: str) -> list[Record]:
    """The problems of a file in the benchmark's format. Raises OSError and ValueError for a file that is none."""
    if not Path(data).exists():
        raise OSError(f"--data {data}: there is no such file; MTPB's problems are in the repository salesforce/CodeGen, as "
                      "codegen1/benchmark/mtpb.jsonl")
    problems = read_records(data, "--data")
    seen: set[str] = set()
    for number, problem in enumerate(problems, 1):
        where = f"problem {number} of --data {data}"
        require_fields(problem, _FIELDS, where)
        if problem["id"] in seen:
            raise ValueError(f"{where} has the id of an earlier one: {problem['id']!r:.80}")
        seen.add(problem["id"])
        length = problem.get("max_gen_length")
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError(f"{where} has max_gen_length={length!r:.60}, expected a number of tokens")
        if not problem["prompts"] or not all(isinstance(prompt, str) for prompt in problem["prompts"]):
            raise ValueError(f"{where} has prompts={problem['prompts']!r:.60}, expected a list of texts")
        for case in range(num_cases(problem)):
            try:
                turns(problem, case)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise ValueError(f"{where}: input {case} ({problem['inputs'][case]!r:.60}) does not fill the prompts: "
                                 f"{type(error).__name__} {one_line(error, 100)}") from None
    return problems


def num_cases(problem: Record) -> int:
    """Inputs that have an output; more outputs than inputs are left out, as the benchmark's script does."""
    return min(len(problem["inputs"]), len(problem["outputs"]))


def turns(problem: Record, case: int) -> list[str]:
    """The prompts of a case, its inputs filled in. Raises KeyError, ValueError or TypeError where they
    do not fit.

    Of str.format only {name} is taken, which is all that the benchmark has: {name:>999999999} would fill the memory, and
    {name.attribute} reads what is no input.
    """
    values = problem["inputs"][case]
    if not isinstance(values, dict):
        raise TypeError(f"inputs must be objects, got a {type(values).__name__}")
    for prompt in problem["prompts"]:
        for _, name, spec, conversion in Formatter().parse(prompt):
            if name is not None and (spec or conversion or not name.isidentifier()):
                raise ValueError(f"a prompt has the field {name!r:.40} in more words than its name")
    return [prompt.format_map(values) for prompt in problem["prompts"]]


def wrap(prompt: str) -> str:
    """A prompt as the model sees it: a comment."""
    return f"# {prompt}\n"


def record_key(problems: list[Record]) -> Callable[[Record], tuple[int, int, int]]:
    """The key of a record of these problems, (problem, case, sample); KeyError for one of another's, TypeError for
    what is none."""
    places = {problem["id"]: i for i, problem in enumerate(problems)}
    return lambda record: (places[record["id"]], as_number(record["case"]), as_number(record["sample"]))


def cases(problems: list[Record]) -> list[tuple[int, int]]:
    return [(i, case) for i, problem in enumerate(problems) for case in range(num_cases(problem))]


@dataclass
class _Conversation:
    """A program that is written turn by turn. parts: prefix, prompt, completion, prompt, completion, ..."""

    problem: Record
    case: int
    sample: int
    prompts: list[str]  # as the model sees them
    most: int           # new tokens a turn
    parts: list[str] = field(default_factory=lambda: [PREFIX])
    tokens: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def history(self) -> str:
        return "".join(self.parts)


class Sampler:
    """Conversations, as records that the benchmark's own script reads.

    The cache is kept between turns by a session that reuses only what prefill computed, so that tokens are those of a
    run without a cache, to the last bit, whichever conversations are under way.
    """

    def __init__(self, completer: Completer, problems: list[Record], settings: dict[str, Any]):
        self._completer, self._problems, self._settings = completer, problems, settings
        self._single_nlls: dict[tuple[str, int], float | None] = {}

    def run(self, units: list[Unit]) -> Iterator[tuple[float, Record]]:
        """(temperature, record) of every conversation, as they end."""
        for temperature in dict.fromkeys(unit.temperature for unit in units):
            talks = [self._begin(unit, sample) for unit in units if unit.temperature == temperature
                     for sample in unit.samples]
            for begin in range(0, len(talks), _AT_ONCE):
                for talk in self._talk(talks[begin:begin + _AT_ONCE], temperature):
                    yield temperature, self._record(talk)

    def _begin(self, unit: Unit, sample: int) -> _Conversation:
        problem = self._problems[unit.problem]
        prompts = [wrap(prompt) for prompt in turns(problem, unit.case)]
        most = problem.get("max_gen_length") or self._settings["max_gen_length"]
        if self._settings["single_turn"]:  # all at once, with room for what all turns may have
            prompts, most = ["".join(prompts)], most * len(prompts)
        return _Conversation(problem, unit.case, sample, prompts, most)

    def _talk(self, talks: list[_Conversation], temperature: float) -> Iterator[_Conversation]:
        with self._completer.model.session(exact=True, max_bytes=self._room(talks)) as session:
            for turn in range(max(len(talk.prompts) for talk in talks)):
                now = [talk for talk in talks if turn < len(talk.prompts)]
                by_name = {}
                for talk in now:
                    talk.parts.append(talk.prompts[turn])
                    by_name[talk.problem["id"], talk.case, talk.sample] = talk
                for row in self._completer.complete(self._prompts(now, turn), temperature, session):
                    talk = by_name[(*row.prompt.name, row.sample)]
                    talk.parts.append(f"{row.text}\n\n")
                    talk.tokens += row.tokens
                    talk.reasons.append(row.finish_reason)
                    if turn + 1 == len(talk.prompts):
                        yield talk

    def _prompts(self, talks: list[_Conversation], turn: int) -> Iterator[Prompt]:
        """One for all samples that have the same history, as in the first turn; else one a conversation."""
        together: dict[tuple[str, int, str], list[int]] = {}
        of: dict[tuple[str, int, str], _Conversation] = {}
        for talk in talks:
            key = (talk.problem["id"], talk.case, talk.history)
            together.setdefault(key, []).append(talk.sample)
            of[key] = talk
        for key, samples in together.items():
            identity, case, history = key
            seed = problem_seed(self._settings["seed"], identity, case, turn)
            ids = self._completer.encode(history)
            for first, count in runs_of(sorted(samples)):
                yield Prompt((identity, case), ids, seed, first, count, of[key].most)

    def _room(self, talks: list[_Conversation]) -> int:
        """Bytes of caches that are kept: of all conversations if they fit, else of those that were used last."""
        model = self._completer.model
        wanted = cache_bytes(model.config, model.dtype, len(talks) * model.config.n_positions)
        free = available_bytes(model.device)
        least = cache_bytes(model.config, model.dtype, model.config.n_positions)
        return max(least, wanted if free is None else min(wanted, int(_SHARE * free)))

    def _record(self, talk: _Conversation) -> Record:
        output = talk.problem["outputs"][talk.case]
        record = {"id": talk.problem["id"], "case": talk.case, "sample": talk.sample,
                  "input": talk.problem["inputs"][talk.case], "gold_output": output, "completions": talk.history,
                  "prompts_completions": talk.parts, "tokens": talk.tokens, "finish_reasons": talk.reasons}
        if talk.sample < self._settings["perplexity_samples"]:
            record.update(self._prompt_nlls(talk))
        return record

    def _prompt_nlls(self, talk: _Conversation) -> Record:
        """How likely the model finds the prompts: each after what it wrote before, and all of them at once."""
        prompts = [self._completer.encode(wrap(prompt)) for prompt in turns(talk.problem, talk.case)]
        name = (talk.problem["id"], talk.case)
        if name not in self._single_nlls:  # every sample's
            self._single_nlls[name] = self._nll(self._completer.encode(PREFIX), [(ids, True) for ids in prompts])
        nlls: Record = {"prompt_tokens": sum(map(len, prompts)), "single_turn_prompt_nll": self._single_nlls[name]}
        if not self._settings["single_turn"]:
            # A part is encoded by itself, so that tokens are a prompt's or a completion's.
            parts = [(self._completer.encode(part), i % 2 == 0) for i, part in enumerate(talk.parts[1:-1])]
            nlls["prompt_nll"] = self._nll(self._completer.encode(PREFIX), parts)
        return nlls

    def _nll(self, prefix: list[int], parts: list[tuple[list[int], bool]]) -> float | None:
        """-log p (nats) of the tokens of those parts that count, each given all before it. None: past the context."""
        rest = [token for ids, _ in parts for token in ids]
        if len(prefix) + len(rest) > self._completer.context:
            return None
        logprobs = self._completer.model.score([prefix], [rest])[0].token_logprobs.double()
        counts = [counted for ids, counted in parts for _ in ids]
        return -math.fsum(value for value, counted in zip(logprobs.tolist(), counts) if counted)


def program_of(problem: Record, record: Record, seconds: float) -> Program:
    """The whole conversation is the program."""
    return Program("mtpb", record["completions"], seconds, json.dumps(record["gold_output"]))


def verdict_record(record: Record, verdict: Verdict) -> Record:
    return {"id": record["id"], "case": record["case"], "sample": record["sample"], "passed": verdict.passed,
            "result": verdict.result}
