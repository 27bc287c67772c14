"""One case: a seed copied, damaged and read under watch, with what came of it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from . import oracle
from .mutations import mutate
from .seeds import make_seeds
from .targets import Target
from .verdicts import READ, REFUSED
from .watch import Watch


@dataclass(frozen=True)
class Outcome:
    """kind: READ, REFUSED or what is wrong; detail: the error's text. seconds of a processor, peak in bytes."""

    kind: str
    detail: str
    seconds: float
    peak: int

    @property
    def is_failure(self) -> bool:
        return self.kind not in (READ, REFUSED)


def lay_out(root: Path) -> None:
    """Seeds, and the folder that nothing may open: sound files under every name that somebody may be tempted by."""
    make_seeds(root / "seeds")
    outside = root / "outside"
    outside.mkdir()
    for seed in sorted((root / "seeds").iterdir()):
        shutil.copytree(seed, outside, dirs_exist_ok=True)
    (outside / "secret.txt").write_text("secret\n")


class Cases:
    """Runs cases of one target, numbered: all that happens in one follows from (seed, target, number)."""

    def __init__(self, root: Path, target: Target, seed: int, watch: Watch) -> None:
        self.target = target
        self._root, self._seed, self._watch = root, seed, watch
        self._folder, self._out = root / "case", root / "out"
        for name in target.seeds:  # what is imported or opened once, and that an undamaged seed is as it should be
            for _ in range(2):
                outcome = self._read(name, lambda folder: None)
            if outcome.kind != target.sound:
                raise AssertionError(f"{target.name}: the seed {name} is not {target.sound}: "
                                     f"{outcome.kind} {outcome.detail}")

    def run(self, number: int) -> Outcome:
        rng = Random(f"{self._seed}/{self.target.name}/{number}")
        return self._read(rng.choice(self.target.seeds), lambda folder: self._damage(rng, folder))

    def _damage(self, rng: Random, folder: Path) -> None:
        names = sorted({path.name for pattern in self.target.damaged for path in folder.glob(pattern)})
        mutate(rng, folder, names, replaced=self.target.replaced)

    def read_files(self, seed: str, name: str, data: bytes) -> Outcome:
        """As `run`, with the contents of one file of a seed given."""
        return self._read(seed, lambda folder: (folder / name).write_bytes(data))

    def _read(self, seed: str, damage: Callable[[Path], object]) -> Outcome:
        for folder in (self._folder, self._out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._root / "seeds" / seed, self._folder)
        self._out.mkdir()
        damage(self._folder)
        before = _listing(self._folder)
        disk_bytes = sum(path.lstat().st_blocks * 512 for path in self._folder.iterdir())
        writable = (self._out, self._folder) if self.target.writes else (self._out,)
        self._watch.begin((self._folder, self._root / "seeds"), writable, disk_bytes)
        error: BaseException | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.target.read(self._folder, self._out)
        except Exception as caught:
            error = caught
        wrong = self._watch.end()
        if not self.target.writes and _listing(self._folder) != before:
            wrong.append("it changed the folder that it was to read")
        return self._judge(error, wrong)

    def _judge(self, error: BaseException | None, wrong: list[str]) -> Outcome:
        detail = ""
        if error is not None:
            detail = ascii(str(error))[:400]
            complaint = oracle.complaint(error, self._folder)
            if complaint is not None:
                wrong.append(f"{complaint}; {oracle.signature(error)}")
        kind = "; ".join(wrong) if wrong else READ if error is None else REFUSED
        return Outcome(kind, detail, self._watch.seconds, self._watch.peak)


def _listing(folder: Path) -> list[tuple]:
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_mode, status.st_size, status.st_mtime_ns))
    return found
