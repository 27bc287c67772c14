"""Callbacks of the caller that raise, or return what no token can be chosen from."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from .subject import Subject, require_error


class Broken(Exception):
    """Raised by a caller's callback."""


class _Raises:
    """A callback that raises when it has been called `left` times: a streamer, a processor, a criterion."""

    def __init__(self, left: int) -> None:
        self._left = left

    def __call__(self, ids: Any = None, scores: Any = None, **_: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Broken("the callback's own error")
        return scores

    put = __call__

    def end(self) -> None:
        pass


class _RaisesAtTheEnd:
    def put(self, tokens: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        raise Broken("the callback's own error")


_KNOBS: dict[str, Callable[[int], dict[str, Any]]] = {
    "a streamer": lambda left: {"streamer": _Raises(left)},
    "a streamer's end()": lambda left: {"streamer": _RaisesAtTheEnd()},
    "a logits processor": lambda left: {"logits_processor": [_Raises(left)]},
    "a stopping criterion": lambda left: {"stopping_criteria": [_criterion(_Raises(left))]},
    "a prefix function": lambda left: {"prefix_allowed_tokens_fn": _prefix(_Raises(left))},
}


def _criterion(raises: _Raises) -> Callable[..., bool]:
    return lambda ids, scores, **_: raises() is not None


def _prefix(raises: _Raises) -> Callable[..., list[int]]:
    return lambda batch_id, ids: raises() or list(range(100))


def raising(subject: Subject, times: int) -> str:
    """Streamers, logits processors, stopping criteria and prefix functions raise at random steps of calls of every kind."""
    chance = random.Random(0)
    for i in range(times):
        with subject.model.session() as session:
            past = subject.past()
            calls = subject.calls(session, past)
            knob, call = list(_KNOBS)[i % len(_KNOBS)], list(calls)[i // len(_KNOBS) % len(calls)]
            if call == "beams" and "streamer" in knob:
                continue  # refused
            length = past.get_seq_length()
            require_error(lambda: calls[call](**_KNOBS[knob](chance.randrange(30))), Broken, "^the callback's own error$")
            assert knob == "a streamer's end()" or past.get_seq_length() == length, "past_key_values has changed"
            subject.require_returned(session, past)
            if i % 5 == 0:
                subject.require_usable(session, past)
    del past, calls, session
    subject.require_usable()
    return "the callback's own error, caches as they were"


def nan_logits(subject: Subject, times: int) -> str:
    """A logits processor returns NaN or minus infinity, for all tokens or one, at random steps of calls of every kind."""
    chance = random.Random(1)
    for i in range(times):
        with subject.model.session() as session:
            past = subject.past()
            calls = subject.calls(session, past)
            call = list(calls)[i % len(calls)]
            everywhere, left = i % 3 == 0, chance.randrange(20)
            value = float("nan") if not everywhere or i % 2 else -float("inf")

            def spoil(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                nonlocal left
                left -= 1
                if left < 0:
                    # All beams: one without a continuation would only fall out.
                    scores[slice(None) if call == "beams" else -1, slice(None) if everywhere else chance.randrange(3000)] = value
                return scores

            require_error(lambda: calls[call](logits_processor=[spoil]), ValueError,
                          "NaN or no finite value, so no token can be chosen|gets NaN or infinity, so no token can be chosen|"
                          "no continuation has a finite score")  # fmt: skip
            subject.require_returned(session, past)
    del past, calls, session
    subject.require_usable()
    return "ValueError that names the row or prompt, and what may be the cause"
