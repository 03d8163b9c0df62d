"""A process that samples for a server: the models, with an engine for each."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from ..engine import Engine
from ..ticket import changes
from .reports import ReplicaReport, describe, report

if TYPE_CHECKING:
    from ...model.model import Model
    from ...model.request import Request

ANY = 2**31
"""Requests that may wait in a replica: the server in front of it counts them."""


class Replica:
    """Samples the requests that a server sends, and reports of each as it goes.

    Args:
        load: returns the models by name; called in the replica's own process.
        max_rows: the most rows of a tick, of each model.
    """

    def __init__(self, load: Callable[[], Mapping[str, Model]], max_rows: int) -> None:
        self.id = secrets.token_hex(6)
        self.engines = {
            name: Engine(model, max_rows=max_rows, max_queue=ANY) for name, model in load().items()
        }

    async def sample(
        self, model: str, request: Request, *, preview_every: int, explain: bool
    ) -> AsyncIterator[ReplicaReport]:
        """Sample a request, and yield reports until it is over.

        A reader that stops reading cancels it.
        """
        engine = self.engines[model]
        try:
            ticket = await asyncio.to_thread(
                lambda: engine.submit(request, preview_every=preview_every, explain=explain)
            )
        except Exception as error:  # the server in front raises it where it waits
            yield ReplicaReport(replica=self.id, status="failed", error=describe(error))
            return
        shown, pushed = 0, 0
        try:
            async for _ in changes(ticket):
                found = report(self.id, ticket, shown, pushed, engine.stats)
                shown = found.preview.step if found.preview else shown
                pushed += len(found.pushes)
                yield found
                if found.status not in ("queued", "running"):
                    return
        finally:
            ticket.cancel()

    def check_health(self) -> None:
        """Refuse to go on without an engine.

        Raises:
            RuntimeError: the thread of one has ended.
        """
        if dead := [name for name, engine in self.engines.items() if not engine.is_open]:
            raise RuntimeError(f"the engine of {', '.join(dead)} has stopped")

    def close(self) -> None:
        """End the engines."""
        for engine in self.engines.values():
            engine.close()
