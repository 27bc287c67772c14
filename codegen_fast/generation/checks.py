"""Checks of single knobs: (name, value) -> the normalised value, or an error that says what is allowed.

They refuse what transformers refuses, with the same type of error, and what could only be a mistake.
"""
from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

# The kernels hold knobs in float32.
_FLOAT32_MAX, _FLOAT32_MIN = 3.4028234e38, 1.1754944e-38
_LARGEST_COUNT = 2**62  # of tokens, rows, candidates: more is no different, and no number of a tensor
_LARGEST_ID = 2**31     # no vocabulary is as large


def as_int(value: Any) -> int | None:
    """The value as a Python int (numpy's and 0-dim integer tensors too), None where it is no integer, or a bool."""
    if isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, "bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_scalar(value: Any) -> Any:
    """A scalar of numpy or a tensor without dimensions as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)) else value


def as_whole(value: Any) -> int | None:
    """As as_int; a float without a fraction is an integer too."""
    whole, plain = as_int(value), as_scalar(value)
    return int(plain) if whole is None and isinstance(plain, float) and plain.is_integer() else whole


def _as_token(value: Any) -> int | None:
    """As as_int; None too for what is larger than any id."""
    number = as_int(value)
    return None if number is not None and number >= _LARGEST_ID else number


def _as_number(value: Any) -> float:
    """The value as a float, NaN where it is not a real number."""
    value = as_scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _refuse(name: str, value: Any, allowed: str, kind: type[Exception] = ValueError) -> Exception:
    text = repr(value)
    return kind(f"{name}={text if len(text) <= 100 else text[:97] + '...'} is not allowed: expected {allowed}")


def integer(low: int, more: str = "", *, negative: int | None = None, whole: bool = False
            ) -> Callable[[str, Any], int]:
    """An int of `low` or more.

    negative: what ints below 0 stand for; None: they are refused. whole: floats without a fraction are taken, which
    transformers does for some knobs.
    """
    allowed = f"an int of {low} or more{more}"

    def check(name: str, value: Any) -> int:
        number = as_whole(value) if whole else as_int(value)
        if number is not None and number < 0 and negative is not None:
            return negative
        if number is None or number < low:
            raise _refuse(name, value, allowed)
        return min(number, _LARGEST_COUNT)

    return check


def number(allowed: str, holds: Callable[[float], bool]) -> Callable[[str, Any], float]:
    """A real number for which `holds`; NaN never is one."""

    def check(name: str, value: Any) -> float:
        converted = _as_number(value)
        if math.isnan(converted) or not holds(converted):
            raise _refuse(name, value, allowed)
        return converted

    return check


def flag(name: str, value: Any) -> bool:
    """True, False, and what equals them: 1, 0, those of numpy, tensors without dimensions."""
    plain = as_scalar(value)
    if isinstance(plain, int) and plain in (0, 1):
        return bool(plain)
    raise _refuse(name, value, "True or False")


def early_stopping(name: str, value: Any) -> bool | str:
    if isinstance(value, str) and value == "never":
        return value
    # Without tensors, as in transformers.
    if not isinstance(value, torch.Tensor) and isinstance(plain := as_scalar(value), int) and plain in (0, 1):
        return bool(plain)
    raise _refuse(name, value, "True, False or 'never'")


def one_of(*words: str) -> Callable[[str, Any], str]:
    """One of these strings."""
    allowed = ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"

    def check(name: str, value: Any) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise _refuse(name, value, allowed)

    return check


def temperature(name: str, value: Any) -> float:
    # Zero and the sampling mode are looked at together later: greedy programs often pass temperature=0.
    converted = _as_number(value)
    if not 0 <= converted <= _FLOAT32_MAX:
        raise _refuse(name, value, "a finite number above 0")
    return max(converted, _FLOAT32_MIN) if converted else 0.0  # tiny is not zero: it must not become greedy


def penalty(name: str, value: Any) -> float:
    converted = _as_number(value)
    if not 0 < converted <= _FLOAT32_MAX:
        raise _refuse(name, value, "a finite number above 0 (1 penalises nothing)")
    return max(converted, _FLOAT32_MIN)


def confidence(name: str, value: Any) -> float:
    """As transformers: 0 and less is off, and no token is surer than 1."""
    converted = _as_number(value)
    if math.isnan(converted):
        raise _refuse(name, value, "a number from 0 (off) to 1")
    return min(max(converted, 0.0), 1.0)


def token_id(name: str, value: Any) -> int | None:
    """None for a negative one: programs pass -1 for "no such token"."""
    number = _as_token(value)
    if number is None:
        raise _refuse(name, value, "an int of 0 or more (a token id), or None")
    return number if number >= 0 else None


def eos_ids(name: str, value: Any) -> tuple[int, ...]:
    """As token_ids, without the negative ones, which no model ever chooses; there may be none."""
    single = as_int(value)
    if single is None and (isinstance(value, str) or not isinstance(value, Iterable)):
        return token_ids(name, value)  # which says what is allowed
    ids = tuple(map(_as_token, value if single is None else (single,)))
    return token_ids(name, value) if None in ids else tuple(token for token in ids if token >= 0)


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One id or a sequence of them (list, tuple, tensor, array), in the given order."""
    allowed = "a token id (an int of 0 or more) or a list of them; None for no such token"
    single = as_int(value)
    if single is None and (isinstance(value, str) or not isinstance(value, Iterable)):
        raise _refuse(name, value, allowed)
    ids = _ids(value) if single is None else _ids((single,))
    if not ids or min(ids) < 0:
        raise _refuse(name, value, allowed)
    return ids


