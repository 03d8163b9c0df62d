"""OpenAI's API for images, for the clients that people have."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request

from ..ticket import changes
from .common import encode_base64, events, service_of, submit, wait
from .errors import RefusedError
from .job import Job
from .schemas import ImagesRequest, SampleRequest

router = APIRouter(prefix="/v1", tags=["openai"])

MEANINGLESS = ("quality", "style", "background", "moderation", "output_compression", "user")
"""Fields of OpenAI that mean nothing to a diffusion model."""

NO_TOKENS = {
    **dict.fromkeys(("total_tokens", "input_tokens", "output_tokens"), 0),
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


@router.post("/images/generations", response_model=None)
async def generate(request: Request, asked: ImagesRequest) -> Any:
    """Make pictures: in base64, by their address, or as events on the way."""
    service = service_of(request)
    name, engine = service.engine(asked.model)
    width, height = service.sizes[name]
    if asked.size not in (None, "auto", f"{width}x{height}"):
        text = f"the model {name!r} makes pictures of {width}x{height}, not {asked.size}"
        raise RefusedError(422, "invalid_request_error", text, "size")
    steps = asked.num_inference_steps or engine.model.grid().steps
    every = -(-steps // (asked.partial_images + 1)) if asked.partial_images else 0
    unconditional = engine.model.encoder is None and not asked.prompt
    job = await submit(
        request,
        SampleRequest(
            model=name,
            cond=None if unconditional else asked.prompt,
            guidance=_guidance(asked),
            negative=asked.negative_prompt or None,
            n=asked.n,
            seed=asked.seed,
            steps=asked.num_inference_steps,
            solver=asked.solver,
            preview_every=every if asked.stream else 0,
        ),
    )
    ignored = [field for field in MEANINGLESS if getattr(asked, field) is not None]
    warnings = [f"{field} means nothing to this model" for field in ignored]
    if asked.stream:
        return events(request, _events(job, asked, f"{width}x{height}", warnings))
    await wait(request, job)
    pictures = await encode_base64(job, asked.output_format)
    return {
        "created": int(time.time()),
        "data": [_entry(request, job, asked, k, p) for k, p in enumerate(pictures)],
        "output_format": asked.output_format,
        "size": f"{width}x{height}",
        "seeds": job.seeds,
        "id": job.id,
        "warnings": [*warnings, *job.ticket.warnings],
    }


def _guidance(asked: ImagesRequest) -> str | None:
    if asked.guidance is not None and asked.guidance_scale is not None:
        text = "give guidance or guidance_scale, not both"
        raise RefusedError(422, "invalid_request_error", text, "guidance")
    return asked.guidance if asked.guidance_scale is None else f"cfg({asked.guidance_scale!r})"


def _entry(
    request: Request, job: Job, asked: ImagesRequest, index: int, picture: str
) -> dict[str, Any]:
    if asked.response_format == "b64_json":
        return {"b64_json": picture}
    return {"url": str(request.base_url) + f"v1/images/{job.id}/{index}.png"}


async def _events(
    job: Job, asked: ImagesRequest, size: str, warnings: list[str]
) -> AsyncIterator[dict[str, Any]]:
    common = {
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "auto",
        "output_format": asked.output_format,
    }
    shown, count = 0, 0
    try:
        async for _ in changes(job.ticket):
            preview = job.ticket.preview
            due = preview is not None and preview.step not in (shown, job.ticket.steps)
            if preview is not None and due and count < asked.partial_images:
                shown = preview.step
                pictures = await to_thread.run_sync(lambda: job.previews(asked.output_format))
                kind = "image_generation.partial_image"
                yield _event(
                    {**common, "b64_json": pictures[0], "partial_image_index": count}, kind
                )
                count += 1
        for picture in await encode_base64(job, asked.output_format):
            done = {**common, "b64_json": picture, "usage": NO_TOKENS, "warnings": warnings}
            yield _event(done, "image_generation.completed")
    except RefusedError as error:
        yield {"event": "error", "data": json.dumps(error.body)}
    finally:
        job.ticket.cancel()  # what is over stays; the client of another has gone


def _event(data: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"event": kind, "data": json.dumps({"type": kind, **data})}
