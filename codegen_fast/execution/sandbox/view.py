"""The file system that programs see: the interpreter and the system's libraries, read-only, and a scratch folder.

It is a new root on a tmpfs, in a mount namespace of its own. What is not listed here does not exist for a program: no
home, no /etc with its secrets, no sockets of the system's services. The scratch folder is a tmpfs of each program's own,
so that it goes with the program, whatever was made in it.
"""

from __future__ import annotations

import os

from . import system_calls
from .system_calls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC

SCRATCH = "/scratch"
DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
SYSTEM_FOLDERS = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/nix/store"]
SYSTEM_FILES = ["/etc/ld.so.cache", "/etc/localtime"]
_BASE = "/tmp"  # any folder that exists everywhere; only this mount namespace sees what is mounted on it
_TMPFS = MS_NOSUID | MS_NODEV
_INODES = 20_000  # files and folders of a scratch folder; each takes about a kilobyte of kernel memory


def build(readable: list[str], user: int) -> None:
    """Replaces this process's root. The mount namespace must be its own; `user` owns the scratch folder's mount point.

    readable: folders that programs may read, beside the system's; their paths stay what they are.
    """
    wanted = [(path, os.path.realpath(path)) for path in _outermost([*SYSTEM_FOLDERS, *_with_targets(readable)])]
    wanted += [(path, os.path.realpath(path)) for path in SYSTEM_FILES if os.path.exists(path)]
    system_calls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Twice, as bubblewrap does: the first root holds the old one, to mount from, and the new one, to build.
    system_calls.mount("tmpfs", _BASE, "tmpfs", _TMPFS, "mode=755")
    for folder in ("new", "old"):
        os.mkdir(f"{_BASE}/{folder}")
    system_calls.pivot_root(_BASE, f"{_BASE}/old")
    os.chdir("/")
    system_calls.mount("/new", "/new", None, MS_BIND)
    _fill(wanted, user)
    base = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("/new")
    system_calls.pivot_root(".", ".")
    os.fchdir(base)
    os.close(base)
    system_calls.detach(".")
    os.chdir("/")
    system_calls.set_mount_attributes("/", system_calls.MOUNT_ATTR_RDONLY, recursive=False)


def mount_scratch(nbytes: int, user: int) -> None:
    """An empty scratch folder that holds `nbytes`, in this mount namespace."""
    options = f"size={nbytes},nr_inodes={_INODES},mode=700,uid={user},gid={user}"
    system_calls.mount("scratch", SCRATCH, "tmpfs", _TMPFS, options)


def mount_processes() -> bool:
    """/proc of this PID namespace, where the system lets one be mounted (in many containers it does not)."""
    try:
        system_calls.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        return True
    except OSError:
        return False


def cover_processes() -> None:
    """Hides the /proc that the namespace was made in: it shows the machine's processes."""
    system_calls.mount("tmpfs", "/proc", "tmpfs", _TMPFS, "size=4k,mode=555")


def _fill(wanted: list[tuple[str, str]], user: int) -> None:
    read_only = system_calls.MOUNT_ATTR_RDONLY | system_calls.MOUNT_ATTR_NOSUID
    for path, real in wanted:
        target = f"/new{path}"
        if os.path.isdir(f"/old{real}"):
            os.makedirs(target, exist_ok=True)
            system_calls.mount(f"/old{real}", target, None, MS_BIND | MS_REC)
            system_calls.set_mount_attributes(target, read_only | system_calls.MOUNT_ATTR_NODEV, recursive=True)
        else:
            _mount_file(f"/old{real}", target, read_only)
    for device in DEVICES:
        if os.path.exists(f"/old{device}"):
            _mount_file(f"/old{device}", f"/new{device}", read_only)
    os.mkdir("/new/proc")
    # Without a full /proc in sight the kernel lets no new one be mounted.
    system_calls.mount("/old/proc", "/new/proc", None, MS_BIND | MS_REC)
    os.mkdir(f"/new{SCRATCH}")
    for link in ("/tmp", "/var/tmp", "/dev/shm"):
        os.makedirs(os.path.dirname(f"/new{link}"), exist_ok=True)
        if not os.path.exists(f"/new{link}"):  # it does where the interpreter lives below /tmp
            os.symlink(SCRATCH, f"/new{link}")
    for link, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"/new/dev/{link}")
    with open("/new/etc/passwd", "w", encoding="utf-8") as file:
        file.write(f"program:x:{user}:{user}:generated program:{SCRATCH}:/bin/sh\n")


def _mount_file(source: str, target: str, attributes: int) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    system_calls.mount(source, target, None, MS_BIND)
    system_calls.set_mount_attributes(target, attributes, recursive=False)


def _with_targets(paths: list[str]) -> list[str]:
    """The paths, and where they lead: an interpreter in a virtual environment is a link out of it."""
    return [*paths, *(os.path.realpath(path) for path in paths)]


def _outermost(paths: list[str]) -> list[str]:
    """The folders among `paths` that exist and lie in no other of them."""
    kept: list[str] = []
    for path in sorted(set(paths), key=len):
        inside = any(path == outer or path.startswith(outer.rstrip("/") + "/") for outer in kept)
        if not inside and path != "/" and os.path.isdir(path):
            kept.append(path)
    return kept
