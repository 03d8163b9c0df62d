"""Time travel and RePaint: exact marginals on normal data, and their steps written out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestar import (
    DDIM,
    DDPM,
    VE,
    VP,
    DPMpp2M,
    Draw,
    Flow,
    Guided,
    Heun,
    RePaint,
    SDEDPMpp2M,
    TimeTravel,
    karras,
    sample,
    trailing,
    trajectory,
    uniform,
)
from guidestar.core.levels import expand
from guidestar.core.prediction import Prediction
from guidestar.sampling import Point, Solver
from helpers.toys import Spy, moved, net, noise, toy

GRIDS = {"vp": trailing(VP.linear(), 6), "ve": karras(VE(), 6), "flow": karras(Flow(), 6)}
SEEDS = [5, 6, 7]


@dataclass
class Units:
    """A Draw whose j-th noise of the run is 1 in row 2 + j and 0 elsewhere."""

    used: int = 0

    def at(self, step: int) -> Units:
        return self

    def again(self, visit: int) -> Units:
        return self

    def normal_like(self, tag: str, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z[2 + self.used] = 1
        self.used += 1
        return z


def exact(mean: float, var: float) -> Any:
    """The exact prediction of data N(mean, var)."""

    def predict(x: Tensor, step: Any, gstate: Any) -> Any:
        a, s = step.t.alpha, step.t.sigma
        return Prediction.from_x0(
            x, step.t, mean + a * var / (a**2 * var + s**2) * (x - a * mean)
        ), gstate

    return predict


@dataclass(frozen=True, kw_only=True)
class Exact(Solver):
    """The reverse transition itself, of data N(0.7, 0.25): normal, of known mean and variance."""

    name = "exact"
    order = 1

    def move(self, x_t: Tensor, step: Any, memory: Any, draw: Any) -> Any:
        yield Point(x_t, step)
        mean, var = 0.7, 0.25
        t, s = step.t, step.s
        c_t, c_s, ratio = (
            t.alpha**2 * var + t.sigma**2,
            s.alpha**2 * var + s.sigma**2,
            t.alpha / s.alpha,
        )
        x_s = s.alpha * mean + ratio * c_s / c_t * (x_t - t.alpha * mean)
        return x_s + math.sqrt(c_s - (ratio * c_s) ** 2 / c_t) * draw.normal_like(
            "exact", x_t
        ), memory


def moments(solver: Solver, grid: Any, mean: float, var: float) -> Any:
    """Yield (level, mean, variance) after each step: a run is affine in its start and its
    noises.
    """
    first, rows = grid[0], 2 + 8 * grid.steps
    x = torch.full((rows, 1), first.alpha * mean, dtype=torch.float64)
    x[1] += math.sqrt(first.alpha**2 * var + first.sigma**2)
    for state in trajectory(exact(mean, var), x, grid=grid, solver=solver, draw=Units()):
        yield state.step.s, float(state.x[0]), float(((state.x[1:] - state.x[0]) ** 2).sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", [DDPM(), DDIM(eta=1.0), DDIM(eta=0.5), DDIM()])
def test_the_variance_of_a_point_mass_is_exact_at_every_level(solver, grid):
    for level, mean, variance in moments(
        TimeTravel(solver=solver, times=3), GRIDS[grid], -1.3, 0.0
    ):
        assert mean == pytest.approx(-1.3 * level.alpha, abs=1e-8 * (1 + GRIDS[grid][0].sigma))
        assert variance == pytest.approx(level.sigma**2, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("times", [1, 4])
def test_around_the_exact_transition_the_marginal_stays_exact(times, grid):
    for level, mean, variance in moments(
        TimeTravel(solver=Exact(), times=times), GRIDS[grid], 0.7, 0.25
    ):
        assert mean == pytest.approx(0.7 * level.alpha, abs=1e-8 * (1 + GRIDS[grid][0].sigma))
        assert variance == pytest.approx(level.alpha**2 * 0.25 + level.sigma**2, rel=1e-8)


def denoised(x: Tensor, step: Any, gstate: Any) -> Any:
    return Prediction.from_x0(x, step.t, toy(x, step.t, 1.0)), gstate


def test_a_step_taken_again_is_written_out():
    step, x, draw = GRIDS["flow"].step(2), noise(3, 4), Draw(SEEDS).at(2)
    out, _ = moved(TimeTravel(solver=DDIM(eta=1.0), times=2), denoised, x, step, draw)
    t, s = step.t, step.s
    forward = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
    small = s.sigma**2 * forward / t.sigma**2

    def ancestral(x: Tensor, z: Tensor) -> Tensor:
        d = toy(x, t, 1.0)
        return (
            s.alpha * d
            + math.sqrt(s.sigma**2 - small) * (x - t.alpha * d) / t.sigma
            + math.sqrt(small) * z
        )

    once = ancestral(x, draw.normal_like("ddim", x))
    back = t.alpha / s.alpha * once + math.sqrt(forward) * draw.again(1).normal_like("back", x)
    torch.testing.assert_close(
        out, ancestral(back, draw.again(1).normal_like("ddim", x)), rtol=1e-9, atol=1e-9
    )


def test_the_middle_third_is_taken_again_and_planned():
    grid, visits = uniform(VP.linear(), 9), []

    def watched(x: Tensor, step: Any, gstate: Any) -> Any:
        visits.append((step.index, step.visit))
        return denoised(x, step, gstate)

    solver = TimeTravel(times=3, where=(1 / 3, 2 / 3))
    sample(watched, grid=grid, solver=solver, seeds=SEEDS, shape=(4,), dtype=torch.float64)
    assert visits == [(i, v) for i in range(9) for v in range(3 if i in (3, 4, 5) else 1)]
    spy = Spy()
    guided = Guided("cfg(2)", {"main": net(spy)})
    sample(guided, grid=grid, solver=solver, seeds=SEEDS, shape=(4,), dtype=torch.float64)
    assert guided.plan(grid, batch=3, evaluations=solver.evaluations).nfe == spy.rows / 3 == 30


def test_what_guidance_remembers_is_kept_from_the_first_visit():
    given = []

    def counting(x: Tensor, step: Any, gstate: Any) -> Any:
        given.append(gstate.get("n", 0))
        return denoised(x, step, gstate)[0], {"n": len(given)}

    list(
        trajectory(
            counting,
            noise(3, 4),
            grid=uniform(VP.linear(), 3),
            solver=TimeTravel(times=2),
            draw=Draw(SEEDS),
        )
    )
    assert given == [0, 0, 1, 1, 3, 3]


def test_who_watches_sees_the_estimate_that_leads_on():
    """Not that of a visit that was led back from."""
    seen = []

    def watched(x: Tensor, step: Any, gstate: Any) -> Any:
        seen.append((step.index, step.visit, step.t.sigma, x))
        return denoised(x, step, gstate)

    states = list(
        trajectory(
            watched,
            noise(3, 4),
            grid=uniform(VP.linear(), 3),
            solver=TimeTravel(solver=Heun(), times=2),
            draw=Draw(SEEDS),
        )
    )
    firsts = [next(x for i, v, sigma, x in seen if (i, v) == (index, 1)) for index in range(3)]
    assert len(states) == 3 and len(seen) > 6
    for state, x in zip(states, firsts, strict=True):
        torch.testing.assert_close(state.prediction.x_t, x)


@pytest.mark.parametrize(
    "solver",
    [
        TimeTravel(times=3),
        TimeTravel(solver=Heun(), times=2),
        RePaint(known=noise(1, 4), mask=torch.tensor([1.0, 0, 0, 1])),
    ],
)
def test_a_sample_depends_on_its_own_seed_alone(solver):
    run = {"grid": GRIDS["ve"], "solver": solver, "shape": (4,), "dtype": torch.float64}
    together = sample(denoised, seeds=SEEDS, **run)
    torch.testing.assert_close(
        sample(denoised, seeds=SEEDS[1:2], **run), together[1:2], rtol=1e-12, atol=1e-12
    )
    assert torch.equal(sample(denoised, seeds=SEEDS, **run), together)


def test_once_is_the_solver_itself():
    run = {"grid": GRIDS["flow"], "seeds": SEEDS, "shape": (4,), "dtype": torch.float64}
    once, alone = (
        sample(denoised, solver=s, **run) for s in (TimeTravel(solver=DDPM(), times=1), DDPM())
    )
    assert torch.equal(once, alone)


def test_what_draws_noise_says_so():
    assert (
        TimeTravel(solver=DDIM(), times=2).stochastic
        and TimeTravel(solver=DDPM(), times=1).stochastic
        and not TimeTravel(solver=DDIM(), times=1).stochastic
    )
    assert RePaint(solver=DDIM(), known=noise(1, 4), mask=noise(1, 4)).stochastic


def test_what_it_refuses():
    for solver in (DPMpp2M(), SDEDPMpp2M()):
        with pytest.raises(ValueError, match=f"no meaning around '{solver.name}'"):
            TimeTravel(solver=solver)
    with pytest.raises(ValueError, match="no meaning around 'dpmpp-2m'"):
        RePaint(solver=DPMpp2M(), known=noise(1, 4), mask=noise(1, 4))
    with pytest.raises(ValueError, match="from 1 to 1,000, not"):
        TimeTravel(times=0)
    with pytest.raises(ValueError, match="shares of the run"):
        TimeTravel(where=(0.5, 0.2))
    split = Guided("dps(1)", {"main": net(Spy())}, losses={"loss": lambda x0: x0.flatten(1).sum(1)})
    for solver in (
        TimeTravel(solver=Heun()),
        RePaint(solver=Heun(), known=noise(1, 4), mask=noise(1, 4)),
    ):
        with pytest.raises(ValueError, match="dps splits"):
            solver.check(split, GRIDS["ve"])
    TimeTravel(solver=DDIM()).check(split, GRIDS["ve"])


@pytest.mark.parametrize("grid", GRIDS)
def test_repaint_puts_known_pixels_in_their_place(grid):
    """Algorithm 1: x_s = m (α_s y + σ_s z) + (1 − m) x_s', with x_s' of the ancestral step."""
    y, mask, draw = (
        noise(3, 4, seed=1),
        torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
        Draw(SEEDS),
    )
    x = GRIDS[grid][0].sigma * noise(3, 4)
    run = {"grid": GRIDS[grid], "draw": draw}
    before = x
    for state in trajectory(denoised, x, solver=RePaint(known=y, mask=mask), **run):
        s, index = state.step.s, state.step.index
        there = expand(s.alpha, y) * y + expand(s.sigma, y) * draw.at(index).normal_like(
            "repaint", y
        )
        alone, _ = moved(DDPM(), denoised, before, state.step, draw.at(index))
        torch.testing.assert_close(
            state.x, mask * there + (1 - mask) * alone, rtol=1e-10, atol=1e-10
        )
        before = state.x
    assert torch.equal(before[:, [0, 3]], y[:, [0, 3]])


def test_resampling_lets_the_rest_agree():
    """Of two numbers that are always equal, one is known: taken often enough, so is the other."""
    y, mask = (
        torch.tensor([[1.5, 0.0]], dtype=torch.float64),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
    )

    def twins(x: Tensor, step: Any, gstate: Any) -> Any:
        a, s = step.t.alpha, step.t.sigma
        return Prediction.from_x0(
            x, step.t, (a / (2 * a**2 + s**2) * x.sum(1, keepdim=True)).expand_as(x)
        ), gstate

    run = {
        "grid": uniform(VP.cosine(), 25),
        "seeds": list(range(60)),
        "shape": (2,),
        "dtype": torch.float64,
    }
    far = [
        (
            sample(twins, solver=TimeTravel(solver=RePaint(known=y, mask=mask), times=k), **run)[
                :, 1
            ]
            - 1.5
        )
        .abs()
        .mean()
        for k in (1, 8)
    ]
    assert far[1] < 0.5 * far[0]
