"""What a tokenizer call returns, and how long its rows become: truncation, padding, tensors."""

import copy
import math
import warnings
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

# What fills a padded place of each field; "input_ids" takes the pad token's id.
PAD_VALUES = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1, "offset_mapping": (0, 0)}
# A model_max_length from this up means "no limit" (transformers writes 1e30 for it).
NO_LIMIT = 10**20

PADDING = {True: "longest", False: None, None: None, "longest": "longest", "max_length": "max_length",
           "do_not_pad": None}
TRUNCATION = {True: True, False: False, None: False, "longest_first": True, "only_first": True,
              "do_not_truncate": False}


class BatchEncoding(UserDict):
    """A mapping of field -> rows, also readable as attributes: `batch["input_ids"]` is `batch.input_ids`.

    Rows are lists of ints, or int64 tensors or arrays of shape (rows, tokens). `**batch` passes the fields on.
    """

    def __getattr__(self, name: str):
        # copy and pickle ask for attributes before `data` exists
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"this BatchEncoding has no {name!r}, it has {', '.join(self.__dict__.get('data', ()))}")

    def __getitem__(self, key: str | slice):
        """The rows of a field; a slice gives a dict with these rows of every field."""
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.data.items()}
        return self.data[key]

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> "BatchEncoding":
        """Move the tensors to `device` (lists and arrays stay) and return this object."""
        if not isinstance(device, (str, int, torch.device)):
            raise TypeError(f"to() takes a device, got {device!r}")
        for name, value in self.data.items():
            if isinstance(value, torch.Tensor):
                self.data[name] = value.to(device, non_blocking=non_blocking)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> "BatchEncoding":
        """Turn every field into an int64 tensor ("pt") or array ("np"); ValueError where rows differ in length."""
        check_tensor_type(tensor_type)
        if tensor_type is not None:
            for name, value in self.data.items():
                self.data[name] = _stack(name, value, tensor_type)
        return self


def check_tensor_type(tensor_type: str | None) -> None:
    if tensor_type not in (None, "pt", "np"):
        raise ValueError(f"return_tensors is {tensor_type!r}, expected 'pt', 'np' or None")


def check_side(name: str, side: str) -> str:
    if side not in ("left", "right"):
        raise ValueError(f"{name} is {side!r:.80}, expected 'left' or 'right'")
    return side


def _stack(name: str, rows, tensor_type: str) -> torch.Tensor | np.ndarray:
    if isinstance(rows, torch.Tensor if tensor_type == "pt" else np.ndarray):
        return rows
    lengths = sorted({len(row) for row in rows if isinstance(row, (list, tuple))})
    if len(lengths) > 1:
        raise ValueError(f"cannot make one tensor of {name}: its {len(rows)} rows have from {lengths[0]} to "
                         f"{lengths[-1]} tokens; pass padding=True (and truncation=True with max_length, to shorten)")
    try:
        array = np.array(rows, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"cannot make a tensor of {name}: {error}") from error
    if array.size == 0 and array.ndim == 1:  # a batch of no texts
        array = array.reshape(0, 0)
    return torch.from_numpy(array) if tensor_type == "pt" else array


@dataclass(frozen=True)
class Lengths:
    """How long the rows of one call become.

    cut: tokens that are kept of a row, None: all. pad_to: tokens that a row has at least, "longest": those of the
    longest row, None: no padding; rounded up to pad_to_multiple_of.
    """

    cut: int | None
    pad_to: int | str | None
    pad_to_multiple_of: int | None

    def padded(self, lengths: list[int]) -> int | None:
        """The length that rows of `lengths` are filled up to; None: they stay as they are."""
        if self.pad_to is None:
            return None
        length = max(lengths, default=0) if self.pad_to == "longest" else self.pad_to
        multiple = self.pad_to_multiple_of or 1
        return math.ceil(length / multiple) * multiple


