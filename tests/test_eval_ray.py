"""Samples from the workers of a Ray cluster: a local one of two processes, of which one is killed.

The cluster is started once for all tests here, since that takes seconds.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from codegen_fast.cli import main
from codegen_fast.demo import demo_model_path
from codegen_fast.evaluation import mtpb
from codegen_fast.evaluation.ray_workers import RayWorkers
from codegen_fast.evaluation.samplers import SamplerSpec
from codegen_fast.evaluation.settings import preset
from codegen_fast.evaluation.units import Unit

ray = pytest.importorskip("ray", reason="the package ray is not installed")

PROBLEMS = [{"task_id": f"T/{i}", "prompt": f"def f{i}(x):\n", "entry_point": f"f{i}", "test": "pass"}
            for i in range(6)]
SETTINGS = {**preset("humaneval", "quick"), "benchmark": "humaneval", "max_new_tokens": 40}
SPEC = SamplerSpec(str(demo_model_path()), "float32", None, "cpu", 1, SETTINGS, PROBLEMS)
UNITS = [Unit(0.6, problem, 0, tuple(range(70))) for problem in range(6)]


def in_order(records):
    return sorted((json.dumps(record, sort_keys=True) for _, record in records))


@pytest.fixture(scope="module")
def workers():
    with RayWorkers(SPEC, "local", 2) as workers:
        yield workers


def test_one_of_two_workers_dies_and_nothing_is_lost(workers):
    """It is killed with a unit under way, as by the system that is short of memory."""
    records = []
    for record in workers.run(UNITS):
        records.append(record)
        if len(records) == 1:
            assert os.getpid() not in workers.pids.values()
            os.kill(next(iter(workers.pids.values())), signal.SIGKILL)  # it has been given its next unit
    assert len(records) == 6 * 70
    assert in_order(records) == in_order(SPEC.build().run(UNITS))


def test_the_last_unit_of_a_dead_worker_goes_to_an_idle_one(workers, monkeypatch):
    """No replacement is allowed here, and none is needed."""
    monkeypatch.setattr(workers, "_replacements", 0)
    long, short = Unit(0.6, 0, 0, tuple(range(64))), Unit(0.6, 1, 0, (0,))
    workers.use(replace(SPEC, settings={**SETTINGS, "max_new_tokens": 900, "stop": "none"}))
    records, killed = [], False
    for record in workers.run([long, short]):
        records.append(record)
        if not killed and record[1]["task_id"] == "T/1":
            os.kill(next(iter(workers.pids.values())), signal.SIGKILL)  # the first that began has the first unit
            killed = True
    assert sorted(record["task_id"] for _, record in records) == ["T/0"] * 64 + ["T/1"]
    workers.use(SPEC)


def test_conversations_too(workers):
    problems = [{"id": "1", "prompts": ["Add {a}.", "Print it."], "inputs": [{"a": 1}, {"a": 2}], "outputs": [1, 2]}]
    settings = {**preset("mtpb", "quick"), "benchmark": "mtpb", "max_gen_length": 16}
    spec = replace(SPEC, settings=settings, problems=problems)
    units = [Unit(0.8, problem, case, (0, 1, 4)) for problem, case in mtpb.cases(problems)]
    workers.use(spec)
    assert in_order(workers.run(units)) == in_order(spec.build().run(units))


def test_what_a_sampler_raises_comes_out(workers):
    workers.use(replace(SPEC, model="/no/such/folder"))
    with pytest.raises(OSError, match="there is no folder '/no/such/folder'"):
        list(workers.run(UNITS))
    workers.use(replace(SPEC, problems=PROBLEMS[:1]))
    with pytest.raises(IndexError):
        list(workers.run(UNITS[3:]))


def test_workers_that_keep_dying_are_an_error(workers, monkeypatch):
    workers.use(SPEC)
    monkeypatch.setattr(workers, "_replacements", 0)
    killed = set()
    with pytest.raises(OSError, match="workers keep dying"):
        for _ in workers.run(UNITS):
            for pid in set(workers.pids.values()) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)


def test_a_cluster_that_cannot_be_reached(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **options: (_ for _ in ()).throw(ConnectionError("nobody answers")))
    assert main(["eval", "humaneval", "--out", str(tmp_path), "--ray", "127.0.0.1:1", "--device", "cpu",
                 "--limit", "1"]) == 2
    err = capsys.readouterr().err
    assert "--ray 127.0.0.1:1: the cluster cannot be reached: nobody answers" in err and err.count("\n") == 1


def test_the_command_writes_what_one_process_writes(tmp_path, without_gpus):
    """In a process of its own, with a cluster of its own; from a folder with something of the package's name in it."""
    (tmp_path / "codegen_fast").mkdir()
    (tmp_path / "codegen_fast" / "__init__.py").write_text("raise ImportError('another package')")
    shutil.copytree(demo_model_path(), tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    options = ["eval", "humaneval", "--data", str(tmp_path / "data.jsonl"), "--n", "3", "--max-new-tokens", "16"]
    subprocess.run([sys.executable, "-m", "codegen_fast", *options, "--model", "./model", "--out", "ray", "--ray", "local",
                    "--workers", "2", "--threads", "1"], env=without_gpus, cwd=tmp_path, check=True, timeout=300)
    assert main([*options, "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "ray" / "samples-t0.2.jsonl").read_bytes() == \
        (tmp_path / "here" / "samples-t0.2.jsonl").read_bytes()


def test_a_cluster_too_small_for_the_workers(workers, monkeypatch):
    monkeypatch.setattr(workers, "_wanted", 3)
    with pytest.raises(OSError, match="the cluster has 2 CPUs for --workers 3"):
        workers._require_room(SPEC, "local")
    with pytest.raises(OSError, match="the cluster has 0 GPUs"):
        monkeypatch.setattr(workers, "_wanted", 1)
        workers._require_room(replace(SPEC, device="cuda"), "local")
