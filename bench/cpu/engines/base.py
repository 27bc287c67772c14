"""What every engine does."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Engine(ABC):
    """An engine with a checkpoint loaded, made in its own process.

    settings: what it runs with (threads, types), for the JSON. versions: of its packages.
    """

    settings: dict[str, Any]
    versions: dict[str, str]

    @abstractmethod
    def __init__(self, folder: Path, kind: str, threads: int, work: Path) -> None:
        """work: a folder for files in the engine's own format, kept for other runs."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], steps: int) -> list[float]:
        """Greedily, ``steps`` tokens a prompt, whatever they are (prompts of one length, never seen before).

        Returns ``steps`` seconds: of the prompts with their first tokens, then of every further step of all rows.
        """

    def logits(self, ids: list[int]) -> np.ndarray:
        """(n, vocab) float32: what follows each of these tokens, the prompt computed at once."""
        raise NotImplementedError("gives no logits")

    def step_logits(self, ids: list[int]) -> np.ndarray:
        """The same, token by token."""
        raise NotImplementedError("gives no logits of single steps")

    def best_tokens(self, prompts: list[list[int]]) -> list[int]:
        """The most likely token after each prompt: asked of engines that give no logits."""
        raise NotImplementedError("gives neither logits nor tokens")


class Unsupported(Exception):
    """What an engine cannot do; its text says why."""


def written_once(path: Path, write: Callable[[Path], None]) -> Path:
    """``path``, written by ``write`` beside its place if it isn't there: an interrupted conversion leaves nothing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".partial")
        _remove(beside)
        write(beside)
        beside.rename(path)
    return path


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
