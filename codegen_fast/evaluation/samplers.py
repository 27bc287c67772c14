"""How to make the sampler of a run, here or in another process."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .. import ops
from ..auto import AutoModelForCausalLM
from ..tokenizer import AutoTokenizer
from . import humaneval, mtpb
from .jsonl import Record
from .rows import Completer
from .settings import Knobs
from .units import Unit


# Modules with the same names in them.
BENCHMARKS = {"humaneval": humaneval, "mtpb": mtpb}


class Sampler(Protocol):
    def run(self, units: list[Unit]) -> Iterator[tuple[float, Record]]: ...


@dataclass(frozen=True)
class SamplerSpec:
    """A model, a benchmark and a run's settings; can be pickled."""

    model: str                  # Hub id or folder, an absolute path: workers have another current one
    dtype: str
    quantization: str | None
    device: str
    threads: int | None         # torch's where None
    settings: dict[str, Any]    # of the run; "benchmark" among them
    problems: list[Record]

    def build(self) -> Sampler:
        """Loads the model. Raises as from_pretrained."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=self.dtype, quantization=self.quantization,
                                                     device=self.device)
        completer = Completer(model, tokenizer, Knobs.of(self.settings))
        return BENCHMARKS[self.settings["benchmark"]].Sampler(completer, self.problems, self.settings)


def kernels(device: torch.device) -> str:
    """What computes there. Completions of a seed are the same wherever this is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {ops.cpu_isa()}"
