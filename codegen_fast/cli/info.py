"""codegen-fast info: this machine, and what a model needs and may reach on it."""

from __future__ import annotations

import argparse
import warnings
from typing import Iterator

import torch

from .. import __version__
from ..config import WEIGHT_DTYPES, CodeGenConfig
from ..loading import choose_device, why_unusable
from ..machine import Machine, read_bandwidth, this_machine
from ..memory import available_bytes, cache_bytes, forecast, model_bytes, parameter_count
from ..ops import INT4_GROUPS
from .figures import cache_size, count, rate, short, size
from .models import DEMO, locate, read_config
from .output import emit
from .traffic import weight_bytes

_MEASURE_SECONDS = 0.5


def run(arguments: argparse.Namespace) -> int:
    """Prints the machine, and the model that --model names."""
    # The model's errors first: nobody waits for a measurement to read them.
    model = None
    if arguments.model is not None:
        location = locate(arguments.model)
        model = (location, read_config(location)[1])
    machine = this_machine()
    bandwidth = read_bandwidth(_MEASURE_SECONDS, threads=machine.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say stands in the GPU's line
        device = choose_device("auto", None)
    lines = list(machine_lines(machine, bandwidth))
    if model is not None:
        name = f"{DEMO} ({model[0]})" if arguments.model == DEMO else str(model[0])
        lines += ["", *model_lines(name, model[1], machine, bandwidth, device)]
    emit("\n".join(lines) + "\n")
    return 0


def machine_lines(machine: Machine, bandwidth: float) -> Iterator[str]:
    """bandwidth: bytes a second."""
    cache = "" if machine.cache_bytes is None else f", {cache_size(machine.cache_bytes)} of cache"
    free = "" if machine.available_bytes is None else f", {size(machine.available_bytes)} free"
    yield _line("version", f"codegen-fast {__version__}, torch {torch.__version__}")
    yield _line("cpu", f"{machine.cpu_name}, {count(machine.cores, 'core')}{cache}")
    yield _line("instructions", f"{machine.isa} (this build and machine have: {', '.join(machine.isas)})")
    yield _line("threads", str(machine.threads))
    yield _line("memory", f"{size(machine.memory_bytes)}{free}")
    yield _line("bandwidth", f"{bandwidth / 1e9:.1f} GB/s read by {count(machine.threads, 'thread')} (measured)")
    for index, gpu in enumerate(machine.gpus):
        major, minor = gpu.compute_capability
        why = why_unusable(index)
        yield _line("gpu", f"{gpu.name}, compute capability {major}.{minor}, {size(gpu.memory_bytes)}, "
                           f"{gpu.memory_bytes_per_second / 1e9:.0f} GB/s (by its data sheet)"
                           + ("" if why is None else f"; cannot be used: {why}"))
    if not machine.gpus:
        yield _line("gpu", f"none: {machine.why_no_gpu}")


def model_lines(name: str, config: CodeGenConfig, machine: Machine, bandwidth: float,
                device: torch.device) -> Iterator[str]:
    """What the model is, then a table with a row for each type it can be loaded in on the device.

    bandwidth: the CPU's, bytes a second; a GPU has its own.
    """
    available, cache = machine.available_bytes, machine.cache_bytes
    if device.type == "cuda":
        gpu = machine.gpus[device.index]
        available, cache, bandwidth = available_bytes(device), None, gpu.memory_bytes_per_second
    own = config.dtype or torch.float32
    own_name = config.quantization or str(own).removeprefix("torch.")
    yield _line("model", name)
    yield _line("parameters", f"{short(parameter_count(config))}: {count(config.n_layer, 'layer')} of "
                              f"{count(config.n_head, 'head')}, {config.n_embd} wide, a vocabulary of "
                              f"{config.vocab_size} tokens")
    yield _line("context", f"{config.n_positions} tokens, {size(cache_bytes(config, own, 1))} of cache a token "
                           f"in {str(own).removeprefix('torch.')}")
    if device.type == "cuda":
        yield _line("runs on", f"{device}, {gpu.name}; on the CPU with device='cpu'")
    stored = own if device.type == "cpu" or own != torch.float32 else torch.float16
    yield _line("loading", f"as {own_name if stored == own else 'float16'} "
                           f"{forecast(config, stored, config.quantization, available=available, device=device)}")
    yield ""
    yield "type       weights     with a full context  tokens/s, at most"
    quantizations = ("int8", "int4") if config.quantization is None else (config.quantization,)
    types = [(name, own, name) for name in quantizations]
    if config.quantization is None:  # else it cannot be loaded in another type
        types = [(kind, dtype, None) for kind, dtype in WEIGHT_DTYPES.items()] + types
    if device.type == "cuda":  # whose kernels compute in half types
        half = own if own != torch.float32 else torch.float16
        types = [(kind, half if quantization else dtype, quantization) for kind, dtype, quantization in types
                 if (quantization or dtype != torch.float32) and quantization not in INT4_GROUPS]
    cached = []
    for kind, dtype, quantization in types:
        weights = model_bytes(config, dtype, quantization, device)
        full = weights + cache_bytes(config, dtype, config.n_positions)
        read = weight_bytes(config, dtype, quantization, device)
        fits = "" if available is None or full <= available else "  does not fit the memory"
        stored = "  (the checkpoint's type)" if kind == own_name else ""
        in_cache = cache is not None and read <= cache
        cached += [kind] if in_cache else []
        yield (f"{kind:<10} {size(weights):<11} {size(full):<20} "
               f"{rate(bandwidth / read) if bandwidth else 'unknown'}{' *' if in_cache else ''}{fits}{stored}").rstrip()
    if cached:
        yield f"* this much fits the CPU's cache of {cache_size(cache)}, so memory is not the limit"


def _line(name: str, text: str) -> str:
    return f"{name:<12} {text}"
