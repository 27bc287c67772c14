"""What model(...) returns."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_FIELDS = ("loss", "logits", "past_key_values", "hidden_states")


@dataclass(eq=False)
class CausalLMOutput(Mapping):
    """The result of a forward pass, read as transformers' ModelOutput is: by attribute, by name, or by position.

    As a mapping and as a tuple it holds only the fields that are not None, in the order below.
    """

    loss: Tensor | None = None                            # () float32
    logits: Tensor | None = None                          # (B, n, V) float32
    past_key_values: Any = None                           # codegen_fast.forward.PastKeyValues
    hidden_states: tuple[Tensor, ...] | None = None       # n_layer + 1 of (B, n, d), in the model's dtype

    def to_tuple(self) -> tuple:
        """The fields that are not None."""
        return tuple(self[name] for name in self)

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        value = getattr(self, key) if key in _FIELDS else None
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in _FIELDS if getattr(self, name) is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    # Mapping would compare the tensors inside, which has no one answer.
    __eq__ = object.__eq__
    __hash__ = object.__hash__
