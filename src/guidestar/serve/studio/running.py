"""Runs of the page: one more client of the service, with progress and previews."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..ticket import ENDED, Ticket
from ..web.errors import refused
from ..web.job import Job
from ..web.schemas import SampleRequest
from ..web.service import Service

REFRESH_SECONDS = 0.25
"""Seconds after which the place in the queue is read again, where a run does not move."""

MOST_PREVIEWS = 24
"""Previews of a run, at most."""


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """Where a run stands.

    Args:
        status: queued, running, done, failed or cancelled.
        place: in the queue, from 1; 0 where it does not wait.
        done, steps: of the run.
        seconds: since it was sent.
        pictures: PNG files in base64: previews, or the result, which carries its settings.
        message: what went wrong, or what is to be known.
    """

    status: str
    place: int = 0
    done: int = 0
    steps: int = 0
    seconds: float = 0.0
    pictures: Sequence[str] = ()
    message: str = ""


class Runs:
    """The runs of one visitor; a new one of the same kind takes the place of the one before.

    Args:
        service: that carries them out.
        owner: the visitor, as the service's limits count.
    """

    def __init__(self, service: Service, owner: str) -> None:
        self.service, self.owner = service, owner
        self._jobs: dict[str, list[Job]] = {}

    def cancel(self, kind: str | None = None) -> int:
        """Cancel the runs of a kind, or all; return how many were under way."""
        kinds = [kind] if kind is not None else list(self._jobs)
        jobs = [job for k in kinds for job in self._jobs.pop(k, [])]
        live = [job for job in jobs if not job.ticket.is_over]
        for job in live:
            job.ticket.cancel()
        return len(live)

    def follow(self, kind: str, requests: Sequence[SampleRequest]) -> Iterator[list[JobProgress]]:
        """Send requests, so many at once as one client may, and yield where they stand.

        Those of the same kind that are under way are cancelled first, and so are these where they
        are no longer followed: their page was left, or others took their place.

        Raises:
            RefusedError: a limit of the server; nothing is under way then.
            ValueError: what is wrong with a request.
            EngineError: the queue is full.
        """
        self.cancel(kind)
        started = time.monotonic()
        changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        jobs: list[Job] = []
        found = [JobProgress(status="queued") for _ in requests]
        shown = [-1] * len(requests)
        window = max(1, self.service.limits.per_client // 2)
        try:
            while True:
                while len(jobs) < len(requests) and _live(jobs) < window:
                    jobs.append(self._submit(kind, requests[len(jobs)]))
                    jobs[-1].ticket.watch(lambda ticket: changes.put(None))
                moved = False
                for k, job in enumerate(jobs):
                    moved |= _look(job, k, found, shown, started)
                if moved:
                    yield list(found)
                if len(jobs) == len(requests) and not _live(jobs) and all(map(_is_over, found)):
                    return
                _wait(changes)
        finally:
            for job in jobs:
                if not job.ticket.is_over:
                    job.ticket.cancel()

    def last(self, kind: str) -> list[Job]:
        """Return the runs of a kind that were sent last."""
        return self._jobs.get(kind, [])

    def _submit(self, kind: str, body: SampleRequest) -> Job:
        job = self.service.submit(body, self.owner)
        self._jobs.setdefault(kind, []).append(job)
        return job


def _live(jobs: Sequence[Job]) -> int:
    return sum(not job.ticket.is_over for job in jobs)


def _is_over(progress: JobProgress) -> bool:
    return progress.status in ENDED


def _look(job: Job, k: int, found: list[JobProgress], shown: list[int], started: float) -> bool:
    """Note where a run stands; return whether it has moved since the last look."""
    if _is_over(found[k]):
        return False
    ticket, before = job.ticket, found[k]
    if ticket.is_over:
        found[k] = _finished(job, started)
        return True
    preview = ticket.preview
    fresh = preview is not None and preview.step != shown[k]
    if preview is not None:
        shown[k] = preview.step
    pictures = job.previews() if fresh else before.pictures
    found[k] = _progress(ticket, started, pictures)
    if _is_over(found[k]):  # it ended since the look above, so these are not its pictures
        found[k] = _finished(job, started)
        return True
    now = (found[k].status, found[k].place, found[k].done)
    return fresh or now != (before.status, before.place, before.done)


def _finished(job: Job, started: float) -> JobProgress:
    """Return how a run that is over ended, with its pictures."""
    found = _progress(job.ticket, started, ())
    if job.ticket.error is not None:
        text = refused(job.ticket.error).message
        return replace(found, message=text)
    return replace(found, pictures=job.all_encoded(), message="; ".join(job.ticket.warnings))


def preview_every(steps: int) -> int:
    """Return after how many steps a preview is shown, so that there are at most `MOST_PREVIEWS`."""
    return max(1, -(-steps // MOST_PREVIEWS))


def _progress(ticket: Ticket, started: float, pictures: Sequence[str]) -> JobProgress:
    return JobProgress(
        status=ticket.status,
        place=ticket.place,
        done=ticket.steps_done,
        steps=ticket.steps,
        seconds=time.monotonic() - started,
        pictures=pictures,
    )


def _wait(changes: queue.SimpleQueue[None]) -> None:
    """Wait for a change, and skip those that came meanwhile."""
    try:
        changes.get(timeout=REFRESH_SECONDS)
        while True:
            changes.get_nowait()
    except queue.Empty:
        pass
