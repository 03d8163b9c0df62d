"""Turn what a client asks for into a request of a model, within the server's limits."""

from __future__ import annotations

import secrets
from dataclasses import fields
from typing import Any

import torch

from ...core.arguments import find_mismatch
from ...core.levels import Grid
from ...guidance import Guidance, Inpaint, Observation, get_operator, losses_of, parse
from ...guidance.operators import OPERATORS
from ...model.blame import blaming
from ...model.model import Model
from ...model.request import Request
from ...sampling.names import grid_of
from .errors import RefusedError
from .limits import Limits
from .pictures import to_tensor
from .schemas import ObservedPicture, PlanRequest, SampleRequest


def build(model: Model, body: SampleRequest, limits: Limits) -> Request:
    """Return the request that a client asks for.

    Args:
        model: to sample from.
        body: the client's request.
        limits: of the server.

    Raises:
        RefusedError: it is over a limit, or a picture cannot be read.
        ValueError: as `Model.request`.
    """
    seeds = _seeds(body, limits)
    _check_texts(body, limits)
    if body.steps is not None:
        at_most("steps", body.steps, limits.steps)
    for scale in body.scale if isinstance(body.scale, list) else [body.scale or 0.0]:
        at_most("scale", abs(scale), limits.scale)
    guidance = None if body.guidance is None else read_expression(body.guidance, limits)
    start = None
    if body.start is not None:
        with blaming("start"):
            shape = model.need_image_shape()
        image = to_tensor(body.start, shape, limits, "start", resize=body.resize)[None]
        start = model.from_images(image.to(model.device)).expand(len(seeds), *model.shape)
    elif body.strength is not None or body.resize is not None:
        field = "resize" if body.strength is None else "strength"
        text = f"{field} is of a picture to start from; send one as start, or leave it out"
        raise RefusedError(422, "invalid_request_error", text, field)
    rho = body.start_rho
    if body.strength is not None:
        if rho is not None:
            text = "give strength or start_rho, not both"
            raise RefusedError(422, "invalid_request_error", text, "strength")
        rho = float(levels_left(model, body, body.strength)[0].rho)
    losses = None
    if body.observation is None and guidance is not None and losses_of(guidance):
        text = (
            f"'{guidance}' lowers the loss of an observed picture; send one as observation "
            "to POST /v1/samples"
        )
        raise RefusedError(422, "invalid_request_error", text, "guidance")
    if body.observation is not None:
        expression = model.expression(
            guidance,
            conditional=body.cond is not None,
            steps=body.steps,
            grid=body.grid or grid_of(body.solver),
        )
        losses = {
            "loss": build_observation(model, body.observation, expression, len(seeds), limits)
        }
    return model.request(
        body.cond,
        guidance=guidance,
        seeds=seeds,
        negative=body.negative,
        scale=body.scale,
        steps=body.steps,
        solver=body.solver,
        grid=body.grid,
        start=start,
        start_rho=rho,
        losses=losses,
    )


def levels_left(model: Model, body: SampleRequest | PlanRequest, strength: float) -> Grid:
    """Return the levels that a picture to start from goes through: those of the last steps, of
    which ``strength`` is the share, one step at least.
    """
    levels = model.grid(body.steps, body.grid or grid_of(body.solver))
    steps = max(1, round(levels.steps * strength))
    return levels.from_rho(float(levels[levels.steps - steps].rho))


def at_most(field: str, value: float, limit: float, shown: str | None = None) -> None:
    """Refuse a number beyond a limit of the server.

    Args:
        field: that is to be changed.
        value: the number.
        limit: the largest that is taken.
        shown: what the number is of, where it is not the field's own.
    """
    if value > limit:
        text = f"{shown or field} may be {limit:g} at most here, not {value:g}"
        raise RefusedError(422, "too_large", text, field)


def _seeds(body: SampleRequest, limits: Limits) -> list[int]:
    if body.seeds is not None:
        if body.seed is not None or body.n != 1:
            text = "give seeds, or n and seed, not both"
            raise RefusedError(422, "invalid_request_error", text, "seeds")
        if not body.seeds:
            raise RefusedError(422, "invalid_request_error", "there are no seeds", "seeds")
        at_most("seeds", len(body.seeds), limits.samples, "the number of seeds")
        return list(body.seeds)
    at_most("n", body.n, limits.samples)
    first = secrets.randbelow(2**31) if body.seed is None else body.seed
    return [first + k for k in range(body.n)]


def _check_texts(body: SampleRequest, limits: Limits) -> None:
    names = body.cond if isinstance(body.cond, list) else [body.cond]
    for field, found in (("cond", names), ("negative", [body.negative])):
        for text in found:
            if isinstance(text, str) and len(text) > limits.prompt:
                at_most(field, len(text), limits.prompt, f"the length of {field}")


def read_expression(text: str, limits: Limits) -> Guidance:
    """Read an expression whose scales are within the limit.

    Raises:
        RefusedError: it is too long, or a scale too large.
        ExpressionError: it does not parse.
    """
    at_most("guidance", len(text), limits.prompt, "the length of guidance")
    with blaming("guidance"):
        guidance = parse(text)
    for term in guidance.terms:
        one = term.scale
        for scale in (
            *((one,) if isinstance(one, int | float) else ()),
            *sum(term.lists.values(), ()),
        ):
            at_most("guidance", abs(scale), limits.scale, f"the scale of {term.name}")
    return guidance


def build_observation(
    model: Model, observed: ObservedPicture, guidance: Guidance, count: int, limits: Limits
) -> Observation:
    """Return what was observed, for each of ``count`` samples.

    Raises:
        RefusedError: an unknown operator or option, a picture that cannot be read, or a guidance
            that would not use it.
    """
    if not losses_of(guidance):
        raise _wrong(
            f"'{guidance}' lowers no loss, so it would not use the observed picture; add "
            "one that does, e.g. 'uncond + dps(1)'"
        )
    with blaming("observation"):
        shape = model.need_image_shape()
    if observed.operator not in OPERATORS:
        raise _wrong(
            f"unknown operator {observed.operator!r}; the operators are {', '.join(OPERATORS)}"
        )
    options = _options(observed, shape, limits)
    operator = get_operator(observed.operator, **options)
    shown = operator(torch.zeros(1, *shape)).shape[1:]
    y = to_tensor(observed.image, (shown[0], shown[1], shown[2]), limits, "observation.image")[None]
    y = operator(y) if isinstance(operator, Inpaint) else y
    y = y.expand(count, *y.shape[1:])
    return Observation(model.on_images(operator), y, noise=observed.noise)


def _options(
    observed: ObservedPicture, shape: tuple[int, int, int], limits: Limits
) -> dict[str, Any]:
    kind: Any = OPERATORS[observed.operator]
    known = [f.name for f in fields(kind)]
    options: dict[str, Any] = {}
    for key, value in observed.options.items():
        if key not in known or key == "mask":
            raise _wrong(f"{observed.operator} has no option {key!r}; it has {', '.join(known)}")
        whole = int(value) if float(value).is_integer() else value
        if wrong := find_mismatch(kind, key, whole):
            raise _wrong(f"{observed.operator}: {wrong}")
        options[key] = whole
    if ("mask" in known) != (observed.mask is not None):
        raise _wrong("inpaint needs its mask, and no other operator has one")
    if observed.mask is not None:
        mask = to_tensor(observed.mask, (1, *shape[1:]), limits, "observation.mask")
        options["mask"] = (mask > 0).float()
    return options


def _wrong(message: str) -> RefusedError:
    return RefusedError(422, "invalid_request_error", message, "observation")
