"""Standard output: one way to write to it, and what becomes of it when it fails."""

from __future__ import annotations

import io
import os
import sys


def use_utf8() -> None:
    """Text goes out as prompts come in, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def emit(text: str) -> None:
    """Writes text at once. BrokenPipeError where nobody reads any more, OSError where it cannot be written."""
    if sys.stdout is None:
        raise OSError("standard output is closed; there is nowhere to write to")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"standard output cannot be written: {error.strerror or error}") from error


def drop() -> None:
    """Lets what could not be written go nowhere: the interpreter would try again at its end, and complain."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
