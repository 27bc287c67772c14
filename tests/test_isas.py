"""The kernels of every instruction set that this machine executes, from C++ and without Python: tests/isa."""

from __future__ import annotations

import shutil

import pytest
from isa import run

from codegen_fast import ops


def test_what_this_machine_executes(capsys):
    if why := run.missing("cmake", "ninja"):
        pytest.skip(why)
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("there is no C++ compiler")
    run.native()  # raises Failed with the program's output
    report = capsys.readouterr().out
    assert f"executes {', '.join(ops.cpu_isas())};" in report
    for isa in ops.cpu_isas():
        assert f"passed: {isa} " in report
