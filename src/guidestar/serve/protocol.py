"""What servers need of an engine, wherever it samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..model.model import Model
    from ..model.request import Request
    from .stats import Stats
    from .ticket import Ticket


class AnyEngine(Protocol):
    """What samples many requests of one model at once: `Engine` says what each member does."""

    @property
    def model(self) -> Model:
        """The model that is sampled from."""
        ...

    @property
    def stats(self) -> Stats:
        """What it has done so far, and where it stands."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it can sample now."""
        ...

    def submit(
        self,
        request: Request,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        explain: bool = False,
    ) -> Ticket:
        """Take a request, and return its ticket at once."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Stop a request, if it is not over."""
        ...

    def place(self, ticket: Ticket) -> int:
        """Return the place of a ticket in the queue, from 1; 0 where it does not wait."""
        ...

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, and give those that were taken ``grace`` seconds."""
        ...
