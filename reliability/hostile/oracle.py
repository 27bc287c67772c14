"""What may come of a stranger's file: it is read, or refused by an error of ours that helps.

Ours means that a `raise` of the package raised it: what a library or the interpreter throws at us (a KeyError, a
RuntimeError, an OSError without advice) is a bug, also where its type would do.
"""

from __future__ import annotations

import dis
import os
from pathlib import Path
from types import TracebackType

import codegen_fast

ALLOWED = (ValueError, TypeError, OSError, NotImplementedError)
_PACKAGE = str(Path(codegen_fast.__file__).parent) + os.sep
_RAISE = dis.opmap["RAISE_VARARGS"]
_MOST_CHARACTERS = 600  # beside paths: two sentences and a value that is cut short
# What our errors say, and the system's, where memory ran out: a refusal in form, and an allocation beyond the files' size.
_OUT_OF_MEMORY = ("is full", "does not fit the memory", "not be mapped", "annot allocate", "can't allocate")


def complaint(error: BaseException, folder: Path) -> str | None:
    """What is wrong with an error that came of the files in `folder`; None: it is as it should be."""
    if not isinstance(error, ALLOWED):
        return f"{type(error).__name__} is none of the package's errors"
    where, raised_here = _origin(error.__traceback__)
    if not where.startswith("codegen_fast/") or not raised_here:
        return f"{type(error).__name__} was not raised by the package on purpose"
    text = str(error)
    if not text.strip() or not text.isprintable():
        return "the message is empty, more than a line, or cannot be printed"
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return "it wanted more memory than files of this size may"
    rest = text.replace(str(folder), "")
    if len(rest) > _MOST_CHARACTERS:
        return f"the message has {len(rest)} characters"
    if rest == text and not any(sign in text for sign in ("expected", " needs ", ";", ":")):
        return "the message names no file, and not what was expected"
    return None


def signature(error: BaseException) -> str:
    """Equal for failures that have one cause: the type, and where in the package it came out."""
    frames = [f"{_short(frame)}" for frame in _frames(error.__traceback__)]
    ours = [frame for frame in frames if frame.startswith("codegen_fast/")]
    return f"{type(error).__name__} at {(ours or frames or ['?'])[-1]}"


def _frames(traceback: TracebackType | None) -> list[TracebackType]:
    found = []
    while traceback is not None:
        found.append(traceback)
        traceback = traceback.tb_next
    return found


def _short(entry: TracebackType) -> str:
    path = entry.tb_frame.f_code.co_filename
    short = f"codegen_fast/{path.removeprefix(_PACKAGE)}" if path.startswith(_PACKAGE) else Path(path).name
    return f"{short}:{entry.tb_frame.f_code.co_name}:{entry.tb_lineno}"


def _origin(traceback: TracebackType | None) -> tuple[str, bool]:
    """Where the innermost frame is, and whether its instruction is a raise."""
    frames = _frames(traceback)
    if not frames:
        return "?", False
    last = frames[-1]
    return _short(last), last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE
