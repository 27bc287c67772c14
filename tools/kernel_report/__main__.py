"""What nvcc made of every kernel: registers, memory, spills, instructions; compared with a committed table.

    python -m tools.kernel_report --check WHEEL --log LOG    # what CI runs; LOG: the build's output, with -Xptxas=-v
    python -m tools.kernel_report --update WHEEL --log LOG   # rewrites tools/kernel_report/expected/
    python -m tools.kernel_report --arch 90a csrc/cuda/attention.cu    # one file, while you work on it

Takes wheels, shared objects, object files, or sources, which it compiles as the build does. cuobjdump and nvdisasm
come from PATH, or from the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from . import parse, rules, table

ROOT = Path(__file__).parents[2]
NVCC_FLAGS = ("-std=c++20", "-O3", "-fmad=false", "-Xptxas=-v", "-diag-suppress=20012")  # as cmake/cuda.cmake has them


def find_tool(name: str) -> str:
    """The path of cuobjdump or nvdisasm; SystemExit with what to install without one."""
    if found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"):
        return found
    try:
        for file in files(f"nvidia-cuda-{name}") or ():
            if file.name == name:
                return str(file.locate())
    except PackageNotFoundError:
        pass
    raise SystemExit(f"{name} was not found; pip install --no-deps nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def compile_source(source: Path, archs: list[str], folder: Path) -> tuple[Path, str]:
    """The object file of a .cu, and what ptxas said."""
    binary = folder / (source.name + ".o")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    done = subprocess.run(["nvcc", *NVCC_FLAGS, *codes, "-c", str(source), "-o", str(binary)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout)
    return binary, done.stdout


def binaries(paths: list[Path], archs: list[str], folder: Path) -> tuple[list[Path], str]:
    """Files with kernels in them, and the log of those compiled here."""
    found, log = [], ""
    for path in paths:
        if path.suffix == ".cu":
            binary, said = compile_source(path, archs, folder)
            found.append(binary)
            log += said
        elif path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                found += [Path(wheel.extract(name, folder)) for name in wheel.namelist() if name.endswith(".so")]
        else:
            found.append(path)
    return found, log


def read_kernels(binary: Path, spills: dict[tuple[str, str], int]) -> list[parse.Kernel]:
    """Every kernel of a file, in every architecture it was compiled for."""
    env = {**os.environ, "NVDISASM_PATH": str(Path(find_tool("nvdisasm")).parent)}
    env["PATH"] = f"{env['NVDISASM_PATH']}:{env.get('PATH', '')}"
    cuobjdump = find_tool("cuobjdump")
    usage = subprocess.run([cuobjdump, "--dump-resource-usage", str(binary)],
                           check=True, capture_output=True, text=True, env=env).stdout  # fmt: skip
    with subprocess.Popen([cuobjdump, "--dump-sass", str(binary)], stdout=subprocess.PIPE, text=True, env=env) as dump:
        code = parse.sass(dump.stdout)
    if dump.returncode:
        raise SystemExit(f"{cuobjdump} --dump-sass {binary} failed with status {dump.returncode}")
    resources = list(parse.resource_usage(usage))
    demangled = subprocess.run(["c++filt"], input="\n".join(name for _, name, _ in resources),
                               check=True, capture_output=True, text=True).stdout.splitlines()  # fmt: skip
    kernels = []
    for (arch, mangled, figures), name in zip(resources, demangled):
        counts = code[arch, mangled]
        kernels.append(parse.Kernel(arch, parse.short_name(name), figures["REG"], figures["SHARED"], figures["STACK"],
                                    spills.get((arch, mangled)), counts, counts["all"]))  # fmt: skip
    return kernels


def nvcc_release() -> str:
    """ "nvcc 13.0.88" """
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"V([\d.]+)", said)
    return f"nvcc {found[1]}" if found else "nvcc of unknown release"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="wheels, .so, .o or .cu")
    parser.add_argument("--arch", nargs="+", default=["80", "90a"], help="for sources: architectures to compile for")
    parser.add_argument("--log", type=Path, help="output of the build, for bytes spilled")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="fail where a kernel is not what its role or its row says")
    mode.add_argument("--update", action="store_true", help="rewrite the tables of the architectures found")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        found, log = binaries(args.paths, args.arch, Path(folder))
        spills = parse.ptxas_log(log + (args.log.read_text() if args.log else ""))
        kernels = [kernel for binary in found for kernel in read_kernels(binary, spills)]
    if not kernels:
        raise SystemExit(f"no kernel in {', '.join(map(str, args.paths))}")

    compiler, wrong = nvcc_release(), []
    whole = all(path.suffix in (".whl", ".so") for path in args.paths)
    if args.update and not whole:
        raise SystemExit("tables are written from a whole build: give the wheel or _C.so")
    for arch in sorted({k.arch for k in kernels}, key=rules.capability):
        here = [k for k in kernels if k.arch == arch]
        path = table.FOLDER / f"{arch}.txt"
        text = table.format_table(here, compiler)
        print(text)
        if args.update:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"{path.relative_to(ROOT)} written\n")
        expected = path.read_text() if path.exists() and not args.update else None
        wrong += table.compare(here, arch, expected, whole=whole)
        if expected and table.compiler_of(expected) != compiler:
            print(f"the table of {arch} was written with {table.compiler_of(expected)}, this is {compiler}")
    hot = sum(1 for k in kernels if (role := rules.role_of(k.name)) and role.hot)
    print(f"{len(kernels)} kernels, {hot} of them hot; {len(wrong)} problems")
    for line in wrong:
        print(f"  {line}")
    if wrong and args.check:
        raise SystemExit(f"if these are as they should be, rewrite the tables: {table.UPDATE}")


if __name__ == "__main__":
    sys.exit(main())
