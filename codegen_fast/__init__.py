"""Salesforce CodeGen models, as fast as the hardware allows; a drop-in for transformers' Auto classes.

>>> from codegen_fast import AutoTokenizer, AutoModelForCausalLM
>>> tokenizer = AutoTokenizer.from_pretrained("Salesforce/codegen-350M-mono")
>>> model = AutoModelForCausalLM.from_pretrained("Salesforce/codegen-350M-mono")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live. They are imported when first used, so that `codegen-fast --help` loads no torch.
_HOMES = {
    "AutoModelForCausalLM": "auto",
    "AutoTokenizer": "tokenizer",
    "CodeGenConfig": "config",
    "CodeGenForCausalLM": "model",
    "CodeGenTokenizer": "tokenizer",
    "GenerationConfig": "generation",
    "Session": "session",
    "accelerate": "from_transformers",
    "truncate": "stops",
}

__all__ = list(_HOMES)

if TYPE_CHECKING:
    from .auto import AutoModelForCausalLM
    from .config import CodeGenConfig
    from .from_transformers import accelerate
    from .generation import GenerationConfig
    from .model import CodeGenForCausalLM
    from .session import Session
    from .stops import truncate
    from .tokenizer import AutoTokenizer, CodeGenTokenizer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'codegen_fast' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *_HOMES})
