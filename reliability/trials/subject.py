"""The model that trials are made on, and what must hold after each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from codegen_fast import AutoModelForCausalLM
from codegen_fast.demo import demo_model_path
from codegen_fast.model import CodeGenForCausalLM
from codegen_fast.past import PastKeyValues
from codegen_fast.session import Session
from reliability.accounts import CacheAccounts
from reliability.probes import Probes

PROMPT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n"
LONG = {"max_new_tokens": 40, "eos_token_id": None}

Call = Callable[..., Any]


def load_demo(quantization: str | None = None) -> CodeGenForCausalLM:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, quantization=quantization)


class Subject:
    """The demo model in float32, with an open account of its caches and the answers that it gave at the start."""

    def __init__(self, accounts: CacheAccounts) -> None:
        self.model = load_demo()
        self.ids = self.model._tokenizer(None)(PROMPT)["input_ids"]
        self._accounts = accounts
        self._probes = Probes(self.model, ("greedy", "samples", "session"))
        self.checked = 0  # times that the probes were asked

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Subject]:
        with CacheAccounts().opened() as accounts:
            yield cls(accounts)

    def require_returned(self, *held: Session | PastKeyValues, interrupted: bool = False) -> None:
        """AssertionError unless every page is free that `held` does not hold, and every cache gone."""
        wrong = self._accounts.faults(list(held), interrupted=interrupted)
        assert not wrong, "; ".join(wrong)

    def require_usable(self, *held: Session | PastKeyValues, interrupted: bool = False) -> None:
        """AssertionError unless all came back and the model answers as it did at the start."""
        self.require_returned(*held, interrupted=interrupted)
        different = self._probes.different()
        self.checked += 1
        assert not different, f"other answers than at the start: {', '.join(different)}"
        self._accounts.faults(list(held))

    def calls(self, session: Session, past: PastKeyValues) -> dict[str, Call]:
        """Calls of every kind that callbacks go with: knobs -> what generate returns."""
        model, ids, mask = self.model, self.ids, [[1] * len(self.ids)]
        continued = torch.cat([torch.tensor([ids]), torch.tensor([[7] * (past.get_seq_length() + 1 - len(ids))])], 1)
        return {
            "greedy": lambda **knobs: model.generate([ids], **LONG | knobs),
            "samples": lambda **knobs: model.generate([ids, ids[3:]], do_sample=True, seed=3, num_return_sequences=2,
                                                      **LONG | knobs),
            "session": lambda **knobs: session.generate([ids], mask, **LONG | knobs),
            "past_key_values": lambda **knobs: model.generate(continued, torch.ones_like(continued), past_key_values=past,
                                                              **LONG | knobs),
            "beams": lambda **knobs: model.generate([ids], num_beams=3, **LONG | knobs),
        }  # fmt: skip

    def past(self) -> PastKeyValues:
        """A cache of the prompt and a few tokens."""
        return self.model.generate([self.ids], max_new_tokens=4, eos_token_id=None,
                                   return_dict_in_generate=True).past_key_values  # fmt: skip


def require_error(call: Callable[[], Any], kind: type[BaseException], sentence: str) -> None:
    """AssertionError unless the call raises this kind of error, with a match of the regular expression `sentence`."""
    try:
        call()
    except kind as error:
        assert re.search(sentence, str(error)), f"expected {sentence!r} in: {error}"
    except Exception as error:
        raise AssertionError(f"expected {kind.__name__}, got {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"expected {kind.__name__} ({sentence}), and nothing was raised")
