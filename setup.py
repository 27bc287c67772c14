"""Builds codegen_fast._C with CMake and Ninja; everything else about the package stands in pyproject.toml.

The build folder is kept (build/<python tag>), so that a second build compiles what changed and nothing else.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures and builds the CMake project, and installs _C where setuptools wants the extension."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            # pip's isolated environments come and go with their ninja; the object files stay valid.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            # Passed even where unset: an earlier build's choice must not live on in the cache.
            f"-DCODEGEN_FAST_CUDA={env.get('CODEGEN_FAST_CUDA') or 'auto'}",
            f"-DCODEGEN_FAST_CUDA_ARCHS={env.get('CODEGEN_FAST_CUDA_ARCHS', '')}",
        ]  # fmt: skip
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=env)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(target.parent)], check=True, env=env)


setup(ext_modules=[Extension("codegen_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
