"""Grids fitted to a model: the cost of a jump, the shortest way, and what lies between."""

import itertools
import math

import pytest
import torch

import guidestar as gs
from guidestar.core.prediction import Prediction
from guidestar.core.rng import Draw
from guidestar.sampling import trajectory
from guidestar.sampling.geometric import bending, grid_of_ratios, interpolated, shortest


def predict(x, step, state):
    """D of data at −1 and 1."""
    a, s = step.t.alpha, step.t.sigma
    return Prediction.from_x0(x, step.t, torch.tanh(a * x / s**2)), state


def smooth(x, step, state):
    """D of data N(±1, 0.1)."""
    y, total = x / step.t.alpha, 0.1 + float(step.t.rho) ** 2
    middle = torch.tanh(y / total)
    return Prediction.from_x0(x, step.t, middle + 0.1 / total * (y - middle)), state


def start(grid, count=6):
    z = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float(grid[0].sigma) * z


@pytest.mark.parametrize("schedule", [gs.VP.linear(), gs.VE(), gs.Flow()], ids=["vp", "ve", "flow"])
def test_the_cost_of_a_jump_is_eulers_error(schedule):
    fine = gs.log_snr(schedule, 7, rho_max=20.0)
    x = start(fine)
    cost = bending(predict, x, fine, Draw(range(6)))
    states = list(trajectory(predict, x, grid=fine, solver="dpmpp-2m", draw=Draw(range(6))))
    ys = [x / fine[0].alpha, *(s.x / s.step.s.alpha for s in states)]
    for i, j in itertools.combinations(range(8), 2):
        rho_i, rho_j = (float(fine[k].rho) for k in (i, j))
        eps = (ys[i] - torch.tanh(ys[i] / rho_i**2)) / rho_i
        error = (ys[i] + (rho_j - rho_i) * eps - ys[j]).square().mean(1).sqrt().mean()
        assert float(cost[i, j]) == pytest.approx(float(error), rel=1e-9)
    assert cost.tril().isinf().logical_or(cost.tril() == 0).all()


@pytest.mark.parametrize("growth", [1.0, 1.15, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_the_shortest_way_is_the_best_of_all(steps, growth):
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cost = torch.where(torch.ones(8, 8).triu(1) > 0, cost, math.inf)

    def total(way):
        so_far = 0.0
        for i, j in itertools.pairwise(way):
            so_far = growth * so_far + float(cost[i, j])
        return so_far

    ways = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1)]
    assert shortest(cost, steps, growth) == list(min(ways, key=total))


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="steps must be from 1 to 3, not 4"):
        shortest(torch.zeros(4, 4), 4)


def test_grids_between_those_that_were_fitted():
    grids = {2: [16.0, 1.0, 0.0], 4: [16.0, 8.0, 2.0, 0.25, 0.0]}
    assert interpolated(grids, 4) == grids[4]
    # Three levels of the first: 16, 4, 1; of the second: 16, 4, 1/4; half of each in log ρ.
    assert interpolated(grids, 3) == pytest.approx([16, 4, 0.5, 0])
    # Beyond: seven places on the second's three gaps, two to each.
    beyond = [16, 8 * math.sqrt(2), 8, 4, 2, math.sqrt(0.5), 0.25, 0]
    assert interpolated(grids, 7) == pytest.approx(beyond)
    assert interpolated(grids, 1) == pytest.approx([16, 0])


def test_a_fitted_grid_is_better_than_one_even_in_log_snr():
    """Few Euler steps: nearer to the fine solution on other starts."""
    schedule = gs.VE()
    fine = gs.log_snr(schedule, 40, rho_max=40.0, rho_min=0.05)
    cost = bending(smooth, start(fine, 60), fine, Draw(range(60)))
    x = start(fine, 300)[60:]
    draw = Draw(range(240))
    *_, exact = trajectory(smooth, x, grid=fine, solver="dpmpp-2m", draw=draw)
    errors = {}
    for name, grid in {
        "even": gs.log_snr(schedule, 6, rho_max=40.0, rho_min=0.05),
        "fitted": grid_of_ratios(schedule, [float(fine[i].rho) for i in shortest(cost, 6, 1.0)]),
    }.items():
        *_, last = trajectory(smooth, x, grid=grid, solver="ddim", draw=draw)
        errors[name] = float((last.x - exact.x).square().mean().sqrt())
    assert errors["fitted"] < 0.9 * errors["even"], errors


@pytest.mark.parametrize("rhos", [[1.0], [1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [math.nan, 0.0]])
def test_ratios_that_do_not_fall_are_refused(rhos):
    with pytest.raises(ValueError, match="noise ratios of a grid must fall"):
        grid_of_ratios(gs.VE(), rhos)
