"""From the arguments of `generate` to what the loop runs: checked prompts, lengths, settings and seeds."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sampling import mix_seed
from .config import GenerationConfig, Settings, as_generation_config, resolve
from .inputs import (as_mask, as_prompts, infer_mask, require_default_positions, require_vocabulary, token_spans)
from .knobs import ARGUMENTS, KNOBS, as_int, require_known, require_off
from .rules import Rules

_MAX_LOGPROBS = 1000


@dataclass(frozen=True)
class Callbacks:
    """Python code of the caller that takes part in every step."""

    processors: tuple[Callable[..., Any], ...] = ()
    prefix_fn: Callable[..., Any] | None = None
    criteria: tuple[Callable[..., Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.processors or self.prefix_fn or self.criteria)


@dataclass(frozen=True)
class Request:
    """One checked call of `generate`."""

    input_ids: Tensor            # (B * samples, n) long, on the CPU: the prompts' columns of the result
    mask: Tensor                 # (B, n) bool: which columns of a prompt hold tokens
    prompts: list[Tensor]        # B LongTensors (n_i,), without padding
    steps: int                   # new tokens a row at most
    settings: Settings
    rules: Rules
    seeds: list[int]             # one a row
    sample_indices: list[int]    # one a row
    callbacks: Callbacks
    tokenizer: Any               # what the call brought
    stop: Any                    # as the caller gave it
    return_logprobs: int | None  # alternatives beside each token
    max_batch_size: int | None   # rows that run at once
    past: Any                    # past_key_values
    session: Any
    assistant: Any
    warnings: list[str]


def prepare(input_ids: Any, attention_mask: Any, generation_config: Any, knobs: dict[str, Any], *,
            stored: GenerationConfig, vocab_size: int, n_positions: int) -> Request:
    """Checks everything a caller passes to `generate`. Raises what DESIGN section 8 asks for."""
    require_known(knobs, "generate()")
    arguments = {name: value for name, value in knobs.items() if name in ARGUMENTS}
    for name, value in arguments.items():
        require_off(ARGUMENTS[name], value)
    settings, warnings = resolve({name: value for name, value in knobs.items() if name in KNOBS},
                                 as_generation_config(generation_config),
                                 as_generation_config(stored, "model.generation_config"))
    ids, mask = _prompt_ids(input_ids, arguments.get("inputs"), settings)
    num_prompts, columns = ids.shape

    inferred = False
    if mask is not None:
        if attention_mask is not None and not _is_all_ones(attention_mask, mask.sum(1).tolist()):
            raise ValueError("attention_mask was given with prompts of different lengths, which need none: leave it "
                             "out, or give a list of ones for each prompt")
    elif attention_mask is not None:
        mask = as_mask(attention_mask, (num_prompts, columns))
    else:
        mask, inferred = infer_mask(ids, settings.pad_token_id, settings.eos_token_ids)
        if num_prompts > 1 and settings.eos_token_ids and not settings.pad_is_set:
            warnings.append("a batch was given without attention_mask and without pad_token_id, so every token counts "
                            "as part of its prompt: pass the tokenizer's attention_mask")
    spans = token_spans(mask, inferred=inferred)
    require_vocabulary(ids, mask, vocab_size)
    require_default_positions(arguments.get("position_ids"), mask, [0] * num_prompts, 0)

    steps, length_warning = _steps(settings, columns, max(end - first for first, end in spans), n_positions)
    warnings += length_warning
    settings.require_vocabulary(vocab_size)
    warnings += settings.length_warnings(columns, steps)
    seeds, sample_indices = _row_seeds(arguments, num_prompts, settings)
    return Request(
        input_ids=ids.repeat_interleave(settings.num_return_sequences, 0), mask=mask,
        prompts=[ids[row, first:end] for row, (first, end) in enumerate(spans)],
        steps=steps, settings=settings, rules=Rules.of(settings, columns, steps), seeds=seeds,
        sample_indices=sample_indices, callbacks=_callbacks(arguments), tokenizer=arguments.get("tokenizer"),
        stop=arguments.get("stop"),
        return_logprobs=0 if arguments.get("return_logprobs") is True else
        _count(arguments, "return_logprobs", 0, _MAX_LOGPROBS, "alternatives beside each token"),
        max_batch_size=_count(arguments, "max_batch_size", 1, None, "rows that run at once"),
        past=arguments.get("past_key_values"), session=arguments.get("session"),
        assistant=arguments.get("assistant_model"), warnings=warnings)


def _is_all_ones(mask: Any, lengths: list[int]) -> bool:
    """Whether this is what a tokenizer gives beside prompts of different lengths that it did not pad."""
    return isinstance(mask, (list, tuple)) and [list(row) for row in mask] == [[1] * n for n in lengths]


def _callbacks(arguments: dict[str, Any]) -> Callbacks:
    prefix_fn = arguments.get("prefix_allowed_tokens_fn")
    if prefix_fn is not None and not callable(prefix_fn):
        raise TypeError(f"prefix_allowed_tokens_fn must be a function of (batch_id, input_ids), got {prefix_fn!r}")
    lists = []
    for name in ("logits_processor", "stopping_criteria"):
        value = arguments.get(name)
        value = () if value is None else value
        if not isinstance(value, (list, tuple)) or not all(callable(item) for item in value):
            raise TypeError(f"{name} must be a list of functions of (input_ids, scores), got {value!r}")
        lists.append(tuple(value))
    return Callbacks(lists[0], prefix_fn, lists[1])


def _count(arguments: dict[str, Any], name: str, low: int, high: int | None, what: str) -> int | None:
    value = arguments.get(name)
    if value is None or value is False:
        return None
    number = as_int(value)
    if number is None or number < low or (high is not None and number > high):
        allowed = f"an int of {low} or more" if high is None else f"an int from {low} to {high}"
        raise ValueError(f"{name}={value!r} is not allowed: expected {allowed} ({what}), or None")
    return number


def _prompt_ids(input_ids: Any, inputs: Any, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """(B, n) ids, and their mask where the prompts came without padding."""
    if input_ids is not None and inputs is not None:
        raise ValueError("both input_ids and inputs were given: pass one of them")
    given = input_ids if input_ids is not None else inputs
    if given is not None:
        return as_prompts(given, settings.pad_token_id or 0)
    if settings.bos_token_id is None:
        raise ValueError("no input_ids were given, and there is no bos_token_id to start from")
    return torch.tensor([[settings.bos_token_id]], device="cpu"), None


def _steps(settings: Settings, columns: int, longest: int, n_positions: int) -> tuple[int, list[str]]:
    """How many tokens to add to prompts of `columns` columns, the longest of them `longest` tokens."""
    if longest > n_positions:
        raise ValueError(f"a prompt of {longest} tokens does not fit the model's context of {n_positions} tokens: "
                         "shorten it (keep its end)")
    if longest == n_positions:
        raise ValueError(f"a prompt of {longest} tokens fills the model's context of {n_positions} tokens, there is no "
                         "room for a new one: shorten it (keep its end)")
    if settings.max_new_tokens is not None:
        steps, asked = settings.max_new_tokens, f"max_new_tokens={settings.max_new_tokens}"
    elif settings.max_length is None:
        default = KNOBS["max_length"].default
        return min(default, n_positions - longest), [
            f"neither max_new_tokens nor max_length is set: stopping after {default} new tokens, transformers' default"]
    else:
        steps, asked = settings.max_length - columns, f"max_length={settings.max_length}"
        if steps <= 0:
            raise ValueError(f"max_length={settings.max_length} counts the prompt, which has {columns} tokens, so that "
                             "nothing could be generated: raise it, or set max_new_tokens")
    if longest + steps > n_positions:
        raise ValueError(f"{asked} would continue a prompt of {longest} tokens to {longest + steps}, past the model's "
                         f"context of {n_positions} tokens: ask for at most {n_positions - longest} new tokens")
    return steps, []


def _row_seeds(arguments: dict[str, Any], num_prompts: int, settings: Settings) -> tuple[list[int], list[int]]:
    """The seed and the sample index of every row of the result."""
    samples = settings.num_return_sequences
    offsets = _prompt_offsets(arguments.get("sample_offset"), num_prompts, samples)
    if settings.num_beams > 1 and len(set(offsets)) > 1:
        raise ValueError("sample_offset holds different values, which goes with num_beams=1 only: pass a single int")
    seeds = _prompt_seeds(arguments.get("seed"), num_prompts, settings.do_sample)
    return ([seed for seed in seeds for _ in range(samples)],
            [offset + sample for offset in offsets for sample in range(samples)])


def _prompt_offsets(value: Any, num_prompts: int, samples: int) -> list[int]:
    """The index of each prompt's first sample. An int stands for all prompts, None for 0."""
    listed = isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
    offsets = [as_int(each) for each in value] if listed else [0 if value is None else as_int(value)]
    if any(offset is None or not 0 <= offset < 2**31 - samples for offset in offsets):
        raise ValueError(f"sample_offset={value!r} is not allowed: expected an int of 0 or more, the index of the first "
                         "sample, or one per prompt")
    if listed and len(offsets) != num_prompts:
        raise ValueError(f"sample_offset holds {len(offsets)} values, expected one per prompt ({num_prompts}), or a "
                         "single int")
    return offsets if listed else offsets * num_prompts


