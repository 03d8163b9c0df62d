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
from ...model.model import Model
from ...model.request import Request
from ...sampling.names import grid_of
from .errors import RefusedError
from .limits import Limits
from .pictures import to_tensor
from .schemas import PlanRequest, SampleRequest, Seen


def build(model: Model, asked: SampleRequest, limits: Limits) -> Request:
    """Return the request that a client asks for.

    Args:
        model: to sample from.
        asked: by the client.
        limits: of the server.

    Raises:
        RefusedError: it is over a limit, or a picture cannot be read.
        ValueError: as `Model.request`.
    """
    seeds = _seeds(asked, limits)
    _check_texts(asked, limits)
    if asked.steps is not None:
        at_most("steps", asked.steps, limits.steps)
    for scale in asked.scale if isinstance(asked.scale, list) else [asked.scale or 0.0]:
        at_most("scale", abs(scale), limits.scale)
    guidance = None if asked.guidance is None else read_expression(asked.guidance, limits)
    start = None
    if asked.start is not None:
        shape = model.need_image_shape()
        image = to_tensor(asked.start, shape, limits, "start", resize=asked.resize)[None]
        start = model.from_images(image.to(model.device)).expand(len(seeds), *model.shape)
    elif asked.strength is not None or asked.resize is not None:
        field = "resize" if asked.strength is None else "strength"
        text = f"{field} is of a picture to start from; send one as start, or leave it out"
        raise RefusedError(422, "invalid_request_error", text, field)
    rho = asked.start_rho
    if asked.strength is not None:
        if rho is not None:
            text = "give strength or start_rho, not both"
            raise RefusedError(422, "invalid_request_error", text, "strength")
        rho = float(levels_left(model, asked, asked.strength)[0].rho)
    losses = None
    if asked.observation is not None:
        expression = model.expression(
            guidance,
            conditional=asked.cond is not None,
            steps=asked.steps,
            grid=asked.grid or grid_of(asked.solver),
        )
        losses = {
            "loss": build_observation(model, asked.observation, expression, len(seeds), limits)
        }
    return model.request(
        asked.cond,
        guidance=guidance,
        seeds=seeds,
        negative=asked.negative,
        scale=asked.scale,
        steps=asked.steps,
        solver=asked.solver,
        grid=asked.grid,
        start=start,
        start_rho=rho,
        losses=losses,
    )


def levels_left(model: Model, asked: SampleRequest | PlanRequest, strength: float) -> Grid:
    """Return the levels that a picture to start from goes through: those of the last steps, of
    which ``strength`` is the share, one step at least.
    """
    levels = model.grid(asked.steps, asked.grid or grid_of(asked.solver))
    steps = max(1, round(levels.steps * strength))
    return levels.from_rho(float(levels[levels.steps - steps].rho))


def at_most(field: str, value: float, limit: float) -> None:
    """Refuse a number beyond a limit of the server."""
    if value > limit:
        text = f"{field} may be {limit:g} at most here, not {value:g}"
        raise RefusedError(422, "too_large", text, field)


def _seeds(asked: SampleRequest, limits: Limits) -> list[int]:
    if asked.seeds is not None:
        if asked.seed is not None or asked.n != 1:
            text = "give seeds, or n and seed, not both"
            raise RefusedError(422, "invalid_request_error", text, "seeds")
        if not asked.seeds:
            raise RefusedError(422, "invalid_request_error", "there are no seeds", "seeds")
        at_most("the number of seeds", len(asked.seeds), limits.samples)
        return list(asked.seeds)
    at_most("n", asked.n, limits.samples)
    first = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    return [first + k for k in range(asked.n)]


def _check_texts(asked: SampleRequest, limits: Limits) -> None:
    names = asked.cond if isinstance(asked.cond, list) else [asked.cond]
    for field, found in (("cond", names), ("negative", [asked.negative])):
        for text in found:
            if isinstance(text, str) and len(text) > limits.prompt:
                at_most(f"the length of {field}", len(text), limits.prompt)


def read_expression(text: str, limits: Limits) -> Guidance:
    """Read an expression whose scales are within the limit.

    Raises:
        RefusedError: it is too long, or a scale too large.
        ExpressionError: it does not parse.
    """
    at_most("the length of guidance", len(text), limits.prompt)
    guidance = parse(text)
    for term in guidance.terms:
        one = getattr(term, "scale", 0.0)
        for scale in (
            *((one,) if isinstance(one, int | float) else ()),
            *sum(term.lists.values(), ()),
        ):
            at_most(f"the scale of {term.name}", abs(scale), limits.scale)
    return guidance


def build_observation(
    model: Model, seen: Seen, guidance: Guidance, count: int, limits: Limits
) -> Observation:
    """Return what was observed, for each of ``count`` samples.

    Raises:
        RefusedError: an unknown operator or option, a picture that cannot be read, or a guidance
            that would not look at it.
    """
    if not losses_of(guidance):
        raise _wrong(
            f"'{guidance}' lowers no loss, so it would not look at what was observed; add "
            "one that does, e.g. 'uncond + dps(1)'"
        )
    shape = model.need_image_shape()
    if seen.operator not in OPERATORS:
        raise _wrong(
            f"unknown operator {seen.operator!r}; the operators are {', '.join(OPERATORS)}"
        )
    options = _options(seen, shape, limits)
    operator = get_operator(seen.operator, **options)
    shown = operator(torch.zeros(1, *shape)).shape[1:]
    y = to_tensor(seen.image, (shown[0], shown[1], shown[2]), limits, "observation.image")[None]
    y = operator(y) if isinstance(operator, Inpaint) else y
    y = y.expand(count, *y.shape[1:])
    return Observation(model.on_images(operator), y, noise=seen.noise)


def _options(seen: Seen, shape: tuple[int, int, int], limits: Limits) -> dict[str, Any]:
    kind: Any = OPERATORS[seen.operator]
    known = [f.name for f in fields(kind)]
    options: dict[str, Any] = {}
    for key, value in seen.options.items():
        if key not in known or key == "mask":
            raise _wrong(f"{seen.operator} has no option {key!r}; it has {', '.join(known)}")
        whole = int(value) if float(value).is_integer() else value
        if wrong := find_mismatch(kind, key, whole):
            raise _wrong(f"{seen.operator}: {wrong}")
        options[key] = whole
    if ("mask" in known) != (seen.mask is not None):
        raise _wrong("inpaint needs its mask, and no other operator has one")
    if seen.mask is not None:
        mask = to_tensor(seen.mask, (1, *shape[1:]), limits, "observation.mask")
        options["mask"] = (mask > 0).float()
    return options


def _wrong(message: str) -> RefusedError:
    return RefusedError(422, "invalid_request_error", message, "observation")
