"""What a client holds of a request: where it stands, its previews, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from .errors import CancelledError, DeadlineError, EngineError

if TYPE_CHECKING:
    from ..model.model import Model
    from ..model.request import Request
    from ..model.samples import Samples
    from .protocol import AnyEngine

Status = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("done", "failed", "cancelled")

_log = logging.getLogger(__name__)


class Preview(NamedTuple):
    """The clean estimate ``x0 [B, *S]`` of a request after ``step`` steps."""

    step: int
    x0: Tensor


class Pushes(NamedTuple):
    """What the terms of a request did at one step.

    Args:
        step: its index.
        rho: its noise ratio.
        sizes: the root mean square of each term's weighted push of x0, over all samples, by the
            term's expression.
        base: that of the prediction that they are added to.
        maps: the push of the first sample ``[*S]``, at about `MAPS` steps of the run; else empty.
    """

    step: int
    rho: float
    sizes: dict[str, float]
    base: float
    maps: dict[str, Tensor]


MAPS = 10
"""Steps of a run of which pushes are kept."""


class Ticket:
    """A request that an engine has taken.

    Every property may be read from any thread.

    Args:
        engine: that has taken it.
        request: what is sampled.
        preview_every: a preview after so many steps (0: none).
        timeout: seconds in which it must be done, from now; None for any.
        explain: whether to keep what each term does.
    """

    def __init__(
        self,
        engine: AnyEngine,
        request: Request,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        explain: bool = False,
    ) -> None:
        self.id = secrets.token_hex(12)
        self.request = request
        self.preview_every = preview_every
        self.timeout = timeout
        self.explain = explain
        self.pushes: list[Pushes] = []
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.steps = request.levels.steps
        self.steps_done = 0
        self.status: Status = "queued"
        self.preview: Preview | None = None
        self.warnings: tuple[str, ...] = ()
        self.error: BaseException | None = None
        self.samples: Samples | None = None
        self._engine = engine
        self._changed = threading.Condition()
        self._watchers: list[Callable[[Ticket], None]] = []

    @property
    def model(self) -> Model:
        """The model that is sampled from."""
        return self._engine.model

    @property
    def place(self) -> int:
        """The place in the queue, from 1; 0 where it does not wait."""
        return self._engine.place(self)

    @property
    def is_late(self) -> bool:
        """Whether its time has passed."""
        return self.timeout is not None and time.monotonic() > self.submitted + self.timeout

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED

    def cancel(self) -> None:
        """Stop it, if it is not over; its samples leave at the next tick."""
        self._engine.cancel(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over (at most ``timeout`` seconds), and return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over, timeout)

    def result(self, timeout: float | None = None) -> Samples:
        """Wait for the samples.

        Raises:
            TimeoutError: they are not there after ``timeout`` seconds.
            CancelledError: it was cancelled.
            DeadlineError: it was not done by its deadline.
            EngineClosedError: the engine was closed before.
            Exception: whatever its own guidance, solver or network raised.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"the samples are not there after {timeout:g} seconds")
        if self.error is not None:
            raise self.error
        assert self.samples is not None
        return self.samples

    def watch(self, call: Callable[[Ticket], None]) -> Callable[[], None]:
        """Call ``call(ticket)`` after each change, from the engine's thread; it must not block.

        Returns what ends that.
        """
        self._watchers.append(call)
        return lambda: self._watchers.remove(call) if call in self._watchers else None

    def begin(self) -> None:
        """Note that it runs. The engine calls this, and what follows."""
        self.started = time.monotonic()
        self.status = "running"
        self._tell()

    def advance(self, steps_done: int, x0: Tensor | None = None) -> None:
        """Note that steps are done, with the clean estimate ``x0 [B, *S]`` after them, if it is
        here.
        """
        self.steps_done = steps_done
        every = self.preview_every
        if x0 is not None and every and (steps_done % every == 0 or steps_done == self.steps):
            self.preview = Preview(steps_done, x0)
        self._tell()

    def end(
        self,
        status: Status,
        *,
        samples: Samples | None = None,
        error: BaseException | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Note how it ended."""
        if error is not None:
            error.__traceback__ = error.__context__ = error.__cause__ = None  # they hold tensors
        with self._changed:
            self.samples, self.error, self.warnings = samples, error, warnings
            self.ended = time.monotonic()
            self.status = status
            self._changed.notify_all()
        self._tell()
        self._watchers.clear()

    def _tell(self) -> None:
        for call in tuple(self._watchers):
            try:
                call(self)
            except Exception:
                _log.exception("a watcher of the request %s raised", self.id)

    def __repr__(self) -> str:
        """Say where it stands."""
        return f"Ticket({self.id}, {self.status}, {self.steps_done} of {self.steps} steps)"


def why_stopped(ticket: Ticket, cancelled: bool) -> EngineError | None:
    """Return why a request must not go on, if it must not: it was cancelled, or is late."""
    if cancelled:
        return CancelledError("the request was cancelled")
    return lateness(ticket) if ticket.is_late else None


def lateness(ticket: Ticket) -> DeadlineError:
    """Return the error of a request that was not done in time."""
    return DeadlineError(
        f"the request was not done in {ticket.timeout:g} seconds: "
        f"{ticket.steps_done} of {ticket.steps} steps were"
    )


async def changes(
    ticket: Ticket, every: float | None = None, *, pause: float = 0.0
) -> AsyncIterator[None]:
    """Yield now, after changes, and once more when it is over; a slow reader misses some.

    A change that the reader has not taken yet is noted once: the thread that samples does not wake
    the reader's loop again for what it will read anyway.

    Args:
        ticket: to follow.
        every: also yield when so many seconds brought no change.
        pause: seconds from a change until it is yielded, for those that follow it to be read with
            it; the end is yielded at once.
    """
    loop, changed, over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    noted = False

    def end() -> None:
        over.set()
        changed.set()

    def wake(_: Ticket) -> None:
        nonlocal noted
        if noted and not ticket.is_over:
            return
        noted = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(end if ticket.is_over else changed.set)

    stop = ticket.watch(wake)
    try:
        while True:
            noted = False  # before it is read: what changes from now on is noted anew
            ended = ticket.is_over
            yield
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), every)
                if pause:
                    await asyncio.wait_for(over.wait(), pause)
            changed.clear()
    finally:
        stop()
