"""One process that programs are forked from, seen from outside: started, asked for one program at a time, ended."""

from __future__ import annotations

import os
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from typing import Any

from .sandbox import frames, scratch

LEVELS = ("namespaces", "restricted", "plain")  # from the strongest; each is tried where the one before is refused
_START_SECONDS = 60.0
_GRACE_SECONDS = 30.0  # beyond a program's time, for its supervisor to be heard on a busy machine
_END_SECONDS = 5.0

# The sandbox is imported as a package of its own, from a path that is forgotten right after: programs do not find it.
_BOOTSTRAP = """
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
sys.path.insert(0, sys.argv[1])
from sandbox.launch import main
del sys.path[0]
main(int(sys.argv[2]), sys.argv[3])
"""
# The working folder is no place to import from; for Python 3.10 the lines above see to it.
_SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()


class SandboxRefused(RuntimeError):
    """This machine does not offer what a level of isolation needs; the message says what."""


class WorkerLost(RuntimeError):
    """The worker's process ended, or was ended, before it reported."""


class Worker:
    """A sandbox at one level, in the thread that made it: it is killed when that thread ends.

    Raises SandboxRefused where the level is not to be had.
    """

    def __init__(self, level: str, preload: Sequence[str]) -> None:
        self.closed = False
        self._scratch_root: str | None = None
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_SECONDS)
        with theirs:
            command = [sys.executable, *_SAFE_PATH, "-B", "-X", "utf8", "-c", _BOOTSTRAP, os.path.dirname(__file__),
                       str(theirs.fileno()), level]  # fmt: skip
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=_start_environment(), cwd="/", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        try:
            if level != "namespaces":
                self._scratch_root = _new_scratch_root()
            self.facts = self._start(preload)
        except BaseException:
            self.close()
            raise

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """The supervisor's reply about one program (see sandbox/supervise.py). Raises WorkerLost."""
        self._control.settimeout(request["seconds"] + _GRACE_SECONDS)
        try:
            frames.send(self._control, {**request, "environment": _program_environment()})
            reply = frames.receive(self._control)
            if not self._control.recv(1):  # comes when all that the program started has ended
                raise EOFError("nothing was said about the program's end")
        except (OSError, EOFError) as error:
            self.close()
            raise WorkerLost(f"its sandbox was lost: {error}") from None
        return reply

    def interrupt(self) -> None:
        """From any thread: what runs is killed, and a `run` in another thread raises WorkerLost."""
        self.closed = True
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone already

    def close(self) -> None:
        """Ends the process and all below it, and waits until they are gone."""
        self.interrupt()
        self._control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()
        if self._scratch_root is not None:
            scratch.remove(self._scratch_root)

    def _start(self, preload: Sequence[str]) -> dict[str, Any]:
        config = {"parent": os.getpid(), "readable": _interpreter_folders(), "scratch_root": self._scratch_root,
                  "preload": list(preload)}  # fmt: skip
        try:
            frames.send(self._control, config)
            answer = frames.receive(self._control)
        except (OSError, EOFError) as error:
            self._process.kill()
            words = self._process.stderr.read().decode(errors="replace").strip()
            raise SandboxRefused(f"{sys.executable} did not start: {words or error}") from None
        if "refused" in answer:
            raise SandboxRefused(answer["refused"])
        return answer["ready"]


def _new_scratch_root() -> str:
    try:
        return tempfile.mkdtemp(prefix="codegen_fast-")
    except OSError as error:
        raise SandboxRefused(f"no place for a scratch folder: {error}") from None


def _interpreter_folders() -> list[str]:
    """What programs may read beside the system's libraries: this Python and its packages."""
    packages = [path for path in (*site.getsitepackages(), site.getusersitepackages()) if path in sys.path]
    return [path for path in dict.fromkeys(map(os.path.abspath, (sys.prefix, sys.base_prefix, sys.exec_prefix,
            sysconfig.get_path("stdlib"), *packages, *_named_in("LD_LIBRARY_PATH"), *_named_in("PYTHONPATH"))))
            if os.path.isdir(path)]  # fmt: skip


def _named_in(variable: str) -> list[str]:
    """The folders of a search path in the environment; none that would open the user's home as a whole."""
    home = os.path.realpath(os.path.expanduser("~"))
    return [path for path in os.environ.get(variable, "").split(os.pathsep)
            if os.path.isabs(path) and os.path.commonpath([home, os.path.realpath(path)]) != os.path.realpath(path)
            ]  # fmt: skip


def _start_environment() -> dict[str, str]:
    """Of the worker itself: what an interpreter needs to find its packages, and what programs get."""
    kept = {name: os.pathsep.join(_named_in(name)) for name in ("LD_LIBRARY_PATH", "PYTHONPATH") if _named_in(name)}
    if "HOME" in os.environ:
        kept["HOME"] = os.environ["HOME"]
    return {**kept, **_program_environment()}


def _program_environment() -> dict[str, str]:
    """Of programs: nothing of this process's environment. A fixed seed of hashes makes reruns equal.

    Threads get no heap of their own, which would take 64 MB of the address space that is limited.
    """
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1",
            **one_thread}  # fmt: skip
