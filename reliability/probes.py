"""Fixed requests whose answers must stay the same, to the last bit, whatever happened in between."""

from __future__ import annotations

from collections.abc import Callable

import torch

from codegen_fast.model import CodeGenForCausalLM

PROMPTS = ("def fibonacci(n):\n", "class Stack:\n    def push(self, item):\n        ", "import os\nimport sys\n\n\n")

Answer = list[torch.Tensor]


def _ids(model: CodeGenForCausalLM, text: str) -> list[int]:
    return model._tokenizer(None)(text)["input_ids"]


def _greedy(model: CodeGenForCausalLM) -> Answer:
    return [model.generate([_ids(model, text)], max_new_tokens=24, eos_token_id=None) for text in PROMPTS]


def _samples(model: CodeGenForCausalLM) -> Answer:
    ids = [_ids(model, text) for text in PROMPTS]
    return [model.generate(ids, do_sample=True, temperature=0.9, top_p=0.95, top_k=50, seed=7, num_return_sequences=3,
                           max_new_tokens=16)]  # fmt: skip


def _beams(model: CodeGenForCausalLM) -> Answer:
    return [model.generate([_ids(model, PROMPTS[0])], num_beams=4, max_new_tokens=16)]


def _drafts(model: CodeGenForCausalLM) -> Answer:
    ids = _ids(model, "x = 1\ny = 2\nz = 3\n" * 4)
    return [model.generate([ids], max_new_tokens=32, prompt_lookup_num_tokens=8)]


def _session(model: CodeGenForCausalLM) -> Answer:
    with model.session(exact=True) as session:
        first = session.generate([_ids(model, PROMPTS[1])], max_new_tokens=12)
        return [first, session.generate(first, max_new_tokens=12)]


def _scores(model: CodeGenForCausalLM) -> Answer:
    return [score.token_logprobs for score in model.score(PROMPTS[0], ["    return n\n", "    pass\n"])]


def _logits(model: CodeGenForCausalLM) -> Answer:
    return [model(torch.tensor([_ids(model, PROMPTS[1])])).logits]


PROBES: dict[str, Callable[[CodeGenForCausalLM], Answer]] = {
    "greedy": _greedy, "samples": _samples, "beams": _beams, "drafts": _drafts, "session": _session, "scores": _scores,
    "logits": _logits,
}  # fmt: skip


class Probes:
    """The answers of a model's probes when this was made, and whether they are still given."""

    def __init__(self, model: CodeGenForCausalLM, names: tuple[str, ...] = tuple(PROBES)) -> None:
        self._model = model
        self._expected = {name: PROBES[name](model) for name in names}

    @property
    def names(self) -> list[str]:
        return list(self._expected)

    def differs(self, name: str) -> bool:
        """Whether the model now gives another answer than at the start."""
        answer, expected = PROBES[name](self._model), self._expected[name]
        return len(answer) != len(expected) or not all(map(torch.equal, answer, expected))

    def different(self) -> list[str]:
        """The names of all probes whose answer is another than at the start."""
        return [name for name in self._expected if self.differs(name)]
