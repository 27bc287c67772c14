"""What model(...) and generate(return_dict_in_generate=True) return."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


def ours() -> Any:
    """A field that transformers' result does not have."""
    return field(default=None, metadata={"ours": True})


class ModelOutput(Mapping):
    """A dataclass read as transformers' ModelOutput is: by attribute, by name, or by position.

    As a mapping and as a tuple it holds only the fields that are not None, in their order, and of those that are ours
    none: a program that unpacks what transformers gives works unchanged. By name and attribute they are there.
    """

    def to_tuple(self) -> tuple:
        """The fields that are not None."""
        return tuple(self[name] for name in self)

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        value = getattr(self, key) if any(each.name == key for each in fields(self)) else None
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter([each.name for each in fields(self)
                     if "ours" not in each.metadata and getattr(self, each.name) is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    # Mapping would compare the tensors inside, which has no one answer.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(eq=False)
class CausalLMOutput(ModelOutput):
    """The result of a forward pass."""

    loss: Tensor | None = None                            # () float32
    logits: Tensor | None = None                          # (B, n, V) float32
    past_key_values: Any = None                           # codegen_fast.forward.PastKeyValues
    hidden_states: tuple[Tensor, ...] | None = None       # n_layer + 1 of (B, n, d), in the model's dtype


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """The result of a generation: the fields of transformers' GenerateDecoderOnlyOutput and
    GenerateBeamDecoderOnlyOutput, then ours.

    Rows of a tensor that stand for a step after a row's end hold zeros.
    """

    sequences: Tensor | None = None                       # (rows, n) long
    sequences_scores: Tensor | None = None                # (rows,) float32, beams only
    scores: tuple[Tensor, ...] | None = None              # one a step: (rows, V) float32, as tokens were drawn from
    logits: tuple[Tensor, ...] | None = None              # one a step: (rows, V) float32, as the model gave them
    beam_indices: Tensor | None = None                    # (rows, steps), beams only
    attentions: None = None                               # never held: see docs/knobs.md
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None  # a step, a layer: (rows, columns or 1, d)
    past_key_values: Any = None                           # PastKeyValues; None with beams, with `stop`, or after waves
    new_tokens: list[list[int]] | None = ours()           # a row: its new tokens, without padding
    finish_reasons: list[str] | None = ours()              # a row: "eos", "stop", "criteria", "time" or "length"
    completions: list[str] | None = ours()                # a row's new text, cut where `stop` says; needs a tokenizer
    logprobs: list[Any] | None = ours()                   # a row: Alternatives of generation/watching.py
    speculation: Any = ours()                             # what drafts have brought
