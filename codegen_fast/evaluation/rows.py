"""Calls of the model whose rows come one by one, when they end."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..model import CodeGenForCausalLM
from ..sampling import mix_seed
from ..session import Session
from .settings import Knobs

# Of one call. While rows wait, one takes the place of each that ends; only at the end of a call fewer run than could.
# What a call holds for each row is its tokens' ids.
_ROWS_A_CALL = 2048
NO_ROOM = "no room"


@dataclass(frozen=True)
class Prompt:
    """Samples `first` to `first + count - 1` of one prompt; name: what the caller knows it by."""

    name: Any
    ids: list[int]
    seed: int
    first: int
    count: int
    most: int  # new tokens at most


@dataclass(frozen=True)
class Row:
    """A sample that has ended. tokens: how many were computed, also behind the cut.

    finish_reason: of `generate`; "no room" where the prompt fills the context and nothing was computed.
    """

    prompt: Prompt
    sample: int
    text: str
    tokens: int
    finish_reason: str


def problem_seed(seed: int, *names: str | int) -> int:
    """The seed of whatever these names name: the same in every run, whichever problems it has.

    A draw follows from (this, sample, position), so any sample can be computed alone. The temperature is not in it.
    """
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return mix_seed(seed, int.from_bytes(digest[:8], "little"))


def runs_of(samples: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of consecutive numbers; samples: ascending."""
    for _, run in groupby(enumerate(samples), lambda pair: pair[1] - pair[0]):
        numbers = [sample for _, sample in run]
        yield numbers[0], len(numbers)


class Completer:
    """A model under the knobs of a run."""

    def __init__(self, model: CodeGenForCausalLM, tokenizer: Any, knobs: Knobs):
        self.model, self.tokenizer, self._knobs = model, tokenizer, knobs
        # Nothing of the checkpoint's own settings is left but what ends a text.
        stored = model.generation_config
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else stored.eos_token_id
        model.generation_config = {"eos_token_id": eos, "pad_token_id": 0} if eos is not None else {"pad_token_id": 0}

    @property
    def context(self) -> int:
        return self.model.config.n_positions

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def complete(self, prompts: Iterable[Prompt], temperature: float, session: Session | None = None) -> Iterator[Row]:
        """Every sample of every prompt, as they end. Prompts in one call are those with the same count and length."""
        grouped: dict[tuple[int, int], list[Prompt]] = {}
        for prompt in prompts:
            steps = min(prompt.most, self.context - len(prompt.ids))
            grouped.setdefault((steps, prompt.count), []).append(prompt)
        for (steps, count), group in grouped.items():
            if steps <= 0:
                yield from (Row(prompt, prompt.first + j, "", 0, NO_ROOM) for prompt in group for j in range(count))
                continue
            at_once = max(1, _ROWS_A_CALL // count)
            for begin in range(0, len(group), at_once):
                yield from self._call(group[begin:begin + at_once], steps, temperature, session)

    def _call(self, prompts: list[Prompt], steps: int, temperature: float, session: Session | None) -> Iterator[Row]:
        count = prompts[0].count
        texts: dict[int, list[str]] = {}
        tokens: dict[int, int] = {}
        knobs = self._knobs.of_call(temperature)
        if temperature > 0:
            knobs.update(seed=[prompt.seed for prompt in prompts], sample_offset=[prompt.first for prompt in prompts])
        # All of a prompt's tokens are meant, those too that are the padding's.
        stream = self.model.stream([prompt.ids for prompt in prompts], [[1] * len(prompt.ids) for prompt in prompts],
                                   num_return_sequences=count, max_new_tokens=steps, tokenizer=self.tokenizer,
                                   session=session, **knobs)
        for piece in stream:
            texts.setdefault(piece.row, []).append(piece.text)
            tokens[piece.row] = tokens.get(piece.row, 0) + len(piece.token_ids)
            if piece.finish_reason is not None:
                prompt = prompts[piece.row // count]
                yield Row(prompt, prompt.first + piece.row % count, "".join(texts.pop(piece.row)),
                          tokens.pop(piece.row), piece.finish_reason)
