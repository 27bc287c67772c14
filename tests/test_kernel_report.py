"""tools/kernel_report: its parsers on recorded output of nvcc 13.0 and cuobjdump 13.5, and what its check finds."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))

from tools.kernel_report import parse, rules, table  # noqa: E402

MANGLED = "_ZN12codegen_fast4cuda41_GLOBAL__N__ed650027_4_t_cu_2f1cbc53_990413productINS0_4bf16ELi4EEEvNS1_6ParamsE"

RESOURCE_USAGE = f"""
Fatbin ptx code:
================
arch = sm_80
code version = [9,0]
ptxasOptions = -v  --fmad false 

Fatbin elf code:
================
arch = sm_80
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function {MANGLED}:
  REG:28 STACK:256 SHARED:0 LOCAL:0 CONSTANT[0]:376 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Common:
  GLOBAL:0
 Function {MANGLED}:
  REG:32 STACK:256 SHARED:1024 LOCAL:0 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
"""  # noqa: W291

SASS = f"""
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

\tcode for sm_90a
\t.target\tsm_90a

\t\tFunction : {MANGLED}
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_ACCELERATORS EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                                    /* 0x00000a00ff017b82 */
                                                                                             /* 0x000fe20000000800 */
        /*0010*/              @!P0 STS.64 [RZ], R2 ;                                         /* 0x00000002ff008388 */
        /*0020*/                   ACQBULK ;                                                 /* 0x000000000000782e */
        /*0030*/              @UP0 UBLKCP.S.G [UR8], [UR4], UR6 ;                           /* 0x00000004080003ba */
        /*0040*/                   LDSM.16.M88.4 R4, [R2+0x400] ;                            /* 0x000400000204783b */
        /*0050*/                   HMMA.16816.F32.BF16 R8, R4, R12, R8 ;                     /* 0x0000000c0408723c */
        /*0060*/                   LDG.E.128.CONSTANT R16, desc[UR4][R2.64] ;                /* 0x0000000402107981 */
        /*0070*/                   LDG.E R16, desc[UR4][R2.64] ;                             /* 0x0000000402107981 */
        /*0080*/              @!PT LDS RZ, [RZ] ;                                            /* 0x00000000fffff984 */
        /*0090*/                   STL.128 [R1], R16 ;                                       /* 0x0000001001007387 */
        /*00a0*/                   BRA 0xa0;
"""

PTXAS = f"""
[3/40] Building CUDA object CMakeFiles/codegen_fast_cuda.dir/csrc/cuda/t.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{MANGLED}' for 'sm_80'
ptxas info    : Function properties for {MANGLED}
    256 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 256 bytes cumulative stack size, 376 bytes cmem[0]
ptxas info    : Compiling entry function '{MANGLED}' for 'sm_90a'
ptxas info    : Function properties for {MANGLED}
    256 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def test_resources_of_every_architecture_are_read():
    found = parse.resource_usage(RESOURCE_USAGE)
    assert [(arch, name, r["REG"], r["STACK"], r["SHARED"]) for arch, name, r in found] == [
        ("sm_80", MANGLED, 28, 256, 0),
        ("sm_90a", MANGLED, 32, 256, 1024),
    ]


def test_instructions_are_counted_by_what_they_move():
    assert parse.sass(SASS.splitlines(keepends=True)) == {
        ("sm_90a", MANGLED): {"all": 11, "ACQBULK": 1, "UBLKCP": 1, "LDSM": 1, "HMMA": 1, "LDG.128": 1, "STL": 1}
    }


def test_spills_are_read_from_the_log_of_a_build():
    assert parse.ptxas_log(PTXAS) == {("sm_80", MANGLED): 28, ("sm_90a", MANGLED): 0}


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("codegen_fast::cuda::(anonymous namespace)::advance_rows(codegen_fast::cuda::Params)", "advance_rows"),
        (
            "void codegen_fast::cuda::product<codegen_fast::cuda::bf16, codegen_fast::cuda::(anonymous namespace)::"
            "Epilogue<codegen_fast::cuda::bf16, 2>, 4>(codegen_fast::cuda::Params, unsigned int)",
            "product<bf16, Epilogue<bf16, 2>, 4>",
        ),
    ],
)
def test_names_are_short(demangled, short):
    assert parse.short_name(demangled) == short


