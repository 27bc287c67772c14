"""Where namespaces are not to be had, as in most containers: Landlock and seccomp keep a program from what it shares.

Both need no privilege and are given up by no process that has them. Processes are found through their descent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from . import landlock, processes, scratch, seccomp, system_calls, view

_UNPRIVILEGED_USER = 65533  # see namespaces.OUTSIDE_USER
_READABLE_FILES = ["/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/nsswitch.conf"]
# To become another user, to kill what it runs, and to remove what it leaves: chown, dac_override, fowner, kill, setgid,
# setuid. Containers may withhold any of them from their root.
_NEEDED_FOR_ANOTHER = {0, 1, 3, 5, 6, 7}
_SLACK = 64  # processes that the same user may start elsewhere while a program runs; the supervisor counts exactly


class Restricted:
    """What is outside can be seen and not touched. See walls.py."""

    def __init__(self, readable: list[str], scratch_root: str | None) -> None:
        if scratch_root is None:
            raise ValueError("scratch_root: a folder expected, because without namespaces there is no other place")
        self._readable = [*view.SYSTEM_FOLDERS, *_READABLE_FILES, *readable, *map(os.path.realpath, readable)]
        self._scratch = os.path.join(scratch_root, "program")
        self._as_root = os.geteuid() == 0
        self._landlock = landlock.version()
        self._user: int | None = None  # that a program of root's becomes

    def enter(self, caller: int) -> None:
        """Refused where a program could damage what is not its own: without seccomp, or to root without Landlock."""
        # Not SIGKILL: without this process nobody would end what programs have started.
        signal.signal(signal.SIGTERM, self._abandoned)
        system_calls.die_with_parent(signal.SIGTERM, caller)
        if not seccomp.supported():
            raise OSError(f"no list of system calls for {os.uname().machine}")
        self._filter = seccomp.without_namespaces(signals_are_scoped=landlock.scopes_signals())
        if self._as_root:
            os.chmod(os.path.dirname(self._scratch), 0o711)
            if _NEEDED_FOR_ANOTHER <= _capabilities() and self._can_run_as(_UNPRIVILEGED_USER):
                self._user = _UNPRIVILEGED_USER
            elif not self._landlock:
                raise OSError("root without Landlock could delete any file; run as an ordinary user")
        _in_a_child(lambda: self._restrict(os.path.dirname(self._scratch)))
        system_calls.become_subreaper()
        system_calls.set_dumpable(False)

    def facts(self) -> dict[str, bool]:
        return {"as_root": self._as_root, "other_user": self._user is not None, "files": self._landlock > 0,
                "signals_scoped": landlock.scopes_signals()}  # fmt: skip

    def fork_supervisor(self) -> int:
        worker = os.getpid()
        pid = os.fork()
        if not pid:
            system_calls.die_with_parent(signal.SIGTERM, worker)
            system_calls.become_subreaper()
        return pid

    def prepare(self, scratch_bytes: int) -> str:
        os.mkdir(self._scratch, 0o700)
        if self._user is not None:
            os.chown(self._scratch, self._user, self._user)
        return self._scratch

    def own_processes(self) -> int:
        """Linux counts all that a user runs, so what runs already is no part of the limit; for root nothing counts."""
        user = os.geteuid() if self._user is None else self._user
        return _SLACK + processes.threads([pid for pid in processes.visible() if _owner(pid) == user])

    def seal(self, scratch: str) -> None:
        system_calls.drop_bounding_set()
        supervisor = os.getppid()
        self._become_user()
        system_calls.die_with_parent(signal.SIGKILL, supervisor)  # after that: a change of user clears it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._restrict(scratch)

    def members(self) -> list[int]:
        return processes.descendants(os.getpid())

    def end_orphans(self) -> None:
        processes.end_descendants()

    def clean_up(self) -> None:
        # A supervisor that was killed left its program to this process. While something lives, names can change under
        # a removal, and lead it elsewhere: the folder stays then, and the next program is refused for it.
        if processes.end_descendants():
            scratch.remove(self._scratch)

    def leave(self) -> None:
        scratch.remove(os.path.dirname(self._scratch))

    def _abandoned(self, *_: object) -> None:
        """The caller, or for a supervisor the worker, has gone."""
        self.clean_up()
        self.leave()
        os._exit(1)

    def _become_user(self) -> None:
        if self._user is not None:
            os.setgroups([])
            os.setresgid(self._user, self._user, self._user)
            os.setresuid(self._user, self._user, self._user)

    def _restrict(self, scratch: str) -> None:
        system_calls.no_new_privileges()
        system_calls.drop_capabilities()
        system_calls.set_dumpable(True)
        if self._landlock:
            landlock.restrict(readable=self._readable, writable=[scratch], devices=view.DEVICES)
        seccomp.install(self._filter)

    def _can_run_as(self, user: int) -> bool:
        """Whether `user` can reach the interpreter and the scratch folder: what lies in root's home may be shut."""
        needed = [os.path.dirname(os.__file__), os.path.dirname(self._scratch) + "/.",
                  *(folder for folder in self._readable if os.path.isdir(folder))]  # fmt: skip

        def look() -> None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            for folder in needed:
                os.stat(folder + "/.")

        try:
            _in_a_child(look)
        except OSError:
            return False
        return True


def _capabilities() -> set[int]:
    """The numbers of the capabilities that this process can use."""
    with open("/proc/self/status", encoding="utf-8") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return {number for number in range(mask.bit_length()) if mask >> number & 1}


def _in_a_child(action: Callable[[], None]) -> None:
    """Does something irrevocable in a child. Raises OSError with the child's words if it failed there."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            action()
            os._exit(0)
        except OSError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(1)
    os.close(write)
    words = os.read(read, 4096).decode()
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(words or "a child ended without a word")


def _owner(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1
