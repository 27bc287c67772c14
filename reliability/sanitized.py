"""Builds with the compiler's sanitizers (cmake/sanitize.cmake), and programs run on them, Python among them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What -fsanitize takes, and the libraries that must be there before Python. libstdc++ stands behind AddressSanitizer's
# own, which looks for the function that throws when it is loaded itself: before any library that has it.
FLAGS = {"address": "address,undefined", "thread": "thread"}
LIBRARIES = {"address": ("libasan.so", "libubsan.so", "libstdc++.so.6"), "thread": ("libtsan.so",)}
OPTIONS = {
    # Python frees nothing at its end, and torch little: what they leave is no leak of ours. GCC 12 places vectors of 64
    # bytes at odd addresses where it looks for uses after return (its bug 110027), so that stays off.
    "address": {"ASAN_OPTIONS": "detect_leaks=0:strict_init_order=1:check_initialization_order=1",
                "UBSAN_OPTIONS": "print_stacktrace=1"},
    # Python and torch are not built for it: of them it sees the locks, the threads and the memory's coming and going,
    # and reports on what they read and write themselves are left out. A child that was forked starts threads of its own.
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:die_after_fork=0:halt_on_error=1"},
}  # fmt: skip


class BuildFailed(Exception):
    """The text is the compiler's."""


@dataclass(frozen=True)
class Build:
    """kind: "address" (and undefined behaviour) or "thread". source: the checkout. programs: those of tests/isa."""

    kind: str
    source: Path = ROOT
    programs: tuple[str, ...] = ("isa_test", "threads_test")

    @property
    def folder(self) -> Path:
        return self.source / "build" / f"sanitized-{self.kind}"

    def program(self, name: str) -> Path:
        return self.folder / "tests" / "isa" / name

    def launch(self) -> list[str]:
        """What stands before a program on the command line."""
        return []

    def make(self, jobs: int) -> None:
        """Compiles what has changed; the package's Python sources are linked beside the new _C."""
        import pybind11

        self._cmake("-S", self.source, *self._options(), f"-DPython_EXECUTABLE={sys.executable}",
                    f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DCODEGEN_FAST_CUDA=off")  # fmt: skip
        self._cmake("--build", self.folder, "-j", jobs, "--target", "_C", *self.programs)
        site = self.folder / "site"
        self._cmake("--install", self.folder, "--prefix", site)
        for path in (self.source / "codegen_fast").iterdir():
            if path.suffix != ".so" and path.name != "__pycache__":
                link = site / "codegen_fast" / path.name
                link.unlink(missing_ok=True)
                link.symlink_to(path)

    def _options(self) -> list[str]:
        ninja = f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}"
        return ["-B", str(self.folder), "-G", "Ninja", ninja, f"-DCODEGEN_FAST_SANITIZE={FLAGS[self.kind]}"]

    def _cmake(self, *arguments) -> None:
        command = ["cmake", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildFailed(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")

    def environment(self, *, python: bool) -> dict[str, str]:
        """python: for a Python that imports this build's package, and the modules of the checkout beside it."""
        own = {**os.environ, **OPTIONS[self.kind], "OMP_WAIT_POLICY": "PASSIVE"}
        if python:
            compiler = os.environ.get("CXX") or "g++"
            libraries = [subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
                         for name in LIBRARIES[self.kind]]  # fmt: skip
            folders = map(str, (self.folder / "site", self.source, self.source / "tests"))
            own |= {"LD_PRELOAD": " ".join(libraries), "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(folders)}
        return own


@dataclass(frozen=True)
class ArmBuild(Build):
    """The programs of tests/isa for aarch64, whose libraries Debian keeps in SYSROOT; qemu-user runs them as ``cpu``."""

    cpu: str = "cortex-a53"

    SYSROOT = "/usr/aarch64-linux-gnu"

    @property
    def folder(self) -> Path:
        return self.source / "build" / "sanitized-aarch64"

    def program(self, name: str) -> Path:
        return self.folder / name

    def launch(self) -> list[str]:
        return ["qemu-aarch64", "-L", self.SYSROOT, "-cpu", self.cpu]

    def make(self, jobs: int) -> None:
        self._cmake("-S", self.source / "tests" / "isa", *self._options(), "-DCMAKE_SYSTEM_NAME=Linux",
                    "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")  # fmt: skip
        self._cmake("--build", self.folder, "-j", jobs, "--target", *self.programs)
