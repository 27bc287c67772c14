"""The supervisor of one program: starts it, feeds and drains its streams, holds it to its limits, and reports."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from . import frames, processes, program
from .walls import Walls

_TICK = 0.05  # seconds between looks at memory and processes
_PIECE = 1 << 16
_LAST_PIECES = 32  # read of a stream after the program's end; what outlives it may write for ever
_SCRATCH_FILES = 4  # a scratch folder holds so many of the largest files


def serve(control: socket.socket, walls: Walls) -> NoReturn:
    """Runs the program of the next request, reports and ends the process."""
    request = frames.receive(control)
    marks = program.Marks()
    try:
        scratch = walls.prepare(_SCRATCH_FILES * request["file_bytes"])
        path = os.path.join(scratch, "program.py")
        with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(request["source"])
        os.chmod(path, 0o644)
        streams = _Streams(request)
        process_limit = walls.own_processes() + request["processes"]
        begin = time.monotonic()
        pid = os.fork()
    except OSError as error:
        _report(control, {"status": "not run", "detail": f"no sandbox: {error}"})
    if pid:
        _report(control, _watch(control, walls, request, streams, pid, marks, begin))
    control.detach()
    program.run(walls, request, path, streams.of_program, process_limit, marks)


def _report(control: socket.socket, reply: dict) -> NoReturn:
    try:
        frames.send(control, reply)
    except OSError:
        os._exit(1)  # nobody is left to hear it
    os._exit(0)


def _watch(control: socket.socket, walls: Walls, request: dict, streams: _Streams, pid: int, marks: program.Marks,
           begin: float) -> dict:  # fmt: skip
    """Until the program ends or must be ended. Returns the reply."""
    streams.close_of_program()
    deadline = begin + request["seconds"]
    poll = select.poll()
    poll.register(control, select.POLLIN)  # nothing is sent meanwhile: readable means closed
    ended_fd = _register_end(poll, pid)
    streams.register(poll)
    killed = ""
    next_look = begin + _TICK
    child = _Child(pid)
    while not killed and not child.has_ended():
        now = time.monotonic()
        if now >= deadline:
            killed = f"killed after {request['seconds']:g} s"
            break
        if now >= next_look:
            child.bury_others()
            killed = _over_limit(walls, request)
            next_look = now + _TICK
        for fd, _ in poll.poll(max(1, 1000 * (min(deadline, next_look) - now))):
            if fd == control.fileno():
                killed = "the executor was closed"
            elif fd != ended_fd:
                streams.move(fd, poll)
    seconds = time.monotonic() - begin
    status = child.end()
    walls.end_orphans()
    return {**streams.drain(), **_verdict(status, killed, marks, request), "seconds": seconds}


class _Child:
    """The program's first process. It is not taken leave of before its group was killed: so long its number is taken."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._status: int | None = None  # early, where the system cannot look at an ended child without taking leave

    def has_ended(self) -> bool:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if self._status is None:
            done, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = status if done else None
        return self._status is not None

    def bury_others(self) -> None:
        """Orphans that have ended count as processes of the program until their new parent, this one, has noticed."""
        if hasattr(os, "waitid"):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != self._pid:
                os.waitpid(ended.si_pid, 0)

    def end(self) -> int:
        """Kills it and its process group. Returns the status of waitpid."""
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self._pid, signal.SIGKILL)
        return os.waitpid(self._pid, 0)[1] if self._status is None else self._status


def _register_end(poll: Any, pid: int) -> int:
    """Lets `poll` wake when the program ends, where the system can do that; -1: a look every tick must do."""
    if not hasattr(os, "pidfd_open"):
        return -1
    fd = os.pidfd_open(pid)
    poll.register(fd, select.POLLIN)
    return fd


def _over_limit(walls: Walls, request: dict) -> str:
    """Why the program must be killed now; empty if it need not."""
    members = walls.members()
    if processes.threads(members) > request["processes"]:
        return f"more than {request['processes']} processes and threads"
    if len(members) > 1:  # one is held by the limit of its address space
        limit = request["memory_bytes"]
        if processes.memory_bytes(members) > limit and processes.own_memory_bytes(members) > limit:
            return f"memory limit of {limit / 1e9:.1f} GB over all its processes"
    return ""


def _verdict(status: int, killed: str, marks: program.Marks, request: dict) -> dict:
    if marks.failure:
        return {"status": "not run", "exit_code": None, "detail": marks.failure}
    code = os.waitstatus_to_exitcode(status)
    detail = killed
    if not killed and code < 0:
        detail = f"ended by {_signal_name(-code)}"
    elif not killed and marks.out_of_memory:
        detail = f"memory limit of {request['memory_bytes'] / 1e9:.1f} GB"
    word = "finished" if code == 0 else "timed out" if killed.startswith("killed after") else "failed"
    return {"status": word, "exit_code": code, "detail": detail, "reached_end": marks.reached_end}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Streams:
    """The program's three standard streams: its ends, and the supervisor's, which never block."""

    def __init__(self, request: dict) -> None:
        self._limit = request["output_bytes"]
        self._input = memoryview(request["stdin"].encode("utf-8", "surrogatepass"))
        in_read, self._in = os.pipe()
        self._out, out_write = os.pipe()
        self._err, err_write = os.pipe()
        self.of_program = (in_read, out_write, err_write)
        self._kept = {self._out: bytearray(), self._err: bytearray()}
        self._seen = {self._out: 0, self._err: 0}
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)

    def close_of_program(self) -> None:
        for fd in self.of_program:
            os.close(fd)

    def register(self, poll: Any) -> None:
        poll.register(self._in, select.POLLOUT)
        poll.register(self._out, select.POLLIN)
        poll.register(self._err, select.POLLIN)

    def move(self, fd: int, poll: Any) -> None:
        """Reads or writes what can be without waiting."""
        if not (self._write() if fd == self._in else self._read(fd)):
            poll.unregister(fd)
            os.close(fd)
            if fd == self._in:
                self._in = -1

    def drain(self) -> dict:
        """What was kept, after a last look at what the pipes still hold."""
        for fd in self._kept:
            try:
                for _ in range(_LAST_PIECES):
                    if not self._take(fd):
                        break
            except OSError:
                pass  # empty, or closed before
        return {"stdout": self._text(self._out), "stderr": self._text(self._err),
                "truncated": any(seen > self._limit for seen in self._seen.values())}  # fmt: skip

    def _read(self, fd: int) -> bool:
        try:
            return self._take(fd)
        except BlockingIOError:
            return True

    def _take(self, fd: int) -> bool:
        piece = os.read(fd, _PIECE)
        self._seen[fd] += len(piece)
        kept = self._kept[fd]
        kept += piece[: self._limit - len(kept)]
        return bool(piece)

    def _write(self) -> bool:
        try:
            if self._input:
                self._input = self._input[os.write(self._in, self._input[:_PIECE]) :]
        except BlockingIOError:
            return True
        except OSError:
            return False  # the program has closed it
        return bool(self._input)

    def _text(self, fd: int) -> str:
        return self._kept[fd].decode("utf-8", "replace")
