"""codegen-fast eval mtpb: the multi-turn protocol, its cache, its figures, on problems made for these tests."""

import json
import math

import pytest
import torch

from codegen_fast import AutoModelForCausalLM, AutoTokenizer, truncate
from codegen_fast.cli import main
from codegen_fast.demo import demo_model_path
from codegen_fast.evaluation import mtpb
from codegen_fast.evaluation.rows import Completer, problem_seed
from codegen_fast.evaluation.settings import Knobs, preset
from codegen_fast.evaluation.units import Unit

PROBLEMS = [
    {"id": "1", "name": "sum", "category": "math", "max_gen_length": 24,
     "prompts": ["Write a function that adds {a} to its argument.", "Print its result for {b}."],
     "inputs": [{"a": 1, "b": 2}, {"a": 5, "b": "7"}], "outputs": [3, 12]},
    {"id": "10", "name": "lists", "category": "array", "max_gen_length": 16,
     "prompts": ["Assign the list \"{A}\" to a variable named \"x\".", "Sort {{x}}.", "Print the list."],
     "inputs": [{"A": [2, 1]}, {"A": []}], "outputs": [[1, 2], [], "an output too many"]},
    {"id": "2", "name": "word", "category": "string", "prompts": ["Print \"{word}\"."],
     "inputs": [{"word": "a b"}], "outputs": ["a b"]},
]
TEMPERATURE = 0.8
OPTIONS = ["--n", "3", "--temperature", str(TEMPERATURE), "--max-gen-length", "12", "--dtype", "float32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "problems.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return file


def evaluate(*argv):
    assert main(["eval", "mtpb", *map(str, argv)]) == 0


def lines_of(folder, name=f"samples-t{TEMPERATURE}.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    evaluate("--data", data, "--out", folder, *OPTIONS, "--perplexity-samples", "2")
    return folder


@pytest.fixture(scope="module")
def demo():
    return (AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32),
            AutoTokenizer.from_pretrained(demo_model_path()))


def conversation_by_hand(model, tokenizer, problem, case, sample):
    """As the benchmark's script, one conversation at a time, nothing kept between turns."""
    history = "# Import libraries.\n\nimport numpy as np\n\n"
    parts = [history]
    for turn, prompt in enumerate(problem["prompts"]):
        parts.append(f"# {prompt.format(**problem['inputs'][case])}\n")
        ids = tokenizer("".join(parts), return_tensors="pt").input_ids
        out = model.generate(ids, do_sample=True, temperature=TEMPERATURE, top_p=0.95, top_k=0,
                             max_new_tokens=problem.get("max_gen_length", 12),
                             seed=problem_seed(0, problem["id"], case, turn), sample_offset=sample)
        # Tokens that end the text are shown, and cut off with what is behind them.
        parts += [truncate(tokenizer.decode(out[0, ids.shape[1]:]), "truncation") + "\n\n"]
    return parts


def test_conversations_are_those_of_the_protocol(whole, demo):
    lines = lines_of(whole)
    names = [(problem["id"], case, sample) for problem in PROBLEMS for case in range(len(problem["inputs"]))
             for sample in range(3)]
    assert [(line["id"], line["case"], line["sample"]) for line in lines] == names
    problems = {problem["id"]: problem for problem in PROBLEMS}
    for line in lines:
        problem = problems[line["id"]]
        assert line["prompts_completions"] == conversation_by_hand(*demo, problem, line["case"], line["sample"])
        assert line["completions"] == "".join(line["prompts_completions"])
        assert (line["input"], line["gold_output"]) == (problem["inputs"][line["case"]],
                                                        problem["outputs"][line["case"]])
    assert len({line["completions"] for line in lines}) > 10


def test_a_run_is_gone_on_with(whole, data, tmp_path):
    evaluate("--data", data, "--out", tmp_path, *OPTIONS, "--perplexity-samples", "2")
    file = tmp_path / f"samples-t{TEMPERATURE}.jsonl"
    lines = (whole / file.name).read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[i] for i in (14, 3, 4, 9)) + lines[0][:-20])
    evaluate("--data", data, "--out", tmp_path, *OPTIONS, "--perplexity-samples", "2")
    assert file.read_bytes() == (whole / file.name).read_bytes()


def test_the_cache_is_kept_between_turns(demo, monkeypatch):
    """Of the later prompts only what is new, and what was generated, goes through prefill."""
    sessions = []
    model, tokenizer = demo
    make = type(model).session
    monkeypatch.setattr(type(model), "session", lambda self, **options: sessions.append(make(self, **options))
                        or sessions[-1])
    settings = {**preset("mtpb", "quick"), "benchmark": "mtpb"}
    sampler = mtpb.Sampler(Completer(model, tokenizer, Knobs.of(settings)), PROBLEMS, settings)
    records, stats = [], []
    for _, record in sampler.run([Unit(0.8, 1, 0, (0, 1, 2))]):
        records.append(record)
        stats.append(sessions[0].stats)
    # The last turn's prompts, without the turn's own: all that prefill has computed before is known.
    before = sum(len(tokenizer("".join(record["prompts_completions"][:4])).input_ids) for record in records)
    assert stats[-1].reused_tokens >= before - 3
    assert len({record["completions"] for record in records}) > 1
    new = [own for record in records for own in record["prompts_completions"][:-1]]
    assert stats[-1].computed_tokens <= sum(len(tokenizer(part).input_ids) for part in new)


