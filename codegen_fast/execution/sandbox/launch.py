"""A worker's process: enters its walls, imports what programs are likely to import, and forks one program at a time.

Programs are forks of it and not fresh interpreters because starting one costs more than most programs do. It never
sees a program: the supervisor, forked for each, reads the request, so that nothing of a program is left for the next.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket

from . import frames, supervise
from .walls import Walls

# Plain modules: one with submodules could let a program pass that forgot to import the one it uses.
PRELOADED = ("bisect", "collections", "copy", "datetime", "fractions", "functools", "hashlib", "heapq", "itertools",
             "math", "operator", "random", "re", "statistics", "string", "typing")  # fmt: skip


def main(control_fd: int, level: str) -> None:
    """Serves the requests that come on `control_fd` until it is closed. The first message says how, see worker.py."""
    control = socket.socket(fileno=control_fd)
    config = frames.receive(control)
    # Whatever the caller has set for itself: ignored children would be lost, and folders shut to programs.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    # Process 1 of a namespace must have no handler that a program's signal could run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    walls = _walls(level, config)
    try:
        walls.enter(config["parent"])
    except OSError as error:
        frames.send(control, {"refused": str(error)})
        return
    for name in (*PRELOADED, *config["preload"]):
        with contextlib.suppress(Exception):  # the program that imports it will say what is wrong
            importlib.import_module(name)
    quiet = os.open("/dev/null", os.O_RDWR)
    os.dup2(quiet, 2)
    os.close(quiet)
    # Fewer pages to copy: the collector of a program does not touch what it has inherited.
    gc.collect()
    gc.freeze()
    frames.send(control, {"ready": walls.facts()})
    while control.recv(1, socket.MSG_PEEK):
        pid = walls.fork_supervisor()
        if not pid:
            supervise.serve(control, walls)
        _, status = os.waitpid(pid, 0)
        walls.clean_up()
        if status:
            walls.leave()  # where the caller has gone, nobody else does
            os._exit(1)  # no reply came; closing the connection says so
        control.sendall(b"\n")  # nothing of the program is left
    walls.leave()


def _walls(level: str, config: dict) -> Walls:
    if level == "namespaces":
        from .namespaces import Namespaces as Level
    elif level == "restricted":
        from .restricted import Restricted as Level
    else:
        from .plain import Plain as Level
    return Level(config["readable"], config["scratch_root"])
