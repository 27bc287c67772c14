"""Files that a stranger wrote, read so that nothing in them costs more than a clear error.

A folder's files are read where they are regular files of that folder: a link may stay within it, or lead to the blobs of
the Hub's cache, which is made of such links. What is held in memory is bounded before it is read, and JSON is taken only
as somebody means it: each key once, not nested without end, text that is text.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_TEXT_BYTES = 256 << 20  # no configuration or vocabulary is a hundredth of it
_MOST_NESTED = 64


def is_there(path: Path) -> bool:
    """Whether anything has that name, a link that leads nowhere included."""
    return os.path.lexists(path)


def regular_file(path: Path, most_bytes: int | None = None) -> Path:
    """The file itself, links followed, if it is one of its folder.

    Raises FileNotFoundError where there is none, OSError for what is no regular file (a folder, a pipe, a device) or is
    larger than most_bytes, ValueError for a link out of the folder that does not lead into a Hub cache's blobs.
    """
    if not is_there(path):
        raise FileNotFoundError(f"{path.parent} has no {path.name}; download it")
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: Python 3.12 and older, of a circle
        raise OSError(f"{path} is a link that leads nowhere; put the file itself there") from None
    folder = path.parent.resolve()
    if not real.is_relative_to(folder) and not _is_blob(real):
        raise ValueError(f"{path} links to {one_line(real)}, outside its folder; put the file itself there, or link "
                         f"the whole folder")
    if not real.is_file():
        raise OSError(f"{path} is not a file; expected a regular one")
    if most_bytes is not None and real.stat().st_size > most_bytes:
        raise OSError(f"{path} has {real.stat().st_size} bytes; expected at most {most_bytes}")
    return real


def read_bytes(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """The contents of a file. Raises as regular_file, and OSError for a file that cannot be read."""
    real = regular_file(path, most_bytes)
    try:
        # Not blocking, and asked again once it is open: what has the name may have been replaced by a pipe.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("it is no regular file any more")
            return file.read(os.fstat(descriptor).st_size)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it does not fit the memory"
        raise OSError(f"{path} cannot be read: {reason}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises as read_bytes, and ValueError that names the file for anything else."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); download it again") from None
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def parse_json(text: str | bytes) -> Any:
    """json.loads, which takes more than anybody means. Raises ValueError with the reason, and nothing else."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    _check_values(value)
    return value


def one_line(text: object, most: int = 200) -> str:
    """A stranger's text, or a library's that may quote one, fit for a message: printable, on one line, cut short."""
    line = " ".join(str(text).split())[:most]
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)[:most]


def _is_blob(path: Path) -> bool:
    """<cache>/models--<owner>--<name>/blobs/<hash>: where snapshots, and folders made by --local-dir, link to."""
    return path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return values


def _check_values(value: Any) -> None:
    """Nested values are walked without recursion, texts must be what an encoder takes."""
    level = [value]
    for _ in range(_MOST_NESTED):
        below = []
        for each in level:
            if isinstance(each, str):
                _check_text(each)
            elif isinstance(each, list):
                below += each
            elif isinstance(each, dict):
                below += each
                below += each.values()
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {_MOST_NESTED} levels deep")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text {text!r:.80} holds a lone surrogate") from None
