"""The command line, codegen-fast: `main` runs a command and turns everything that goes wrong into one line.

    arguments.py, eval_arguments.py  commands, options, help
    options.py             what those are made of
    generate.py, info.py, bench.py, eval.py   the commands
    eval_runs.py, progress.py   runs of HumanEval and MTPB, and how far they are
    stream.py              completions on the terminal as they come
    clock.py, summary.py   how long it took, and the line that says so
    traffic.py             what a token costs in bytes
    models.py              what --model names
    output.py              standard output
    figures.py             numbers as people read them
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any, Sequence

from . import output
from .arguments import PROGRAM, build_parser

_INTERRUPTED = 130  # as a shell gives for SIGINT
_PIPE_CLOSED = 141  # and for SIGPIPE
# What this package raises on purpose. Anything else is a bug, and says so.
_EXPECTED = (ValueError, TypeError, OSError, NotImplementedError, MemoryError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (sys.argv[1:] by default) and returns the exit code.

    0: done. 2: an error, one line on standard error. 130: Ctrl-C. 141: whoever read standard output left.
    """
    output.use_utf8()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(argv)
    except BrokenPipeError:
        output.drop()
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except Exception as error:
        _say(f"error: {_describe(error)}")
        output.drop()
        return 2


def _run(argv: Sequence[str] | None) -> int:
    # Commands are imported when they are run: torch takes seconds, --help none.
    from .. import __version__

    parser = build_parser(__version__)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as exit:  # after --help and --version, which argparse printed
        output.emit("")
        return int(exit.code or 0)
    return _command(parser, arguments)


def _command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.command == "generate":
        from .generate import run
    elif arguments.command == "info":
        from .info import run
    elif arguments.command == "bench":
        from .bench import run
    elif arguments.command == "eval":
        from .eval import run
    else:
        parser.error("no command is given: expected generate, info, bench or eval")
    return run(arguments)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory{': ' if text else ''}{text}"
    if text and isinstance(error, _EXPECTED):
        return text
    return type(error).__name__ + (f": {text}" if text else "")


def _show_warning(message: Any, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):
        _say(f"warning: {' '.join(str(message).split())}")


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