def plan_lengths(padding, truncation, max_length, pad_to_multiple_of, *, model_max_length, has_pad_token) -> Lengths:
    """The rules by which transformers reads these arguments of a tokenizer call.

    max_length alone asks for truncation; where truncation or padding="max_length" has no max_length, the model's is
    taken, and they are off where that has no limit. Raises ValueError for a value that is none of the known ones, and
    for padding without a pad token.
    """
    for name, value, known in (("padding", padding, PADDING), ("truncation", truncation, TRUNCATION)):
        if not isinstance(value, (bool, str, type(None))) or value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(repr(each) for each in known)}")
    for name, value, least in (("max_length", max_length, 0), ("pad_to_multiple_of", pad_to_multiple_of, 1)):
        if value is not None and (not isinstance(value, (int, np.integer)) or value < least):
            raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}, or None")
    if max_length is not None and padding is False and truncation is None:
        truncation = True
    pad, cut = PADDING[padding], TRUNCATION[truncation]
    if pad == "longest" and max_length is not None and not cut:
        warnings.warn("max_length is ignored with padding=True and no truncation; to pad to max_length, pass "
                      "padding='max_length'", stacklevel=3)
    if max_length is None and (cut or pad == "max_length"):
        if model_max_length >= NO_LIMIT:
            pad, cut = None if pad == "max_length" else pad, False
        else:
            max_length = int(model_max_length)
    if pad is not None and not has_pad_token:
        raise ValueError("Asking to pad but the tokenizer does not have a padding token. Set one first, for example "
                         "tokenizer.pad_token = tokenizer.eos_token")
    if cut and pad is not None and pad_to_multiple_of is not None and max_length % pad_to_multiple_of:
        raise ValueError(f"truncation to {max_length} tokens is no multiple of pad_to_multiple_of "
                         f"({pad_to_multiple_of})")
    return Lengths(max_length if cut else None, max_length if pad == "max_length" else pad, pad_to_multiple_of)


def pad_rows(fields: Mapping[str, list], lengths: Lengths, side: str, pad_token_id: int | None) -> dict[str, list]:
    """Fill the rows of `fields` up to `lengths` on `side`; fields without a pad value (labels) stay as they are."""
    row_lengths = [len(row) for row in fields["input_ids"]]
    target = lengths.padded(row_lengths)
    if target is None:
        return dict(fields)
    values = {**PAD_VALUES, "input_ids": pad_token_id}
    padded = dict(fields)
    for name in fields.keys() & values.keys():
        rows = []
        for row, row_length in zip(fields[name], row_lengths, strict=True):
            filling = [values[name]] * (target - row_length)
            rows.append(filling + row if side == "left" else row + filling)
        padded[name] = rows
    return padded


def as_fields(encoded_inputs) -> tuple[dict[str, list], bool, str | None]:
    """What `pad` was given -> (fields of rows as lists, was it a batch, "pt" or "np" where it held such, else None).

    Takes a mapping with one row or a batch in each field, or a list of mappings with one row each.
    """
    if isinstance(encoded_inputs, (list, tuple)) and encoded_inputs and isinstance(encoded_inputs[0], Mapping):
        encoded_inputs = {name: [each[name] for each in encoded_inputs] for name in encoded_inputs[0]}
    if not isinstance(encoded_inputs, Mapping) or "input_ids" not in encoded_inputs:
        held = list(encoded_inputs) if isinstance(encoded_inputs, Mapping) else repr(encoded_inputs)
        raise ValueError(f"pad() takes a mapping that holds input_ids, or a list of such; got {held}")
    ids = encoded_inputs["input_ids"]
    sample = ids[0] if isinstance(ids, (list, tuple)) and ids else ids
    kind = "pt" if isinstance(sample, torch.Tensor) else "np" if isinstance(sample, np.ndarray) else None
    fields = {name: _to_list(value) for name, value in encoded_inputs.items()}
    batched = not fields["input_ids"] or isinstance(fields["input_ids"][0], list)
    return (fields if batched else {name: [row] for name, row in fields.items()}), batched, kind


def _to_list(value):
    """Nested lists of ints, from tensors, arrays, sequences of them, or lists (copied)."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_to_list(each) for each in value]
    return copy.copy(value)
