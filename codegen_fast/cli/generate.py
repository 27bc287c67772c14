"""codegen-fast generate: continues a prompt and says how fast."""

from __future__ import annotations

import argparse
import secrets
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ..auto import AutoModelForCausalLM
from ..generation import GenerationConfig
from ..generation.request import prepare
from ..generation.text import pieces
from ..machine import cache_bytes, read_bandwidth, this_machine
from ..model import CodeGenForCausalLM
from ..tokenizer import AutoTokenizer
from .clock import TimedGeneration
from .models import DEMO, locate, read_config
from .options import UsageError
from .output import emit
from .stream import beam_pieces, write_sample, write_samples
from .summary import beams_summary, drafts_summary, summary

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
    prepare(ids, mask, None, dict(knobs), stored=GenerationConfig.from_folder(folder, config.to_dict()),
            vocab_size=config.vocab_size, n_positions=config.n_positions)

    quantization = None if arguments.quantization == "none" else arguments.quantization
    model = AutoModelForCausalLM.from_pretrained(location, dtype=arguments.dtype, quantization=quantization,
                                                 device=arguments.device)
    # As model.stream does, but with a clock, and what drafts have brought is told at the end.
    generation = TimedGeneration(model._text_generation(ids, mask, None, {**knobs, "tokenizer": tokenizer}))
    beams = knobs["num_beams"]
    with closing((pieces if beams == 1 else beam_pieces)(generation, model.device)) as stream:
        if arguments.n == 1:
            write_sample(emit, prompt, stream)
        else:
            write_samples(emit, prompt, stream, arguments.n, "sample" if beams == 1 else "result")

    prompt_tokens = 1 if ids is None else ids.shape[1]
    if beams > 1:
        line = beams_summary(generation, beams, prompt_tokens)
    elif generation.speculation is not None:
        line = drafts_summary(generation, generation.speculation, prompt_tokens)
    else:
        line = summary(generation, model, prompt_tokens, *_memory(model, threads))
    print(line + (f"; seed {knobs['seed']}" if "seed" in knobs else ""), file=sys.stderr)
    return 0


def _memory(model: CodeGenForCausalLM, threads: int) -> tuple[float, int | None]:
    """The bandwidth (bytes a second) of the memory that the model lies in, and the bytes of the CPU's cache before it.

    threads: torch's, if --threads had not changed them.
    """
    if model.device.type == "cuda":
        return this_machine().gpus[model.device.index].memory_bytes_per_second, None
    return read_bandwidth(_MEASURE_SECONDS, threads=max(threads, torch.get_num_threads())), cache_bytes()


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
    """The knobs of `generate` for these options. room: tokens that the context has left after the prompt.

    Raises UsageError for options that contradict each other.
    """
    _require_consistent(arguments)
    knobs: dict[str, Any] = {
        # Too long a prompt is refused by generate, in better words.
        "max_new_tokens": arguments.max_new_tokens or max(1, min(DEFAULT_NEW_TOKENS, room)),
        "max_length": None,  # the checkpoint's own would compete with it
        "num_return_sequences": arguments.n,
        # The command line decides, not the checkpoint: what is written and told depends on these.
        "num_beams": arguments.beams,
        "prompt_lookup_num_tokens": arguments.prompt_lookup,
    }
    if arguments.stop is not None or arguments.stop_regex is not None:
        knobs["stop"] = arguments.stop or arguments.stop_regex
    if arguments.repetition_penalty is not None:
        knobs["repetition_penalty"] = arguments.repetition_penalty
    return {**knobs, **_sampling_knobs(arguments)}


def _sampling_knobs(arguments: argparse.Namespace) -> dict[str, Any]:
    beams = arguments.beams > 1
    asks_for_samples = (arguments.n > 1 and not beams) or any(
        value is not None for value in (arguments.seed, arguments.top_p, arguments.top_k, arguments.min_p))
    temperature, seed = arguments.temperature, arguments.seed
    if temperature is None and not asks_for_samples and not beams and arguments.model == DEMO:
        temperature, seed = DEMO_TEMPERATURE, 0
    elif temperature is None:
        temperature = DEFAULT_TEMPERATURE if asks_for_samples else 0.0
    if temperature == 0:
        if arguments.n > 1 and not beams:
            raise UsageError(f"--n {arguments.n} needs a --temperature above 0, or --beams: at 0 all samples are the "
                             "same")
        return {"do_sample": False}
    # torch's default generator begins every process with the same state: a seed of our own, or no two runs differ.
    knobs = {"do_sample": True, "temperature": temperature, "seed": secrets.randbits(32) if seed is None else seed}
    names = ("top_p", "top_k", "min_p")
    return knobs | {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _require_consistent(arguments: argparse.Namespace) -> None:
    if arguments.beams == 1:
        return
    if arguments.n > arguments.beams:
        raise UsageError(f"--n {arguments.n} is more than --beams {arguments.beams}, which is how many results there "
                         "are")
    for option, value, why in (
            ("--stop", arguments.stop, "beams are compared at their full length"),
            ("--stop-regex", arguments.stop_regex, "beams are compared at their full length"),
            ("--prompt-lookup", arguments.prompt_lookup, "it makes plain decoding and sampling faster")):
        if value is not None:
            raise UsageError(f"{option} does not go with --beams {arguments.beams}: {why}")
