"""Where the demo model lies: a small CodeGen checkpoint that is installed with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def demo_model_path() -> Path:
    """The folder of the demo model's checkpoint and tokenizer. OSError where this installation lacks it."""
    folder = Path(str(files(__package__) / "demo_model"))
    if not (folder / "config.json").is_file():
        raise OSError(f"the demo model is not in this installation (there is no {folder / 'config.json'}); install "
                      f"the package again with 'pip install .', or name another model")
    return folder
