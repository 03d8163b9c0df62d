"""An engine whose requests are sampled by replicas, and sampled again where one is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from ..errors import EngineClosedError
from ..protocol import AnyEngine
from ..stats import Stats, increased
from ..ticket import Ticket, lateness, why_stopped
from .reports import ReplicaReport, restore

if TYPE_CHECKING:
    from ...guidance import Guided
    from ...model.model import Model
    from ...model.request import Request

MOST_LOST = 5
"""Replicas that may be lost under one request; then it is likely to be what ends them."""

PAUSE = 0.2
"""Seconds before a request whose replica was lost is sent to another."""


ENDING = 5.0
"""Seconds that requests have to end, once they are stopped."""

REMEMBERED = 1000
"""Replicas whose counts are remembered, to add what they do next."""


class ReplicaLostError(Exception):
    """A replica was lost before a request was done."""


class Sampling(Protocol):
    """Sends a request to some replica, and yields its reports.

    Raises:
        ReplicaLostError: it is gone.
    """

    def __call__(
        self, request: Request, *, preview_every: int, explain: bool
    ) -> AsyncGenerator[ReplicaReport, None]:
        """Sample a request."""
        ...


class ReplicatedEngine(AnyEngine):
    """Takes requests of one model as `Engine` does, and has replicas sample them.

    What was taken is kept here until it is done. Where a replica is lost, its requests are sent to
    another: as their seeds are fixed, they give the same samples.

    Args:
        model: to check requests with; it is not sampled from.
        sample: sends a request to a replica.
        loop: that runs in a thread of its own.
        max_rows, max_queue, max_samples, max_evaluations: as of `Engine`; the rows are those of
            each replica.
        replicas: how many there are now.
    """

    def __init__(
        self,
        model: Model,
        sample: Sampling,
        loop: asyncio.AbstractEventLoop,
        *,
        max_rows: int = 64,
        max_queue: int = 256,
        max_samples: int | None = None,
        max_evaluations: int | None = None,
        replicas: Callable[[], int] = lambda: 1,
    ) -> None:
        super().__init__(
            model,
            max_rows=max_rows,
            max_queue=max_queue,
            max_samples=max_samples,
            max_evaluations=max_evaluations,
        )
        self._sample, self._loop, self._replicas = sample, loop, replicas
        self._live: dict[Ticket, asyncio.Task[None] | None] = {}
        self._cancelled: set[Ticket] = set()
        self._ended: dict[str, int] = {}
        self._counted = Stats()
        self._counted_of: dict[str, Stats] = {}
        self._closing = False

    def _take(self, ticket: Ticket, limited: Request, guided: Guided) -> None:
        self._live[ticket] = None
        self._loop.call_soon_threadsafe(self._start, ticket)

    def _count_waiting(self) -> int:
        return sum(t.started is None for t in tuple(self._live))

    def cancel(self, ticket: Ticket) -> None:
        """Stop a request, if it is not over."""
        with self._lock:
            if ticket not in self._live:
                return
            self._cancelled.add(ticket)
        self._loop.call_soon_threadsafe(self._stop, ticket)

    def place(self, ticket: Ticket) -> int:
        """Return the place of a ticket among those that wait, from 1; 0 where it does not."""
        with self._lock:
            waiting = [t for t in self._live if t.started is None]
        return waiting.index(ticket) + 1 if ticket in waiting else 0

    @property
    def stats(self) -> Stats:
        """What the replicas have done so far, and where the requests stand."""
        with self._lock:
            begun = [t for t in self._live if t.started is not None]
            here = Stats(
                queued=len(self._live) - len(begun),
                running=len(begun),
                samples=sum(len(t.request.seeds) for t in begun),
                ended=dict(self._ended),
                replicas=self._replicas(),
            )
            return increased(here, self._counted)

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return not self._closing

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests, and there is a replica."""
        return self.is_open and self._replicas() > 0

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests; what is not done after ``grace`` seconds fails."""
        with self._lock:
            self._closing = True
            self._lock.wait_for(lambda: not self._live, grace)
            late = list(self._live)
            for ticket in late:
                self._loop.call_soon_threadsafe(self._stop, ticket)
            self._lock.wait_for(lambda: not self._live, ENDING)

    def _start(self, ticket: Ticket) -> None:
        task = self._loop.create_task(self._follow(ticket))
        task.add_done_callback(lambda done: self._end(ticket, done))
        with self._lock:
            self._live[ticket] = task
            cancelled = ticket in self._cancelled
        if cancelled:
            task.cancel()

    def _stop(self, ticket: Ticket) -> None:
        if (task := self._live.get(ticket)) is not None:
            task.cancel()

    async def _follow(self, ticket: Ticket) -> None:
        """Have a request sampled until it is over."""
        left = None
        if ticket.timeout is not None:
            left = max(0.0, ticket.submitted + ticket.timeout - time.monotonic())
        async with asyncio.timeout(left):
            await self._sample_until_done(ticket)

    def _end(self, ticket: Ticket, task: asyncio.Task[None]) -> None:
        """Let go of a request, whose ticket has ended or ends now."""
        cancelled = ticket in self._cancelled
        error = None if task.cancelled() else task.exception()
        if not ticket.is_over:
            if isinstance(error, TimeoutError):
                error = lateness(ticket)
            elif error is None:
                closed = EngineClosedError("the engine was closed before this request was done")
                error = why_stopped(ticket, cancelled) or closed
            ticket.end("cancelled" if cancelled else "failed", error=error)
        with self._lock:
            self._live.pop(ticket, None)
            self._cancelled.discard(ticket)
            self._ended[ticket.status] = self._ended.get(ticket.status, 0) + 1
            self._lock.notify_all()

    async def _sample_until_done(self, ticket: Ticket) -> None:
        for _ in range(MOST_LOST):
            try:
                if await self._sample_once(ticket):
                    return
            except ReplicaLostError:
                ticket.pushes.clear()
                await asyncio.sleep(PAUSE)
        raise RuntimeError(f"{MOST_LOST} replicas were lost while they sampled this request")

    async def _sample_once(self, ticket: Ticket) -> bool:
        """Have one replica sample a request.

        Raises:
            ReplicaLostError: it is gone, or about to go.
        """
        reports = self._sample(
            ticket.request, preview_every=ticket.preview_every, explain=ticket.explain
        )
        async with aclosing(reports):
            async for report in reports:
                if report.error and report.error[0] == EngineClosedError.__name__:
                    raise ReplicaLostError("the replica goes down")
                self._note(ticket, report)
                if ticket.is_over:
                    return True
        raise ReplicaLostError("the reports ended before the request was over")

    def _note(self, ticket: Ticket, report: ReplicaReport) -> None:
        """Bring a ticket to the state that its replica reports."""
        if report.status == "queued":
            return
        if ticket.started is None:
            ticket.begin()
        ticket.pushes.extend(report.pushes)
        ticket.preview = report.preview or ticket.preview
        if report.status == "running":
            ticket.advance(report.steps_done)
            return
        self._count(report)
        error = None if report.error is None else restore(*report.error)
        ticket.steps_done = report.steps_done
        ticket.end(report.status, samples=report.samples, error=error, warnings=report.warnings)

    def _count(self, report: ReplicaReport) -> None:
        """Add what a replica has done since its last count; reports may overtake each other."""
        with self._lock:
            last = self._counted_of.pop(report.replica, Stats())
            if report.stats.ticks >= last.ticks:
                self._counted = increased(self._counted, report.stats, last)
                last = report.stats
            self._counted_of[report.replica] = last
            while len(self._counted_of) > REMEMBERED:
                del self._counted_of[next(iter(self._counted_of))]
