"""The API of A1111's web UI, for the clients that people have."""

from __future__ import annotations

import json
import time

from anyio import to_thread
from fastapi import APIRouter, Request

from ...io.documents import JSONObject
from ...io.images import read_settings
from ...sampling.names import GRID_WORDS, get_solver, grid_of, write_solver
from ..ticket import Ticket
from .building import at_most
from .common import encode_base64, owner_of, service_of, submit, translate, wait
from .errors import RefusedError
from .job import Job
from .pictures import from_base64
from .schemas import MEANT, Picture, Task, Txt2Img

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

SAMPLERS = (
    *("Euler", "Euler a", "LMS", "Heun", "DDIM", "DDPM", "UniPC", "DEIS"),
    *("DPM++ 2M", "DPM++ 2M SDE", "DPM++ 3M SDE", "DPM++ 2S a", "DPM++ 2M Karras"),
)
"""Samplers by A1111's names; every name that `get_solver` reads is taken."""

SCHEDULERS = {**GRID_WORDS, "automatic": None}
"""A1111's schedulers, and our grids; None for the model's own."""

A1111_NAMES = {
    **{"cond": "prompt", "negative": "negative_prompt", "start": "init_images"},
    **{"strength": "denoising_strength", "solver": "sampler_name", "grid": "scheduler"},
}
"""A1111's names of our fields; some have another where a client sends that (`_names`)."""

PREVIEW_EVERY = 5

JUST_RESIZE, CROP = 0, 1
"""The values of ``resize_mode`` that mean something here."""


@router.post("/txt2img")
async def txt2img(request: Request, body: Txt2Img) -> JSONObject:
    """Make pictures of a prompt."""
    if body.init_images or body.denoising_strength:
        text = "txt2img starts from noise; send init_images to img2img"
        raise _wrong(text, "init_images")
    return await _make(request, body, {})


@router.post("/img2img")
async def img2img(request: Request, body: Txt2Img) -> JSONObject:
    """Make pictures that start from one that is sent."""
    if not body.init_images:
        raise _wrong("img2img needs a picture to start from", "init_images")
    if len(body.init_images) > 1:
        raise _wrong("one picture to start from is enough; send several requests", "init_images")
    if body.mask is not None:
        text = "a mask is for inverse problems here: POST /v1/samples with an observation"
        raise _wrong(text, "mask")
    strength = 0.75 if body.denoising_strength is None else body.denoising_strength
    resize = "crop" if body.resize_mode == CROP else "stretch"
    start = {"start": body.init_images[0], "strength": strength, "resize": resize}
    return await _make(request, body, start)


async def _make(request: Request, body: Txt2Img, start: JSONObject) -> JSONObject:
    service = service_of(request)
    try:
        name, engine = service.engine(_model(body))
    except RefusedError as error:  # there is no field "model"
        raise RefusedError(error.status, error.kind, error.message, "override_settings") from None
    width, height = service.sizes[name]
    warnings = _ignored(body)
    for field, found, own in (("width", body.width, width), ("height", body.height, height)):
        if found not in (None, own):
            raise _wrong(f"the model {name!r} makes pictures of {width} × {height}", field)
    solver, grid = _sampler(body)
    if body.guidance is not None and body.cfg_scale is not None:
        raise _wrong("give guidance or cfg_scale, not both", "guidance")
    count = body.batch_size * body.n_iter
    larger = "n_iter" if body.n_iter > body.batch_size else "batch_size"
    at_most(larger, count, service.limits.samples, "batch_size × n_iter")
    unconditional = engine.model.encoder is None and not body.prompt
    names = _names(body)
    sampled = translate(
        names,
        model=name,
        cond=None if unconditional else body.prompt,
        guidance=body.guidance if body.cfg_scale is None else f"cfg({body.cfg_scale!r})",
        negative=body.negative_prompt or None,
        n=count,
        seed=None if body.seed == -1 else body.seed,
        steps=body.steps,
        solver=solver,
        grid=grid,
        preview_every=PREVIEW_EVERY,
        **start,
    )
    job = await submit(request, sampled, task=body.force_task_id, names=names)
    await wait(request, job)
    pictures = await encode_base64(job)
    return {
        "images": pictures if body.send_images else [],
        "parameters": body.model_dump(exclude={"init_images"}),
        "info": json.dumps(_info(job, body, (width, height), warnings)),
    }


def _names(body: Txt2Img) -> dict[str, str]:
    """Return the names of our fields as this client sent them."""
    scaled = {} if body.cfg_scale is None else {"guidance": "cfg_scale"}
    return {**A1111_NAMES, "solver": _sampler_field(body), **scaled}


def _sampler_field(body: Txt2Img) -> str:
    """Return the name of the field that names the sampler."""
    by_index = body.sampler_index and not body.sampler_name
    return "sampler_index" if by_index else "sampler_name"


