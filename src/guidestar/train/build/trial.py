"""Plan a training's previews and its model's use before it begins, so that they fail early."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ...data.source import Source
from ...guidance import losses_of, parse
from ...io.files import make_folder
from ...model.model import Model
from ...model.upscaling import planned
from ...networks.conditional import ConditionalModel
from ..objectives.objective import Built
from ..preview import live_model, names_for
from ..recipe.parts import NetworkPart
from ..recipe.schema import Recipe
from .schedules import scheduler_config


def foresee(recipe: Recipe, built: Mapping[str, Built], source: Source) -> None:
    """Plan every run of a recipe, with the fresh networks, without running anything.

    Args:
        recipe: its tables ``[preview]`` and ``[export]`` are planned.
        built: the fresh parts; the export is planned where they are all parts.
        source: the data, whose conditions are used.

    Raises:
        ValueError: a guidance, solver, grid or number of steps is not possible; the message names
            the key of the recipe.
    """
    preview, end = recipe.preview, recipe.export
    solver, grid = end.solver, end.grid
    for part in built if preview.every else ():
        if isinstance(getattr(recipe, part), NetworkPart):
            module = _conditional(built[part])
            model = live_model(recipe, module, source.shape, lambda x: x)
            names = names_for(recipe, model, module, source, 1)
            model = planned(model)
            for guidance in preview.guidance if names else ("uncond",):
                with _named(f"preview.guidance {guidance!r}, of networks in training"):
                    _plan(model, guidance, names, preview.steps, solver=solver, grid=grid)
    if set(built) >= set(recipe.parts()):
        model = model_to_be(recipe, built, source)
        names = names_for(recipe, model, _conditional(built["model"]), source, 1)
        model = planned(model)
        guidance = end.guidance if names is not None else "uncond"
        with _named(f"export.guidance {guidance!r} with {end.solver} on {end.grid}"):
            _plan(model, guidance, names, end.steps, solver=solver, grid=grid, losses=True)


def _conditional(built: Built) -> ConditionalModel:
    module = built.module
    if not isinstance(module, ConditionalModel):
        raise TypeError(f"a denoising part must be a ConditionalModel, not {type(module).__name__}")
    return module


def model_to_be(recipe: Recipe, built: Mapping[str, Built], source: Source) -> Model:
    """Return the model of the fresh parts, with the names of all its networks."""
    from ..export import model_of
    from ..snapshots import snapshot_steps

    modules = {part: b.module for part, b in built.items()}
    model = model_of(recipe, modules, source, {"scheduler": scheduler_config(recipe)})
    main = (model.denoiser, model.encoder)
    kept = snapshot_steps(recipe, "model") if recipe.export.snapshots else ()
    model.nets |= {f"step-{step}": main for step in kept}
    return model


def check_out(recipe: Recipe, out: Path) -> None:
    """Make sure that the model's folder and all others can be written to.

    Raises:
        OSError: one cannot be written to; the message names it.
    """
    for name in (recipe.name, *(("previews",) if recipe.preview.every else ())):
        folder = out / name
        new = not folder.exists()
        make_folder(folder)
        if new:
            os.rmdir(folder)
    for folder in (out / "parts", out / "snapshots"):
        make_folder(folder)


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _plan(
    model: Model,
    guidance: str,
    names: list[str] | None,
    steps: int,
    *,
    solver: str,
    grid: str,
    losses: bool = False,
) -> None:
    needed = losses_of(parse(guidance))
    if needed and not losses:
        raise ValueError(
            f"it needs the loss {next(iter(needed))!r}, which a preview lacks; leave it out"
        )
    model.plan(guidance, cond=names, steps=steps, solver=solver, grid=grid)
