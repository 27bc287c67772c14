"""From the arguments of `generate` to what the loop runs: checked prompts, lengths, settings and seeds."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..config import CodeGenConfig
from ..memory import available_bytes, cache_bytes, gigabytes
from ..sampling import mix_seed
from .config import GenerationConfig, Settings, as_generation_config, resolve
from .inputs import (as_ids, as_mask, infer_mask, require_default_positions, require_vocabulary, token_spans)
from .knobs import ARGUMENTS, KNOBS, as_int, require_known, require_off


@dataclass(frozen=True)
class Request:
    """One checked call of `generate`."""

    input_ids: Tensor            # (B * samples, n) long, on the CPU: the prompts' columns of the result
    prompts: list[Tensor]        # B LongTensors (n_i,), without padding
    steps: int                   # new tokens a row at most
    settings: Settings
    seeds: list[int]             # one a row
    sample_indices: list[int]    # one a row
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
    ids = _prompt_ids(input_ids, arguments.get("inputs"), settings)
    num_prompts, columns = ids.shape

    inferred = False
    if attention_mask is None:
        mask, inferred = infer_mask(ids, settings.pad_token_id, settings.eos_token_ids)
        if num_prompts > 1 and settings.eos_token_ids and not settings.pad_is_set:
            warnings.append("a batch was given without attention_mask and without pad_token_id, so every token counts "
                            "as part of its prompt: pass the tokenizer's attention_mask")
    else:
        mask = as_mask(attention_mask, (num_prompts, columns))
    spans = token_spans(mask, inferred=inferred)
    require_vocabulary(ids, mask, vocab_size)
    require_default_positions(arguments.get("position_ids"), mask, [0] * num_prompts, 0)

    steps, length_warning = _steps(settings, columns, max(end - first for first, end in spans), n_positions)
    warnings += length_warning
    seeds, sample_indices = _row_seeds(arguments, num_prompts, settings)
    return Request(
        input_ids=ids.repeat_interleave(settings.num_return_sequences, 0),
        prompts=[ids[row, first:end] for row, (first, end) in enumerate(spans)],
        steps=steps, settings=settings, seeds=seeds, sample_indices=sample_indices, warnings=warnings)


def _prompt_ids(input_ids: Any, inputs: Any, settings: Settings) -> Tensor:
    if input_ids is not None and inputs is not None:
        raise ValueError("both input_ids and inputs were given: pass one of them")
    given = input_ids if input_ids is not None else inputs
    if given is not None:
        return as_ids(given)
    if settings.bos_token_id is None:
        raise ValueError("no input_ids were given, and there is no bos_token_id to start from")
    return torch.tensor([[settings.bos_token_id]], device="cpu")


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
    offset = 0 if arguments.get("sample_offset") is None else as_int(arguments["sample_offset"])
    if offset is None or not 0 <= offset < 2**31 - samples:
        raise ValueError(f"sample_offset={arguments['sample_offset']!r} is not allowed: expected an int of 0 or more, "
                         "the index of the first sample")
    seeds = _prompt_seeds(arguments.get("seed"), num_prompts, settings.do_sample)
    return ([seed for seed in seeds for _ in range(samples)],
            [offset + sample for _ in seeds for sample in range(samples)])


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


def require_memory(config: CodeGenConfig, dtype: torch.dtype, prompt_lens: list[int], samples: int,
                   device: torch.device, kept: int = 0) -> None:
    """OSError with both numbers if the rows of a call cannot even begin in the memory that is free.

    Counted are the prompts' cache, and of every row a first page of its own, its logits and what sampling works on.
    kept: bytes that earlier calls have left for later ones; they count as free.
    """
    rows = len(prompt_lens) * samples
    page_size = ops.kv_page_size(device.type)
    page = cache_bytes(config, dtype, page_size)
    prompts = sum(-(-n // page_size) for n in prompt_lens) * page
    each = page + 2 * 4 * config.vocab_size
    needed = prompts + rows * each + ops.sample_workspace(rows, config.vocab_size, device.type)
    available = available_bytes(device)
    available = None if available is None else available + kept
    if available is not None and needed > available:
        raise OSError(f"{rows} rows need {gigabytes(needed)} to begin with and {gigabytes(available)} are free: ask for "
                      f"at most {max(1, (available - prompts) // (2 * each))} rows at a time")
