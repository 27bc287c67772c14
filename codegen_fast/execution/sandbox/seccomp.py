"""A seccomp filter: system calls that generated programs do without, and which would reach through a wall.

The table has one line a call, with its number on x86-64 and aarch64. A denied call returns an error; it does not kill.
"""

from __future__ import annotations

import ctypes
import errno
import os

from .system_calls import NEW_NAMESPACES, call

# name: (number on x86-64, on aarch64); None: that machine does not have it.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # The kernel's less walked paths, and whatever changes the machine.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "unshare": (272, 97),
    "setns": (308, 268),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "quotactl": (179, 60), "acct": (163, 89),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Other processes' insides.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    # Memory that no limit of a process counts.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    # Signals and settings of other processes of the same user.
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # Leaving the process group, which is how all that a program starts is killed in one stroke.
    "setsid": (112, 157), "setpgid": (109, 154),
    # What Landlock lets through: a file's mode, owner, times and attributes.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
    # Those that depend on an argument, and the network.
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199), "fcntl": (72, 25),
    "prlimit64": (302, 261),
}  # fmt: skip

_NAMES = list(_NUMBERS)


def _between(first: str, last: str) -> tuple[str, ...]:
    return tuple(_NAMES[_NAMES.index(first) : _NAMES.index(last) + 1])


_MACHINE = _between("mount", "kcmp")
_UNCOUNTED_MEMORY = _between("memfd_create", "mq_open")
_SIGNALS = _between("kill", "pidfd_send_signal")
_OTHERS_SETTINGS = _between("sched_setaffinity", "move_pages")
_GROUPS = _between("setsid", "setpgid")
_METADATA = _between("chmod", "truncate")

# struct seccomp_data: nr, arch, instruction_pointer, args[6]
_NR, _ARCH, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # the bit of x86-64's second table of system calls, which this filter does not know

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def supported() -> bool:
    """Whether this machine's system calls are in the table."""
    return os.uname().machine in _AUDIT_ARCH


def behind_namespaces() -> list[_Instruction]:
    """The filter where namespaces hide processes, files and network: only what would lead around them."""
    rules = [_deny(name) for name in _MACHINE]
    rules += [_deny(name, errno.ENOSYS) for name in _UNCOUNTED_MEMORY]
    rules += _clone_without_namespaces()
    # Sockets that no network namespace holds back (vsock reaches a virtual machine's host) are not made.
    rules.append(_only("socket", _ARGUMENT_0, (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK), errno.EAFNOSUPPORT))
    rules.append(_only("socketpair", _ARGUMENT_0, (_AF_UNIX,), errno.EAFNOSUPPORT))
    return _program(rules)


def without_namespaces(*, signals_are_scoped: bool) -> list[_Instruction]:
    """The filter where all else is shared: no sockets, no new sessions, no metadata, no other process's settings.

    signals_are_scoped: Landlock keeps signals inside, so that a program may signal its own children.
    """
    rules = [_deny(name) for name in (*_MACHINE, *_OTHERS_SETTINGS, *_GROUPS, *_METADATA, "socket")]
    rules += [_deny(name, errno.ENOSYS) for name in _UNCOUNTED_MEMORY]
    rules += _clone_without_namespaces()
    rules.append(_only("socketpair", _ARGUMENT_0, (_AF_UNIX,), errno.EAFNOSUPPORT))
    rules.append(_only("prlimit64", _ARGUMENT_0, (0,), errno.EPERM))  # 0: the caller itself
    if not signals_are_scoped:
        rules += [_deny(name) for name in _SIGNALS]
        rules.append(_none_of("fcntl", _ARGUMENT_1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX), errno.EPERM))
    return _program(rules)


def install(program: list[_Instruction]) -> None:
    """From here on this thread and all it starts are filtered. no_new_privileges() comes first. Raises OSError."""

    class Filter(ctypes.Structure):
        _fields_ = [("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8),
                    ("operand", ctypes.c_uint32)]  # fmt: skip

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint16), ("filters", ctypes.POINTER(Filter))]

    filters = (Filter * len(program))(*(Filter(*instruction) for instruction in program))
    whole = Program(len(program), filters)
    set_seccomp, filter_mode = 22, 2
    call("prctl", ctypes.c_int(set_seccomp), ctypes.c_ulong(filter_mode), ctypes.byref(whole), ctypes.c_ulong(0),
         ctypes.c_ulong(0))  # fmt: skip


# ---- Rules: each a list of instructions that is entered with the call's number loaded, and left the same way ----------


def _deny(name: str, error: int = errno.EPERM) -> list[_Instruction]:
    return _when(name, [(_RETURN, 0, 0, _ERROR | error)])


def _only(name: str, argument: int, values: tuple[int, ...], error: int) -> list[_Instruction]:
    last = len(values)
    return _when(name, [(_LOAD, 0, 0, argument),
                        *((_JUMP_EQUAL, last - at, 0, value) for at, value in enumerate(values)),
                        (_RETURN, 0, 0, _ERROR | error), (_RETURN, 0, 0, _ALLOW)])  # fmt: skip


def _none_of(name: str, argument: int, values: tuple[int, ...], error: int) -> list[_Instruction]:
    last = len(values)
    return _when(name, [(_LOAD, 0, 0, argument),
                        *((_JUMP_EQUAL, last - at, 0, value) for at, value in enumerate(values)),
                        (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | error)])  # fmt: skip


def _clone_without_namespaces() -> list[list[_Instruction]]:
    # clone3 keeps its flags where a filter cannot look; libc falls back to clone when there is no clone3.
    return [_deny("clone3", errno.ENOSYS),
            _when("clone", [(_LOAD, 0, 0, _ARGUMENT_0), (_JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES),
                            (_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ALLOW)])]  # fmt: skip


def _when(name: str, instructions: list[_Instruction]) -> list[_Instruction]:
    number = _NUMBERS[name][0 if os.uname().machine == "x86_64" else 1]
    return [] if number is None else [(_JUMP_EQUAL, 0, len(instructions), number), *instructions]


def _program(rules: list[list[_Instruction]]) -> list[_Instruction]:
    machine = os.uname().machine
    other_table = [(_JUMP_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERROR | errno.EPERM)] if machine == "x86_64" else []
    return [(_LOAD, 0, 0, _ARCH), (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _ERROR | errno.EPERM),
            (_LOAD, 0, 0, _NR), *other_table,
            *(instruction for rule in rules for instruction in rule), (_RETURN, 0, 0, _ALLOW)]  # fmt: skip
