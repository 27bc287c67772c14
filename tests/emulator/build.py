"""Builds the emulated extension with g++: no CUDA toolkit, no CMake.

Object files are kept in a cache folder under the hashes of everything they were made from, so that a second build
compiles what changed and nothing else, whichever checkout it is started from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "emulator"

COMMON = (
    "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-gnu-unique", "-ffp-contract=off",
    "-w", "-fmax-errors=8", "-DCODEGEN_FAST_EMULATED", f"-I{HERE}",
)  # fmt: skip
# Kernels: -fsanitize=thread puts a call before every load and store; what would join, widen or replace loads and
# stores is off, so that they are those of the source.
KERNELS = (
    "-x", "c++", "-O1", "-g1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fno-tree-vectorize",
    "-fno-store-merging", "-fno-tree-loop-distribute-patterns",
)  # fmt: skip
ENGINE = ("-O3", "-g1")
BINDING = ("-O1",)


class BuildError(Exception):
    """The emulator could not be compiled; the text is the compiler's."""


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


@cache
def _compiler_version(command: tuple[str, ...]) -> str:
    try:
        run = subprocess.run([*command, "-v"], capture_output=True, text=True)
    except FileNotFoundError:
        raise BuildError(f"the CUDA emulator needs g++ 12 or newer (set CXX); there is no {command[0]}") from None
    if "gcc version" not in run.stderr:
        raise BuildError(f"the CUDA emulator needs g++ 12 or newer (set CXX); {' '.join(command)} is another compiler")
    return run.stderr


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "codegen_fast" / "emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="codegen_fast_emulator_"))


def _hash(*parts: str | bytes) -> str:
    h = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        h.update(len(part).to_bytes(8, "little") + part)
    return h.hexdigest()[:32]


def _hash_file(path: str) -> str:
    try:
        return _hash(Path(path).read_bytes())
    except OSError:
        return "missing"


def _replace(path: Path, data: bytes) -> None:
    """Writes a file that others see whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
        f.write(data)
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)


def compile_object(source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    """The object file of a source, from the cache where all files that it includes are as they were."""
    command = compiler()
    key = _hash(str(source), *flags, _compiler_version(tuple(command)))
    manifest = folder / f"{key}.json"
    entries = json.loads(manifest.read_text()) if manifest.exists() else []
    for entry in entries:
        made = folder / entry["object"]
        if made.exists() and all(_hash_file(path) == h for path, h in entry["inputs"].items()):
            return made

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out, deps = Path(scratch, "out.o"), Path(scratch, "out.d")
        line = [*command, *flags, "-MD", "-MF", str(deps), "-c", str(source), "-o", str(out)]
        run = subprocess.run(line, capture_output=True, text=True)
        if run.returncode:
            raise BuildError(f"{shlex.join(line)}\n{run.stderr}")
        inputs = shlex.split(deps.read_text().replace("\\\n", " ").partition(": ")[2])
        made = folder / f"{_hash(out.read_bytes())}.o"
        if not made.exists():
            os.replace(out, made)
    entry = {"object": made.name, "inputs": {path: _hash_file(path) for path in inputs}}
    _replace(manifest, json.dumps([entry, *entries[:3]]).encode())
    return made


def _sources(arch: int, partial: bool) -> list[tuple[Path, tuple[str, ...]]]:
    import pybind11

    module = f"-DCODEGEN_FAST_EMULATED_SM={arch}"
    binding = (*COMMON, *BINDING, f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}")
    csrc = ROOT / "csrc"
    # The slowest first, so that the cores finish together.
    sources = [(csrc / "bind" / f"{name}.cpp", binding) for name in ("define", "operands", "tensors")]
    sources += [(HERE / "module.cpp", (*binding, module, *(("-DCODEGEN_FAST_EMULATOR_PARTIAL",) if partial else ())))]
    kernels = sorted((csrc / "cuda").glob("*.cu"), key=lambda path: -path.stat().st_size)
    sources += [(path, (*COMMON, module, *KERNELS)) for path in kernels]
    host = (*sorted((csrc / "cuda").glob("*.cpp")), csrc / "checks.cpp", csrc / "view.cpp")
    sources += [(path, (*COMMON, *BINDING)) for path in host]
    sources += engine_sources()
    return sources


def engine_sources() -> list[tuple[Path, tuple[str, ...]]]:
    return [(path, (*COMMON, *ENGINE)) for path in sorted((HERE / "engine").glob("*.cpp"))]


def link(
    name: str, sources: list[tuple[Path, tuple[str, ...]]], partial: bool = False, keep: Path | None = None
) -> Path:
    """Compiles on all cores and links the extension ``name``; returns its path, which follows from its contents.

    partial: sources that do not compile are left out and printed, and calling what they lack crashes; for work on one
    kernel while another is broken.
    keep: where to put the extension, and the objects of sources that lie below, instead of into the cache.
    """
    shared = cache_folder()
    folder = keep or shared

    def compiled(source: tuple[Path, tuple[str, ...]]) -> Path | None:
        try:
            return compile_object(*source, folder if folder in source[0].parents else shared)
        except BuildError as error:
            if not partial or source[0].parent.name != "cuda":
                raise
            print(f"left out of the emulator:\n{error}", file=sys.stderr)
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [path for path in pool.map(compiled, sources) if path]
    flags = ["-shared", *(["-Wl,-z,lazy"] if partial else [])]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = folder / _hash(name, *flags, *(path.name for path in objects)) / f"{name}{suffix}"
    if target.exists():
        return target
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out = Path(scratch, "out.so")
        line = [*compiler(), *flags, *map(str, objects), "-ldl", "-o", str(out)]
        run = subprocess.run(line, capture_output=True, text=True)
        if run.returncode:
            raise BuildError(f"{shlex.join(line)}\n{run.stderr}")
        os.replace(out, target)
    return target


def load(name: str, path: Path) -> ModuleType:
    # The folder's hash tells builds apart, which pybind11 and Python know modules by name.
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_module(path: Path) -> ModuleType:
    import torch

    module = load("_C_emulated", path)
    module.bind_torch(torch.Tensor, torch.nn.Parameter, torch.Tensor.__dlpack_c_exchange_api__)
    return module


@cache
def emulated_module(arch: int = 90, partial: bool = False) -> ModuleType:
    """The extension ``_C_emulated`` of the checkout's sources, built first where it is not in the cache.

    arch: 90, or 80 for the paths that the kernels take below Hopper.
    """
    return _load_module(link("_C_emulated", _sources(arch, partial), partial))


def mutated_module(folder: Path, compiled: str, file: str, text: str, replacement: str) -> ModuleType:
    """As ``emulated_module``, with a piece of the text of csrc/cuda/``file`` replaced in the kernels of ``compiled``.

    folder: an empty one, for a copy of the sources.
    """
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    path = folder / "csrc" / "cuda" / file
    original = path.read_text()
    if original.count(text) != 1:
        raise ValueError(f"{text!r} stands {original.count(text)} times in {file}, expected once")
    path.write_text(original.replace(text, replacement))
    sources = [(folder / "csrc" / "cuda" / source.name if source.name == compiled else source, flags)
               for source, flags in _sources(90, False)]  # fmt: skip
    return _load_module(link("_C_emulated", sources, keep=folder))
