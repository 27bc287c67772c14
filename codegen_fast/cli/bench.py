"""codegen-fast bench: how fast a model runs on this machine, and how fast its memory would let it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from statistics import median

import torch

from ..auto import AutoModelForCausalLM
from ..generation.streaming import TokenStream
from ..machine import Machine, read_bandwidth, this_machine
from ..memory import cache_bytes
from ..model import CodeGenForCausalLM
from ..progress import ProgressBar
from .figures import cache_size, count, duration, rate, size
from .models import DEMO, locate, read_config
from .options import UsageError
from .output import emit
from .traffic import weight_bytes

CONTEXT = 32  # tokens of the prompts that are continued
BATCHES = (1, 8)
PREFILLS = (512, 256, 128, 64)  # the longest that takes no more than its share of the minute
_STEPS = 48
_SECONDS = 8.0  # for the steps of one batch, and for a prompt
_LEAST_STEPS = 4
_CEILING_SECONDS = 0.3  # for each number of threads, before and after


@dataclass(frozen=True)
class Line:
    """Tokens a second of one kind of work, and what the memory allows; None where something else is the limit."""

    what: str
    tokens_per_second: float
    limit: float | None


def run(arguments: argparse.Namespace) -> int:
    """Measures the model that --model names, and prints a table."""
    location = locate(arguments.model)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    _, config = read_config(location)
    if config.n_positions < CONTEXT + _LEAST_STEPS:
        raise UsageError(f"--model {arguments.model} has a context of {config.n_positions} tokens; bench needs "
                         f"{CONTEXT + _LEAST_STEPS}")
    quantization = None if arguments.quantization == "none" else arguments.quantization
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(location, dtype=arguments.dtype, quantization=quantization,
                                                 device=arguments.device)
    loaded = time.perf_counter() - begin
    machine = this_machine()
    with ProgressBar(total=4 + len(BATCHES), desc="Measuring", leave=False) as bar:
        bandwidth, threads = ceiling(model, machine)
        bar.update()
        first = first_token_seconds(model, CONTEXT)
        bar.update()
        steps = {}
        for batch in BATCHES:
            steps[batch] = step_seconds(model, batch)
            bar.update()
        length, prefill = measure_prefill(model, first)
        bar.update()
        after, threads_after = ceiling(model, machine)
        bar.update()
    if after > bandwidth:
        bandwidth, threads = after, threads_after
    lines = [decode_line(model, batch, seconds, bandwidth) for batch, seconds in steps.items()]
    lines.append(Line(f"prefill of {length} tokens", length / prefill, None))
    name = f"{DEMO} ({location})" if arguments.model == DEMO else str(location)
    emit("\n".join([*head(name, model, machine, bandwidth, threads, loaded, first), "", *table(lines),
                    *remark(model, machine)]) + "\n")
    return 0


# ---- Measuring ---------------------------------------------------------------------------------


def ceiling(model: CodeGenForCausalLM, machine: Machine) -> tuple[float, int]:
    """Bytes a second that the memory gives, and the threads that read it best; a GPU's is by its data sheet, 0."""
    if model.device.type == "cuda":
        return machine.gpus[model.device.index].memory_bytes_per_second, 0
    counts = sorted({1, max(1, machine.threads // 2), machine.threads})
    return max((read_bandwidth(_CEILING_SECONDS, threads=threads), threads) for threads in counts)


def first_token_seconds(model: CodeGenForCausalLM, length: int) -> float:
    """From a prompt of random tokens to its first token; the better of two, because the first touches new memory."""
    return min(next(_seconds(model, 1, length, 1)) for _ in range(2))


def step_seconds(model: CodeGenForCausalLM, batch: int) -> list[float]:
    """Of the steps behind prompts of CONTEXT tokens: as many as there is time for."""
    steps = min(_STEPS, model.config.n_positions - CONTEXT)
    found: list[float] = []
    deadline = time.perf_counter() + _SECONDS
    with closing(_seconds(model, batch, CONTEXT, steps)) as seconds:
        next(seconds)  # the prompts
        for second in seconds:
            found.append(second)
            if time.perf_counter() > deadline and len(found) >= _LEAST_STEPS - 1:
                break
    return found


def measure_prefill(model: CodeGenForCausalLM, first: float) -> tuple[int, float]:
    """(tokens, seconds) of a prompt. first: seconds of one of CONTEXT tokens, by which its length is chosen."""
    room = [n for n in PREFILLS if n < model.config.n_positions] or [CONTEXT]
    length = next((n for n in room if first * n / CONTEXT <= _SECONDS), room[-1])
    return length, first_token_seconds(model, length)


def _seconds(model: CodeGenForCausalLM, batch: int, length: int, steps: int) -> Iterator[float]:
    """Seconds of a greedy call: of its random prompts with their first tokens, then of every step."""
    # Nothing is kept from prompt to prompt; the tokens do not matter.
    prompts = torch.randint(model.config.vocab_size, (batch, length))
    knobs = {"max_new_tokens": steps, "max_length": None, "do_sample": False, "num_beams": 1,
             "eos_token_id": None, "pad_token_id": 0}
    events = model._generation(prompts, torch.ones_like(prompts), None, knobs, TokenStream(None)).events()
    with closing(events):
        while True:
            begin = time.perf_counter()
            if next(events, None) is None:
                return
            yield time.perf_counter() - begin


# ---- Telling -----------------------------------------------------------------------------------


def decode_line(model: CodeGenForCausalLM, batch: int, seconds: list[float], bandwidth: float) -> Line:
    """The median step against the bytes that it reads."""
    step = median(seconds)
    context = CONTEXT + (len(seconds) + 1) // 2  # of the step in the middle
    nbytes = weight_bytes(model.config, model.dtype, model.quantization, model.device) \
        + cache_bytes(model.config, model.dtype, batch * context)
    limit = batch * bandwidth / nbytes if bandwidth else None
    return Line(f"decode, batch {batch}, context {CONTEXT}", batch / step, limit)


def head(name: str, model: CodeGenForCausalLM, machine: Machine, bandwidth: float, threads: int, loaded: float,
         first: float) -> Iterator[str]:
    kind = model.quantization or str(model.dtype).removeprefix("torch.")
    read = weight_bytes(model.config, model.dtype, model.quantization, model.device)
    yield f"model        {name}"
    yield f"type         {kind}, {size(read)} of weights a step"
    if model.device.type == "cuda":
        yield f"machine      {machine.gpus[model.device.index].name}"
        yield f"bandwidth    {bandwidth / 1e9:.0f} GB/s (by its data sheet)"
    else:
        yield f"machine      {machine.cpu_name}, {count(machine.threads, 'thread')}, {machine.isa}"
        yield f"bandwidth    {bandwidth / 1e9:.1f} GB/s read by {count(threads, 'thread')} (measured)"
    yield f"load         {duration(loaded)}, then {size(model.memory_footprint())}"
    yield f"first token  {duration(first)}, behind a prompt of {CONTEXT}"


def table(lines: list[Line]) -> Iterator[str]:
    yield f"{'':<28}{'tokens/s':>10}{'limit':>10}{'of limit':>10}"
    for line in lines:
        limit = "" if line.limit is None else f"{rate(line.limit):>10}{line.tokens_per_second / line.limit:>10.0%}"
        yield f"{line.what:<28}{rate(line.tokens_per_second):>10}{limit}"


def remark(model: CodeGenForCausalLM, machine: Machine) -> list[str]:
    """Where the weights fit the CPU's cache, its memory is no limit."""
    cache = machine.cache_bytes
    read = weight_bytes(model.config, model.dtype, model.quantization, model.device)
    if model.device.type == "cuda" or cache is None or read > cache:
        return []
    return ["", f"The weights fit the CPU's cache of {cache_size(cache)}, so the memory is no limit here."]
