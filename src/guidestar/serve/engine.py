"""An engine that samples many requests at once: at every step, rows of all of them share calls."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import torch

from .batching import evaluate_together, is_out_of_memory
from .errors import EngineClosedError, EngineError
from .protocol import AnyEngine
from .running import Running
from .stats import Stats, Tally
from .ticket import Ticket, why_stopped

if TYPE_CHECKING:
    from ..guidance import Guided
    from ..model.model import Model
    from ..model.request import Request

RECOVERY = 500
"""Ticks without a lack of memory after which the rows of a tick are doubled again."""


class Engine(AnyEngine):
    """Samples requests of one model, as many at once as there is room for.

    One thread advances them all. At each tick it takes rounds of passes of the running requests,
    the oldest first, up to ``max_rows`` rows, evaluates them with as few network calls as possible,
    and gives each request its predictions. Requests may differ in everything: steps, solver,
    guidance, scales, conditions. Each gives what `Model.sample` gives for it alone, up to rounding.

    A request whose network, function or memory fails, fails alone.

    Args:
        model: that is sampled from.
        max_rows: the most rows of a tick. A request alone is cut into groups of samples of at most
            half as many, so that a large one leaves room for others.
        max_queue: how many requests may wait.
        max_samples: the most samples of a request; None for any number.
        max_evaluations: the most network evaluations of a request, all samples together, gradients
            included; None for any number.

    Raises:
        ValueError: a limit below 1.

    Example:
        >>> from guidestar import load
        >>> with Engine(load("fashion-mnist")) as engine:
        ...     ticket = engine.submit(engine.model.request("Bag", seeds=[0], steps=2))
        ...     ticket.result().images.shape
        torch.Size([1, 1, 28, 28])
    """

    def __init__(
        self,
        model: Model,
        *,
        max_rows: int = 64,
        max_queue: int = 256,
        max_samples: int | None = None,
        max_evaluations: int | None = None,
    ) -> None:
        super().__init__(
            model,
            max_rows=max_rows,
            max_queue=max_queue,
            max_samples=max_samples,
            max_evaluations=max_evaluations,
        )
        self._queue: deque[tuple[Ticket, Request, Guided]] = deque()
        self._running: list[Running] = []
        self._cancelled: set[Ticket] = set()
        self._tally = Tally()
        self._room, self._good = max_rows, 0
        self._closing: float | None = None
        self._thread = threading.Thread(
            target=self._serve, name=f"guidestar-{model.name}", daemon=True
        )
        self._thread.start()

    def _take(self, ticket: Ticket, limited: Request, guided: Guided) -> None:
        self._queue.append((ticket, limited, guided))
        self._lock.notify_all()

    def _count_waiting(self) -> int:
        return len(self._queue)

    def cancel(self, ticket: Ticket) -> None:
        """Stop a request, if it is not over; its samples leave at the next tick."""
        with self._lock:
            if not ticket.is_over:
                self._cancelled.add(ticket)
                self._lock.notify_all()

    def place(self, ticket: Ticket) -> int:
        """Return the place of a ticket in the queue, from 1; 0 where it does not wait."""
        with self._lock:
            waiting = (place for place, (t, *_) in enumerate(self._queue, 1) if t is ticket)
            return next(waiting, 0)

    @property
    def stats(self) -> Stats:
        """What it has done so far, and where it stands."""
        with self._lock:
            return self._tally.stats(
                queued=len(self._queue),
                running=len(self._running),
                samples=sum(len(r.ticket.request.seeds) for r in self._running),
            )

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._closing is None and self._thread.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether it can sample now."""
        return self.is_open

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, finish those that were taken, and end the thread.

        What is not done after ``grace`` seconds fails with `EngineClosedError`.
        """
        with self._lock:
            if self._closing is None:
                self._closing = time.monotonic() + grace
            self._lock.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        """Tick until the engine is closed: what its thread does."""
        try:
            while self._wait():
                self._drop()
                self._admit()
                self._tick()
        finally:
            with self._lock:
                self._closing = self._closing or time.monotonic()
            self._stop_all(EngineClosedError("the engine was closed before this request was done"))

    def _wait(self) -> bool:
        """Wait for something to do; return whether there is, and time for it."""
        with self._lock:
            while not (self._queue or self._running or self._closing is not None):
                self._cancelled.clear()  # of what was over already
                self._lock.wait()
            busy = bool(self._queue or self._running)
            return busy and (self._closing is None or time.monotonic() < self._closing)

    def _drop(self) -> None:
        """Take out what was cancelled, or is late."""
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            waiting = [ticket for ticket, *_ in self._queue]
            gone = {t: e for t in waiting if (e := why_stopped(t, t in cancelled))}
            if gone:
                self._queue = deque(entry for entry in self._queue if entry[0] not in gone)
        for ticket, error in gone.items():
            ticket.end("cancelled" if ticket in cancelled else "failed", error=error)
            self._count(ticket)
        for running in self._running:
            if error := why_stopped(running.ticket, running.ticket in cancelled):
                running.stop(error, running.ticket in cancelled)
        self._remove_ended()

    def _admit(self) -> None:
        """Begin requests that wait, while there is room for their rows."""
        while sum(r.rows for r in self._running) < self._room:
            with self._lock:
                if not self._queue:
                    return
                running = Running(*self._queue.popleft())
                self._running.append(running)
            running.begin()
            self._remove_ended()

    def _tick(self) -> None:
        """Evaluate rows of the oldest requests together, and let these go on."""
        chosen, rows = self._choose()
        if not chosen:
            return
        shortages: list[BaseException] = []
        limit = self._room if rows > self._room else None
        started = time.perf_counter()
        wanted = [r.wanted for r in chosen if r.wanted is not None]
        answers = evaluate_together(wanted, limit, shortages.append, self._note_call)
        seconds = time.perf_counter() - started
        for running, answer in zip(chosen, answers, strict=True):
            running.proceed(answer)
        with self._lock:
            self._tally.note_tick(rows, seconds, bool(shortages))
        blameless = not any(isinstance(answer, BaseException) for answer in answers)
        self._make_room(any(map(is_out_of_memory, shortages)), blameless)
        self._remove_ended()

    def _note_call(self, rows: int, seconds: float) -> None:
        with self._lock:
            self._tally.note_call(rows, seconds)

    def _choose(self) -> tuple[list[Running], int]:
        """Return the oldest requests whose rounds fit into a tick, at least one, and their rows."""
        chosen: list[Running] = []
        rows = 0
        for running in self._running:
            if chosen and rows + running.rows > self._room:
                continue
            chosen.append(running)
            rows += running.rows
        return chosen, rows

    def _make_room(self, short: bool, blameless: bool) -> None:
        """Take fewer rows where they did not fit into memory together, though each did alone."""
        if short and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if short and blameless:
            self._room, self._good = max(1, self._room // 2), 0
        elif self._room < self.max_rows:
            self._good += 1
            if self._good >= RECOVERY:
                self._room, self._good = min(self.max_rows, 2 * self._room), 0

    def _remove_ended(self) -> None:
        if over := [r for r in self._running if r.ticket.is_over]:
            with self._lock:
                self._running = [r for r in self._running if not r.ticket.is_over]
            for running in over:
                self._count(running.ticket)

    def _count(self, ticket: Ticket) -> None:
        with self._lock:
            self._tally.note_end(ticket.status)

    def _stop_all(self, error: EngineError) -> None:
        with self._lock:
            waiting, self._queue = self._queue, deque()
        for ticket, *_ in waiting:
            ticket.end("failed", error=type(error)(*error.args))
            self._count(ticket)
        for running in self._running:
            running.stop(type(error)(*error.args))
        self._remove_ended()

    def __repr__(self) -> str:
        """Say what it holds."""
        s = self.stats
        return f"Engine({self.model.name!r}, {s.running} running, {s.queued} queued)"
