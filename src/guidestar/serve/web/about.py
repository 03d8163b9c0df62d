"""What is served: models, methods and plans."""

from __future__ import annotations

import inspect
from typing import Any

from ...core.passes import Pass
from ...guidance import METHODS, Post, Steered
from ...guidance.citations import described
from ...io.documents import JSONObject
from ...model.model import Model
from ...sampling import SOLVERS
from ...sampling.grids import GRIDS
from .building import at_most, levels_left, read_expression
from .limits import Limits
from .schemas import PlanRequest


def describe_model(name: str, model: Model, size: tuple[int, int]) -> JSONObject:
    """Say what a model is, in the form of OpenAI's list of models, and what it takes."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "guidestar",
        "summary": model.card.get("summary", ""),
        "takes": "prompt" if model.takes_prompts else "class" if model.classes else "nothing",
        "classes": list(model.classes),
        "size": list(size),
        "latent": model.latent,
        "defaults": dict(model.defaults),
        "nets": list(model.nets),
        "classifiers": list(model.classifiers),
    }


def describe_methods() -> list[JSONObject]:
    """Say what may stand in an expression."""
    return [
        {
            "name": name,
            "kind": "post" if issubclass(method, Post) else "term",
            "summary": (inspect.getdoc(method) or "").partition("\n")[0],
            "formula": about.formula,
            "arguments": about.arguments,
            "evaluations": about.evaluations,
            "lowers_a_loss": issubclass(method, Steered),
            "papers": [{"title": p.title, "url": p.url} for p in about.papers],
        }
        for name, method in sorted(METHODS.items())
        for about in [described(method)]
    ]


def describe_choices() -> dict[str, list[str]]:
    """Name the solvers and grids."""
    return {"solvers": list(SOLVERS), "grids": list(GRIDS)}


def plan(model: Model, body: PlanRequest, limits: Limits) -> JSONObject:
    """Say which passes a run takes, without running anything.

    Raises:
        RefusedError: it is over a limit.
        ValueError: as `Model.plan`.
    """
    if body.steps is not None:
        at_most("steps", body.steps, limits.steps)
    if isinstance(body.cond, list):
        at_most("cond", len(body.cond), limits.samples, "the number of conditions")
    guidance = None if body.guidance is None else read_expression(body.guidance, limits)
    levels: Any = body.grid
    if body.strength is not None:
        levels = levels_left(model, body, body.strength)
    found = model.plan(
        guidance,
        cond=body.cond,
        negative=body.negative,
        scale=body.scale,
        steps=body.steps,
        solver=body.solver,
        grid=levels,
    )
    return {
        "nfe": found.nfe,
        "least": found.least,
        "gradients": found.gradients,
        "text": str(found),
        "steps": [
            {
                "index": step.index,
                "rho": step.rho,
                "passes": {_name(p): count / step.batch for p, count in step.passes.items()},
                "gradients": step.gradients / step.batch,
            }
            for step in found.steps
        ],
    }


def _name(p: Pass | str) -> str:
    return p if isinstance(p, str) else str(p)
