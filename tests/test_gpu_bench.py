"""The benchmarks of a GPU, on a machine without one: what their tables are made of, and that every call runs.

No figure in them is a measurement; what is committed under bench/results must come from a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

from bench.gpu import decode, draw, gates, micro, prefill, proofs, results, shapes, summary  # noqa: E402
from bench.gpu.within import LEFT_OUT  # noqa: E402

RESULTS = ROOT / "bench" / "results"


# ---- GATES.md ----------------------------------------------------------------------------------


def test_the_gates_in_the_repository_are_what_its_json_files_give():
    assert (RESULTS / "GATES.md").read_text() == gates.markdown(results.read(RESULTS))


def test_without_json_files_no_gate_has_a_figure():
    assert [figure for _, figure, _ in gates.evaluate([])] == [None] * len(gates.GATES)
    assert gates.markdown([]).count("| not measured |  |  |  |  |") == len(gates.GATES)


def result(stage, rows, machine="NVIDIA H200", date="2030-01-01T00:00:00+00:00"):
    return {"stage": stage, "machine": {"name": machine}, "commit": "abc", "date": date, "rows": rows,
            "ceilings": {"read": 4e12, "float16": 8e14, "int8": 1.6e15}}  # fmt: skip


def decoded(engine, kind, seconds, batch=1, context=512, nbytes=8e9):
    return {"model": "6B", "engine": engine, "kind": kind, "batch": batch, "context": context, "nbytes": nbytes,
            "samples": [seconds, 2 * seconds, seconds / 2], "read_bandwidth": 4e12}  # fmt: skip


DECODE = result(
    "decode-6B",
    [decoded("codegen_fast", "float16", 4e-3, nbytes=14.4e9), decoded("codegen_fast", "int8", 2.5e-3),
     decoded("transformers eager", "float16", 1e-3), decoded("transformers compiled, reduce-overhead", "float16", 6e-3),
     decoded("transformers compiled, max-autotune", "float16", 5e-3),
     decoded("codegen_fast", "float16", 9e-3, batch=8), decoded("codegen_fast", "int8", 4e-3, batch=8),
     decoded("transformers compiled, reduce-overhead", "float16", 8e-3, batch=8)],
)  # fmt: skip
MICRO = result(
    "micro",
    [{"model": "6B", "op": "attention", "phase": "decode", "kind": "float16", "engine": engine, "nbytes": nbytes,
      "operations": 1e9, "read_bandwidth": 4e12, "samples": [seconds]}
     for engine, nbytes, seconds in (("codegen_fast", 40e6, 12e-6), ("codegen_fast", 1e6, 1e-3), ("SDPA", 40e6, 1e-3))],
)  # fmt: skip
PREFILL = result(
    "prefill",
    [{"model": "6B", "engine": engine, "kind": kind, "context": context, "samples": [seconds]}
     for engine, kind, context, seconds in (
         ("codegen_fast", "float16", 2000, 0.04), ("codegen_fast", "int8", 2000, 0.03),
         ("torch, composed", "float16", 2000, 0.036), ("transformers eager", "float16", 2000, 0.2),
         ("codegen_fast", "float16", 128, 0.01), ("torch, composed", "float16", 128, 0.02))],
)  # fmt: skip
TESTS = result("tests", [{"test": f"{name}[cuda-float16]", "outcome": outcome} for name, outcome in (
    ("test_a_thousand_steps_do_not_drift", "passed"), ("b", "left out"), ("c", "skipped"))])  # fmt: skip
SANITIZE = result("sanitize", [{"tool": "memcheck", "reports": 0, "finished": True},
                               {"tool": "racecheck", "reports": None, "finished": False}])  # fmt: skip


def figure_of(words, *found):
    return next(figure for gate, figure, _ in gates.evaluate(list(found)) if words in gate.text)


@pytest.mark.parametrize(
    ("words", "found", "figure"),
    [
        ("6B float16, batch 1, context 512: share", DECODE, 0.9),
        ("6B int8, batch 1, context 512: share", DECODE, 0.8),
        ("int8 over float16", DECODE, 1.6),
        ("6B, batch 1, context 512: over compiled", DECODE, 1.25),  # the fastest mode against the slower of ours
        ("6B, every batch and context", DECODE, 8 / 9),
        ("decode attention", MICRO, 40e6 / 12e-6 / 4e12),  # of caches over 32 MB
        ("prefill 6B float16", PREFILL, 0.9),
        ("prefill 6B, 2000 tokens", PREFILL, 4 / 3),
        ("all tests", TESTS, 1),
        ("without drift", TESTS, 0),
        ("graph = eager", TESTS, None),
        ("memcheck", SANITIZE, 0),
        ("racecheck", SANITIZE, None),
        ("synccheck", SANITIZE, None),
        ("decode 2B float16", DECODE, None),
    ],
)
def test_figures_follow_from_rows(words, found, figure):
    assert figure_of(words, found) == (None if figure is None else pytest.approx(figure))


def test_rows_that_were_wrong_or_not_timed_give_no_figure():
    rows = [{**row, "samples": []} for row in DECODE["rows"]]
    wrong = [{**{k: v for k, v in row.items() if k != "samples"}, "wrong": "error"} for row in MICRO["rows"]]
    assert figure_of("6B float16", result("decode-6B", rows)) is None
    assert figure_of("decode attention", result("micro", wrong)) is None


def test_the_latest_h200_counts():
    old, new = (result("micro", [], date=f"203{i}-01-01") for i in range(2))
    h100 = result("micro", [], machine="NVIDIA H100 80GB HBM3", date="2039-01-01")
    assert gates.latest([old, new, h100], "micro") is new
    assert gates.latest([h100], "micro") is h100


def test_files_are_read_as_they_were_written_and_rehearsals_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    for found in (DECODE, MICRO, PREFILL):
        results.write(found["stage"], found)
    results.write("tests", {**TESTS, "rehearsal": True})
    assert (tmp_path / "gpu-h200-decode-6B.json").exists() and (tmp_path / "rehearsal-h200-tests.json").exists()
    found = results.read(tmp_path)
    assert sorted(r["stage"] for r in found) == ["decode-6B", "micro", "prefill"]
    text = gates.markdown(found)
    assert "| at least 88.0% | 90.0% | yes | NVIDIA H200 | abc | 2030-01-01 |" in text
    assert "| at least 84.0% | 80.0% | **no** |" in text
    assert "all tests on cuda: failures | at most 0 | not measured |" in text
    assert any("MISSED" in line for line in summary.lines())


# ---- Proofs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for names in gates.PROOFS.values() for name in names if name != "[cuda"])
def test_every_proof_is_a_test_that_exists(name):
    files = [path for path in (ROOT / "tests").glob("test_*.py") if path.name != Path(__file__).name]
    assert any(path.stem == name or f"def {name}" in path.read_text() for path in files)


def test_outcomes_are_read_from_junit():
    junit = f"""<testsuites><testsuite><testcase classname="tests.a" name="x[cuda]" time="0.5"/>
    <testcase classname="tests.a" name="y[cuda]"><failure message="no">trace</failure></testcase>
    <testcase classname="tests.a" name="z[cuda]"><skipped message="no reference"/></testcase>
    <testcase classname="tests.a" name="w[cuda]"><skipped message="{LEFT_OUT}"/></testcase></testsuite></testsuites>"""
    assert [row["outcome"] for row in proofs.tests(junit)] == ["passed", "failed", "skipped", "left out"]
    assert proofs.tests(junit)[0]["test"] == "tests.a::x[cuda]"


@pytest.mark.parametrize(
    ("log", "reports", "finished"),
    [
        ("40 passed, 9 skipped in 60 s\n========= ERROR SUMMARY: 0 errors\n", 0, True),
        ("40 passed in 60 s\n========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)\n", 3, True),
        ("40 passed in 60 s\n========= ERROR SUMMARY: 1 error\n", 1, True),
        ("1 failed, 40 passed in 60 s\n========= ERROR SUMMARY: 0 errors\n", 0, False),
        ("........", None, False),  # cut off
        ("no tests ran\n========= ERROR SUMMARY: 0 errors\n", 0, False),
    ],
)
def test_reports_of_the_sanitizer_are_read(log, reports, finished):
    row = proofs.sanitized("memcheck", log)
    assert (row["reports"], row["finished"]) == (reports, finished)


# ---- Plots -------------------------------------------------------------------------------------


class Axes:
    """Takes every call that a plot makes."""

    def __init__(self):
        self.calls = []

    def get_legend_handles_labels(self):
        return [], []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args))


def test_plots_hold_what_was_measured():
    axes = Axes()
    assert draw.tokens_a_second([DECODE], axes) == 4
    rates = {round(args[1]) for name, args in axes.calls if name == "plot"}
    assert rates == {250, 400, 1000, 200}  # ours in both types, eager, the faster of the compiled ones
    assert draw.roofline(MICRO, Axes()) == 2
    assert draw.tokens_a_second([], Axes()) == 0


# ---- The stages --------------------------------------------------------------------------------


def test_without_a_gpu_every_stage_says_so(tmp_path):
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    nvidia_smi.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    command = [ROOT / "bench" / "gpu_check.sh", "build", "tests", "micro", "decode-6B", "no-stage"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert done.stdout.count("no GPU: nvidia-smi is missing or lists none") == 4
    assert "no such stage: no-stage" in done.stdout
    table = done.stdout.split("== summary\n")[1].splitlines()
    assert [line.split()[0] for line in table[-5:]] == ["build", "tests", "micro", "decode-6B", "no-stage"]
    assert list((tmp_path / "out").iterdir()) == []


def test_cases_cover_every_op_and_count_bytes():
    found = list(shapes.all_cases(cases.MODELS))
    assert len({case.name for case in found}) == len(found)
    every = {"input_product", "output_product", "lm_head", "attention", "embed", "layer_norm", "sample"}
    assert {case.op.split()[0] for case in found} == every
    one = next(case for case in found if (case.dims.name, case.op, case.kind) == ("6B", "input_product", "float16"))
    assert one.nbytes == pytest.approx(7 * 4096 * 4096 * 2, rel=1e-3)
    assert one.operations == 2 * 7 * 4096 * 4096


@pytest.fixture
def rehearsed(tmp_path, monkeypatch):
    """Runs a benchmark with --rehearse and gives its result."""
    monkeypatch.setenv("OUT", str(tmp_path))
    torch.manual_seed(0)

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, "--rehearse", *arguments])
        module.main()
        (path,) = tmp_path.glob("*.json")
        found = json.loads(path.read_text())
        assert path.name.startswith("rehearsal-") and found["rehearsal"] and results.read(tmp_path) == []
        assert not any(row.get("samples") for row in found["rows"])
        return found

    return run


def test_micro_runs_on_the_emulator(rehearsed):
    found = rehearsed(micro, "--op", "input_product", "attention", "embed", "sample")
    assert {row["op"].split()[0] for row in found["rows"]} == {"input_product", "attention", "embed", "sample"}
    assert not [row for row in found["rows"] if "wrong" in row]
    assert {row["engine"] for row in found["rows"]} >= {"codegen_fast", "torch, composed", "SDPA"}


def test_decode_runs_on_the_emulator(rehearsed):
    found = rehearsed(decode)
    assert {row["engine"] for row in found["rows"]} == {"codegen_fast", "codegen_fast.generate", "transformers eager"}
    assert {step["kind"] for step in found["steps"]} == {"float16", "int8"}
    assert found["steps"][0]["launches"]["input_product"] == 2  # of a model of two layers


def test_prefill_runs_on_the_emulator(rehearsed):
    found = rehearsed(prefill)
    assert {row["engine"] for row in found["rows"]} == {"codegen_fast", "torch, composed", "transformers eager"}
