"""What a caller passes as prompts, checked and unpacked: padded batches in, ragged lists of tokens out."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def as_prompts(value: Any, pad: int) -> tuple[Tensor, Tensor | None]:
    """Prompts (B, n) as `as_ids` gives them, and a mask (B, n) where they were a list of lists of different lengths.

    Those are padded on the left with `pad`. Raises as `as_ids` does.
    """
    if not isinstance(value, (list, tuple)) or not value:
        return as_ids(value), None
    rows = _as_lists(value, "input_ids")
    columns = max(map(len, rows))
    if min(map(len, rows)) in (0, columns):
        return as_ids(value), None
    ids = torch.tensor([[pad] * (columns - len(row)) + row for row in rows], dtype=torch.long, device="cpu")
    starts = torch.tensor([columns - len(row) for row in rows], device="cpu")
    return ids, torch.arange(columns, device="cpu") >= starts[:, None]


def as_ids(value: Any, name: str = "input_ids") -> Tensor:
    """Token ids (B, n) as a new or shared LongTensor on the CPU, n of at least 1.

    value: an integer tensor (B, n), a numpy array, or a list of lists of equal length.
    Raises TypeError for other types and for ids that are not integers, ValueError for other shapes.
    """
    if isinstance(value, Mapping):
        raise TypeError(f"{name} is a {type(value).__name__}: unpack what the tokenizer returned, as in "
                        "model.generate(**inputs)")
    if isinstance(value, Tensor):
        ids = value.detach()
    elif isinstance(value, np.ndarray):
        ids = _from_numpy(value, name)
    elif isinstance(value, (list, tuple)):
        ids = _from_rows(value, name)
    else:
        raise TypeError(f"{name} must be a tensor of token ids of shape (batch, tokens), got {type(value).__name__}"
                        + (": tokenize the text first" if isinstance(value, str) else ""))
    if ids.dtype not in _INTEGERS:
        raise TypeError(f"{name} must hold integers (torch.long), got {ids.dtype}")
    if ids.dim() != 2:
        hint = ": add the batch dimension with unsqueeze(0)" if ids.dim() == 1 else ""
        raise ValueError(f"{name} must have shape (batch, tokens), got {tuple(ids.shape)}{hint}")
    if ids.shape[0] == 0 or ids.shape[1] == 0:
        raise ValueError(f"{name} is empty, of shape {tuple(ids.shape)}: a prompt needs at least one token")
    return ids.to("cpu", torch.long)


def _from_numpy(value: np.ndarray, name: str) -> Tensor:
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got an array of {value.dtype}")
    return torch.from_numpy(value.astype(np.int64))


def _from_rows(rows: list | tuple, name: str) -> Tensor:
    values = _as_lists(rows, name)
    lengths = sorted({len(row) for row in values})
    if len(lengths) > 1:
        empty = ": a prompt needs at least one token" if lengths[0] == 0 else \
            ": pad them on the left to one length and pass attention_mask"
        raise ValueError(f"{name} holds rows of different lengths ({lengths[0]} to {lengths[-1]}){empty}")
    columns = lengths[0] if lengths else 0
    return torch.tensor(values, dtype=torch.long, device="cpu").reshape(len(values), columns)


def _as_lists(rows: list | tuple, name: str) -> list[list[int]]:
    """Rows of integers, or of tensors or arrays of them, as lists."""
    if rows and all(isinstance(row, (Tensor, np.ndarray)) for row in rows):
        rows = [row.tolist() for row in rows]
    if not all(isinstance(row, (list, tuple)) for row in rows):
        raise ValueError(f"{name} must be a list of lists (one a prompt) or a tensor of shape (batch, tokens)")
    for r, row in enumerate(rows):
        for c, item in enumerate(row):
            if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
                raise TypeError(f"{name}[{r}][{c}] is {item!r}, expected an int")
            if not -2**63 <= item < 2**63:
                raise ValueError(f"{name}[{r}][{c}] is {item}, which is no token id")
    return [[int(item) for item in row] for row in rows]


def as_mask(value: Any, shape: tuple[int, int], name: str = "attention_mask") -> Tensor:
    """A mask of `shape` as a bool tensor on the CPU, True at real tokens. Raises TypeError or ValueError."""
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            value = torch.from_numpy(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be a tensor of 0 and 1 of shape {shape}: {error}") from error
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of 0 and 1, got {type(value).__name__}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}, that of the tokens")
    mask = value.detach().cpu()
    strange = (mask != 0) & (mask != 1)
    if strange.any():
        row, column = strange.nonzero()[0].tolist()
        raise ValueError(f"{name}[{row}, {column}] is {mask[row, column].item()}, expected 0 (padding) or 1 (token)")
    return mask != 0


def infer_mask(ids: Tensor, pad_token_id: int | None, eos_token_ids: tuple[int, ...]) -> tuple[Tensor, bool]:
    """The mask of a call that gives none, and whether it was read from the ids, as transformers infers it.

    Where pad_token_id is not an eos token too, its occurrences are padding. Else every token counts.
    """
    if pad_token_id is not None and pad_token_id not in eos_token_ids:
        mask = ids != pad_token_id
        return mask, not bool(mask.all())
    return torch.ones_like(ids, dtype=torch.bool), False


def token_spans(mask: Tensor, *, inferred: bool = False, right_padding: bool = False) -> list[tuple[int, int]]:
    """[first, end) of the tokens of each row of a mask (B, n).

    Raises ValueError for a row without tokens, for padding between tokens and, unless allowed, on their right.
    inferred: the mask stands for pad_token_id's occurrences in the prompt; the messages then say so.
    """
    source = "pad_token_id in input_ids" if inferred else "attention_mask"
    advice = "; if the token is meant there, pass attention_mask" if inferred else ""
    columns = mask.shape[1]
    counts = mask.sum(1)
    first = mask.int().argmax(1)
    end = columns - mask.flip(1).int().argmax(1)
    spans = list(zip(first.tolist(), end.tolist()))
    for row, (count, (start, stop)) in enumerate(zip(counts.tolist(), spans)):
        if count == 0:
            raise ValueError(f"{source} masks all of row {row}: a prompt needs at least one token{advice}")
        if count != stop - start:
            column = start + int((~mask[row, start:stop]).nonzero()[0])
            raise ValueError(f"{source} masks column {column} of row {row}, between its tokens: padding may stand only "
                             f"on the left of a prompt{advice}")
        if stop != columns and not right_padding:
            raise ValueError(f"{source} masks the end of row {row} (right padding): generation continues a prompt at "
                             f"its last column, so pad on the left (padding_side='left'){advice}")
    return spans


def require_vocabulary(ids: Tensor, mask: Tensor, vocab_size: int, name: str = "input_ids") -> None:
    """ValueError that names the first token outside [0, vocab_size); padding may hold anything."""
    outside = ((ids < 0) | (ids >= vocab_size)) & mask
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(f"{name}[{row}, {column}] is {ids[row, column].item()}, outside the vocabulary: ids are 0 to "
                         f"{vocab_size - 1}")


def require_default_positions(value: Any, mask: Tensor, past_tokens: list[int], past_columns: int) -> None:
    """ValueError unless position_ids (B or 1, n) are what happens anyway.

    Two forms are accepted at the real tokens, which rotary attention (it sees distances only) cannot tell apart: each
    row's own tokens counted from past_tokens[row], and columns counted from past_columns.
    """
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dim() != 2 or value.shape[1] != mask.shape[1] \
            or value.shape[0] not in (1, mask.shape[0]):
        raise ValueError(f"position_ids must be a tensor of shape {tuple(mask.shape)}; leave it out")
    positions = value.cpu().expand(mask.shape)
    own = mask.long().cumsum(1) - 1 + torch.tensor(past_tokens, device="cpu")[:, None]
    columns = torch.arange(mask.shape[1], device="cpu") + past_columns
    if not any(((positions == usual) | ~mask).all() for usual in (own, columns)):
        raise ValueError("position_ids other than each row's own count of tokens are not supported: leave them out")
