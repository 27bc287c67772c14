"""What the compiled part asks of a machine: no torch, no libraries but the system's, and no recent C library."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codegen_fast import _C, ops

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.versions import PYTHONS, interpreters  # noqa: E402

# All that manylinux lets a wheel expect; the C++ runtime only where it could not be linked in.
SYSTEM = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
# That of torch's own wheels (manylinux_2_28): an older one would serve nobody.
NEWEST_GLIBC = (2, 28)

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("readelf"), reason="looks with readelf")


def readelf(option: str) -> str:
    return subprocess.run(["readelf", "--wide", option, _C.__file__], capture_output=True, text=True, check=True).stdout


def test_it_links_the_systems_libraries_alone():
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("--dynamic")))
    allowed = SYSTEM if ops.build_info()["portable_link"] == "on" else SYSTEM | {"libstdc++.so.6"}
    assert {name for name in needed if not name.startswith("ld-linux")} <= allowed


def test_it_names_no_folder_of_the_machine_that_built_it():
    assert not re.search(r"RPATH|RUNPATH", readelf("--dynamic"))


def test_it_loads_where_torch_does():
    """On a Linux as old as torch's wheels allow."""
    if ops.build_info()["portable_link"] != "on":
        pytest.skip("linked with this system's C++ runtime: CMake found no static one, or was told to")
    if ops.build_info()["cuda"].startswith("on "):
        pytest.skip("CUDA's own runtime asks for what it was linked with: such a build is for the machine that made it")
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", readelf("--version-info"))}
    assert versions and max(versions) <= NEWEST_GLIBC


def test_it_exports_its_initialisation_and_nothing_to_be_mixed_up_with():
    """No function that another library's call could end in."""
    if ops.build_info()["portable_link"] != "on":
        pytest.skip("linked with this system's C++ runtime, whose templates everybody shares")
    defined = re.findall(r"FUNC +(?:GLOBAL|WEAK) +DEFAULT +\d+ (\S+)", readelf("--dyn-syms"))
    assert defined == ["PyInit__C"] and "UNIQUE" not in readelf("--dyn-syms")


def test_the_oldest_python_compiles_the_sources():
    """That of pyproject.toml; python -m reliability.versions runs them on it."""
    oldest = interpreters((PYTHONS[0],))
    if not oldest:
        pytest.skip(f"no Python {PYTHONS[0]} here")
    code = "import pathlib, sys\nfor p in pathlib.Path(sys.argv[1]).rglob('*.py'): compile(p.read_text(), str(p), 'exec')"
    done = subprocess.run([oldest[PYTHONS[0]], "-c", code, Path(_C.__file__).parent], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
