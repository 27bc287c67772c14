"""Checkpoint files that change while they are read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from codegen_fast import AutoModelForCausalLM
from codegen_fast.demo import demo_model_path
from codegen_fast.weights.file_tensors import CheckpointFile

from .subject import Subject

CHANGED = "was changed while it was read"


def _overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 4096)
    os.utime(path)  # a write within a tick of the clock would leave the time as it was


def _replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(bytes(path.stat().st_size))
    os.replace(other, path)


# How a file changes, and whether that is an error: a file that is renamed over or unlinked is still whole for its reader.
_CHANGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "cut off": (lambda path: os.truncate(path, path.stat().st_size // 3), True),
    "emptied": (lambda path: os.truncate(path, 0), True),
    "longer": (lambda path: os.truncate(path, path.stat().st_size + 1), True),
    "overwritten in place": (_overwrite, True),
    "replaced by another": (_replace, False),
    "unlinked": (os.unlink, False),
}


def changed_while_read(subject: Subject, times: int) -> str:
    """A .safetensors or .bin file is cut off, emptied, overwritten in place, replaced or unlinked at a random read."""
    knobs = {"max_new_tokens": 8, "eos_token_id": None}
    expected, refused = subject.model.generate([subject.ids], **knobs), 0
    with tempfile.TemporaryDirectory() as parent:
        formats = _checkpoints(Path(parent))
        for i in range(times):
            change, is_error = list(_CHANGES.values())[i % len(_CHANGES)]
            source, folder = formats[i // len(_CHANGES) % len(formats)], Path(parent) / "model"
            shutil.copytree(source, folder)
            file = next(path for path in folder.iterdir() if path.suffix != ".json")
            try:
                with _change_at(1 + 7 * i % 50, lambda: change(file)):
                    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            except OSError as error:
                assert is_error and CHANGED in str(error) and file.name in str(error), f"{list(_CHANGES)[i % 6]}: {error}"
                refused += 1
            else:
                assert not is_error, f"a file that was {list(_CHANGES)[i % len(_CHANGES)]} while it was read was loaded"
                assert torch.equal(model.generate([subject.ids], **knobs), expected), "other weights than those of the file"
            shutil.rmtree(folder)
    subject.require_usable()
    return f"OSError that names the file, {refused} times; where a reader still has the whole file, its weights"


def _checkpoints(parent: Path) -> list[Path]:
    """The demo model in both formats."""
    folders = [parent / "safetensors", parent / "bin"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(demo_model_path() / "config.json", folder)
    shutil.copy(demo_model_path() / "model.safetensors", folders[0])
    torch.save(load_file(demo_model_path() / "model.safetensors"), folders[1] / "pytorch_model.bin")
    return folders


def _change_at(number: int, change: Callable[[], None]) -> mock._patch:
    """In the block, the file changes before this read of it."""
    read, left = CheckpointFile.read, number

    def changing(file: CheckpointFile, *arguments: object, **named: object) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            change()
        return read(file, *arguments, **named)

    return mock.patch.object(CheckpointFile, "read", changing)
