"""The plan of a run: its passes at every step, and about how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..protocol import AnyEngine
from ..web import about
from ..web.schemas import PlanRequest
from ..web.service import Service
from .form import Form

GRADIENT = 1.0
"""What a gradient costs beside its pass, in rows."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run before it runs.

    Args:
        nfe: network evaluations of a picture, at most.
        least: at least.
        gradients: of a picture.
        pictures: how many there are.
        seconds: it will take alone, as measured so far; None where nothing was.
        names: of the passes, in the order in which they first appear.
        steps: how often each pass is evaluated for a picture at each step, and the noise ratio.
    """

    nfe: float
    least: float
    gradients: float
    pictures: int
    seconds: float | None
    names: tuple[str, ...]
    steps: tuple[tuple[float, Mapping[str, float]], ...]


def plan(service: Service, form: Form) -> Planned:
    """Plan a run, without running anything.

    Raises:
        ValueError: what the guidance, the model or the solver refuses.
        RefusedError: a limit of the server.
    """
    request = form.request()
    _, engine = service.engine(form.model)
    names: Any = request.cond
    body = PlanRequest(
        cond=names,
        guidance=request.guidance,
        negative=request.negative,
        scale=request.scale,
        steps=request.steps,
        solver=request.solver,
        grid=request.grid,
        strength=request.strength,
    )
    found = about.plan(engine.model, body, service.limits)
    steps = tuple((step["rho"], step["passes"]) for step in found["steps"])
    count = len(form.samples)
    cost = (found["nfe"] + GRADIENT * found["gradients"]) * count
    rate = seconds_a_row(engine)
    return Planned(
        nfe=found["nfe"],
        least=found["least"],
        gradients=found["gradients"],
        pictures=count,
        seconds=None if rate is None else rate * cost,
        names=tuple(dict.fromkeys(name for _, passes in steps for name in passes)),
        steps=steps,
    )


def seconds_a_row(engine: AnyEngine) -> float | None:
    """Return how long a row of the network takes, as of late."""
    return engine.stats.pace or None