def token_set(name: str, value: Any) -> tuple[int, ...]:
    """A sequence of ids, which may be empty."""
    allowed = "a list of token ids (ints of 0 or more), or None"
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise _refuse(name, value, allowed, TypeError)
    ids = _ids(value)
    if ids and min(ids) < 0:
        raise _refuse(name, value, allowed)
    return ids


def _ids(value: Iterable[Any]) -> tuple[int, ...]:
    """-1 for what is no int."""
    return tuple(-1 if item is None else item for item in map(_as_token, value))


def _is_token_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and min(_ids(value)) >= 0


def token_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """bad_words_ids: a list of lists of ids."""
    if not isinstance(value, (list, tuple)) or not value or not all(map(_is_token_sequence, value)):
        raise _refuse(name, value, "a list of lists of token ids, none of them empty, or None")
    return tuple(dict.fromkeys(map(_ids, value)))


def biased_sequences(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """sequence_bias: {(id, ...): bias} or [[[id, ...], bias], ...]; of equal sequences the last counts."""
    allowed = "a dict {(token ids): bias} or a list [[[token ids], bias], ...], with biases that are numbers below " \
              "infinity"
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or not pairs:
        raise _refuse(name, value, allowed)
    biases: dict[tuple[int, ...], float] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not _is_token_sequence(pair[0]):
            raise _refuse(name, value, allowed)
        bias = _as_number(pair[1])
        if not bias <= _FLOAT32_MAX:
            raise _refuse(name, value, allowed)
        biases[_ids(pair[0])] = max(bias, -_FLOAT32_MAX) if math.isfinite(bias) else bias
    return tuple(biases.items())


def decay(name: str, value: Any) -> tuple[int, float]:
    """exponential_decay_length_penalty: (start, factor)."""
    allowed = "(start, factor): after how many new tokens it begins (an int of 0 or more), and a finite number"
    if not isinstance(value, (list, tuple)):
        raise _refuse(name, value, allowed, TypeError)
    start, factor = (as_whole(value[0]), _as_number(value[1])) if len(value) == 2 else (None, math.nan)
    if start is None or start < 0 or not math.isfinite(factor):
        raise _refuse(name, value, allowed)
    return start, factor


def strings(name: str, value: Any) -> tuple[str, ...]:
    """A text or a list of texts."""
    allowed = "a text or a list of texts, none of them empty"
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise _refuse(name, value, allowed, TypeError)
    if not texts or "" in texts:
        raise _refuse(name, value, allowed)
    return tuple(dict.fromkeys(texts))
