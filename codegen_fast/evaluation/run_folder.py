"""The folder of a run: its settings, recorded and checked, and one process at a time that writes there."""
from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..strangers import is_there, one_line, read_json_object, regular_file
from .jsonl import open_own
from .settings import FREE, GROWING

SETTINGS_FILE = "settings.json"
SUMMARY_FILE = "summary.json"
_PIECES, _PIECE_BYTES = 256, 4096  # of a file of weights, that its fingerprint is made from


class RunFolder:
    """A context manager; what is in the folder stays, whatever ends the run."""

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any], about: dict[str, Any]):
        """Makes the folder, or goes on with the run in it.

        settings: what completions follow from; about: what is only told (versions).
        Raises ValueError that names the first setting that differs from the run in the folder, OSError where another
        process writes there or the folder cannot be made.
        """
        self.path = Path(path)
        if self.path.is_file():
            raise OSError(f"--out {self.path} is a file: name a folder, which is made where there is none")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open_own(self.path / "lock")
        except OSError as error:
            raise OSError(f"--out {self.path} cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise OSError(f"another process is writing to --out {self.path}: wait for it, or use another folder"
                          ) from None
        try:
            self.settings = self._agreed(json.loads(json.dumps(settings)))
            self.write(SETTINGS_FILE, {**self.settings, "about": about})
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def write(self, name: str, value: dict[str, Any]) -> None:
        """A JSON file, written beside and renamed."""
        beside = self.path / f"{name}.tmp"
        try:
            beside.unlink(missing_ok=True)  # a killed process's, or a link
            with open(beside, "x", encoding="utf-8") as file:
                file.write(json.dumps(value, indent=1) + "\n")
            os.replace(beside, self.path / name)
        except OSError as error:
            raise OSError(f"{self.path / name} cannot be written: {error.strerror or error}; use another --out") from None

    def _agreed(self, now: dict[str, Any]) -> dict[str, Any]:
        """`now`, if what is in the folder can be gone on with under it."""
        if not is_there(self.path / SETTINGS_FILE):
            if next(self.path.glob("*.jsonl"), None) is not None:
                raise ValueError(f"--out {self.path} holds .jsonl files and no {SETTINGS_FILE}: it is not known how "
                                 "they were made; use another folder")
            return now
        then = read_settings(self.path)
        for name in sorted(then.keys() | now.keys()):
            before, after = then.get(name), now.get(name)
            if before == after or name in FREE or name == "about":
                continue
            if name in GROWING and _holds(after, before):
                continue
            grows = " (it may only grow)" if name in GROWING else ""
            raise ValueError(f"--out {self.path} holds a run with {_shown(name)} = {_shown(before)}, and now it is "
                             f"{_shown(after)}{grows}: use the same settings to go on with it, or another folder")
        return now


def read_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """Of a run's folder. Raises OSError where there is no run, ValueError where the file is broken."""
    path = Path(folder) / SETTINGS_FILE
    if not is_there(path):
        raise OSError(f"{folder} holds no run: there is no {SETTINGS_FILE} in it")
    value = read_json_object(path)
    if not isinstance(value.get("benchmark"), str):
        raise ValueError(f"{path} is not the settings of a run; expected the name of a benchmark in it")
    return value


def data_fingerprint(value: Any) -> str:
    """Of the problems, in 16 digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def model_fingerprint(folder: Path) -> str:
    """Of a checkpoint's configuration and weights, in 16 digits: of each file its size and pieces from all over it.

    Fine-tuned weights may differ from their origin in the layers' alone, and not where a file begins or ends.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".bin") and path.name not in ("config.json", "tokenizer.json",
                                                                             "vocab.json", "merges.txt"):
            continue
        real = regular_file(path)
        size = real.stat().st_size
        with open(real, "rb") as file:
            digest.update(os.fsencode(f"{path.name} {size} ") + file.read(1 << 16))
            for piece in range(_PIECES):
                file.seek((size - _PIECE_BYTES) * (piece + 1) // _PIECES if size > _PIECE_BYTES else 0)
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()[:16]


def _holds(now: Any, then: Any) -> bool:
    if isinstance(now, list) and isinstance(then, list):
        return all(each in now for each in then)
    return isinstance(now, (int, float)) and isinstance(then, (int, float)) and now >= then


def _shown(value: Any) -> str:
    text = "nothing" if value is None else one_line(value if isinstance(value, str) else json.dumps(value), 81)
    return text if len(text) <= 80 else f"{text[:80]}..."
