"""What an engine has done so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts of an engine since it started, and where it stands now.

    Args:
        queued: requests that wait.
        running: requests that are being sampled.
        samples: samples of the running requests.
        ended: requests by how they ended: done, failed, cancelled.
        ticks: times that rows of requests were evaluated together.
        rows: rows that were evaluated, of all ticks.
        seconds: that evaluations took, of all ticks.
        calls: network calls.
        call_rows: rows of all of them.
        call_seconds: that they took.
        pace: seconds of a row, of late (0 before the first).
        repeated: ticks that failed and were repeated in parts, to find whose fault it was.
        replicas: processes that sample.
    """

    queued: int = 0
    running: int = 0
    samples: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    ticks: int = 0
    rows: int = 0
    seconds: float = 0.0
    pace: float = 0.0
    calls: int = 0
    call_rows: int = 0
    call_seconds: float = 0.0
    repeated: int = 0
    replicas: int = 1


COUNTS = ("ticks", "rows", "seconds", "calls", "call_rows", "call_seconds", "repeated")
"""What an engine counts of its work."""


def increased(stats: Stats, now: Stats, before: Stats | None = None) -> Stats:
    """Return counts to which what another engine has done since ``before`` is added."""
    before = before or Stats()
    work = {k: getattr(stats, k) + getattr(now, k) - getattr(before, k) for k in COUNTS}
    return replace(stats, pace=now.pace, **work)


NEW = 0.1
"""The share of the last tick in what a row takes of late."""


class Tally:
    """What an engine counts. Its lock is the engine's.

    Example:
        >>> tally = Tally()
        >>> tally.note_tick(rows=4, seconds=0.2, repeated=False)
        >>> tally.stats(queued=1).rows, tally.stats().pace
        (4, 0.05)
    """

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()
        self._ticks = self._rows = self._repeated = self._calls = self._call_rows = 0
        self._seconds = self._pace = self._call_seconds = 0.0

    def note_tick(self, rows: int, seconds: float, repeated: bool) -> None:
        """Count a tick, and whether it was repeated in parts."""
        self._ticks += 1
        self._rows += rows
        self._seconds += seconds
        self._pace += (seconds / rows - self._pace) * (NEW if self._pace else 1.0)
        self._repeated += repeated

    def note_call(self, rows: int, seconds: float) -> None:
        """Count a network call."""
        self._calls += 1
        self._call_rows += rows
        self._call_seconds += seconds

    def note_end(self, status: str) -> None:
        """Count a request that is over."""
        self._ended[status] += 1

    def stats(self, *, queued: int = 0, running: int = 0, samples: int = 0) -> Stats:
        """Return the counts, beside where the engine stands."""
        return Stats(
            queued=queued,
            running=running,
            samples=samples,
            ended=dict(self._ended),
            ticks=self._ticks,
            rows=self._rows,
            seconds=self._seconds,
            pace=self._pace,
            calls=self._calls,
            call_rows=self._call_rows,
            call_seconds=self._call_seconds,
            repeated=self._repeated,
        )
