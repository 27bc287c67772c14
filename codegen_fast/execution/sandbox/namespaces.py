"""Namespaces: users, processes, network, IPC and mounts of a worker's own, for root and for ordinary users alike.

Inside, programs are an ordinary user who owns nothing. For root that user stands for one of the machine's that is not
root, so that limits on its processes bind and no file of root's is its own; the process that programs are forked from
stays root of the namespace. For an ordinary user both are that user, who has no privileges left in the program.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct

from . import processes, seccomp, system_calls, view
from .system_calls import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER

INSIDE_USER = 1000
OUTSIDE_USER = 65533  # what a program of root's is for the machine: nobody's number, and not the one of `nobody`


class Namespaces:
    """Nothing outside can be seen. See walls.py."""

    def __init__(self, readable: list[str], scratch_root: str | None) -> None:
        self._readable = readable
        self._as_root = os.geteuid() == 0
        self._own_pidfd = -1
        self._processes_visible = False

    def enter(self, caller: int) -> None:
        """Returns in a child that is process 1 of a new PID namespace; its parent waits for it and ends with it.

        All are killed when the thread that started this process ends, and with them whatever lives in the namespace.
        Where it fails, what was changed until then concerns this process alone, which is then good for nothing else.
        """
        system_calls.die_with_parent(signal.SIGKILL, caller)
        if not seccomp.supported():
            raise OSError(f"no list of system calls for {os.uname().machine}")
        self._filter = seccomp.behind_namespaces()
        write_maps = _MapWriter(self._id_map())
        everything = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
        if self._as_root:
            try:
                os.setgroups([])
            except PermissionError:
                raise OSError("root may not change its groups here, as in containers without CAP_SETGID") from None
        # With all of root's power where it is given, because a new user namespace's root cannot enter others' folders.
        mounts_first = self._as_root and _own_mounts()
        if mounts_first:
            view.build(self._readable, INSIDE_USER)
        system_calls.unshare(everything)
        write_maps()
        if not mounts_first:
            view.build(self._readable, INSIDE_USER)
        _continue_in_child()
        system_calls.set_dumpable(False)
        self._own_pidfd = os.pidfd_open(os.getpid())
        self._processes_visible = view.mount_processes()
        _loopback_up()

    def facts(self) -> dict[str, bool]:
        return {"as_root": self._as_root, "processes_visible": self._processes_visible}

    def fork_supervisor(self) -> int:
        """The child is process 1 of a PID namespace of a program's own; its end ends all in it."""
        system_calls.unshare(CLONE_NEWPID)
        pid = os.fork()
        if pid:
            system_calls.set_namespace(self._own_pidfd, CLONE_NEWPID)
        return pid

    def prepare(self, scratch_bytes: int) -> str:
        """In memory, and with a /proc of the program's own."""
        system_calls.unshare(CLONE_NEWNS)
        view.mount_scratch(scratch_bytes, INSIDE_USER)
        if not view.mount_processes():
            view.cover_processes()
        return view.SCRATCH

    def own_processes(self) -> int:
        return 0 if self._as_root else 3  # this worker's two, and the supervisor

    def seal(self, scratch: str) -> None:
        """An ordinary user without any privilege, and with fewer system calls."""
        system_calls.no_new_privileges()
        system_calls.drop_bounding_set()
        if self._as_root:
            os.setresgid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
            os.setresuid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
        system_calls.drop_capabilities()
        system_calls.set_dumpable(True)  # or /proc/self would be root's
        seccomp.install(self._filter)

    def members(self) -> list[int]:
        return [pid for pid in processes.visible() if pid != os.getpid()]

    def end_orphans(self) -> None:
        """Nothing to do: all of a namespace's processes end with its first."""

    def clean_up(self) -> None:
        """Nothing to do: the scratch folder went with its namespace."""

    def leave(self) -> None:
        """Nothing to do."""

    def _id_map(self) -> list[str]:
        if self._as_root:
            return [f"0 0 1\n{INSIDE_USER} {OUTSIDE_USER} 1\n"] * 2
        return [f"{INSIDE_USER} {os.geteuid()} 1\n", f"{INSIDE_USER} {os.getegid()} 1\n"]


class _MapWriter:
    """A child from before the new user namespace, which has the right to say who is who in it. Called once."""

    def __init__(self, id_maps: list[str]) -> None:
        target = os.getpid()
        wait, self._go = os.pipe()
        self._written, tell = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(wait)
            os.close(tell)
            return
        try:
            os.close(self._go)
            if os.read(wait, 1):
                self._write(target, *id_maps)
            os._exit(0)
        except OSError as error:
            os.write(tell, str(error).encode())
        finally:
            os._exit(1)

    def __call__(self) -> None:
        os.write(self._go, b"1")
        os.close(self._go)
        _, status = os.waitpid(self._pid, 0)
        if status:
            raise OSError(f"mapping users: {os.read(self._written, 4096).decode()}")
        os.close(self._written)

    @staticmethod
    def _write(target: int, users: str, groups: str) -> None:
        for name, content in (("setgroups", "deny"), ("uid_map", users), ("gid_map", groups)):
            with open(f"/proc/{target}/{name}", "w", encoding="utf-8") as file:
                file.write(content)


def _own_mounts() -> bool:
    """A mount namespace without a user namespace, which root has in no container unless it is privileged."""
    try:
        system_calls.unshare(CLONE_NEWNS)
    except PermissionError:
        return False
    return True


def _continue_in_child() -> None:
    """Forks; the parent stays behind until its child has ended, and with it the whole namespace."""
    pid = os.fork()
    if pid:
        os.closerange(0, 256)
        os.waitpid(pid, 0)
        os._exit(0)
    system_calls.die_with_parent(signal.SIGKILL, 0)  # which is what a parent outside the namespace is called


def _loopback_up() -> None:
    """Programs may talk to themselves; there is nobody else. One that cannot is no reason to have no walls."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = fcntl.ioctl(any_socket, get_flags, struct.pack("16sh22x", b"lo", 0))
            flags = struct.unpack("16sh22x", request)[1]
            fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", flags | up))
    except OSError:
        pass
