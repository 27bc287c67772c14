"""The commands behind the pages on full sizes and saves, at a size for every day."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))

from reliability import saving, sizes  # noqa: E402
from reliability.children import run_module  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def test_a_checkpoint_of_the_true_width_loads_within_its_memory(tmp_path):
    """2B's width and one layer, as .bin in several files. About 8 s on a quiet machine."""
    folder = tmp_path / "2B"
    run_module("tools.make_checkpoint", "2B", str(folder), "--layers", "1", "--format", "bin", "--shard-gb", "0.3", check=True,
               capture_output=True)  # fmt: skip
    assert len(list(folder.glob("pytorch_model-*-of-*.bin"))) > 1 and (folder / "pytorch_model.bin.index.json").exists()
    case = sizes.measure(folder, "2B", "bin", "int4", cold=True)
    for file in folder.iterdir():  # 680 MB that pytest would keep
        file.unlink()
    assert sizes.check(case) == [] and case["samples"] > 20 and len(case["tokens"]) == 5
    json.dumps(case)
    assert sizes.check({**case, "peak_bytes": case["allowed_bytes"] + 1, "generated": False}) == [
        f"2B bin int4: peak {sizes.gigabytes(case['allowed_bytes'])}, allowed {sizes.gigabytes(case['allowed_bytes'])}",
        "2B bin int4: no tokens, or ids outside the vocabulary"]


def test_a_stopped_run_goes_on(tmp_path):
    kept = sizes.Kept(tmp_path / "cases")
    kept.add({"model": "2B", "layout": "bin", "type": "int8", "cold": True})
    again = sizes.Kept(tmp_path / "cases")
    assert again.cases == kept.cases and again.has(model="2B", type="int8") and not again.has(model="2B", type="int4")


def test_a_disk_without_room_gets_as_many_layers_as_fit():
    assert sizes.layers_that_fit("16B", 100 * 10**9) == 34
    assert 10 < sizes.layers_that_fit("16B", 20 * 10**9) < 34 and sizes.layers_that_fit("16B", 0) == 1


def test_float16_that_is_larger_than_the_machine_is_told_what_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes.os, "sysconf", lambda name: 2**12)  # of a machine of 16 MB; the one here may hold it
    assert sizes.types_of(sizes.config_of("16B", "float16")) == ["int8", "int4"]


def test_saves_that_are_killed_leave_the_old_or_the_new(tmp_path, monkeypatch):
    """A few of the recorded run's, and two that have ended before; tests/test_save_replacement.py kills at every step."""
    rng, late = random.Random(1), iter([3.0, 3.0])
    monkeypatch.setattr(saving.random.Random, "uniform", lambda self, low, high: next(late, None) or 0.9 * high * rng.random())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = saving.kill_saves(tmp_path, kills=6, seed=1)
    finally:
        torch.set_num_threads(threads)
    assert found["mixed"] == 0 and found["old"] + found["new"] == 6 and not found["left_behind_after_the_next_save"]
    assert found["ended_before_the_kill"] >= 2
    assert all(found["states_that_come_back"].values())
