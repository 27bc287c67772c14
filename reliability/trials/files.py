"""Checkpoint files that change while they are read."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

from codegen_fast import AutoModelForCausalLM
from codegen_fast.demo import demo_model_path
from codegen_fast.weights.file_tensors import CheckpointFile

from .subject import Subject, load_demo

CHANGED = "was changed while it was read"
_KNOBS = {"max_new_tokens": 8, "eos_token_id": None}


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
    """A file of a checkpoint (.safetensors or .bin, in one file or three, as it is or saved packed as int8 or int4) is cut
    off, emptied, made longer, overwritten in place, replaced or unlinked at a random read of it."""
    chance, refused = random.Random(3), 0
    with tempfile.TemporaryDirectory() as parent:
        forms = {name: _whole_load(subject, folder) for name, folder in _checkpoints(subject, Path(parent)).items()}
        for i in range(times):
            name, (change, is_error) = list(_CHANGES.items())[i % len(_CHANGES)]
            form = list(forms)[(i + i // len(_CHANGES)) % len(forms)]
            (reads, expected), folder = forms[form], Path(parent) / "model"
            shutil.copytree(Path(parent) / form, folder)
            file = folder / chance.choice(sorted(reads))
            number = chance.randint(1, reads[file.name])
            what = f"{form}: {file.name}, {name} before read {number}"
            try:
                with _change_at(file, number, lambda: change(file)):
                    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            except OSError as error:
                assert is_error and CHANGED in str(error) and file.name in str(error), f"{what}: {error}"
                refused += 1
            else:
                assert not is_error, f"{what}: it was loaded"
                tokens = model.generate([subject.ids], **_KNOBS)
                assert torch.equal(tokens, expected), f"{what}: other weights than those of the file"
            shutil.rmtree(folder)
    subject.require_usable()
    return f"OSError that names the file, {refused} times; where a reader still has the whole file, its weights"


def _checkpoints(subject: Subject, parent: Path) -> dict[str, Path]:
    """The demo model in every form that is read, by the names of its folders."""
    folders = {name: parent / name for name in ("safetensors", "bin", "safetensors in three", "bin in three", "packed int8",
                                                "packed int4 in three")}  # fmt: skip
    for name in ("safetensors", "bin"):
        folders[name].mkdir()
        shutil.copy(demo_model_path() / "config.json", folders[name])
    shutil.copy(demo_model_path() / "model.safetensors", folders["safetensors"])
    torch.save(load_file(demo_model_path() / "model.safetensors"), folders["bin"] / "pytorch_model.bin")
    subject.model.save_pretrained(folders["safetensors in three"], max_shard_size="8MB")
    shutil.copytree(folders["safetensors in three"], folders["bin in three"])
    for path in sorted(folders["bin in three"].glob("model*")):
        renamed = path.name.replace("model", "pytorch_model").replace("safetensors", "bin")
        if path.suffix == ".json":
            text = path.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
            (path.parent / renamed).write_text(text)
        else:
            torch.save(load_file(path), path.parent / renamed)
        path.unlink()
    load_demo("int8").save_pretrained(folders["packed int8"])
    load_demo("int4").save_pretrained(folders["packed int4 in three"], max_shard_size="2MB")
    return folders


def _whole_load(subject: Subject, folder: Path) -> tuple[dict[str, int], torch.Tensor]:
    """(reads of each file in a load that nobody disturbs, tokens of what was loaded)"""
    reads: Counter[str] = Counter()
    with _at_every_read(lambda file: reads.update([file.path.name])):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return dict(reads), model.generate([subject.ids], **_KNOBS)


@contextmanager
def _change_at(path: Path, number: int, change: Callable[[], None]) -> Iterator[None]:
    """In the block, the file changes before this read of it."""
    left = number

    def count(file: CheckpointFile) -> None:
        nonlocal left
        if file.path.name == path.name:
            left -= 1
            if left == 0:
                change()

    with _at_every_read(count):
        yield


def _at_every_read(call: Callable[[CheckpointFile], None]) -> mock._patch:
    """In the block, called before each read of a file: read() reads by read_into(), too."""
    read_into = CheckpointFile.read_into

    def reading(file: CheckpointFile, out: torch.Tensor, offset: int) -> None:
        call(file)
        read_into(file, out, offset)

    return mock.patch.object(CheckpointFile, "read_into", reading)
