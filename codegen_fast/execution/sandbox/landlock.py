"""Landlock: a process gives up the file system beyond named paths, and signals beyond itself. Needs no privilege.

The access rights are those of the kernel's include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import stat

from .system_calls import system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ONLY_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
# Rights that each version of Landlock knows: moving across folders came with 2, truncation with 3, devices with 5.
_ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_SCOPES_SINCE = 6
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2


def version() -> int:
    """Landlock's version on this kernel; 0: there is none, or it is switched off."""
    try:
        return system_call("landlock_create_ruleset", _CREATE_RULESET, None, ctypes.c_size_t(0),
                           ctypes.c_uint(_ONLY_VERSION))  # fmt: skip
    except OSError:
        return 0


def scopes_signals() -> bool:
    return version() >= _SCOPES_SINCE


def restrict(*, readable: list[str], writable: list[str], devices: list[str]) -> None:
    """From here on: folders `readable` can be read and executed, `writable` ones also changed, `devices` written to.

    no_new_privileges() comes first. What does not exist is left out. Raises OSError where there is no Landlock.
    """

    class RulesetAttr(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scopes")]

    known = version()
    all_rights = _ALL_RIGHTS[min(known, max(_ALL_RIGHTS))] if known else 0
    attr = RulesetAttr(files=all_rights, scopes=_SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS)
    size = 8 if known < 4 else 16 if known < _SCOPES_SINCE else 24
    ruleset = system_call("landlock_create_ruleset", _CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size),
                          ctypes.c_uint(0))  # fmt: skip
    try:
        for paths, rights in ((readable, _READ), (writable, all_rights), (devices, _READ_FILE | _WRITE_FILE)):
            for path in paths:
                _allow(ruleset, path, rights & all_rights)
        system_call("landlock_restrict_self", _RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    class PathBeneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("rights", ctypes.c_uint64), ("fd", ctypes.c_int32)]

    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        rule = PathBeneath(rights=rights, fd=fd)
        system_call("landlock_add_rule", _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH),
                    ctypes.byref(rule), ctypes.c_uint(0))  # fmt: skip
    finally:
        os.close(fd)
