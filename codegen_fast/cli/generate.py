"""codegen-fast generate: continues a prompt and says how fast."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from typing import Any

import torch

from ..auto import AutoModelForCausalLM
from ..config import CodeGenConfig
from ..generation import GenerationConfig, prepare
from ..machine import cache_bytes, read_bandwidth, this_machine
from ..model import CodeGenForCausalLM
from ..tokenizer import AutoTokenizer
from .arguments import UsageError
from .figures import cache_size, count, duration, rate, size
from .models import DEMO, locate, read_config
from .output import emit
from .stream import TextStreamer
from .traffic import decode_bytes, weight_bytes

DEFAULT_NEW_TOKENS = 128
# Where sampling is asked for without a temperature: low enough that a small model still writes code.
DEFAULT_TEMPERATURE = 0.2
# The demo model repeats itself when it always takes the likeliest token; of 100 held-out function headers it completes
# 55 at 0.2 and 66 at this temperature.
DEMO_TEMPERATURE = 0.6
_MEASURE_SECONDS = 0.15


def run(arguments: argparse.Namespace) -> int:
    """Prints the prompt with its completion, or completions, and on standard error a line with the speed."""
    prompt = read_prompt(arguments.prompt, arguments.file)
    location = locate(arguments.model)
    threads = torch.get_num_threads()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    # Everything that can be wrong with the call is found before gigabytes are read.
    folder, config = read_config(location)
    tokenizer = AutoTokenizer.from_pretrained(location)
    ids = tokenizer(prompt, return_tensors="pt").input_ids if prompt else None  # None: from the bos token
    mask = None if ids is None else torch.ones_like(ids)  # a pad token in the prompt is meant there
    knobs = choose_knobs(arguments, config.n_positions - (1 if ids is None else ids.shape[1]))
    request = prepare(ids, mask, None, dict(knobs), stored=GenerationConfig.from_folder(folder, config.to_dict()),
                      vocab_size=config.vocab_size, n_positions=config.n_positions)

    quantization = None if arguments.quantization == "none" else arguments.quantization
    model = AutoModelForCausalLM.from_pretrained(location, dtype=arguments.dtype, quantization=quantization,
                                                 device=arguments.device)
    streamer = TextStreamer(emit, prompt, arguments.n, request.steps, request.settings.eos_token_ids,
                            lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True))
    try:
        model.generate(ids, mask, streamer=streamer, **knobs)
    except KeyboardInterrupt:
        streamer.end()  # generate does not, if the streamer was at work just then
        raise
    if model.device.type == "cuda":
        bandwidth, cache = this_machine().gpus[model.device.index].memory_bytes_per_second, None
    else:
        bandwidth = read_bandwidth(_MEASURE_SECONDS, threads=max(threads, torch.get_num_threads()))
        cache = cache_bytes()
    print(summary(streamer, model, bandwidth, cache, knobs.get("seed")), file=sys.stderr)
    return 0


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The prompt's text. UsageError without one or with two, OSError or ValueError where it cannot be read."""
    if prompt is not None and file is not None:
        raise UsageError("both a prompt and --file are given; expected one of them")
    if prompt is None and file is None:
        raise UsageError("no prompt is given: expected a text, --file PATH, or - for standard input")
    if prompt is not None and prompt != "-":
        return _as_text(prompt.encode("utf-8", "surrogateescape"), "the prompt")
    if file in (None, "-"):
        if sys.stdin is None:
            raise OSError("standard input is closed; give the prompt as an argument or with --file")
        return _as_text(sys.stdin.buffer.read(), "standard input")
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise OSError(f"--file {file} cannot be read: {error.strerror or error}") from None
    return _as_text(data, f"--file {file}")


def _as_text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x} "
                         f"({error.reason}); convert it first") from None


def choose_knobs(arguments: argparse.Namespace, room: int) -> dict[str, Any]:
    """The knobs of `generate` for these options. room: tokens that the context has left after the prompt."""
    knobs: dict[str, Any] = {
        # Too long a prompt is refused by generate, in better words.
        "max_new_tokens": arguments.max_new_tokens or max(1, min(DEFAULT_NEW_TOKENS, room)),
        "max_length": None,  # the checkpoint's own would compete with it
        "num_return_sequences": arguments.n,
    }
    asks_for_samples = arguments.n > 1 or any(
        value is not None for value in (arguments.seed, arguments.top_p, arguments.top_k))
    temperature, seed = arguments.temperature, arguments.seed
    if temperature is None and not asks_for_samples and arguments.model == DEMO:
        temperature, seed = DEMO_TEMPERATURE, 0
    elif temperature is None:
        temperature = DEFAULT_TEMPERATURE if asks_for_samples else 0.0
    knobs["do_sample"] = temperature > 0
    if temperature == 0:
        if arguments.n > 1:
            raise UsageError(f"--n {arguments.n} needs a --temperature above 0: at 0 all samples are the same")
        return knobs
    knobs["temperature"] = temperature
    # torch's default generator begins every process with the same state: a seed of our own, or no two runs differ.
    knobs["seed"] = secrets.randbits(32) if seed is None else seed
    knobs.update((name, value) for name, value in (("top_p", arguments.top_p), ("top_k", arguments.top_k))
                 if value is not None)
    return knobs


def summary(streamer: TextStreamer, model: CodeGenForCausalLM, bandwidth: float, cache: int | None,
            seed: int | None) -> str:
    """The last line: tokens, their speed, and how much of the memory's bandwidth (bytes a second) that is.

    bandwidth: measured on a CPU; a GPU's by its data sheet, 0 where it is not known. cache: bytes of the CPU's
    last-level cache, None where it is not known or does not matter.
    """
    tokens, samples = sum(streamer.new_tokens), len(streamer.new_tokens)
    line = count(tokens, "token") + (f" in {samples} samples" if samples > 1 else "")
    line += f": first after {duration(streamer.first_seconds)} (prompt of {streamer.prompt_tokens})"
    decoded = tokens - samples  # the first of each comes with the prompt
    if decoded:
        seconds = streamer.decode_seconds
        config, dtype, quantization = model.config, model.dtype, model.quantization
        nbytes = decode_bytes(config, dtype, quantization, streamer.prompt_tokens, streamer.new_tokens, model.device)
        read = nbytes / seconds
        line += (f", then {decoded} in {duration(seconds)}: {rate(decoded / seconds)} tokens/s, "
                 f"{read / 1e9:.1f} GB/s of weights and cache")
        if bandwidth:  # a GPU's driver may not tell
            whose = "this GPU's" if model.device.type == "cuda" else "this machine's"
            line += f", {read / bandwidth:.0%} of {whose} {bandwidth / 1e9:.1f} GB/s"
        line += _cache_remark(config, dtype, quantization, cache)
    return line + ("" if seed is None else f"; seed {seed}")


def _cache_remark(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None, cache: int | None) -> str:
    weights = weight_bytes(config, dtype, quantization)
    if cache is None or weights > cache:
        return ""
    return f" (which is no limit here: {size(weights)} of weights fit the CPU's cache of {cache_size(cache)})"
