"""A Hub that stops answering: a server of the test's own, on the loopback only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from .subject import Subject

_ROOT = str(Path(__file__).parents[2])
_COMMIT = "c0ffee" * 6 + "1234"
_REPO = "somebody/demo"
_FILES = ("config.json", "generation_config.json", "model.safetensors")
# Loads from the Hub and generates, in a process of its own: the Hub's client reads its environment when it is imported.
_LOADER = """
import json, sys
import torch
from huggingface_hub import file_download
from codegen_fast import AutoModelForCausalLM
file_download._ETAG_RETRY_TIMEOUT = 1  # of the client's six tries after the first: a minute each, whatever it is told
try:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    print(json.dumps({"tokens": model.generate([json.loads(sys.argv[2])], max_new_tokens=8, eos_token_id=None).tolist()}))
except OSError as error:
    print(json.dumps({"error": str(error)}))
"""


class _Hub(ThreadingHTTPServer):
    """Serves the files of a folder as the Hub does, as far as its client needs it.

    silent: accepts connections and answers nothing. answers: falls silent after so many. stops: as often it falls silent
    after three quarters of the weights.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.silent = False
        self.answers: int | None = None
        self.asked = 0  # questions about the repository
        self.stops = 0
        self.counting = threading.Lock()
        self.released = threading.Event()  # ends what waits
        self.ranges: list[int] = []  # first bytes of the weights that were asked for

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: _Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # else a client may ask again on a connection that is about to be closed
        super().end_headers()

    def _answer(self, body: bool) -> None:
        hub = self.server
        self.close_connection = True
        with hub.counting:
            hub.asked += _REPO in self.path  # the client asks about other things as well
            silent = hub.silent or (hub.answers is not None and hub.asked > hub.answers)
        if silent:
            hub.released.wait()
            return
        if self.path.startswith(f"/api/models/{_REPO}"):
            self._send_json()
            return
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if name not in _FILES:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = (hub.folder / name).stat().st_size
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, "0"])[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha256(name.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", _COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.end_headers()
        if body:
            self._send(hub.folder / name, first, size)

    def _send(self, path: Path, first: int, end: int) -> None:
        hub, stop = self.server, False
        if path.name == "model.safetensors":
            hub.ranges.append(first)
            hub.stops, stop = hub.stops - 1, hub.stops > 0
        with open(path, "rb") as file:
            file.seek(first)
            left = (end * 3 // 4 if stop else end) - first
            while left > 0:
                self.wfile.write(file.read(min(left, 1 << 16)))
                left -= 1 << 16
        if stop:
            hub.released.wait()

    def _send_json(self) -> None:
        hub = self.server
        files = [{"rfilename": name} for name in _FILES]
        if "/tree/" in self.path:
            described: object = [{"type": "file", "path": name, "oid": "0" * 40, "size": (hub.folder / name).stat().st_size}
                                 for name in _FILES]  # fmt: skip
        else:
            described = {"id": _REPO, "modelId": _REPO, "sha": _COMMIT, "siblings": files, "private": False, "tags": [],
                         "downloads": 0, "likes": 0}  # fmt: skip
        text = json.dumps(described).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def _served(folder: Path) -> Iterator[_Hub]:
    hub = _Hub(folder)
    worker = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    worker.start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.shutdown()
        worker.join()
        hub.server_close()


def _load(hub: str, cache: str, ids: list[int]) -> dict[str, object]:
    """What the loading process printed."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": cache, "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "1",
                   "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
                   "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", _LOADER, _REPO, json.dumps(ids)], env=environment, capture_output=True,
                          text=True, cwd=_ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def silent(subject: Subject, times: int) -> str:
    """The Hub accepts connections and never answers; it falls silent in the middle of the weights, for ever and once; it is
    silent again, then gone, when the cache is whole."""
    expected = subject.model.generate([subject.ids], max_new_tokens=8, eos_token_id=None)
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            served, cache = Path(folder) / "served", str(Path(folder) / "cache")
            subject.model.save_pretrained(served)
            size = (served / "model.safetensors").stat().st_size
            with _served(served) as hub:
                address = hub.address
                hub.silent = True
                _require_refused(_load(address, cache, subject.ids), "the Hub does not answer and it is not")
                hub.silent, hub.stops = False, 1000
                _require_refused(_load(address, cache, subject.ids), "the Hub stopped answering; ask again")
                hub.stops, asked = 1, len(hub.ranges)
                _require_loaded(_load(address, cache, subject.ids), expected)
                ranges = hub.ranges[asked:]
                # The client writes 10 MiB at a time.
                assert len(ranges) == 2 and 0 == ranges[0] < ranges[1] <= size * 3 // 4, f"asked for bytes from {ranges} on"
                hub.silent = True
                _require_loaded(_load(address, cache, subject.ids), expected)
            _require_loaded(_load(address, cache, subject.ids), expected)
    subject.require_usable()
    return (f"OSError that says so, within the client's time; where it was silent once, the download goes on at byte "
            f"{ranges[1]:,} of {size:,}; then the cache serves")


def silent_after(subject: Subject, times: int) -> str:
    """The Hub falls silent for good after so many answers, from 1 on: for the revision, the list of files, the head or the
    bytes of a file, and again for the weights."""
    expected = subject.model.generate([subject.ids], max_new_tokens=8, eos_token_id=None)
    with tempfile.TemporaryDirectory() as folder:
        served = Path(folder) / "served"
        subject.model.save_pretrained(served)
        with _served(served) as hub:
            _require_loaded(_load(hub.address, str(Path(folder) / "whole"), subject.ids), expected)
            questions = hub.asked
        # Nearly all of their time is the client's, which tries six times: they wait together, few at once as each loads torch.
        assert times < questions, f"a whole load asks {questions} questions"
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda n: _load_until_silent(served, Path(folder) / f"cache-{n}", subject.ids, n),
                          range(questions - 1, questions - 1 - times, -1)))  # fmt: skip
    subject.require_usable()
    return f"OSError that says so, each time (a whole load asks {questions} questions)"


def _load_until_silent(served: Path, cache: Path, ids: list[int], answers: int) -> None:
    with _served(served) as hub:
        hub.answers = answers
        found = _load(hub.address, str(cache), ids)
    reasons = ("the Hub does not answer and it is not", "the Hub stopped answering; ask again")
    assert any(reason in str(found.get("error")) for reason in reasons), (answers, found)


def _require_refused(found: dict[str, object], reason: str) -> None:
    sentence = f"'{_REPO}' is not a folder, and its files cannot be had from the Hub: {reason}"
    assert str(found.get("error")).startswith(sentence), found


def _require_loaded(found: dict[str, object], expected: torch.Tensor) -> None:
    assert "tokens" in found and torch.equal(torch.tensor(found["tokens"]), expected), found
