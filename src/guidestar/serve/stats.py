"""What an engine has done so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
