"""The Linux system calls that Python 3.11 has no function for. Every failure is an OSError that names the call."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone takes

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_RECURSIVE = 0x8000
_AT_FDCWD = -100

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_LAST_CAPABILITY = 63  # the kernel refuses those it does not have

# The same on x86-64 and aarch64 from number 424 on; the two older ones by machine.
_MOUNT_SETATTR = 442
_OLD_NUMBERS = {"x86_64": {"pivot_root": 155, "capset": 126}, "aarch64": {"pivot_root": 41, "capset": 91}}

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """libc's function `name`; pointers and numbers as ctypes takes them. Raises OSError where it returns -1."""
    result = getattr(_libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def system_call(name: str, number: int, *arguments: object) -> int:
    """A system call that libc has no function for. Raises OSError where it returns -1."""
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def unshare(namespaces: int) -> None:
    call("unshare", ctypes.c_int(namespaces))


def set_namespace(pidfd: int, namespaces: int) -> None:
    """The namespaces of the process that `pidfd` refers to become those of this one (or, for PIDs, of its children)."""
    call("setns", ctypes.c_int(pidfd), ctypes.c_int(namespaces))


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    try:
        call("mount", source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags),
             options and options.encode())  # fmt: skip
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({kind or 'bind'} {source} on {target})") from None


def set_mount_attributes(target: str, attributes: int, *, recursive: bool) -> None:
    """Adds attributes to a mount, and to those below it. Linux 5.12 and newer."""

    class MountAttr(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]

    wanted = MountAttr(set=attributes)
    system_call("mount_setattr", _MOUNT_SETATTR, ctypes.c_int(_AT_FDCWD), target.encode(),
                ctypes.c_uint(AT_RECURSIVE if recursive else 0), ctypes.byref(wanted),
                ctypes.c_size_t(ctypes.sizeof(wanted)))  # fmt: skip


def pivot_root(new_root: str, put_old: str) -> None:
    system_call("pivot_root", _old_number("pivot_root"), new_root.encode(), put_old.encode())


def detach(target: str) -> None:
    call("umount2", target.encode(), ctypes.c_int(MNT_DETACH))


def die_with_parent(signal: int, parent: int) -> None:
    """This process gets `signal` when the thread of `parent` that started it ends. Raises OSError if it has already."""
    _prctl(_PR_SET_PDEATHSIG, signal)
    if os.getppid() != parent:
        raise OSError("the process that started this one has ended")


def set_dumpable(dumpable: bool) -> None:
    """A process that is not dumpable can be neither traced nor read through /proc by others of its user."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_bounding_set() -> None:
    """No executed file can give this process a capability again. Without the right to say so, nothing changes."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            return  # not privileged enough, which no_new_privileges makes up for, or past the kernel's last one


def drop_capabilities() -> None:
    """Gives up every capability that this process has."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    nothing = (ctypes.c_uint32 * 6)()
    system_call("capset", _old_number("capset"), ctypes.byref(header), ctypes.byref(nothing))


def _prctl(option: int, argument: int) -> None:
    call("prctl", ctypes.c_int(option), *(ctypes.c_ulong(value) for value in (argument, 0, 0, 0)))


def _old_number(name: str) -> int:
    machine = os.uname().machine
    if machine not in _OLD_NUMBERS:
        raise OSError(f"{name}: its number is known on {' and '.join(_OLD_NUMBERS)}, not on {machine}")
    return _OLD_NUMBERS[machine][name]
