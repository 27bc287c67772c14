"""The line of figures below a generation."""

from __future__ import annotations

import torch

from ..config import CodeGenConfig
from ..generation.speculation import Report
from ..model import CodeGenForCausalLM
from .clock import TimedGeneration
from .figures import cache_size, count, duration, rate, size
from .traffic import decode_bytes, weight_bytes


def summary(generation: TimedGeneration, model: CodeGenForCausalLM, prompt_tokens: int, bandwidth: float,
            cache: int | None) -> str:
    """Tokens, their speed, and how much of the memory's bandwidth (bytes a second) that is.

    bandwidth: measured on a CPU; a GPU's by its data sheet, 0 where it is not known. cache: bytes of the CPU's
    last-level cache, None where it is not known or does not matter.
    """
    line = _speed(generation, prompt_tokens)
    if generation.decode_steps == 0:
        return line
    config, dtype, quantization = model.config, model.dtype, model.quantization
    read = decode_bytes(config, dtype, quantization, prompt_tokens, generation.new_tokens, generation.decode_steps,
                        model.device) / generation.decode_seconds
    line += f", {read / 1e9:.1f} GB/s of weights and cache"
    if bandwidth:  # a GPU's driver may not tell
        whose = "this GPU's" if model.device.type == "cuda" else "this machine's"
        line += f", {read / bandwidth:.0%} of {whose} {bandwidth / 1e9:.1f} GB/s"
    return line + _cache_remark(config, dtype, quantization, cache)


def drafts_summary(generation: TimedGeneration, report: Report, prompt_tokens: int) -> str:
    """Tokens, their speed, and what drafts brought."""
    line = _speed(generation, prompt_tokens)
    if report.decode_calls == 0:
        return line
    drafts = f"{report.acceptance:.0%} of {count(report.drafted, 'drafted token')} accepted" if report.drafted \
        else "nothing was drafted"
    return f"{line}, {report.tokens_per_call:.2f} tokens a call, {drafts}"


def beams_summary(generation: TimedGeneration, beams: int, prompt_tokens: int) -> str:
    """The results' tokens, and the time of the whole search, the prompt's included."""
    tokens, results, seconds = sum(generation.new_tokens), len(generation.new_tokens), generation.first_seconds
    best = "the best" if results == 1 else f"the {results} best"
    return (f"{count(tokens, 'token')} in {best} of {beams} beams: {duration(seconds)} (prompt of {prompt_tokens}), "
            f"{rate(tokens / seconds)} tokens/s")


def _speed(generation: TimedGeneration, prompt_tokens: int) -> str:
    tokens, samples = sum(generation.new_tokens), len(generation.new_tokens)
    line = count(tokens, "token") + (f" in {samples} samples" if samples > 1 else "")
    line += f": first after {duration(generation.first_seconds)} (prompt of {prompt_tokens})"
    decoded, seconds = tokens - generation.first_tokens, generation.decode_seconds
    return line + (f", then {decoded} in {duration(seconds)}: {rate(decoded / seconds)} tokens/s" if decoded else "")


def _cache_remark(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None, cache: int | None) -> str:
    weights = weight_bytes(config, dtype, quantization)
    if cache is None or weights > cache:
        return ""
    return f" (which is no limit here: {size(weights)} of weights fit the CPU's cache of {cache_size(cache)})"
