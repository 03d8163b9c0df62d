"""What the arguments of a run mean for a model: its request, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.levels import Grid
from ..core.rng import checked_seeds
from ..guidance import Guidance, Observation, Plan, losses_of
from ..guidance.term import Direction
from ..sampling import Solver, grid_of
from .binding import scale_of
from .blame import blaming
from .fitted import grid_name
from .request import CUSTOM, Names, Request, RunArguments, check_names, checked_start

if TYPE_CHECKING:
    from .model import Model


def resolve_request(model: Model, cond: Names | None, arguments: RunArguments) -> Request:
    """Resolve the arguments of a run of a model; errors as of `Model.request`."""
    check_names(arguments, RunArguments)
    with blaming("seeds"):
        seeds = tuple(checked_seeds(arguments.get("seeds", (0,))))
    names, count = model.names(cond, len(seeds)), len(seeds)
    solver, steps = arguments.get("solver"), arguments.get("steps")
    rho = arguments.get("start_rho")
    with blaming("solver"):
        grid = arguments.get("grid") or grid_of(solver)
    levels = model.grid(steps, grid)
    with blaming("start_rho"):
        cut = levels if rho is None else levels.from_rho(rho)
    return Request(
        names=names,
        guidance=model.expression(
            arguments.get("guidance"), conditional=names is not None, steps=steps, grid=grid
        ),
        seeds=seeds,
        solver=model.solver(solver, steps=steps, grid=grid),
        levels=cut,
        grid=CUSTOM if isinstance(grid, Grid) else grid_name(model, steps, grid),
        negative=arguments.get("negative"),
        scale=scale_of(model, arguments.get("scale"), count),
        start_rho=rho,
        start=checked_start(arguments.get("start"), (count, *model.shape)),
        losses=arguments.get("losses"),
        max_rows=arguments.get("max_rows"),
        checkpoint=arguments.get("checkpoint", False),
    )


def plan_run(
    model: Model,
    guidance: str | Guidance | Direction | None,
    *,
    cond: Names | None,
    negative: str | int | None,
    scale: float | Sequence[float] | None,
    steps: int | None,
    solver: str | Solver | None,
    grid: str | Grid | None,
) -> Plan:
    """Return the passes of a run of a model; arguments as of `Model.plan`."""
    cond = "anything" if cond == 0 and model.takes_prompts else cond
    count = 1 if cond is None or isinstance(cond, str | int) else max(1, len(cond))
    names = model.names(cond if model.encoder is not None else None, count)
    with blaming("solver"):
        grid = grid or grid_of(solver)
    expression = model.expression(guidance, conditional=names is not None, steps=steps, grid=grid)
    unseen = {name: Observation("identity", 0.0) for name in losses_of(expression)}
    guided = model.guided(expression, cond=names, negative=negative, scale=scale, losses=unseen)
    solver = model.solver(solver, steps=steps, grid=grid)
    levels = model.grid(steps, grid)
    with blaming("solver"):
        solver.check(guided, levels)
    return guided.plan(levels, batch=count if count > 1 else None, evaluations=solver.evaluations)
