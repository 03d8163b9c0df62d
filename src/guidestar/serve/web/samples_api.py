"""The server's own API, under /v1."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Literal

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from ...io.documents import JSONObject
from ..ticket import changes
from . import about
from .common import events, owner_of, service_of, submit
from .job import Job
from .motion_files import MEDIA
from .schemas import PlanRequest, SampleRequest

POLL_SECONDS = 0.1
"""Seconds between two events of a request without previews: a fast one has many steps in that."""

router = APIRouter(prefix="/v1", tags=["samples"])


@router.post("/samples", status_code=202)
async def sample(request: Request, body: SampleRequest) -> JSONObject:
    """Take a request, and return at once where it stands."""
    job = await submit(request, body)
    return job.describe()


@router.get("/samples/{name}")
async def status(request: Request, name: str) -> JSONObject:
    """Say where a request stands."""
    return service_of(request).find(name, owner_of(request)).describe()


@router.delete("/samples/{name}", status_code=204)
async def delete(request: Request, name: str) -> None:
    """Cancel a request, and drop its pictures."""
    service = service_of(request)
    service.forget(service.find(name, owner_of(request)))


@router.get("/samples/{name}/events")
async def follow(request: Request, name: str) -> Response:
    """Send progress, previews and the end of a request as server-sent events."""
    job = service_of(request).find(name, owner_of(request))
    return events(request, _events(job))


async def _events(job: Job) -> AsyncIterator[JSONObject]:
    shown = 0
    pause = 0.0 if job.ticket.preview_every else POLL_SECONDS
    async for _ in changes(job.ticket, pause=pause):
        preview = job.ticket.preview
        if preview is not None and preview.step != shown:
            shown = preview.step
            pictures = await to_thread.run_sync(job.previews)
            yield _event("preview", {"step": shown, "images": pictures})
        yield _event(job.ticket.status, job.describe())


def _event(name: str, data: JSONObject) -> JSONObject:
    return {"event": name, "data": json.dumps(data)}


@router.get("/images/{name}/{index}.png")
async def picture(request: Request, name: str, index: int) -> Response:
    """Return a picture as PNG, which carries its settings. Its address is a secret."""
    job = service_of(request).find(name)
    data = await to_thread.run_sync(lambda: job.encoded(index))
    return Response(data, media_type="image/png", headers={"Cache-Control": "private"})


@router.get("/motions/{name}/{index}.{kind}")
async def motion(request: Request, name: str, index: int, kind: Literal["bvh", "npz"]) -> Response:
    """Return a motion as BVH, or the positions of its joints as NPZ. Its address is a secret."""
    job = service_of(request).find(name)
    data = await to_thread.run_sync(lambda: job.encoded(index, kind))
    return Response(data, media_type=MEDIA[kind], headers={"Cache-Control": "private"})


@router.get("/models")
async def models(request: Request) -> JSONObject:
    """List the models."""
    service = service_of(request)
    found = [
        about.describe_model(name, engine.model, service.sizes[name])
        for name, engine in service.engines.items()
    ]
    return {"object": "list", "data": found}


@router.get("/models/{name}")
async def model(request: Request, name: str) -> JSONObject:
    """Describe a model."""
    service = service_of(request)
    name, engine = service.engine(name)
    return about.describe_model(name, engine.model, service.sizes[name])


@router.get("/methods")
async def methods() -> JSONObject:
    """List what may stand in an expression, and the solvers and grids."""
    return {"methods": about.describe_methods(), **about.describe_choices()}


@router.post("/plan")
async def plan(request: Request, body: PlanRequest) -> JSONObject:
    """Say which passes a run takes, without running anything."""
    service = service_of(request)
    _, engine = service.engine(body.model)
    return await to_thread.run_sync(lambda: about.plan(engine.model, body, service.limits))
