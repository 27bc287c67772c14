"""How long drafts should be: from what calls take, measured, and from how many drafted tokens were right (floor 7)."""

from __future__ import annotations

import threading
import weakref

from ..decoder import Decoder

MARGIN = 1.02  # what drafts must promise beyond plain steps
WINDOW = 24  # tokens over which the share of right ones is taken
TRIED = 8  # calls with drafts after which it is asked whether they paid
FORGET = 512  # calls after which the time of a call is not believed any more
FIRST_WAIT, LONGEST_WAIT = 16, 256  # plain steps before drafts are tried again that did not pay


class _Times:
    """Seconds of a call by its size, measured; between sizes a line is drawn, and beyond them growth is assumed slow,
    so that longer drafts are tried."""

    _GROWTH = 0.03  # of the smallest call's time a token

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._samples: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._calls = 0

    def note(self, size: int, seconds: float) -> None:
        self._calls += 1
        for old in [n for n, used in self._used.items() if self._calls - used > FORGET]:
            del self._seconds[old], self._samples[old], self._used[old]
        count, before = self._samples.get(size, 0), self._seconds.get(size, seconds)
        # The first call touches new memory, and a busy machine gives outliers, always upwards.
        after = min(seconds, before) if count < 2 else before + 0.2 * (min(seconds, 4 * before) - before)
        self._seconds[size], self._samples[size], self._used[size] = after, count + 1, self._calls

    def __contains__(self, size: int) -> bool:
        """Whether a call of this size was measured, and not just once: the first may be anything."""
        return self._samples.get(size, 0) > 1

    def points(self) -> list[tuple[int, float]]:
        return sorted(self._seconds.items())

    @staticmethod
    def between(points: list[tuple[int, float]], size: int) -> float | None:
        """Seconds of a call of this size; None without any point."""
        if not points:
            return None
        lower = [point for point in points if point[0] <= size]
        upper = [point for point in points if point[0] >= size]
        if not lower:
            return upper[0][1]
        if not upper:
            (n, seconds), (_, least) = lower[-1], points[0]
            return seconds + (size - n) * _Times._GROWTH * least
        (a, first), (b, last) = lower[-1], upper[0]
        return first if a == b else first + (last - first) * (size - a) / (b - a)


class Costs:
    """What plain steps, verifications and drafts of one decoder cost, in seconds. Several threads may use it."""

    def __init__(self) -> None:
        self._plain = _Times()  # by rows
        self._verify = _Times()  # by tokens
        self._lock = threading.Lock()

    def note_plain(self, rows: int, seconds: float) -> None:
        with self._lock:
            self._plain.note(rows, seconds)

    def note_verify(self, tokens: int, seconds: float) -> None:
        with self._lock:
            self._verify.note(tokens, seconds)

    def knows_plain(self, rows: int) -> bool:
        with self._lock:
            return rows in self._plain

    def plain(self, rows: int) -> float | None:
        with self._lock:
            return _Times.between(self._plain.points(), rows)

    def verify(self, rows: int, up_to: int) -> list[float]:
        """Of rows + 1, rows + 2 ... up_to tokens, ``plain(rows)`` being known."""
        with self._lock:
            least = _Times.between(self._plain.points(), rows)
            points = [(rows, least), *(point for point in self._verify.points() if point[0] > rows)]
        return [max(least, _Times.between(points, tokens)) for tokens in range(rows + 1, up_to + 1)]


# What calls cost belongs to a decoder, so that the next generation need not measure again.
_COSTS: weakref.WeakKeyDictionary[Decoder, Costs] = weakref.WeakKeyDictionary()
_COSTS_LOCK = threading.Lock()


def costs_of(decoder: Decoder) -> Costs:
    with _COSTS_LOCK:
        return _COSTS.setdefault(decoder, Costs())


class Acceptance:
    """The share of drafted tokens that turn out right, over the last few."""

    def __init__(self, expected: float) -> None:
        self._right, self._all = 2 * expected, 2.0

    def note(self, right: bool) -> None:
        keep = 1 - 1 / WINDOW
        self._right = keep * self._right + right
        self._all = keep * self._all + 1

    @property
    def share(self) -> float:
        return min(0.99, self._right / self._all)


class Brake:
    """Stops speculation for a while when, over its last calls, it took longer than plain steps would have."""

    def __init__(self) -> None:
        self._pause, self._left = FIRST_WAIT, 0
        self._worth = self._seconds = 0.0
        self._calls = 0

    def holds(self) -> bool:
        """Whether the next call must be a plain step. To be asked before every call."""
        self._left -= self._left > 0
        return self._left > 0

    def note(self, worth: float, seconds: float) -> None:
        """A call took ``seconds``, and plain steps for the same tokens would have taken ``worth``."""
        keep = 1 - 1 / TRIED
        self._worth, self._seconds = keep * self._worth + worth, keep * self._seconds + seconds
        self._calls += 1
        if self._calls % TRIED:
            return
        if self._worth < self._seconds:
            self._left, self._pause = self._pause, min(2 * self._pause, LONGEST_WAIT)
            self._worth = self._seconds = 0.0
        else:
            self._pause = FIRST_WAIT


def draft_lengths(costs: Costs, outlooks: list[tuple[int, float]], seconds_a_token: float, most: int) -> list[int]:
    """How many tokens to draft for each row, so that tokens a second are expected to be most: all 0 for a plain step.

    outlooks: for each row the longest draft there can be, and the share of its tokens that will be right.
    seconds_a_token: of drafting one token more for all rows at once. most: tokens of a call.
    """
    rows = len(outlooks)
    lengths = [0] * rows
    plain = costs.plain(rows)
    if plain is None:
        return lengths
    # The n-th token of a draft counts if all before it were right: its worth falls with n, so the best ones of all
    # rows are always beginnings of drafts.
    worths = [(share**n, -n, row) for row, (limit, share) in enumerate(outlooks) for n in range(1, limit + 1)]
    worths = sorted(worths, reverse=True)[: max(0, most - rows)]
    expected, longest, best, chosen = float(rows), 0, MARGIN * rows / plain, 0
    for count, ((worth, minus_n, _), seconds) in enumerate(zip(worths, costs.verify(rows, rows + len(worths))), 1):
        expected += worth
        longest = max(longest, -minus_n)
        rate = expected / (seconds + longest * seconds_a_token)
        if rate > best:
            best, chosen = rate, count
    for _, _, row in worths[:chosen]:
        lengths[row] += 1
    return lengths