def _prompt_seeds(seed: Any, num_prompts: int, do_sample: bool) -> list[int]:
    """One seed a prompt. An int s stands for mix_seed(s, i), None for an s from torch's default generator."""
    if seed is None:
        # Greedy decoding draws nothing, from torch neither.
        base = int(torch.randint(2**63 - 1, (1,), dtype=torch.int64, device="cpu")) if do_sample else 0
        return [mix_seed(base, prompt) for prompt in range(num_prompts)]
    single = _require_seed(seed) if not isinstance(seed, Iterable) or getattr(seed, "ndim", 1) == 0 else None
    if single is not None:
        return [mix_seed(single, prompt) for prompt in range(num_prompts)]
    if isinstance(seed, str):
        raise ValueError(f"seed={seed!r} is not allowed: expected an int, or one int per prompt")
    seeds = [_require_seed(value) for value in seed]
    if len(seeds) != num_prompts:
        raise ValueError(f"seed holds {len(seeds)} values, expected one per prompt ({num_prompts}), or a single int")
    return seeds


def _require_seed(value: Any) -> int:
    number = as_int(value)
    if number is None or not 0 <= number < 2**64:
        raise ValueError(f"seed={value!r} is not allowed: expected an int from 0 to 2**64 - 1, or one per prompt")
    return number