# ---- The check ---------------------------------------------------------------------------------

HOT = rules.Role("streaming product", r"product<", hot=True, uses=("HMMA",), uses_before_sm90=("LDGSTS",),
                 uses_from_sm90=("UBLKCP",))  # fmt: skip


def product(**changes) -> parse.Kernel:
    uses = Counter(HMMA=8, UBLKCP=1, ACQBULK=1)
    return dataclasses.replace(parse.Kernel("sm_90a", "product<f16, 1>", 60, 1024, 0, 0, uses), **changes)


@pytest.fixture
def expected(monkeypatch):
    """The table of a build that is as it should be."""
    monkeypatch.setattr(rules, "ROLES", (HOT,))
    return table.format_table([product()], "nvcc 13.0.88")


def test_a_table_is_read_as_it_was_written(expected):
    read = table.parse_table(expected, "sm_90a")["product<f16, 1>"]
    assert (read.registers, read.shared, read.stack, read.spill, read.local) == (60, 1024, 0, 0, 0)
    assert set(+read.uses) == {"HMMA", "UBLKCP", "ACQBULK"}
    assert table.compiler_of(expected) == "nvcc 13.0.88"


def test_the_same_build_passes(expected):
    assert table.compare([product()], "sm_90a", expected) == []
    assert table.compare([product(registers=64)], "sm_90a", expected) == []  # of the same unit of 8
    assert table.compare([product(registers=40)], "sm_90a", expected) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (product(registers=65), "65 registers, 60 in the table (up to 64 pass)"),
        (product(spill=8, uses=product().uses + Counter(STL=2)), "hot, with 8 bytes spilled (2 instructions"),
        (product(stack=16, uses=product().uses + Counter(LDL=1)), "hot, with an array in local memory (1 instructions"),
        (product(shared=2048), "2048 bytes of shared memory, 1024 in the table"),
        (product(uses=Counter(UBLKCP=1, ACQBULK=1)), "a streaming product has no HMMA"),
        (product(uses=Counter(HMMA=8, LDGSTS=4, ACQBULK=1)), "a streaming product has no UBLKCP"),
        (product(uses=Counter(HMMA=8, UBLKCP=1)), "a streaming product has no ACQBULK"),
        (product(name="product<f16, 2>"), "not in the table"),
        (product(name="other"), "no role in tools/kernel_report/rules.py matches its name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_check_finds(expected, changed, words):
    assert any(words in line for line in table.compare([changed], "sm_90a", expected))


def test_a_kernel_that_is_gone_is_named(expected):
    assert table.compare([], "sm_90a", expected) == ["sm_90a product<f16, 1>: in the table, but not in the build"]
    assert table.compare([], "sm_90a", expected, whole=False) == []


def test_two_kernels_of_one_name_are_refused(expected):
    assert "two kernels of this name" in table.compare([product(), product()], "sm_90a", expected)[0]


def test_without_a_table_the_roles_decide(expected):
    assert table.compare([product()], "sm_90a", None) == []
    assert table.compare([product(uses=Counter())], "sm_90a", None) != []


def test_below_sm90_a_kernel_copies_with_ldgsts_and_has_no_dependency_wait():
    assert HOT.needs("sm_80") == ("HMMA", "LDGSTS")
    assert HOT.needs("sm_90a") == ("HMMA", "UBLKCP", "ACQBULK")


def test_every_kernel_of_the_committed_tables_has_a_role_and_what_it_needs():
    tables = sorted(table.FOLDER.glob("*.txt"))
    assert {path.stem for path in tables} >= {"sm_80", "sm_90a"}
    for path in tables:
        kernels = list(table.parse_table(path.read_text(), path.stem).values())
        assert table.compare(kernels, path.stem, path.read_text()) == []