def _info(job: Job, body: Txt2Img, size: tuple[int, int], warnings: list[str]) -> JSONObject:
    seeds, request = job.seeds, job.ticket.request
    text = (
        f"{body.prompt}\nSteps: {job.ticket.steps}, Sampler: {request.solver.name}, Seed: {{}}, "
        f"Size: {size[0]}x{size[1]}, Model: {job.ticket.model.name}, Guidance: {request.guidance}"
    )
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * len(seeds),
        "negative_prompt": body.negative_prompt or "",
        "all_negative_prompts": [body.negative_prompt or ""] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "width": size[0],
        "height": size[1],
        "sampler_name": request.solver.name,
        "cfg_scale": body.cfg_scale,
        "guidance": str(request.guidance),
        "steps": job.ticket.steps,
        "batch_size": len(seeds),
        "sd_model_name": job.ticket.model.name,
        "denoising_strength": body.denoising_strength,
        "infotexts": [text.format(seed) for seed in seeds],
        "index_of_first_image": 0,
        "warnings": [*warnings, *job.ticket.warnings],
    }


def _ignored(body: Txt2Img) -> list[str]:
    """Name the fields that mean nothing here, and are neither at their default nor off."""
    off = (None, False, [], {}, "")
    found = [
        f"{field} means nothing here"
        for field in sorted(body.model_fields_set - MEANT)
        if getattr(body, field) not in (type(body).model_fields[field].default, *off)
    ]
    if body.resize_mode not in (JUST_RESIZE, CROP):
        found.append(f"resize_mode {body.resize_mode} means nothing here; it was taken as 0")
    return found


def _model(body: Txt2Img) -> str | None:
    """Return the model that is named; no other setting can be overridden.

    Raises:
        RefusedError: another one is.
    """
    settings = dict(body.override_settings or {})
    name = settings.pop("sd_model_checkpoint", None)
    if settings:
        text = f"of override_settings only sd_model_checkpoint is known, not {next(iter(settings))}"
        raise _wrong(text[:300], "override_settings")
    return None if name is None else str(name).split(" [")[0]


def _sampler(body: Txt2Img) -> tuple[str | None, str | None]:
    """Return solver and grid by A1111's names, or ours.

    Raises:
        RefusedError: an unknown one.
    """
    name = body.sampler_name or body.sampler_index
    grid = None
    try:
        grid = grid_of(name)
    except ValueError as error:
        text = f"there is no such sampler; see /sdapi/v1/samplers ({error})"
        raise _wrong(text[:500], _sampler_field(body)) from None
    if body.scheduler:
        if body.scheduler.lower() not in SCHEDULERS:
            known = ", ".join(SCHEDULERS)
            raise _wrong(f"there is no scheduler of that name; there are {known}", "scheduler")
        grid = SCHEDULERS[body.scheduler.lower()]
    return name, grid


@router.get("/progress")
async def progress(
    request: Request, id_task: str | None = None, skip_current_image: bool = False
) -> JSONObject:
    """Say how far one's own request is: the one of ``id_task``, else the oldest under way."""
    jobs = service_of(request).own(owner_of(request), id_task)
    job = jobs[0] if jobs else None
    ticket = job.ticket if job else None
    pictures = []
    if job and not skip_current_image:
        pictures = await to_thread.run_sync(job.previews)
    done, steps = (ticket.steps_done, ticket.steps) if ticket else (0, 0)
    return {
        "progress": done / steps if steps else 0.0,
        "eta_relative": _seconds_left(ticket) if ticket else 0.0,
        "state": {
            "job": (job.task or job.id) if job else "",
            "job_count": len(jobs),
            "sampling_step": done,
            "sampling_steps": steps,
            "interrupted": False,
            "skipped": False,
        },
        "current_image": pictures[0] if pictures else None,
        "textinfo": f"place {ticket.place} in the queue" if ticket and ticket.place else None,
    }


def _seconds_left(ticket: Ticket) -> float:
    """Return about how long a request will take, at the speed that it has had so far."""
    if ticket.started is None or not ticket.steps_done:
        return 0.0
    each = (time.monotonic() - ticket.started) / ticket.steps_done
    return each * (ticket.steps - ticket.steps_done)


@router.post("/interrupt")
async def interrupt(request: Request, task: Task | None = None) -> JSONObject:
    """Cancel one's own requests: those of a task, else all."""
    for job in service_of(request).own(owner_of(request), task.id_task if task else None):
        job.ticket.cancel()
    return {}


@router.post("/png-info")
async def png_info(body: Picture) -> JSONObject:
    """Return the settings that a picture carries."""
    try:
        settings = read_settings(from_base64(body.image, "image"))
    except ValueError as error:
        raise _wrong(str(error), "image") from None
    return {"info": json.dumps(settings), "items": {"guidestar": settings}, "parameters": settings}


@router.get("/samplers")
async def samplers() -> list[JSONObject]:
    """List the samplers, each with its name here."""
    return [
        {"name": name, "aliases": [write_solver(get_solver(name))], "options": {}}
        for name in SAMPLERS
    ]


@router.get("/sd-models")
async def sd_models(request: Request) -> list[JSONObject]:
    """List the models."""
    return [
        {
            "title": name,
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": name,
            "config": None,
        }
        for name in service_of(request).engines
    ]


def _wrong(message: str, field: str) -> RefusedError:
    return RefusedError(422, "invalid_request_error", message, field)
