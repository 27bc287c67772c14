"""A thread beside the caller's, and a progress bar, that Ctrl-C leaves in order wherever it comes."""

import gc
import io
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue

import pytest

from codegen_fast.progress import ProgressBar
from codegen_fast.side_thread import SideThread

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.places import interrupted_at, places_of  # noqa: E402

NAME = "side-thread-of-a-test"


def side_threads():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def require_ended():
    end = time.monotonic() + 5
    while side_threads():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_calls_are_done_in_order_and_beside_the_caller():
    done = []
    with SideThread(NAME) as side:
        answers = [side.submit(lambda i=i: (done.append(i), threading.current_thread().name)[1]) for i in range(20)]
        assert [answer() for answer in answers] == [NAME] * 20
    assert done == list(range(20)) and not side_threads()


def test_what_a_call_raises_comes_out_of_its_answer():
    def broken():
        raise ValueError("no such row")

    with SideThread(NAME) as side:
        answer, after = side.submit(broken), side.submit(int, "7")
        with pytest.raises(ValueError, match="no such row"):
            answer()
        assert after() == 7


def test_the_block_waits_for_what_was_given():
    done = []
    with SideThread(NAME) as side:
        side.submit(time.sleep, 0.05)
        side.submit(done.append, 1)
    assert done == [1]


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_of_a_call_is_held_while_the_next_is_waited_for(raises):
    class Rows:
        pass

    def call(rows):
        result = Rows()
        held.append(weakref.ref(result))
        if raises:
            raise ValueError
        return result

    gc.disable()  # nor in a circle
    try:
        with SideThread(NAME) as side:
            given = Rows()
            held = [weakref.ref(given)]
            answer = side.submit(call, given)
            with pytest.raises(ValueError) if raises else nullcontext():
                answer()
            assert side.submit(int)() == 0  # the thread has come back from the first
            del given, answer
            assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()


def test_one_that_is_dropped_ends():
    side = SideThread(NAME)
    assert side_threads()
    del side
    require_ended()


def test_ctrl_c_at_every_place():
    chunks = []

    def load():
        with SideThread(NAME) as reader:
            coming = reader.submit(str, 0)
            for row in range(3):
                rows = coming()
                if row < 2:
                    coming = reader.submit(str, row + 1)
                chunks.append(rows)

    load()
    assert chunks == ["0", "1", "2"]
    outcomes = Counter()
    for place in places_of(load):
        outcomes[interrupted_at(load, place)] += 1
        require_ended()  # with concurrent.futures the thread waited for a lock for ever
    assert outcomes["heard"] > 80 and not outcomes["lost"]  # some waits are there or not
    chunks.clear()
    load()
    assert chunks == ["0", "1", "2"]


def test_a_call_that_hangs_is_left_at_the_second_ctrl_c():
    """A file system that does not answer. The first interrupts the work, the second the wait for the thread."""
    answer: SimpleQueue[None] = SimpleQueue()
    heard = []

    def alarm(*_):
        heard.append(1)
        if len(heard) == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        signal.raise_signal(signal.SIGINT)

    def hang():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        answer.get()

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with pytest.raises(KeyboardInterrupt):
            with SideThread(NAME) as side:
                side.submit(hang)()
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGALRM, before)
        answer.put(None)
    require_ended()


LEFT = """
import signal, sys, time, torch
from codegen_fast.side_thread import SideThread
def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(400, 400) @ torch.ones(400, 400)
    print("done", flush=True)
def stuck(seconds):
    time.sleep(seconds)
    print("done", flush=True)
call, seconds, interrupted = globals()[sys.argv[1]], float(sys.argv[2]), sys.argv[3] == "interrupted"
side = SideThread("left")
if not interrupted:
    side.submit(call, seconds)
else:
    def alarm(*_):
        if signal.getsignal(signal.SIGALRM) is alarm:
            signal.signal(signal.SIGALRM, signal.default_int_handler)  # the second, while the block waits
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with side:
            side.submit(call, seconds)()
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize(("call", "seconds", "how", "expected"), [
    ("work", 0.3, "dropped", "done\n"), ("work", 1.5, "interrupted", "done\n"), ("stuck", 600, "interrupted", ""),
])  # fmt: skip
def test_a_process_ends_after_the_call_that_is_under_way(call, seconds, how, expected):
    """Coming back into an interpreter that has ended would abort it; what is stuck when Ctrl-C came twice it leaves."""
    ended = subprocess.run([sys.executable, "-c", LEFT, call, str(seconds), how], capture_output=True, text=True,
                           timeout=60)  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, expected, "")


def test_a_forked_child_does_not_wait_for_its_parents_thread():
    code = """
import os, sys
from codegen_fast.side_thread import SideThread
side = SideThread("of the parent")
child = os.fork()
if child == 0:
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "7\n"), ended.stderr


def test_ctrl_c_leaves_the_lock_of_progress_bars_free():
    def draw():
        with ProgressBar(total=3, file=io.StringIO(), mininterval=0) as bar:
            for _ in range(3):
                bar.update()

    def drawn_elsewhere():
        other = threading.Thread(target=draw, daemon=True)
        other.start()
        other.join(5)
        return not other.is_alive()

    draw()
    heard = 0
    for place in places_of(draw):
        heard += interrupted_at(draw, place) == "heard"
        assert drawn_elsewhere(), place
    assert heard > 150
