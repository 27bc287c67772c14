"""Generated programs as an evaluation runs them: outcomes, limits, streams, many at a time, and the end of it all."""
from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from canaries import Canaries, until

import codegen_fast
from codegen_fast.execution import Executor, Limits, Outcome, describe_isolation
from codegen_fast.execution import isolation as isolation_module
from codegen_fast.execution import worker as worker_module
from codegen_fast.execution.sandbox import frames
from codegen_fast.execution.worker import LEVELS, SandboxRefused, Worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is neither fork nor a limit of a process")

MAIN = ["__builtins__", "__doc__", "__file__", "__loader__", "__main__", "__name__", "__package__", "__spec__"]
PACKAGES = str(Path(codegen_fast.__file__).parents[1])


@pytest.fixture(scope="module")
def executor():
    with Executor(2, Limits(seconds=20)) as executor:  # not 3: other work may share the processors
        yield executor


@pytest.fixture
def canaries(tmp_path):
    made = Canaries(tmp_path)
    yield made
    made.close()


def available(level):
    try:
        Worker(level, ()).close()
    except SandboxRefused as error:
        return str(error)
    return ""


def in_another_process(source, *arguments):
    """Starts an interpreter that imports this package, and hears Ctrl-C even where these tests run in the background."""
    return subprocess.Popen([sys.executable, "-c", source, *arguments], env={**os.environ, "PYTHONPATH": PACKAGES},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


# ---- Outcomes ----------------------------------------------------------------------------------------------------------


def test_a_program_that_reaches_its_end(executor):
    outcome = executor.run("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert outcome == Outcome("finished", 0, "out\n", "err\n", False, outcome.seconds, "", reached_end=True)
    assert 0 < outcome.seconds < 20


@pytest.mark.parametrize(
    ("source", "status", "code", "stderr"),
    [
        ("1 / 0", "failed", 1, "ZeroDivisionError: division by zero\n"),
        ("assert False, 'no'", "failed", 1, "AssertionError: no\n"),
        ("def f(:", "failed", 1, "SyntaxError: invalid syntax\n"),
        ("x = '\0'", "failed", 1, "source code string cannot contain null bytes\n"),
        ("print('\udcff')", "failed", 1, "surrogates not allowed\n"),
        ("raise KeyboardInterrupt", "failed", 1, "KeyboardInterrupt\n"),
        ("def f(): f()\nf()", "failed", 1, "RecursionError: maximum recursion depth exceeded\n"),
        ("import sys; sys.exit(3)", "failed", 3, ""),
        ("import sys; sys.exit('words')", "failed", 1, "words\n"),
        ("import sys; sys.exit()", "finished", 0, ""),
        ("import os; os._exit(0)", "finished", 0, ""),
        ("import os; os._exit(7)", "failed", 7, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed", -9, ""),
        ("import os; os.abort()", "failed", -6, ""),
        ("import ctypes; ctypes.string_at(0)", "failed", -11, ""),
    ],
)
def test_a_program_that_does_not(executor, source, status, code, stderr):
    outcome = executor.run(source)
    assert (outcome.status, outcome.exit_code, outcome.reached_end) == (status, code, False)
    assert outcome.stderr.endswith(stderr) and "sandbox" not in outcome.stderr
    if code < 0:
        assert outcome.detail == f"ended by {signal.Signals(-code).name}"


def test_a_traceback_is_that_of_a_script(executor):
    outcome = executor.run("def f():\n    return [][1]\n\nf()\n")
    lines = outcome.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[-1] == "IndexError: list index out of range"
    assert [line for line in lines if line.startswith("  File")] == [
        line for line in lines if "/program.py\", line" in line] and "    return [][1]" in lines  # fmt: skip


def test_it_is_the_main_module_of_a_process_of_this_interpreter(executor):
    outcome = executor.run("""
import os, sys, json, numpy, __main__
here = os.getcwd()
print(json.dumps({"name": __name__, "argv": sys.argv == [__file__] == [os.path.join(here, "program.py")],
                  "main": sorted(set(vars(__main__)) - {"os", "sys", "json", "numpy", "here"}), "prefix": sys.prefix,
                  "version": sys.version, "numpy": numpy.__version__, "home": os.environ["HOME"] == here,
                  "first": sys.path[0] == here, "files": os.listdir(), "ours": [m for m in sys.modules if "sandbox" in m]}))
""")
    import numpy

    assert outcome.status == "finished", outcome
    assert json.loads(outcome.stdout) == {
        "name": "__main__", "argv": True, "prefix": sys.prefix, "version": sys.version, "numpy": numpy.__version__,
        "home": True, "first": True, "files": ["program.py"], "ours": [], "main": MAIN}  # fmt: skip



def test_what_is_imported_beforehand_hides_no_forgotten_import(executor):
    """A submodule that a fresh interpreter would not have loaded with its package would let a wrong program pass."""
    outcome = executor.run("import sys; print('\\n'.join(sorted(sys.modules)))")
    preloaded = outcome.stdout.split()
    tops = sorted({name.partition(".")[0] for name in preloaded} - {"__main__", "sitecustomize", "usercustomize"})
    check = f"import sys\nfor name in {tops}: __import__(name)\nprint('\\n'.join(sorted(sys.modules)))"
    fresh = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.split()
    assert set(preloaded) <= set(fresh)


def test_reruns_are_equal_where_they_can_be_and_random_where_they_must(executor):
    assert len({executor.run("print(hash('text'))").stdout for _ in range(3)}) == 1
    source = "import random, numpy\nprint(random.random(), numpy.random.rand())"
    assert len({number for _ in range(3) for number in executor.run(source).stdout.split()}) == 6
    with Executor(1, preload=("numpy.random",)) as prepared:
        assert len({number for _ in range(3) for number in prepared.run(source).stdout.split()}) == 6


def test_packages_of_pythonpath_are_found_and_the_home_is_not_opened(tmp_path):
    """A folder that is named is readable as a whole; a home that is named would open everything in it."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "found.py").write_text("here = True")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret.py").write_text("here = True")
    caller = in_another_process("""
import os, sys
sys.path[:] = [path for path in sys.path if path != sys.argv[1]]
os.environ.update(PYTHONPATH=sys.argv[1] + ":" + sys.argv[2], HOME=sys.argv[2])
from codegen_fast.execution import Executor, Limits
with Executor(1, Limits(seconds=20)) as executor:
    print(executor.run("import found; print(found.here)").stdout, executor.run("import secret").stderr)
    print(executor.run(f"open({sys.argv[2]!r} + '/secret.py')").status)
""", str(tmp_path / "packages"), str(tmp_path / "home"))
    out, err = caller.communicate(timeout=60)
    assert out.startswith("True\n") and "No module named 'secret'" in out and out.endswith("failed\n"), err


def test_threads_exit_functions_and_children_of_a_program_work(executor):
    outcome = executor.run("""
import atexit, subprocess, sys, threading, time
atexit.register(print, "bye")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print(subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout, end="")
""")
    assert outcome.stdout == "42\nthread\nbye\n", outcome


# ---- Streams -----------------------------------------------------------------------------------------------------------


def test_input_is_given_and_may_be_ignored(executor):
    text = "häuser\n" * 100_000
    assert executor.run("import sys; print(len(sys.stdin.read()))", stdin=text).stdout == f"{len(text)}\n"
    assert executor.run("print('x')", stdin=text).stdout == "x\n"
    assert executor.run("import os; os.close(0); print('x')", stdin=text).stdout == "x\n"
    assert executor.run("input()").stderr.endswith("EOFError: EOF when reading a line\n")


def test_output_is_cut_at_its_limit_and_bad_bytes_are_replaced():
    with Executor(1, Limits(output_bytes=10)) as executor:
        assert executor.run("print('x' * 9)").truncated is False
        outcome = executor.run("import sys\nprint('é' * 1_000_000)\nprint('ok', file=sys.stderr)")
        assert outcome.status == "finished" and outcome.truncated
        assert outcome.stdout == "é" * 5 and outcome.stderr == "ok\n"
        assert executor.run("import os; os.write(1, b'a\\xff\\n')").stdout == "a\ufffd\n"


# ---- Limits ------------------------------------------------------------------------------------------------------------


def test_time_counts_on_the_wall_and_a_call_may_set_its_own(executor):
    outcome = executor.run("print('begun', flush=True)\nwhile True: pass", seconds=0.75)
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("timed out", -9, "begun\n")
    assert outcome.detail == "killed after 0.75 s" and 0.75 <= outcome.seconds < 10
    assert not outcome.reached_end


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"seconds": 0}, "seconds: 0, more than 0 expected"),
        ({"memory_bytes": 1 << 20}, "memory_bytes: 1048576, an int of at least 134217728 expected"),
        ({"memory_bytes": 4e9}, "memory_bytes: 4000000000.0, an int"),
        ({"processes": 0}, "processes: 0, an int of at least 1 expected"),
        ({"output_bytes": -1}, "output_bytes: -1, an int of at least 0"),
    ],
)
def test_limits_that_let_nothing_run_are_refused(knobs, words):
    with pytest.raises(ValueError, match=words):
        Limits(**knobs)


def test_arguments_are_checked(executor):
    with pytest.raises(ValueError, match="workers: 0"):
        Executor(0)
    with pytest.raises(ValueError, match="isolation: 'jail', one of namespaces, restricted, plain expected"):
        Executor(1, isolation="jail")
    with pytest.raises(ValueError, match="seconds: -1"):
        executor.run("", seconds=-1)


# ---- Many, and the end ---------------------------------------------------------------------------------------------------


def test_many_programs_at_a_time(executor):
    futures = [executor.submit(f"print({i})") for i in range(100)]
    assert [future.result().stdout for future in futures] == [f"{i}\n" for i in range(100)]


def test_workers_work_side_by_side():
    with Executor(4) as executor:
        executor.run("")
        begin = time.monotonic()
        futures = [executor.submit("import time; time.sleep(2)") for _ in range(4)]
        assert [future.result().status for future in futures] == ["finished"] * 4
        assert time.monotonic() - begin < 7.5  # one after another they take 8


def test_closing_kills_what_runs_and_cancels_what_waits(canaries):
    executor = Executor(1)
    running = executor.submit(canaries.mark + "import time; time.sleep(60)", seconds=60)
    waiting = executor.submit("print(1)")
    assert until(canaries.left)
    begin = time.monotonic()
    executor.close()
    assert time.monotonic() - begin < 20 and canaries.left() == []
    assert running.result(0).status == "failed" and "closed" in running.result(0).detail
    with pytest.raises(CancelledError):
        waiting.result(0)
    with pytest.raises(RuntimeError, match="the executor is closed"):
        executor.submit("")
    executor.close()


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "plain"])
@pytest.mark.parametrize("ending", ["SIGINT", "SIGKILL", "return"])
def test_no_end_of_the_caller_leaves_anything(canaries, tmp_path, level, ending):
    """Ctrl-C and kill -9 during a run, and an executor that nobody closes."""
    if why := available(level):
        pytest.skip(f"{level}: {why}")
    parent = in_another_process(f"""
import sys, tempfile, time
from codegen_fast.execution import Executor
tempfile.tempdir = {str(tmp_path)!r}
executor = Executor(2, isolation={level!r})
source = {canaries.mark!r} + "import time, os; os.fork(); time.sleep(60)"
futures = [executor.submit(source, seconds=60) for _ in range(5)]
if {ending!r} == "return":
    time.sleep(1)
    sys.exit()
with executor:
    futures[0].result()
""")
    try:
        if ending == "return":
            assert parent.wait(20) == 0, parent.stderr.read()
        else:
            assert until(lambda: len(canaries.left()) >= 4), parent.poll()
            parent.send_signal(getattr(signal, ending))
            assert parent.wait(20) != 0
        assert until(lambda: not canaries.left()), "the programs live on"
        assert until(lambda: [path.name for path in tmp_path.iterdir()] == ["precious"]), list(tmp_path.iterdir())
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        parent.stderr.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_sandbox_that_is_lost(canaries, times):
    """The worker's process is killed from outside, as the system does when memory runs out: that is nobody's failure.

    The program is run again; one that loses two sandboxes has failed. The next program has a new one.
    """
    with Executor(1) as executor:
        running = executor.submit(canaries.mark + "import time; time.sleep(1); print('end')", seconds=60)
        for _ in range(times):
            assert until(canaries.left)
            os.kill(next(iter(executor._pool._busy))._process.pid, signal.SIGKILL)
            assert until(lambda: not canaries.left())
        outcome = running.result(20)
        if times == 1:
            assert (outcome.status, outcome.stdout) == ("finished", "end\n")
        else:
            assert outcome.status == "failed" and "its sandbox was lost" in outcome.detail
        assert executor.run("print('again')").stdout == "again\n"


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "namespaces"])
def test_a_sandbox_whose_caller_says_nothing_more_leaves_nothing(canaries, level):
    """The connection's end may come well before the signal that the caller has gone."""
    if why := available(level):
        pytest.skip(f"{level}: {why}")
    worker = Worker(level, ())
    try:
        frames.send(worker._control, {
            "source": canaries.mark + "import time; time.sleep(60)", "stdin": "", "seconds": 60.0, "memory_bytes": 1 << 30,
            "file_bytes": 1 << 20, "processes": 10, "output_bytes": 100, "environment": {}})  # fmt: skip
        assert until(canaries.left)
        worker._control.shutdown(socket.SHUT_RDWR)
        worker._process.wait(20)
        assert not canaries.left() and not os.path.exists(worker._scratch_root)
    finally:
        worker.close()


# ---- What the machine offers ---------------------------------------------------------------------------------------------


def test_the_isolation_is_described_in_sentences():
    sentences = describe_isolation()
    assert len(sentences) >= 5 and all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    assert any(sentence.startswith("NOT PREVENTED") for sentence in sentences)


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[1] / "docs" / "execution.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert capsys.readouterr().out.endswith("finished 6\n\n['finished', 'failed', 'finished', 'failed']\n")


@pytest.fixture
def undecided():
    """Isolation is tried anew, and again after the test."""
    isolation_module.best_isolation.cache_clear()
    yield
    isolation_module.best_isolation.cache_clear()


def test_a_weaker_level_is_taken_and_said_where_a_stronger_is_refused(monkeypatch, undecided):
    tried = []

    def refuse(level, preload):
        tried.append(level)
        if level == "plain":
            return type("Sandbox", (), {"facts": {}, "close": lambda self: None})()
        raise SandboxRefused("not on this machine")

    monkeypatch.setattr(isolation_module, "Worker", refuse)
    sentences = describe_isolation()
    if sys.platform == "linux":
        assert tried == list(LEVELS)
        assert sentences[0] == "Not available here: namespaces: not on this machine."
    assert any("any walls" not in s and "NOT PREVENTED: this system has no walls" in s for s in sentences)


def test_where_nothing_is_safe_nothing_runs(monkeypatch, undecided):
    def refuse(level, preload):
        raise SandboxRefused("not on this machine")

    monkeypatch.setattr(isolation_module, "Worker", refuse)
    assert describe_isolation()[0].startswith("Programs are refused: generated programs cannot be run safely here. ")
    with Executor(1) as executor:
        outcome = executor.run("print('never')")
    assert outcome.status == "not run" and outcome.exit_code is None and "not on this machine" in outcome.detail


def test_root_is_refused_where_there_are_no_walls():
    if os.geteuid() != 0:
        pytest.skip("root only")
    assert "run as an ordinary user" in available("plain")


def test_an_interpreter_that_does_not_start_is_reported(monkeypatch):
    monkeypatch.setattr(worker_module.sys, "executable", "/bin/false")
    with Executor(1, isolation="namespaces") as executor:
        outcome = executor.run("")
    assert outcome.status == "not run" and "/bin/false did not start" in outcome.detail


# ---- Other callers -------------------------------------------------------------------------------------------------------


def test_what_the_caller_has_set_for_itself_does_not_matter(tmp_path):
    """A mask that shuts folders to others, ignored children, blocked signals, a tiny stack of its own threads."""
    caller = in_another_process("""
import os, signal
from codegen_fast.execution import Executor, Limits
os.umask(0o077)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})
with Executor(1, Limits(seconds=20)) as executor:
    outcome = executor.run("import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(7)'], check=True)")
    print(outcome.status, outcome.stdout, executor.run("1 / 0").exit_code)
""")
    out, err = caller.communicate(timeout=60)
    assert out == "finished 7\n 1\n", err


ANOTHER_USER = """
import json, os, subprocess, sys, tempfile
from codegen_fast.execution import Executor, Limits, describe_isolation
from codegen_fast.execution.worker import SandboxRefused, Worker
level = sys.argv[1]
try:
    worker = Worker(level, ())
    worker.close()
except SandboxRefused as error:
    sys.exit(f"refused: {error}")
folder = tempfile.mkdtemp()
file = os.path.join(folder, "canary")
open(file, "w").write("alive")
process = subprocess.Popen(["sleep", "60"])
harm = f'''
import os, shutil
for act in (lambda: os.kill({process.pid}, 9), lambda: os.unlink({file!r}), lambda: open({file!r}, "w"),
            lambda: shutil.rmtree({folder!r}), lambda: os.chmod({file!r}, 0), lambda: os.kill(os.getppid(), 9)):
    try: act()
    except OSError: pass
made = 0
try:
    for _ in range(40):
        if os.fork() == 0:
            import time; time.sleep(1); os._exit(0)
        made += 1
except OSError: pass
print(made)
'''
harmless = "import os, time; print(os.getcwd() == os.environ['HOME'], flush=True); time.sleep(60)"
with Executor(1, Limits(processes=10), isolation=level) as executor:
    outcome = executor.run(harmless if level == "plain" else harm, seconds=1 if level == "plain" else 20)
print(json.dumps({"status": outcome.status, "detail": outcome.detail, "out": outcome.stdout, "uid": os.getuid(),
                  "process": process.poll() is None, "file": open(file).read(), "facts": worker.facts,
                  "temp": os.listdir(tempfile.gettempdir())}))
process.kill()
"""
NOBODY = 65534


@pytest.fixture(scope="module")
def readable_by_all():
    """(an interpreter, the environment in which it imports a copy of the package), open to every user."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("becoming another user takes root; what runs here as an ordinary user is tested by the others")
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(Path(codegen_fast.__file__).parent / "execution", folder / "codegen_fast" / "execution")
    for name in ("__init__.py", "interruption.py"):  # all that the sandbox needs of the package
        shutil.copy(Path(codegen_fast.__file__).with_name(name), folder / "codegen_fast")
    (folder / "temp").mkdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (folder / "temp").chmod(0o1777)
    environment = {"PYTHONPATH": str(folder), "TMPDIR": str(folder / "temp")}
    try:
        yield next(python for python in (sys.executable, "/usr/bin/python3") if _runs(python)), environment
    except StopIteration:
        pytest.skip("no interpreter of 3.11 or newer that another user than root can read")
    finally:
        shutil.rmtree(folder)


def _runs(python):
    try:
        return not subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], user=NOBODY,
                                  group=NOBODY, extra_groups=[], cwd="/", env={}).returncode  # fmt: skip
    except OSError:
        return False


@pytest.mark.parametrize(("level", "user"), [("namespaces", NOBODY), ("restricted", NOBODY), ("plain", NOBODY),
                                             ("namespaces", 0), ("restricted", 0)])  # fmt: skip
def test_other_users_have_the_same_walls(readable_by_all, level, user):
    """An ordinary user, and root with an interpreter that others can read; without walls a harmless program only."""
    python, environment = readable_by_all
    done = subprocess.run([python, "-c", ANOTHER_USER, level], user=user, group=user, extra_groups=[], cwd="/",
                          env=environment, capture_output=True, text=True, timeout=60)  # fmt: skip
    if done.stderr.startswith("refused: "):
        pytest.skip(f"{level} for user {user}: {done.stderr}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["process"] and found["file"] == "alive" and found["uid"] == user
    shutil.rmtree(os.path.join(environment["TMPDIR"], found["temp"].pop()))
    assert found["temp"] == [], "the canary's folder alone"
    if level == "plain":
        assert (found["status"], found["out"]) == ("timed out", "True\n")
    elif level == "namespaces":
        assert (found["status"], found["out"]) == ("finished", "9\n")
    else:
        assert found["out"] or found["detail"] == "more than 10 processes and threads"
        assert user or found["facts"]["other_user"], "root's programs are another user's where they can be"


def test_an_executor_that_is_dropped_ends_its_threads_and_answers_what_was_asked():
    executor = Executor(workers=1)
    threads = executor._threads
    future = executor.submit("print(6 * 7)")
    del executor
    gc.collect()
    assert future.result().stdout == "42\n"
    del future
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
