"""From a fork to a generated program: streams, environment, limits, walls, and then its source as __main__."""

from __future__ import annotations

import atexit
import builtins
import mmap
import os
import resource
import signal
import sys
import types
from typing import NoReturn

from .walls import Walls

_OPEN_FILES = 256
_MARKS_BYTES = 4096


class Marks:
    """A page that program and supervisor share: how far the program came. It needs no descriptor that could be closed."""

    _STARTED, _END, _NO_MEMORY = 1, 2, 3

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _MARKS_BYTES)

    def started(self) -> None:
        self._page[0] = self._STARTED

    def ended(self) -> None:
        self._page[0] = self._END

    def ran_out_of_memory(self) -> None:
        self._page[0] = self._NO_MEMORY

    def fail(self, words: str) -> None:
        content = words.encode()[: _MARKS_BYTES - 2]
        self._page[1 : 1 + len(content)] = content

    @property
    def reached_end(self) -> bool:
        return self._page[0] == self._END

    @property
    def out_of_memory(self) -> bool:
        return self._page[0] == self._NO_MEMORY

    @property
    def failure(self) -> str:
        """Why the source was never started; empty if it was."""
        return "" if self._page[0] else self._page[1:].split(b"\0", 1)[0].decode(errors="replace")


def run(walls: Walls, request: dict, path: str, streams: tuple[int, int, int], process_limit: int,
        marks: Marks) -> NoReturn:  # fmt: skip
    """Runs the source and ends the process as an interpreter would, but for the destructors of what is left.

    An interpreter takes its objects apart at its end. In a fork that copies every page that it had shared, which took
    half of a small program's time (9 ms against 4).
    """
    try:
        _prepare(walls, request, path, streams, process_limit)
    except Exception as error:  # noqa: BLE001 (whatever it is, it must be told: the source has not started)
        marks.fail(f"preparing the process: {type(error).__name__}: {error}")
        os._exit(1)
    module = _fresh_main(path)
    marks.started()
    code = 0
    try:
        exec(compile(request["source"], path, "exec", dont_inherit=True), module.__dict__)
        marks.ended()
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException as error:  # noqa: BLE001 (what the interpreter does with a script's exception)
        code = 1
        if isinstance(error, MemoryError):
            marks.ran_out_of_memory()
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function's own frame
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        _end(code)


def _exit_code(error: SystemExit) -> int:
    """As the interpreter has it: nothing is 0, a number itself, and anything else is printed and 1."""
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _end(code: int) -> NoReturn:
    try:
        if threading := sys.modules.get("threading"):
            threading._shutdown()  # waits for threads that are no daemons
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    finally:
        os._exit(code)


def _prepare(walls: Walls, request: dict, path: str, streams: tuple[int, int, int], process_limit: int) -> None:
    os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scratch = os.path.dirname(path)
    os.chdir(scratch)
    os.umask(0o022)
    os.environ.clear()
    os.environ.update(request["environment"], HOME=scratch, TMPDIR=scratch, PWD=scratch)
    _limit(resource.RLIMIT_AS, request["memory_bytes"])
    _limit(resource.RLIMIT_FSIZE, request["file_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_NPROC, process_limit)
    _first_to_go()
    walls.seal(scratch)
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()  # as a fresh import would; the standard library's does so itself after a fork


def _fresh_main(path: str) -> types.ModuleType:
    """A __main__ as a script has it, and no trace of this package."""
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = module
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    return module


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (OSError, ValueError):
        if sys.platform == "linux":  # others know fewer limits, which isolation.py says
            raise


def _first_to_go() -> None:
    """Where the machine runs out of memory, this process is the one to kill. Linux only."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
            file.write("1000")
    except OSError:
        pass
