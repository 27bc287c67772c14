"""model.score(...) and model.perplexity(...): how likely the model finds given texts (floor 7)."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..decoder import Decoder
from ..generation.checks import as_int
from .rounds import BATCH_TOKENS, Pair, score_pairs
from .token_lists import TokenReader, is_single


@dataclass(frozen=True)
class Perplexity:
    """exp(mean_nll) of num_tokens scored tokens; mean_nll in nats; bits_per_byte of their UTF-8 text, None for ids."""

    perplexity: float
    mean_nll: float
    num_tokens: int
    bits_per_byte: float | None = None


def score(decoder: Decoder, prompts: Any, completions: Any = None, *, find_tokenizer: Callable[[], Any] = lambda: None,
          top_k: int = 0, batch_tokens: int = BATCH_TOKENS) -> Any:
    """Scores in the shape of completions (of prompts where there are none); see CodeGenForCausalLM.score."""
    config = decoder.config
    top = as_int(top_k)
    if top is None or not 0 <= top <= config.vocab_size:
        raise ValueError(f"top_k={top_k!r} is not allowed: expected 0 to {config.vocab_size}, the vocabulary")
    check_batch_tokens(batch_tokens)
    reader = TokenReader(find_tokenizer, config.vocab_size)
    single = is_single(prompts)
    if completions is None:
        texts = [prompts] if single else prompts
        groups = [[_whole_pair(reader.read(text, name), name, config.n_positions)]
                  for text, name in zip(texts, _names("prompts", texts, single))]
        many = [False] * len(groups)
    else:
        if not single and len(prompts) == 1 and not is_single(completions) and len(completions) > 1:
            prompts, single = prompts[0], True  # (1, n) ids, as tokenizers give them, and its samples
        groups, many = _read_pairs(reader, prompts, completions, single, config.n_positions)
    scores = iter(score_pairs(decoder, [pair for group in groups for pair in group], top, batch_tokens))
    shaped = [[next(scores) for _ in group] if several else next(scores) for group, several in zip(groups, many)]
    return shaped[0] if single else shaped


def perplexity(decoder: Decoder, text: Any, *, find_tokenizer: Callable[[], Any] = lambda: None,
               stride: int | None = None, window: int | None = None, batch_tokens: int = BATCH_TOKENS) -> Perplexity:
    """Over all scored tokens of all texts; see CodeGenForCausalLM.perplexity."""
    longest = decoder.config.n_positions
    size = longest if window is None else as_int(window)
    if size is None or not 2 <= size <= longest:
        raise ValueError(f"window={window!r} is not allowed: expected 2 to {longest} tokens, the model's context")
    step = size // 2 if stride is None else as_int(stride)
    if step is None or not 1 <= step <= size:
        raise ValueError(f"stride={stride!r} is not allowed: expected 1 to {size} tokens, the window")
    check_batch_tokens(batch_tokens)
    single = is_single(text)
    texts = [text] if single else text
    reader = TokenReader(find_tokenizer, decoder.config.vocab_size)
    pairs: list[Pair] = []
    num_bytes: int | None = 0
    for value, name in zip(texts, _names("text", texts, single)):
        ids = reader.read(value, name)
        if len(ids) < 2:
            raise ValueError(f"{name} has {len(ids)} tokens: perplexity needs two at least, as the first is not scored")
        own = windows(ids, size, step)
        pairs += own
        if not isinstance(value, str):
            num_bytes = None
        elif num_bytes is not None:
            skipped = len(ids) - sum(len(pair.completion) for pair in own)
            num_bytes += _scored_bytes(value, ids, [ids[k * step] for k in range(skipped)], reader.tokenizer(name))

    scores = score_pairs(decoder, pairs, 0, batch_tokens)
    count = sum(map(len, scores))
    total = -math.fsum(one.sum for one in scores)
    mean = total / count
    return Perplexity(float(torch.tensor(mean, dtype=torch.float64, device="cpu").exp()), mean, count,
                      total / math.log(2) / num_bytes if num_bytes else None)


def check_batch_tokens(value: Any) -> None:
    if (as_int(value) or 0) < 1:
        raise ValueError(f"batch_tokens={value!r} is not allowed: expected the number of tokens to compute together")


def require_room(name: str, tokens: int, n_positions: int) -> None:
    if tokens > n_positions:
        raise ValueError(f"{name} has {tokens} tokens, which do not fit the model's context of {n_positions} tokens")


# ---- What is asked for ---------------------------------------------------------------------------


def _names(argument: str, values: Any, single: bool) -> list[str]:
    """What messages call each value."""
    if len(values) == 0:
        raise ValueError(f"{argument} is empty: expected at least one text or list of token ids")
    return [argument] if single else [f"{argument}[{i}]" for i in range(len(values))]


def _whole_pair(ids: list[int], name: str, n_positions: int) -> Pair:
    if len(ids) < 2:
        raise ValueError(f"{name} has {len(ids)} tokens: without completions it needs two at least, as the first is "
                         "not scored")
    require_room(name, len(ids), n_positions)
    return Pair(tuple(ids[:1]), ids[1:])


def _read_pairs(reader: TokenReader, prompts: Any, completions: Any, single: bool,
                n_positions: int) -> tuple[list[list[Pair]], list[bool]]:
    """The pairs of each prompt, and whether its completions were given as a list of several."""
    prompts, completions = ([prompts], [completions]) if single else (prompts, completions)
    names = _names("prompts", prompts, single)
    if not single and (is_single(completions) or len(completions) != len(prompts)):
        given = "one" if is_single(completions) else len(completions)
        raise ValueError(f"completions holds {given} for {len(prompts)} prompts: expected a list with one completion, "
                         "or one list of completions, for each prompt")
    groups, many = [], []
    for i, (prompt, own) in enumerate(zip(prompts, completions)):
        name = "completions" if single else f"completions[{i}]"
        ids = tuple(reader.read(prompt, names[i]))
        if not ids:
            raise ValueError(f"{names[i]} is empty: a completion's first token is scored given what is before it, so a "
                             "prompt needs at least one token")
        many.append(not is_single(own))
        values = [(own, name)] if is_single(own) else [(one, f"{name}[{k}]") for k, one in enumerate(own)]
        if not values:
            raise ValueError(f"{name} is empty: expected at least one token to score")
        groups.append([])
        for value, called in values:
            completion = reader.read(value, called, begins=False)
            if not completion:
                raise ValueError(f"{called} is empty: expected at least one token to score")
            if len(ids) + len(completion) > n_positions:
                raise ValueError(f"{names[i]} and {called} have {len(ids)} and {len(completion)} tokens, which "
                                 f"together do not fit the model's context of {n_positions} tokens")
            groups[-1].append(Pair(ids, completion))
    return groups, many


def windows(ids: list[int], window: int, stride: int) -> list[Pair]:
    """Windows that begin every `stride` tokens; each scores the tokens that none before it has seen."""
    pairs = []
    seen = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        first = max(seen, begin + 1)  # what begins a window has nothing before it
        if first < end:
            pairs.append(Pair(tuple(ids[begin:first]), ids[first:end]))
        seen = end
        if end == len(ids):
            break
    return pairs


def _scored_bytes(text: str, ids: list[int], skipped: list[int], tokenizer: Any) -> int:
    """Bytes of the text (UTF-8) less those of tokens that are not scored.

    A token of a byte-level vocabulary is spelled with one character a byte.
    """
    spelled = tokenizer.convert_ids_to_tokens(skipped)
    if ids[0] == tokenizer.bos_token_id and not text.startswith(spelled[0]):
        spelled = spelled[1:]  # put before the text by the tokenizer
    return len(text.encode()) - sum(map(len, spelled))
