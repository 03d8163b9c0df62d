"""Reports of a replica on a request that it samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...model.samples import Samples
from ..errors import (
    CancelledError,
    DeadlineError,
    EngineClosedError,
    QueueFullError,
    TooLargeError,
)
from ..stats import Stats
from ..ticket import Preview, Pushes, Status, Ticket

_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(CancelledError, DeadlineError, EngineClosedError, QueueFullError, TooLargeError),
        *(ValueError, FloatingPointError, MemoryError),
    )
}
"""Errors that come back as they were; others become a `RuntimeError`."""


@dataclass(frozen=True, kw_only=True)
class ReplicaReport:
    """The state of a request, as its replica reports it.

    Args:
        replica: which one samples it.
        status: as a ticket's.
        steps_done: of the request.
        preview: the newest, if it was not sent before.
        pushes: those that were not sent before.
        samples: of a request that is done.
        error: kind and message of the error of one that failed.
        warnings: of its end.
        stats: of the replica's engine, with a request's end.
    """

    replica: str
    status: Status
    steps_done: int = 0
    preview: Preview | None = None
    pushes: Sequence[Pushes] = ()
    samples: Samples | None = None
    error: tuple[str, str] | None = None
    warnings: tuple[str, ...] = ()
    stats: Stats = field(default_factory=Stats)


def report(replica: str, ticket: Ticket, shown: int, pushed: int, stats: Stats) -> ReplicaReport:
    """Report of a ticket.

    Args:
        replica: which one samples it.
        ticket: of its engine.
        shown: the step of the last preview that was sent.
        pushed: how many pushes were sent.
        stats: of its engine.
    """
    status, preview = ticket.status, ticket.preview
    fresh = preview is not None and preview.step != shown
    return ReplicaReport(
        replica=replica,
        status=status,
        steps_done=ticket.steps_done,
        preview=Preview(preview.step, preview.x0.cpu()) if preview and fresh else None,
        pushes=tuple(ticket.pushes[pushed:]),
        samples=_on_cpu(ticket.samples) if status == "done" else None,
        error=None if ticket.error is None else describe(ticket.error),
        warnings=ticket.warnings,
        stats=stats,
    )


def describe(error: BaseException) -> tuple[str, str]:
    """Return the kind and the message of an error: its nearest class that `restore` knows."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS)
    name = next(known, None)
    return (name, str(error)) if name else ("RuntimeError", f"{type(error).__name__}: {error}")


def restore(kind: str, message: str) -> Exception:
    """Return the error that `describe` described."""
    return _KINDS.get(kind, RuntimeError)(message)


def _on_cpu(samples: Samples | None) -> Samples | None:
    if samples is None:
        return None
    return replace(samples, x=samples.x.cpu(), images=samples.images.cpu())
