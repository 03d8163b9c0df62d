"""Restart, against its algorithm written out."""

import itertools
import math

import pytest
import torch

import guidestar as gs
from guidestar.core.levels import Grid, Level, Step
from guidestar.core.prediction import Prediction
from guidestar.sampling import DDIM, Restart, trajectory

RHOS = (10.0, 3.0, 1.0, 0.3, 0.05, 0.0)
SCHEDULES = {"vp": gs.VP.linear(), "ve": gs.VE(), "flow": gs.Flow()}


def denoise(y, rho):
    return 0.7 + 0.25 / (0.25 + rho**2) * (y - 0.7) + 0.1 * torch.sin(y)


def predict(x, step, state):
    a = step.t.alpha
    return Prediction.from_x0(x, step.t, denoise(x / a, step.t.sigma / a)), state


class Noises:
    """A Draw whose numbers depend on step and visit."""

    def __init__(self, step=0, visit=0):
        self.step, self.visit = step, visit

    def at(self, step):
        return Noises(step)

    def again(self, visit):
        return Noises(self.step, visit)

    def normal_like(self, tag, x):
        return torch.full_like(x, math.sin(3 * self.step + 5 * self.visit + len(tag)))


def grid_of(schedule):
    levels = [schedule.at_rho(r) if r else schedule.clean for r in RHOS]
    return Grid(levels=tuple(levels), schedule=schedule)


def euler(y, rho, rho_next):
    return y + (rho_next - rho) * (y - denoise(y, rho)) / rho


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_restart_of_euler(schedule):
    """Algorithm 1 in y = x/α: from 0.3 back to 2 and down in 3 steps, twice; then on."""
    solver = gs.Restart(solver=gs.DDIM(), low=0.5, high=2.0, times=2, steps=3)
    y = torch.tensor([[4.0, -7.0]], dtype=torch.float64)
    grid, expected = grid_of(schedule), []
    down = [(2 ** (1 / 7) + i / 3 * (0.3 ** (1 / 7) - 2 ** (1 / 7))) ** 7 for i in range(4)]
    x = grid[0].alpha * y
    for i, (rho, rho_next) in enumerate(itertools.pairwise(RHOS)):
        y = euler(y, rho, rho_next)
        if i == 2:  # the first step to or below 0.5
            for k in range(2):
                z = math.sin(3 * 2 + 5 * (1 + 3 * k) + 4)
                y = y + math.sqrt(2.0**2 - 0.3**2) * z
                for a, b in itertools.pairwise(down):
                    y = euler(y, a, b)
        expected.append(y)
    run = trajectory(predict, x, grid=grid, solver=solver, draw=Noises())
    for state, y in zip(run, expected, strict=True):
        torch.testing.assert_close(state.x / state.step.s.alpha, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inner", ["heun", "unipc", "ddpm", "dpmpp-2m"])
def test_evaluations_are_those_declared_and_no_restart_is_the_solver(inner):
    grid, asked = grid_of(gs.VE()), []

    def watched(x, step, state):
        asked.append(step.t)
        return predict(x, step, state)

    options = {"grid": grid, "seeds": [1, 2], "shape": (3,), "dtype": torch.float64}
    solver = gs.Restart(solver=gs.get_solver(inner), low=0.5, high=2.0, times=2, steps=3)
    x = gs.sample(watched, solver=solver, **options)
    declared = [e.t for i in range(grid.steps) for e in solver.evaluations(grid.step(i))]
    assert asked == declared and len(declared) == {"heun": 9 + 12}.get(inner, 5 + 6)
    assert torch.equal(x[1:], gs.sample(predict, solver=solver, **{**options, "seeds": [2]}))
    none = gs.sample(predict, solver=gs.Restart(solver=gs.get_solver(inner), times=0), **options)
    assert torch.equal(none, gs.sample(predict, solver=inner, **options))


@pytest.mark.parametrize("inner", ["ddim", "heun", "sa"])
def test_point_mass(inner):
    """Data of one point m: x stays α m + σ N(0, 1), so from x0 = m exactly the noise is known."""

    def point(x, step, state):
        return Prediction.from_x0(x, step.t, torch.full_like(x, 0.4)), state

    solver = gs.Restart(solver=gs.get_solver(inner), low=0.5, high=2.0)
    x = gs.sample(point, solver=solver, grid=grid_of(gs.VE()), seeds=[1], shape=(2,))
    torch.testing.assert_close(x, torch.full((1, 2), 0.4))


def test_refusals():
    several = Grid(
        levels=tuple(
            Level(*(torch.tensor([a, b]) for a, b in zip(u, v, strict=True)))
            for u, v in zip(grid_of(gs.VE()), gs.karras(gs.VE(), 5), strict=True)
        ),
        schedule=gs.VE(),
    )
    with pytest.raises(ValueError, match="restart needs samples that all stand at the same"):
        gs.Restart().check(predict, several)

    def split(x, step, state):
        raise AssertionError

    split.splits = ("cfgpp",)
    with pytest.raises(ValueError, match="cfgpp splits the prediction"):
        gs.Restart(solver=gs.Heun()).check(split, grid_of(gs.VE()))
    gs.Restart(solver=gs.DDIM()).check(split, grid_of(gs.VE()))
    with pytest.raises(ValueError, match="both go back"):
        gs.Restart(solver=gs.TimeTravel())


@pytest.mark.parametrize(
    ("begin", "end", "back"),
    [(3.0, 0.5, True), (3.0, 0.25, True), (1.0, 0.5, True), (0.5, 0.25, False), (3.0, 0.75, False),
     (0.75, 0.6, False), (3.0, 0.0, False), (3.0, 2.0, False)],
)  # fmt: skip
def test_the_step_that_reaches_the_low_end_is_followed_by_restarts(begin, end, back):
    """To the ratio 0.5 or below it, from above it; never from clean data."""
    schedule = gs.VE(t_min=0.01, t_max=80.0)
    t, s = schedule.at_rho(begin), schedule.at_rho(end) if end else schedule.clean
    step = Step(t, s, 0, Grid(levels=(t, s), schedule=schedule))
    made = Restart(solver=DDIM(), low=0.5, high=2.0, times=2, steps=3)
    ways = list(made._ways(step))
    assert [first for first, _ in ways] == [True, False, False] * 2 * back
    if not back:
        return
    seventh = lambda k: (2.0 ** (1 / 7) * (3 - k) + end ** (1 / 7) * k) / 3
    wanted = [seventh(k) ** 7 for k in range(3)]
    assert [float(inner.t.rho) for _, inner in ways] == pytest.approx(wanted * 2)
    assert [float(inner.s.rho) for _, inner in ways] == pytest.approx([*wanted[1:], end] * 2)
    assert [inner.visit for _, inner in ways] == [1, 2, 3, 4, 5, 6]
    assert ways[2][1].s is s
