"""What all routes share: the service, the client, and waiting for a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from anyio import to_thread
from fastapi import Request
from pydantic import ValidationError
from sse_starlette import EventSourceResponse

from ...io.documents import JSONObject
from ..errors import EngineError
from ..ticket import changes
from .errors import RefusedError, refused
from .job import Job
from .schemas import SampleRequest
from .service import Service

PROBE = 0.5
"""Seconds between two checks whether a waiting client has gone."""


def service_of(request: Request) -> Service:
    """Return the service of an application."""
    return request.app.state.service


def owner_of(request: Request) -> str:
    """Return the name of the client."""
    return request.state.owner


async def submit(
    request: Request,
    body: SampleRequest,
    *,
    task: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Job:
    """Take a request, in a worker thread, as conditions are encoded there.

    Args:
        request: of HTTP.
        body: what it asks for.
        task: the client's own name of it.
        names: our fields' names in the client's API, by which errors name them.

    Raises:
        RefusedError: what `Service.submit` refuses.
    """
    service, owner = service_of(request), owner_of(request)
    try:
        return await to_thread.run_sync(lambda: service.submit(body, owner, task=task))
    except (RefusedError, EngineError, ValueError) as error:
        raise refused(error).renamed(names or {}) from None


def translate(names: Mapping[str, str], **fields: Any) -> SampleRequest:
    """Return the request that another API's fields make.

    Args:
        names: our fields' names in that API, by which errors name them.
        fields: of the request.

    Raises:
        RefusedError: a value that is none of ours.
    """
    try:
        return SampleRequest(**fields)
    except ValidationError as error:
        raise refused(error).renamed(names) from None


async def wait(request: Request, job: Job) -> None:
    """Wait until a request is over; cancel it when its client leaves.

    Raises:
        RefusedError: the client has gone.
    """
    async for _ in changes(job.ticket, PROBE, pause=PROBE):  # steps do not matter to it
        if not job.ticket.is_over and await request.is_disconnected():
            job.ticket.cancel()
            raise RefusedError(499, "disconnected", "the client has gone")


async def encode_base64(job: Job, kind: str = "png") -> list[str]:
    """Return the pictures of a request that is over, in base64.

    Raises:
        RefusedError: it failed.
    """
    return await to_thread.run_sync(lambda: job.all_encoded(kind))


def events(request: Request, found: AsyncIterator[JSONObject]) -> EventSourceResponse:
    """Send events as they come; a client that does not take one in time is left."""
    seconds = service_of(request).limits.receive
    return EventSourceResponse(found, ping=15, send_timeout=seconds)
