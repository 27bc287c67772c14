"""AutoModelForCausalLM, so that a program changes its import line and nothing else."""
from __future__ import annotations

from typing import Any

from .model import CodeGenForCausalLM


class AutoModelForCausalLM:
    """Loads the one model class there is. Only `from_pretrained` is to be called."""

    def __init__(self) -> None:
        raise OSError("AutoModelForCausalLM is not instantiated: use AutoModelForCausalLM.from_pretrained(path)")

    @classmethod
    def from_pretrained(cls, path_or_repo: Any, **arguments: Any) -> CodeGenForCausalLM:
        """CodeGenForCausalLM.from_pretrained(path_or_repo, **arguments)."""
        return CodeGenForCausalLM.from_pretrained(path_or_repo, **arguments)
