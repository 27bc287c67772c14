"""Every engine there is to measure, what it computes in, and the interpreter that has it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

OURS = "codegen_fast"


@dataclass(frozen=True)
class Entry:
    """An engine in one type.

    type: of its weights, by which it is compared; kind: the engine's own word for it. layer_bits, head_bits: of a
    weight of the layers and of lm_head, with its scales. cache_bytes: of an element of the cache; None: asked from the
    engine. needs: modules.
    """

    name: str
    module: str
    engine: str
    kind: str
    type: str
    layer_bits: float
    head_bits: float
    cache_bytes: float | None
    needs: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


def _floats(name: str, module: str, engine: str, needs: tuple[str, ...], kinds: Iterable[str]) -> list[Entry]:
    bits = {"float32": 32, "bfloat16": 16, "float16": 16}
    return [Entry(f"{name} {kind}", module, engine, kind, kind, bits[kind], bits[kind], bits[kind] / 8, needs)
            for kind in kinds]  # fmt: skip


_OURS = tuple(
    Entry(f"{OURS} {kind}", "fast", "Fast", kind, kind.partition("-")[0], bits, bits, None, ("torch",))
    for kind, bits in (("float32", 32), ("bfloat16", 16), ("float16", 16), ("int8", 8.5), ("int8-row", 8), ("int4", 4.5))
)
_TORCH = ("torch", "transformers")
_OPENVINO = ("torch", "safetensors", "openvino", "openvino_genai")
PEERS = (
    *_floats("transformers", "huggingface", "Eager", _TORCH, ("float32", "bfloat16")),
    *_floats("transformers compiled", "huggingface", "Compiled", _TORCH, ("float32", "bfloat16")),
    Entry("torch dynamic int8", "huggingface", "DynamicInt8", "int8", "int8", 8, 8, 4, _TORCH),
    Entry("CTranslate2 float32", "ctranslate", "CTranslate2", "float32", "float32", 32, 32, 4,
          ("torch", "safetensors", "ctranslate2")),
    Entry("CTranslate2 bfloat16", "ctranslate", "CTranslate2", "bfloat16", "bfloat16", 16, 16, 2,
          ("torch", "safetensors", "ctranslate2")),
    Entry("CTranslate2 int8", "ctranslate", "CTranslate2", "int8", "int8", 8, 8, 4,
          ("torch", "safetensors", "ctranslate2")),
    Entry("OpenVINO GenAI float32", "openvino", "GenAI", "float32", "float32", 32, 32, 4, _OPENVINO),
    Entry("OpenVINO GenAI float16", "openvino", "GenAI", "float16", "float16", 16, 16, 2, _OPENVINO),
    Entry("OpenVINO GenAI int8", "openvino", "GenAI", "int8", "int8", 8, 8, 1, _OPENVINO),
    Entry("OpenVINO GenAI int4", "openvino", "GenAI", "int4", "int4", 4.125, 8, 1, _OPENVINO),
    Entry("OpenVINO runtime int8", "openvino", "Runtime", "int8", "int8", 8, 8, 1, _OPENVINO),
    Entry("OpenVINO runtime int4", "openvino", "Runtime", "int4", "int4", 4.125, 8, 1, _OPENVINO),
    Entry("ctransformers q8_0", "ggml", "GptJ", "q8_0", "int8", 8.5, 8.5, 2, ("torch", "safetensors", "ctransformers")),
    Entry("ctransformers q4_0", "ggml", "GptJ", "q4_0", "int4", 4.5, 4.5, 2, ("torch", "safetensors", "ctransformers")),
)  # fmt: skip
ENGINES = {entry.name: entry for entry in (*_OURS, *PEERS)}

# What a plain float32 transformers gives is what all logits are compared with.
REFERENCE = "transformers float32"


def chosen(patterns: Iterable[str], *, peers: bool, kinds: Iterable[str]) -> list[Entry]:
    """Engines whose name holds one of the patterns (all without one), ours only in these kinds."""
    patterns, kinds = list(patterns), set(kinds)
    for pattern in patterns:
        if not any(pattern in name for name in ENGINES):
            raise ValueError(f"--engines {pattern}: no engine's name holds it; there are: {', '.join(ENGINES)}")
    return [
        entry for entry in ENGINES.values()
        if (not patterns or any(pattern in entry.name for pattern in patterns))
        and (entry.kind in kinds if entry.is_ours else peers)
    ]  # fmt: skip


def modules_of(python: str, names: Iterable[str]) -> set[str]:
    """Which of these modules an interpreter has. OSError where it is none."""
    code = "import importlib.util as u, json, sys; print(json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
    try:
        done = subprocess.run([python, "-I", "-c", code, *names], capture_output=True, text=True, timeout=60)
    except OSError as error:
        raise OSError(f"--peer-python {python}: {error.strerror or error}") from None
    if done.returncode:
        raise OSError(f"--peer-python {python}: it is no Python that runs: {done.stderr.strip().splitlines()[-1:]}")
    return set(json.loads(done.stdout))


def interpreters(entries: Iterable[Entry], others: Iterable[str]) -> dict[str, str | None]:
    """engine -> the interpreter that runs it: this one, else the first of ``others`` that has what it needs."""
    entries = list(entries)
    names = sorted({name for entry in entries for name in entry.needs})
    have = [(python, modules_of(python, names)) for python in (sys.executable, *others)]
    found: dict[str, str | None] = {}
    for entry in entries:
        able = [python for python, modules in have if set(entry.needs) <= modules]
        found[entry.name] = sys.executable if entry.is_ours else next(iter(able), None)
    return found
