"""What tests of files by a stranger's hand share: odd things in a file's place, and what a refusal must be like."""

import os
import resource
import socket
from contextlib import contextmanager

import pytest

HOLE = 1 << 40  # bytes
LONG = "a" * 100_000


@contextmanager
def little_memory(megabytes=200):
    """Room for so much more than the process has: what wants more gets a MemoryError, and no machine is filled."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(error, message, call, *arguments):
    with little_memory(), pytest.raises(error, match=message) as caught:
        call(*arguments)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 800


def put(kind, path):
    """Something else in a file's place."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path.name)
    elif kind == "nowhere":
        path.symlink_to("nothing-is-here")
    elif kind == "hole":
        with open(path, "wb") as file:
            file.truncate(HOLE)
    else:
        path.symlink_to(kind)


def new_folder(tmp_path):
    """A stranger's folder, with a file outside of it that nothing in it may lead to."""
    (tmp_path / "outside").write_text("{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder
