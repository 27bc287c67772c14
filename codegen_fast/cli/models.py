"""What --model names."""

from __future__ import annotations

from pathlib import Path

from ..config import CodeGenConfig
from ..demo import demo_model_path
from ..weights.hub import CONFIG_PATTERNS, resolve

DEMO = "demo"


def locate(model: str) -> str | Path:
    """The folder or Hub id to load: the demo model's folder for "demo" (a folder of that name is ./demo)."""
    return demo_model_path() if model == DEMO else model


def read_config(model: str | Path) -> tuple[Path, CodeGenConfig]:
    """The folder with a checkpoint's configuration, and config.json. Of a Hub repository nothing else is fetched.

    Raises OSError where there is none, ValueError where it is not CodeGen's.
    """
    folder = resolve(model, CONFIG_PATTERNS)
    return folder, CodeGenConfig.from_folder(folder)
