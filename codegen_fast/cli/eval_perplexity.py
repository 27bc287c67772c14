"""codegen-fast eval perplexity."""

from __future__ import annotations

import argparse

import torch

from ..auto import AutoModelForCausalLM
from ..evaluation.perplexity import Divergence, divergence, of_files, read_text
from ..evaluation.tables import divergence_table, perplexity_table
from ..scoring import Perplexity
from ..tokenizer import AutoTokenizer
from .models import locate, read_config
from .options import UsageError
from .output import emit


def run_perplexity(arguments: argparse.Namespace) -> int:
    """Prints a table of the files, and one of what each quantisation changes."""
    texts = [read_text(path) for path in arguments.files]
    if arguments.quantization != "none" and arguments.against:
        raise UsageError(f"--against compares with the model as it is: leave out --quantization "
                         f"{arguments.quantization}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    location = locate(arguments.model)
    _, config = read_config(location)
    _require_window(arguments, config.n_positions)
    tokenizer = AutoTokenizer.from_pretrained(location)

    def load(quantization: str | None) -> object:
        return AutoModelForCausalLM.from_pretrained(location, dtype=arguments.dtype, quantization=quantization,
                                                    device=arguments.device)

    model = load(None if arguments.quantization == "none" else arguments.quantization)
    each, total = of_files(model, tokenizer, texts, arguments.window, arguments.stride)
    emit(perplexity_table(arguments.files, each, total))
    ids = [tokenizer(text)["input_ids"] for text in texts]

    def against(quantization: str) -> tuple[str, Perplexity, Divergence]:
        other = load(quantization)  # gone when this returns: two models are held at once, never three
        own = of_files(other, tokenizer, texts, arguments.window, arguments.stride)[1]
        return quantization, own, divergence(model, other, ids, arguments.window, arguments.stride)

    if arguments.against:
        emit("\n" + divergence_table(total, [against(quantization) for quantization in arguments.against]))
    return 0


def _require_window(arguments: argparse.Namespace, context: int) -> None:
    """Before gigabytes are read."""
    window = context if arguments.window is None else arguments.window
    if window > context:
        raise UsageError(f"--window {window} is more than the model's context of {context} tokens")
    if arguments.stride is not None and arguments.stride > window:
        raise UsageError(f"--stride {arguments.stride} is more than the window of {window} tokens")
