"""The grids of a model: by name, as its card recommends, or fitted to it for a step count; and the
further defaults of such a step count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.levels import Grid
from ..core.rng import Draw
from ..diffusers.guidance_file import Defaults
from ..io.documents import read_json
from ..io.images import write_text
from ..sampling import noise
from ..sampling.geometric import bending, grid_of_ratios, interpolated, shortest
from ..sampling.grids import GRIDS, log_snr
from .blame import blaming
from .manifest import NAME, Card

if TYPE_CHECKING:
    from .model import Model

FITTED = "fitted"
"""The name of the grid that is read from the card."""


def ratios_of(card: Card) -> dict[int, list[float]]:
    """Return the fitted noise ratios of a card by step count."""
    return {int(steps): rhos for steps, rhos in card.get("grids", {}).items()}


def grid_name(model: Model, steps: int | None = None, grid: str | None = None) -> str:
    """Return the name of the grid of so many steps: as given, fitted, or the card's."""
    count = steps if steps is not None else model.defaults.get("steps", 20)
    if grid is None and count in ratios_of(model.card):
        return FITTED
    return grid or model.defaults.get("grid", "log_snr")


def defaults_of(model: Model, steps: int | None = None, grid: str | Grid | None = None) -> Defaults:
    """Return the defaults of a run of so many steps, with a grid or without.

    On the grid that was fitted for a step count, its own guidance and solver come before the
    card's, as they were chosen together with its levels.
    """
    if isinstance(grid, Grid) or grid_name(model, steps, grid) != FITTED:
        return model.defaults
    count = steps if steps is not None else model.defaults.get("steps", 20)
    own: Mapping[str, str] = model.card.get("by_steps", {}).get(str(count), {})
    found: Defaults = {**model.defaults}
    if "guidance" in own:
        found["guidance"] = own["guidance"]
    if "solver" in own:
        found["solver"] = own["solver"]
    return found


def make_grid(model: Model, steps: int | None = None, grid: str | None = None) -> Grid:
    """Make a model's grid of levels; both default to the card's.

    Raises:
        ValueError: unknown grid, or steps out of range.
    """
    count: int = steps if steps is not None else model.defaults.get("steps", 20)
    name = grid_name(model, steps, grid)
    if name == FITTED:
        return fitted_grid(model, count)
    if name not in GRIDS:
        raise ValueError(f"unknown grid {name!r}; the grids are {', '.join((*GRIDS, FITTED))}")
    with blaming("steps"):
        if not 1 <= count <= 10_000:
            raise ValueError(f"steps must be from 1 to 10000, not {count}")
    return GRIDS[name](model.schedule, count)


def fitted_grid(model: Model, steps: int) -> Grid:
    """Return the fitted grid of ``steps`` steps, interpolated where that count was not fitted.

    Raises:
        ValueError: nothing was fitted.
    """
    known = ratios_of(model.card)
    if not known:
        raise ValueError(
            f"no grid was fitted to {model.name!r}; guidestar grid FOLDER --steps {steps} does"
        )
    return grid_of_ratios(model.schedule, interpolated(known, steps))


def fit_grids(
    model: Model,
    steps: Sequence[int],
    *,
    guidance: str | None = None,
    samples: int = 20,
    fine: int = 40,
    seed: int = 5000,
) -> dict[int, list[float]]:
    """Fit a grid for each step count, to the model's trajectories under a guidance.

    Args:
        model: whose noise ratios are finite.
        steps: step counts, each below ``fine``.
        guidance: an expression; by default the card's.
        samples: trajectories, of classes in turn.
        fine: steps of each trajectory, even in log-SNR; its levels are those to choose from.
        seed: of the first trajectory.

    References:
        On the Trajectory Regularity of ODE-based Diffusion Sampling,
        https://arxiv.org/abs/2405.11326
            Defang Chen, Zhenyu Zhou, Can Wang, Chunhua Shen, Siwei Lyu
    """
    seeds = range(seed, seed + samples)
    names = [model.classes[k % len(model.classes)] for k in range(samples)] or None
    grid, draw = log_snr(model.schedule, fine), Draw(seeds)
    guided = model.guided(guidance, cond=names if model.classes else None, seeds=seeds)
    x = noise(model.shape, grid[0], draw, device=model.device)
    cost = bending(guided, x, grid, draw)
    rhos = [float(level.rho) for level in grid]
    return {n: [float(f"{rhos[i]:.6g}") for i in shortest(cost, n)] for n in steps}


def store(
    folder: Path,
    grids: Mapping[int, Sequence[float]],
    defaults: Mapping[int, Mapping[str, str]] | None = None,
) -> None:
    """Write grids into the card of a model's folder, beside those that are there.

    Args:
        folder: of the model.
        grids: noise ratios by step count.
        defaults: the ``guidance`` and the ``solver`` that are the default for a step count too.
            A step count that gets a new grid and is not among them has the card's.
    """
    about = read_json(folder / NAME)
    kept = {**about.get("grids", {}), **{str(n): list(rhos) for n, rhos in grids.items()}}
    own = {k: v for k, v in about.get("by_steps", {}).items() if int(k) not in grids}
    own |= {str(n): dict(given) for n, given in (defaults or {}).items()}
    for key, values in (("grids", kept), ("by_steps", own)):
        about[key] = dict(sorted(values.items(), key=lambda item: int(item[0])))
        if not values:
            del about[key]
    write_text(json.dumps(about, indent=2) + "\n", folder / NAME)
