"""What a reader does beside returning: files opened, code run, memory taken, time used.

Python's own doings show in an audit hook. What libraries in other languages open is seen by the system (inotify) on the
one folder that must not be touched: `outside`, beside the folder of every case.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import codegen_fast

_BASE_BYTES = 64 << 20  # what a reader may take whatever it reads
_BYTES_A_BYTE = 64      # and for each byte on disk: JSON's `[],` alone becomes 19 bytes a byte
_OWN_BYTES = 2 << 30    # that making a case may take
_MOST_SECONDS = 10.0    # of a processor, for files of a few kilobytes
_EVERYTHING = 0x00000FFF  # inotify's events: access, open, write, create, delete, move, attributes
_NONBLOCK = os.O_NONBLOCK

_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
         "socket.connect", "socket.bind", "socket.sendto", "ctypes.dlopen", "webbrowser.open", "code.__new__",
         "urllib.Request", "pickle.find_class")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown",
            "shutil.rmtree", "shutil.copyfile", "shutil.move")
_SYSTEM_FILES = ("/proc/meminfo", "/proc/self/maps", "/proc/self/cgroup", "/proc/cpuinfo", "/sys/fs/cgroup", "/sys/devices/system/cpu")
_LIBRARIES = tuple({os.path.realpath(path) for path in (
    sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), Path(codegen_fast.__file__).parent,
    *(path for path in sys.path if path.endswith("site-packages")))})


class Watch:
    """Made once a process: an audit hook cannot be taken off. Between `begin` and `end` it looks."""

    def __init__(self, outside: Path) -> None:
        self._looking = False
        self._seen: list[str] = []
        self._readable: tuple[str, ...] = ()
        self._writable: tuple[str, ...] = ()
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(_NONBLOCK)
        if self._inotify < 0 or libc.inotify_add_watch(self._inotify, os.fsencode(outside), _EVERYTHING) < 0:
            raise OSError(f"{outside} cannot be watched: inotify says {os.strerror(ctypes.get_errno())}")
        # Also between cases: damage that grows without end must not take the machine's memory.
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _OWN_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        sys.addaudithook(self._hook)

    def begin(self, readable: tuple[Path, ...], writable: tuple[Path, ...], disk_bytes: int) -> None:
        """readable: the folders that may be read; disk_bytes: of the files on the disk, which memory is measured by."""
        self._readable = tuple(os.path.realpath(path) for path in readable)
        self._writable = tuple(os.path.realpath(path) for path in writable)
        self._touched()  # by whoever made the case
        self._seen = []
        self._allowed = _BASE_BYTES + _BYTES_A_BYTE * disk_bytes
        _reset_peak()
        self._before = _status("VmRSS")
        self._limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + self._allowed, self._limit[1]))
        self._started = time.process_time()
        self._looking = True

    def end(self) -> list[str]:
        """What it should not have done, a sentence each. Call it whatever came out."""
        self._looking = False
        self.seconds = time.process_time() - self._started
        resource.setrlimit(resource.RLIMIT_AS, self._limit)
        self.peak = _status("VmHWM") - self._before
        found = list(dict.fromkeys(self._seen))
        if self._touched():
            found.append("the folder outside was touched")
        if self.peak > self._allowed:
            found.append("it took more memory than files of this size may")
        if self.seconds > _MOST_SECONDS:
            found.append(f"it took more than {_MOST_SECONDS:g} s")
        return found

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._looking:
            return
        if event == "open":
            self._look_at_open(arguments)
        elif event in _CODE:
            self._seen.append(f"it did {event}")
        elif event in _CHANGES:
            if not _within(arguments[0], self._writable):
                self._seen.append(f"it did {event} outside its folder")
        elif event in ("exec", "compile"):
            name = arguments[0].co_filename if event == "exec" else arguments[1]
            if not _within(name, _LIBRARIES) and not _is_of_an_import():
                self._seen.append(f"it did {event} of code that is in no library")

    def _look_at_open(self, arguments: tuple[Any, ...]) -> None:
        path, mode, flags = arguments
        if isinstance(path, int):
            return
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            if not _within(path, self._writable):
                self._seen.append(f"it opened {ascii(path)[:200]} for writing")
        elif not (_within(path, (*self._readable, *self._writable, *_LIBRARIES))
                  or os.fsdecode(path).startswith(_SYSTEM_FILES)):
            self._seen.append(f"it opened {ascii(path)[:200]}, outside its folder")

    def _touched(self) -> bool:
        try:
            return bool(os.read(self._inotify, 1 << 16))
        except BlockingIOError:
            return False


def _is_of_an_import() -> bool:
    """Whether a library asked for the code of a text while it was being imported, as NamedTuple and dataclasses do."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return True
        if not _within(name, _LIBRARIES):
            return False
        frame = frame.f_back
    return False


def _within(path: Any, folders: tuple[str, ...]) -> bool:
    try:
        real = os.path.realpath(os.fsdecode(path))
    except (TypeError, ValueError, OSError):
        return False
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _status(name: str) -> int:
    """Bytes that /proc/self/status gives under a name."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))


def _reset_peak() -> None:
    """VmHWM counts from here on.

    Where a container forbids it, a peak shows only above those before; the limit holds anyway.
    """
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass
