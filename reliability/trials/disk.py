"""A disk that is full while a model is saved."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from codegen_fast import AutoModelForCausalLM

from .subject import Subject, require_error

_ROOT = str(Path(__file__).parents[2])
_MOST_TRIES = 30  # of a race that the disk must win


def _require_whole_or_absent(folder: Path, subject: Subject) -> None:
    """AssertionError unless the folder is not there, or holds the model and nothing else."""
    if not folder.exists():
        return
    left = [file.name for file in folder.iterdir() if file.name.startswith(".") or "tmp" in file.name]
    assert not left, f"{folder} still holds {left}"
    again = AutoModelForCausalLM.from_pretrained(folder)
    knobs = {"max_new_tokens": 8, "eos_token_id": None}
    assert torch.equal(again.generate([subject.ids], **knobs), subject.model.generate([subject.ids], **knobs))


def file_size(subject: Subject, times: int) -> str:
    """The system refuses bytes of a file at a random place (a limit on its size); over a new folder and over an older save."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryDirectory() as parent:
        old, new = Path(parent) / "old", Path(parent) / "new"
        subject.model.save_pretrained(old)
        for i in range(times):
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000 + i * 15_000_000 // times, before[1]))
                for folder in (new, old):
                    require_error(lambda: subject.model.save_pretrained(folder), OSError,
                                  f"the model was not saved in {folder}: File too large")  # fmt: skip
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert not new.exists(), f"{new} was left behind"
            _require_whole_or_absent(old, subject)
        subject.model.save_pretrained(new)
        _require_whole_or_absent(new, subject)
    subject.require_usable()
    return "OSError with the folder and the system's reason; the older save stays, nothing else is left"


def full(subject: Subject, times: int) -> str:
    """A disk of its own (a tmpfs in a namespace of its own) fills up while the model is written to it."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; sys.path.append(sys.argv.pop(1)); from reliability.trials.disk import fill; fill(*sys.argv[1:])"
        inner = 'mount -t tmpfs -o size=40m none "$1" && shift && exec "$@"'
        unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
        try:
            done = subprocess.run([*unshare, "sh", "-c", inner, "sh", folder, sys.executable, "-c", code, _ROOT, folder,
                                   str(times)], capture_output=True, text=True)  # fmt: skip
        except FileNotFoundError:
            return "left out: this machine has no unshare"
        if "unshare:" in done.stderr or "mount:" in done.stderr:
            return f"left out: no disk may be mounted here ({done.stderr.strip().splitlines()[-1]})"
        assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fill(folder: str, times: str) -> None:
    """In the namespace: prints what came out."""
    with Subject.opened() as subject:
        place, old, ballast = Path(folder), Path(folder) / "old", Path(folder) / "ballast"
        subject.model.save_pretrained(old)
        for i in range(int(times)):
            target = (old, place / "new")[i % 2]
            for _ in range(_MOST_TRIES):
                if _fill_while(lambda: _is_refused(subject, target), ballast):
                    break
                ballast.unlink()  # the save was done before the disk was full
                shutil.rmtree(place / "new", ignore_errors=True)
            else:
                raise AssertionError(f"{_MOST_TRIES} saves were done before the disk was full")
            assert not (place / "new").exists(), "a folder was left behind"
            ballast.unlink()
            _require_whole_or_absent(old, subject)
        subject.model.save_pretrained(place / "new")
        _require_whole_or_absent(place / "new", subject)
        subject.require_usable()
    print("OSError with the folder and the system's reason; the older save stays, nothing else is left")


def _is_refused(subject: Subject, folder: Path) -> bool:
    try:
        subject.model.save_pretrained(folder)
    except OSError as error:
        assert re.search("the model was not saved in .*: No space left on device", str(error)), str(error)
        return True
    return False


def _fill_while(save: Callable[[], bool], ballast: Path) -> bool:
    """Saves while somebody else takes all the room that the disk has, as soon as the first bytes are written."""
    place, done, before = ballast.parent, threading.Event(), os.statvfs(ballast.parent).f_bfree

    def take() -> None:
        with open(ballast, "wb", buffering=0) as file:
            while not done.is_set():
                if os.statvfs(place).f_bfree >= before and not any(place.rglob(".*")):
                    continue
                try:
                    file.write(bytes(1 << 20))
                except OSError:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        pass

    taker = threading.Thread(target=take)
    taker.start()
    try:
        return save()
    finally:
        done.set()
        taker.join()
