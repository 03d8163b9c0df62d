"""Grids fitted to a model: the levels between which its trajectories bend least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..core.levels import Grid, Schedule, expand, inverse_or_zero
from ..core.rng import Draw
from .run import trajectory
from .solver import Predict


def bending(predict: Predict, x: Tensor, fine: Grid, draw: Draw) -> Tensor:
    """Return the error of one DDIM step between any two levels of a fine grid, ``[n, n]``.

    Entry (i, j) is the mean over samples of ``‖y_i + (ρ_j − ρ_i) ε_i − y_j‖/√d`` with ``y = x/α``,
    over the trajectory that the fine grid gives, for i < j < n; no pass is evaluated beside its.

    Args:
        predict: a `Guided`, or any ``predict(x_t, step, state)``.
        x: samples ``[B, *S]`` at the first level of ``fine``.
        fine: n levels with ``alpha > 0``, shared by all samples.
        draw: random streams of the guidance.
    """
    ys, slopes = [x * expand(inverse_or_zero(fine[0].alpha), x)], []
    for state in trajectory(predict, x, grid=fine, solver="dpmpp-2m", draw=draw):
        scale = expand(inverse_or_zero(state.step.s.alpha), x)
        ys.append(state.x * scale)
        slopes.append(state.prediction.eps)
    cost = torch.full((len(fine), len(fine)), math.inf, dtype=torch.float64)
    rhos = [float(level.rho) for level in fine]
    for i, slope in enumerate(slopes):
        for j in range(i + 1, len(fine)):
            missed = (ys[i] + (rhos[j] - rhos[i]) * slope - ys[j]).flatten(1)
            cost[i, j] = missed.double().square().mean(1).sqrt().mean()
    return cost


def shortest(cost: Tensor, steps: int, growth: float = 1.0) -> list[int]:
    """Return the ``steps + 1`` levels, from the first to the last, of the least total cost.

    Dynamic programming; an error that was made earlier counts ``growth`` times for each step that
    follows.

    Raises:
        ValueError: more steps than there are.
    """
    count = len(cost)
    if not 1 <= steps < count:
        raise ValueError(f"steps must be from 1 to {count - 1}, not {steps}")
    best, ways = cost[0].clone(), []
    for _ in range(steps - 1):
        totals = growth * best[:, None] + cost  # [via, to]
        best, via = totals.min(0)
        ways.append(via.tolist())
    path = [count - 1]
    for via in reversed(ways):
        path.append(via[path[-1]])
    return [0, *reversed(path)]


def interpolated(grids: Mapping[int, Sequence[float]], steps: int) -> list[float]:
    """Return the noise ratios of ``steps`` steps from those that were fitted.

    Fitted step counts are returned as they are. Between two of them both are resampled to
    ``steps`` (log ρ piecewise linear in the share of the way) and mixed in proportion; beyond the
    ends the nearest is resampled. A last ρ of 0 is left aside and put back.
    """
    if steps in grids:
        return list(grids[steps])
    below = max((n for n in grids if n < steps), default=None)
    above = min((n for n in grids if n > steps), default=None)
    if below is None or above is None:
        (nearest,) = (n for n in (below, above) if n is not None)
        return [*map(math.exp, _resampled(grids[nearest], steps)), 0.0]
    share = (steps - below) / (above - below)
    low, high = (_resampled(grids[n], steps) for n in (below, above))
    return [*(math.exp((1 - share) * a + share * b) for a, b in zip(low, high, strict=True)), 0.0]


def _resampled(rhos: Sequence[float], count: int) -> list[float]:
    logs = [math.log(r) for r in rhos if r > 0]
    found = []
    for i in range(count):
        place = i / max(1, count - 1) * (len(logs) - 1)
        left = min(int(place), len(logs) - 2) if len(logs) > 1 else 0
        right = min(left + 1, len(logs) - 1)
        found.append(logs[left] + (place - left) * (logs[right] - logs[left]))
    return found


def grid_of_ratios(schedule: Schedule, rhos: Sequence[float]) -> Grid:
    """Make a grid of noise ratios that fall; 0 is the level of data.

    Raises:
        ValueError: there are fewer than two, or they do not fall.
    """
    if len(rhos) < 2 or any(not a > b >= 0 for a, b in pairwise(rhos)):
        raise ValueError(f"noise ratios of a grid must fall, not {list(rhos)!r}")
    levels = tuple(schedule.at_rho(float(r)) if r else schedule.clean for r in rhos)
    return Grid(levels=levels, schedule=schedule)
