"""Texts and token ids as callers of scoring write them: strings, lists, tensors and arrays in, lists of ids out."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generation.checks import as_int


class TokenReader:
    """Reads one text or one list of ids at a time.

    find_tokenizer: called for the first text; what it gives encodes, None is an error.
    """

    def __init__(self, find_tokenizer: Callable[[], Any], vocab_size: int):
        self._find_tokenizer = find_tokenizer
        self._vocab_size = vocab_size
        self._tokenizer: Any = None

    def tokenizer(self, name: str) -> Any:
        """ValueError where there is none for the text that is called name."""
        if self._tokenizer is None:
            self._tokenizer = self._find_tokenizer()
        if self._tokenizer is None:
            raise ValueError(f"{name} is text, and there is no tokenizer: pass tokenizer=, or token ids")
        return self._tokenizer

    def read(self, value: Any, name: str, *, begins: bool = True) -> list[int]:
        """Ids of a text, or of a list, tensor or array of ids; name: what messages call it.

        begins: a text begins here, so a tokenizer that puts tokens before a text may do it.
        Raises TypeError for other types, ValueError for ids outside the vocabulary and for texts without a tokenizer.
        """
        if isinstance(value, str):
            ids = list(self.tokenizer(name)(value, add_special_tokens=begins, verbose=False)["input_ids"])
        elif isinstance(value, (Tensor, np.ndarray, list, tuple)):
            if getattr(value, "ndim", 1) != 1:
                raise ValueError(f"{name} has shape {tuple(value.shape)}: expected one dimension, of token ids")
            items = value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
            ids = [as_int(item) for item in items]
            if None in ids:
                at = ids.index(None)
                raise TypeError(f"{name}[{at}] is {items[at]!r}, expected an int, a token id")
        else:
            hint = ": pass its input_ids" if isinstance(value, Mapping) else ""
            raise TypeError(f"{name} must be a text or a list or tensor of token ids, got {type(value).__name__}{hint}")
        for at, token in enumerate(ids):
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"{name}[{at}] is token id {token}, outside the vocabulary: ids are 0 to "
                                 f"{self._vocab_size - 1}")
        return ids


def is_single(value: Any) -> bool:
    """Whether value is one text or one list of ids; False for a list of those."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim < 2
    if not isinstance(value, (list, tuple)):
        return True
    return len(value) > 0 and not isinstance(value[0], (str, list, tuple)) and getattr(value[0], "ndim", 0) == 0


def long_tensor(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device="cpu")
