"""What all engines are, wherever they sample: what takes requests, and reports their state."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from .admission import bind_checked, check_size, in_groups
from .errors import EngineClosedError, QueueFullError
from .ticket import Ticket

if TYPE_CHECKING:
    from ..guidance import Guided
    from ..model.model import Model
    from ..model.request import Request
    from .stats import Stats


class AnyEngine(ABC):
    """Takes requests of one model: `Engine` samples them here, `ReplicatedEngine` elsewhere.

    Args:
        model: that requests are of.
        max_rows: the most rows that are evaluated together.
        max_queue: how many requests may wait.
        max_samples: the most samples of a request; None for any number.
        max_evaluations: the most network evaluations of a request; None for any number.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_rows: int,
        max_queue: int,
        max_samples: int | None,
        max_evaluations: int | None,
    ) -> None:
        for name, value in (("max_rows", max_rows), ("max_queue", max_queue)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.model = model
        self.max_rows, self.max_queue = max_rows, max_queue
        self.max_samples, self.max_evaluations = max_samples, max_evaluations
        self._lock = threading.Condition()

    def submit(
        self,
        request: Request,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        explain: bool = False,
    ) -> Ticket:
        """Take a request, and return its ticket at once.

        Args:
            request: of this engine's model (`Model.request`). A population (`Model.steer`) is
                none: resampling mixes its samples.
            preview_every: keep a preview of the clean estimate after so many steps (0: none).
            timeout: seconds in which it must be done, the time in the queue included.
            explain: keep what each term does at every step (`Ticket.pushes`).

        Raises:
            ValueError: what the guidance, a network or the solver refuses.
            TooLargeError: more samples than ``max_samples``, or evaluations than
                ``max_evaluations``.
            QueueFullError: ``max_queue`` requests wait already.
            EngineClosedError: the engine was closed.
        """
        check_size(request, self.max_samples, preview_every)
        self._check_room()
        limited = in_groups(request, self.max_rows)
        guided = bind_checked(self.model, limited, self.max_evaluations)
        ticket = Ticket(
            self, request, preview_every=preview_every, timeout=timeout, explain=explain
        )
        with self._lock:
            self._check_room()
            self._take(ticket, limited, guided)
        return ticket

    def _check_room(self) -> None:
        if not self.is_open:
            raise EngineClosedError("the engine is closed; it takes no more requests")
        if (waiting := self._count_waiting()) >= self.max_queue:
            raise QueueFullError(
                f"{waiting} requests wait already, as many as may; try again later"
            )

    @abstractmethod
    def _take(self, ticket: Ticket, limited: Request, guided: Guided) -> None:
        """Queue a request that was checked, with its samples in groups; the lock is held."""

    @abstractmethod
    def _count_waiting(self) -> int:
        """Return how many requests wait; the lock may be held."""

    @abstractmethod
    def cancel(self, ticket: Ticket) -> None:
        """Stop a request, if it is not over."""

    @abstractmethod
    def place(self, ticket: Ticket) -> int:
        """Return the place of a ticket in the queue, from 1; 0 where it does not wait."""

    @abstractmethod
    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, and give those that were taken ``grace`` seconds."""

    @property
    @abstractmethod
    def stats(self) -> Stats:
        """What it has done so far, and where it stands."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether it takes requests."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it can sample now."""