def test_prompt_perplexity_is_that_of_the_prompts_tokens(whole, demo):
    model, tokenizer = demo
    line = lines_of(whole)[3]  # problem 1, case 1, sample 0
    assert [("prompt_nll" in each) for each in lines_of(whole)[:3]] == [True, True, False]
    prompts = [part for part in line["prompts_completions"][1::2]]

    def nll(parts, asked):
        """Over one forward pass of all tokens."""
        ids = [tokenizer(part).input_ids for part in parts]
        logits = model(torch.tensor([sum(ids, [])])).logits[0].double().log_softmax(-1)
        total, at = 0.0, 0
        for part, own in zip(parts, ids):
            for token in own:
                total -= float(logits[at - 1, token]) if part in asked else 0.0
                at += 1
        return total

    assert line["prompt_tokens"] == sum(len(tokenizer(prompt).input_ids) for prompt in prompts)
    assert line["prompt_nll"] == pytest.approx(nll(line["prompts_completions"][:-1], prompts), rel=1e-5)
    assert line["single_turn_prompt_nll"] == pytest.approx(nll([mtpb.PREFIX, *prompts], prompts), rel=1e-5)
    summary = json.loads((whole / "summary.json").read_text())
    scored = [each for each in lines_of(whole) if "prompt_nll" in each]
    assert len(scored) == 10
    assert summary["prompt_perplexity"][str(TEMPERATURE)]["multi_turn"] == pytest.approx(math.exp(
        sum(each["prompt_nll"] for each in scored) / sum(each["prompt_tokens"] for each in scored)))


def test_single_turn_gives_all_prompts_at_once(data, tmp_path):
    evaluate("--data", data, "--out", tmp_path, *OPTIONS, "--single-turn")
    lines = lines_of(tmp_path)
    assert lines[0]["prompts_completions"][1] == ("# Write a function that adds 1 to its argument.\n"
                                                  "# Print its result for 2.\n")
    assert all(len(line["prompts_completions"]) == 3 for line in lines)
    assert all(line["tokens"] <= 48 for line in lines)
    assert "prompt_nll" not in lines[0] and lines[0]["single_turn_prompt_nll"] > 0


def test_pass_rates(whole, data, tmp_path, capsys):
    """Right solutions take the samples' place; the rates are of all programs, by turns and by problem."""
    evaluate("--data", data, "--out", tmp_path, *OPTIONS, "--perplexity-samples", "2")
    solutions = {"1": "print({a} + int('{b}'))", "10": "print(sorted({A}))", "2": "print('{word}')"}
    lines = lines_of(tmp_path)
    for line in lines:
        right = line["sample"] == 0 or line["id"] == "2"
        line["completions"] = solutions[line["id"]].format(**line["input"]) if right else "print('wrong')"
    (tmp_path / f"samples-t{TEMPERATURE}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    evaluate("--data", data, "--out", tmp_path, *OPTIONS, "--perplexity-samples", "2", "--allow-code-execution")
    rates = json.loads((tmp_path / "summary.json").read_text())["pass_rate"][str(TEMPERATURE)]
    assert rates["overall"] == pytest.approx(100 * (2 + 2 + 3) / 15)
    assert rates["by_problem"] == {"1": pytest.approx(100 / 3), "10": pytest.approx(100 / 3), "2": 100.0}
    assert {turns: each["rate"] for turns, each in rates["by_turns"].items()} == {
        "1": 100.0, "2": pytest.approx(100 / 3), "3": pytest.approx(100 / 3)}
    out = capsys.readouterr().out
    assert "46.67" in out and "prompt perplexity" in out and "2 turns" in out
    told = lines_of(tmp_path, f"results-t{TEMPERATURE}-20s.jsonl")
    assert [line["passed"] for line in told] == [True, False, False] * 4 + [True] * 3


@pytest.mark.parametrize("change, words", [
    ({"prompts": ["{missing}"]}, "input 0 ({'a': 1, 'b': 2}) does not fill the prompts: KeyError 'missing'"),
    ({"prompts": ["{"]}, "does not fill the prompts: ValueError"),
    ({"prompts": []}, "expected a list of texts"),
    ({"inputs": [3, 4]}, "does not fill the prompts: TypeError"),
    ({"max_gen_length": 0}, "max_gen_length=0, expected a number of tokens"),
    ({"outputs": 5}, "outputs=5, expected a list"),
    ({"id": "10"}, "problem 2 of --data"),
])
def test_wrong_problems(capsys, tmp_path, change, words):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({**PROBLEMS[0], **change}) + "\n" + json.dumps(PROBLEMS[1]) + "\n")
    assert main(["eval", "mtpb", "--data", str(file), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(capsys, tmp_path):
    assert main(["eval", "mtpb", "--data", str(tmp_path / "mtpb.jsonl"), "--out", str(tmp_path / "run")]) == 2
    assert "MTPB's problems are in the repository salesforce/CodeGen" in capsys.readouterr().err


def test_a_conversation_that_fills_the_context_goes_on_without_words(demo):
    model, tokenizer = demo
    settings = {**preset("mtpb", "quick"), "benchmark": "mtpb"}
    long = {"id": "1", "prompts": ["{a}", "Print it.", "{a}"], "inputs": [{"a": "word " * 400}], "outputs": [1]}
    sampler = mtpb.Sampler(Completer(model, tokenizer, Knobs.of(settings)), [long], settings)
    ((_, record),) = sampler.run([Unit(0.2, 0, 0, (0,))])
    assert record["finish_reasons"][-1] == "no room" and record["prompts_completions"][-1] == "\n\n"
    assert record["prompt_nll"] is None


def test_missing_modules_are_told(tmp_path, capsys, monkeypatch):
    from codegen_fast.cli import eval_runs

    monkeypatch.setattr(eval_runs, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="want pandas, which is not installed"):
        eval_runs._warn_of_missing_modules([{"prompts": ["Import the Pandas library."]}])
