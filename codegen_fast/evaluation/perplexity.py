"""Bits per byte and perplexity of files, and what a quantised model's predictions differ by."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..model import CodeGenForCausalLM
from ..scoring import Perplexity
from ..scoring.scores import windows

_ROWS = 256  # positions whose logits are held at once, of both models


@dataclass(frozen=True)
class Divergence:
    """Of a model's next-token distributions from another's, over the same positions.

    kl: nats a token, the mean of KL(first || second). same_best: the share of positions where the likeliest token is
    the same.
    """

    kl: float
    same_best: float
    num_tokens: int


def read_text(path: str) -> str:
    """A file's text. Raises OSError where it cannot be read, ValueError where it is not UTF-8 or empty."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}; convert "
                         "it first") from None
    if not text:
        raise ValueError(f"{path} is empty: there is nothing to score")
    return text


def of_files(model: CodeGenForCausalLM, tokenizer: object, texts: list[str], window: int | None, stride: int | None
             ) -> tuple[list[Perplexity], Perplexity]:
    """Of each text, and of all together."""
    each = [model.perplexity(text, tokenizer=tokenizer, window=window, stride=stride) for text in texts]
    tokens = sum(one.num_tokens for one in each)
    nll = math.fsum(one.mean_nll * one.num_tokens for one in each)
    bits = nll / math.log(2)
    num_bytes = math.fsum(one.mean_nll * one.num_tokens / math.log(2) / one.bits_per_byte for one in each)
    return each, Perplexity(math.exp(nll / tokens), nll / tokens, tokens, bits / num_bytes)


def divergence(first: CodeGenForCausalLM, second: CodeGenForCausalLM, token_lists: list[list[int]],
               window: int | None = None, stride: int | None = None) -> Divergence:
    """Over the positions that `perplexity` scores, in the same windows."""
    size = first.config.n_positions if window is None else window
    total = same = 0.0
    count = 0
    for ids in token_lists:
        for pair in windows(ids, size, size // 2 if stride is None else stride):
            text = [*pair.prompt, *pair.completion]
            skipped = len(pair.prompt) - 1
            for begin, (one, other) in enumerate(zip(_logits(first, text[:-1]), _logits(second, text[:-1]))):
                rows = slice(max(0, skipped - begin * _ROWS), None)
                log_p, log_q = (torch.log_softmax(logits[rows].double(), -1) for logits in (one, other))
                total += float((log_p.exp() * (log_p - log_q)).sum())
                same += float((log_p.argmax(-1) == log_q.argmax(-1)).sum())
                count += len(log_p)
    return Divergence(total / count, same / count, count)


def _logits(model: CodeGenForCausalLM, ids: list[int]) -> Iterator[Tensor]:
    """(at most _ROWS, V) at a time: what follows each token, given all before it."""
    past = None
    for begin in range(0, len(ids), _ROWS):
        output = model(torch.tensor([ids[begin:begin + _ROWS]], device=model.device), past_key_values=past)
        past = output.past_key_values
        yield output.logits[0].cpu()
