"""What a generated program must not touch: a folder, a process and a port that a test owns, and a trace of itself.

Attacks are aimed at these alone. Every attack also limits itself in time and number, so that a sandbox that fails costs
a failing test and nothing else.
"""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path


class Canaries:
    """`folder`, `process` and `port`; `mark` is a line that makes all processes of a program findable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "precious"
        (self.folder / "below").mkdir(parents=True)
        self.file = self.folder / "below" / "file.txt"
        self.file.write_text("alive")
        self.secret = self.folder / "secret.txt"
        self.secret.write_text("canary-secret")
        self.process = subprocess.Popen(["sleep", "300"], start_new_session=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.port = self._listener.getsockname()[1]
        self._datagrams.bind(("127.0.0.1", self.port))
        self.visitors: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()
        self.token = f"cf{uuid.uuid4().hex[:10]}"
        # prctl(PR_SET_NAME): a process's name, which forks keep; programs started by it name the token as an argument.
        self.mark = f"import ctypes as _c; _c.CDLL(None).prctl(15, b'{self.token}', 0, 0, 0)\n"
        self._before = self._files()

    def check(self) -> None:
        """Nothing damaged: folder, process and port are as they were."""
        assert self._files() == self._before
        assert self.process.poll() is None, "the canary process has been killed"
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(b"test")
            assert connection.recv(10) == b"echo", "the canary port no longer answers"
        self._datagrams.setblocking(False)
        try:
            raise AssertionError(f"a datagram came: {self._datagrams.recv(100)!r}")
        except BlockingIOError:
            pass
        assert set(self.visitors) <= {b"test"}

    def left(self) -> list[int]:
        """Processes of the program, as the machine sees them."""
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                traces = Path(f"/proc/{pid}/comm").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if self.token.encode() in traces and int(pid) != os.getpid():
                found.append(int(pid))
        return found

    @contextmanager
    def watched(self):
        """Yields a list that grows by the number of the program's processes every few milliseconds."""
        counts: list[int] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.02):
                counts.append(len(self.left()))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield counts
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._listener.close()
        self._datagrams.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.visitors.append(connection.recv(100))
                connection.sendall(b"echo")

    def _files(self) -> dict[str, tuple]:
        """Everything below the folder: modes, owners, times of change, contents."""
        return {str(path): (path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_mtime_ns,
                            path.read_bytes() if path.is_file() else b"")
                for path in sorted([self.folder, *self.folder.rglob("*")])}  # fmt: skip


def until(condition, seconds: float = 10.0) -> bool:
    """Waits for something that happens soon; whether it did."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
