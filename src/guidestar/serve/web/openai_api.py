"""OpenAI's API for images, for the clients that people have."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request

from ...io.documents import JSONObject
from ..ticket import changes
from .common import encode_base64, events, service_of, submit, translate, wait
from .errors import RefusedError
from .job import Job
from .schemas import ImagesRequest

router = APIRouter(prefix="/v1", tags=["openai"])

MEANINGLESS = ("quality", "style", "background", "moderation", "output_compression", "user")
"""Fields of OpenAI that mean nothing to a diffusion model."""

OPENAI_NAMES = {"cond": "prompt", "negative": "negative_prompt", "steps": "num_inference_steps"}
"""OpenAI's names of our fields, or those that other servers gave them."""

NO_TOKENS = {
    **dict.fromkeys(("total_tokens", "input_tokens", "output_tokens"), 0),
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


@router.post("/images/generations", response_model=None)
async def generate(request: Request, body: ImagesRequest) -> Any:
    """Make pictures: in base64, by their address, or as events on the way."""
    service = service_of(request)
    name, engine = service.engine(body.model)
    width, height = service.sizes[name]
    if body.size not in (None, "auto", f"{width}x{height}"):
        text = f"the model {name!r} makes pictures of {width}x{height}, not {body.size}"
        raise RefusedError(422, "invalid_request_error", text, "size")
    steps = body.num_inference_steps or engine.model.grid().steps
    every = -(-steps // (body.partial_images + 1)) if body.partial_images else 0
    unconditional = engine.model.encoder is None and not body.prompt
    scaled = {} if body.guidance_scale is None else {"guidance": "guidance_scale"}
    names = {**OPENAI_NAMES, **scaled}
    sampled = translate(
        names,
        model=name,
        cond=None if unconditional else body.prompt,
        guidance=_guidance(body),
        negative=body.negative_prompt or None,
        n=body.n,
        seed=body.seed,
        steps=body.num_inference_steps,
        solver=body.solver,
        preview_every=every if body.stream else 0,
    )
    job = await submit(request, sampled, names=names)
    ignored = [field for field in MEANINGLESS if getattr(body, field) is not None]
    warnings = [f"{field} means nothing to this model" for field in ignored]
    shown = body.output_format
    if body.response_format == "url" and not body.stream and shown != "png":
        warnings.append(f"an address is of a PNG; {shown} is for response_format b64_json")
        shown = "png"
    if body.stream:
        return events(request, _events(job, body, f"{width}x{height}", warnings))
    await wait(request, job)
    pictures = await encode_base64(job, shown)
    return {
        "created": int(time.time()),
        "data": [_entry(request, job, body, k, p) for k, p in enumerate(pictures)],
        "output_format": shown,
        "size": f"{width}x{height}",
        "seeds": job.seeds,
        "id": job.id,
        "warnings": [*warnings, *job.ticket.warnings],
    }


def _guidance(body: ImagesRequest) -> str | None:
    if body.guidance is not None and body.guidance_scale is not None:
        text = "give guidance or guidance_scale, not both"
        raise RefusedError(422, "invalid_request_error", text, "guidance")
    return body.guidance if body.guidance_scale is None else f"cfg({body.guidance_scale!r})"


def _entry(request: Request, job: Job, body: ImagesRequest, index: int, picture: str) -> JSONObject:
    if body.response_format == "b64_json":
        return {"b64_json": picture}
    return {"url": str(request.base_url) + f"v1/images/{job.id}/{index}.png"}


async def _events(
    job: Job, body: ImagesRequest, size: str, warnings: list[str]
) -> AsyncIterator[JSONObject]:
    common = {
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "auto",
        "output_format": body.output_format,
    }
    shown, count = 0, 0
    try:
        async for _ in changes(job.ticket):
            preview = job.ticket.preview
            if preview is None or preview.step in (shown, job.ticket.steps):
                continue
            if count < body.partial_images:
                shown = preview.step
                pictures = await to_thread.run_sync(lambda: job.previews(body.output_format))
                kind = "image_generation.partial_image"
                yield _event(
                    {**common, "b64_json": pictures[0], "partial_image_index": count}, kind
                )
                count += 1
        for picture in await encode_base64(job, body.output_format):
            done = {**common, "b64_json": picture, "usage": NO_TOKENS, "warnings": warnings}
            yield _event(done, "image_generation.completed")
    except RefusedError as error:
        yield {"event": "error", "data": json.dumps(error.body)}
    finally:
        job.ticket.cancel()  # what is over stays; the client of another has gone


def _event(data: JSONObject, kind: str) -> JSONObject:
    return {"event": kind, "data": json.dumps({"type": kind, **data})}
