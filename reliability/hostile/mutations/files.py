"""What stands in a file's place: links, directories, pipes, sockets, devices, and files of which most is a hole."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from random import Random

_HOLE_BYTES = 1 << 40


def replace_file(rng: Random, path: Path) -> None:
    """Puts something else in the place of a file. `outside` lies beside the folder."""
    outside = path.parent.parent / "outside"
    same = outside / path.name
    kind = rng.randrange(13)
    if kind == 12:
        with open(path, "r+b") as file:
            file.truncate(_HOLE_BYTES)  # the file as it was, and a hole behind it
        return
    data = path.read_bytes()
    path.unlink()
    match kind:
        case 0:
            path.symlink_to(same if same.exists() else outside / "secret.txt")
        case 1:
            path.symlink_to(os.path.relpath(outside / "secret.txt", path.parent))
        case 2:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/full", "/dev/urandom", "/proc/self/mem", "/proc/kmsg",
                                        "/etc/passwd", "/proc/self/maps")))
        case 3:
            path.symlink_to(path.name)  # to itself
        case 4:
            path.symlink_to("nowhere")
        case 5:
            path.symlink_to(".")
        case 6:
            os.mkfifo(path)
        case 7:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))  # the socket's file stays
        case 8:
            path.mkdir()
            (path / path.name).write_bytes(data)
        case 9:
            with open(path, "wb") as file:
                file.truncate(_HOLE_BYTES)
        case 10:
            inner = path.with_name("inner")
            inner.mkdir(exist_ok=True)
            (inner / path.name).write_bytes(data)
            path.symlink_to(f"inner/{path.name}")  # within the folder
        case 11:
            os.link(shutil.copy(outside / "secret.txt", path.with_name("other")), path)
