"""Several runs driven side by side: their passes share network calls, and each gives what it gives
alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from guidestar import DDIM, Draw, Guided, Heun, TimeTravel, cfg, load, log_snr, sample, uniform
from guidestar.core.evaluation import drive
from guidestar.core.passes import COND as C
from guidestar.core.passes import Pass
from guidestar.core.rounds import GuidedStep
from guidestar.guidance import Contrast
from guidestar.sampling import SOLVERS, walk
from helpers.toys import COND, SCHEDULES, Judge, Spy, condition, evaluated, net, noise, steps, toy

RUNS = {
    "cfg(3) + apg(2, momentum=0.5)": (SOLVERS["dpmpp-2m"](), uniform(SCHEDULES["flow"], 5), [1, 2]),
    "cond + pag(2) + sag(0.5, layer='map')": (
        SOLVERS["ddpm"](),
        uniform(SCHEDULES["flow"], 7),
        [3],
    ),
    "cfg([2, 1, 3]) + slg(1) | rescale(0.5)": (
        Heun(form="flow"),
        uniform(SCHEDULES["flow"], 4),
        [4, 5, 6],
    ),
    "cfg_zero(4, zero=2) + pag(1)": (
        TimeTravel(solver=DDIM(eta=1.0), times=2),
        uniform(SCHEDULES["flow"], 3),
        [7, 8],
    ),
    "adaptive(3, gamma=0.9)": (DDIM(), uniform(SCHEDULES["flow"], 6), [9, 10]),
    "uncond + classifier(2, through='uncond')": (DDIM(), uniform(SCHEDULES["flow"], 5), [11, 12]),
    "cond + nag(3) + icg(2, among=4) + tsg(2)": (DDIM(), uniform(SCHEDULES["flow"], 5), [13, 14]),
}


def a_run(expression, spy):
    solver, grid, seeds = RUNS[expression]
    world = {"classifiers": {"classifier": Judge()}, "target": torch.tensor([3]), "seeds": seeds}
    guided = Guided(
        expression, {"main": net(spy, condition(*[COND + s / 10 for s in seeds]))}, **world
    )
    x = torch.stack([noise(2, 4, 3, seed=s) for s in seeds])
    return walk(guided, x, grid=grid, solver=solver, draw=Draw(seeds))


def test_runs_of_other_guidance_solver_and_level_share_their_calls():
    spies = {e: Spy() for e in RUNS}
    alone = [drive(a_run(e, spy))[0] for e, spy in spies.items()]
    spy = Spy()
    together = drive(*(a_run(e, spy) for e in RUNS))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert spy.rows == sum(s.rows for s in spies.values())
    assert len(spy.calls) <= sum(len(s.calls) for s in spies.values()) / 2
    assert any(
        not isinstance(level.sigma, float) and len(set(level.sigma.tolist())) > 2
        for level in spy.levels
    )


@pytest.mark.parametrize("expression", RUNS)
def test_a_run_beside_itself_is_that_run(expression):
    spy = Spy()
    (alone,) = drive(a_run(expression, spy))
    calls = len(spy.calls)
    for found in drive(a_run(expression, spy), a_run(expression, spy)):
        torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)
    # A step calls twice, and once more for contrasted text, which has a call of its own.
    own = len(uniform(SCHEDULES["flow"], 5)) - 1 if expression.startswith("cond + nag") else 0
    assert len(spy.calls) == 2 * calls + own


def test_runs_of_a_model_share_its_network():
    """In float64, as in float32 a convolution rounds by the number of rows beside it."""
    model = load("fashion-mnist")
    model.denoiser.double()
    model.encoder.double()
    runs = {"cfg(3)": ("bag", "dpmpp-2m", 4, [0, 1]), "cond + pag(3)": ("coat", "ddpm", 6, [5])}

    def a_walk(expression):
        name, solver, count, seeds = runs[expression]
        guided, grid = (
            model.guided(expression, cond=[name] * len(seeds), seeds=seeds),
            log_snr(model.schedule, count),
        )
        x = grid[0].sigma * Draw(seeds).at(-1).normal("start", model.shape).double()
        return walk(guided, x, grid=grid, solver=SOLVERS[solver](), draw=Draw(seeds))

    for expression, found in zip(runs, drive(*map(a_walk, runs)), strict=True):
        (alone,) = drive(a_walk(expression))
        torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)
        name, solver, count, seeds = runs[expression]
        sampled = load("fashion-mnist").sample(
            [name] * len(seeds),
            guidance=expression,
            seeds=seeds,
            solver=solver,
            steps=count,
            grid="log_snr",
        )
        torch.testing.assert_close(found.float(), sampled.x, rtol=1e-4, atol=1e-4)


def test_runs_that_cannot_share_have_calls_of_their_own():
    """Other shapes, dtypes and networks."""
    spy, other = Spy(), Spy()
    step = steps("flow")[0]
    xs = (noise(2, 4), noise(1, 3), noise(2, 4, dtype=torch.float32))
    asked = [Guided("cond", {"main": net(spy)}).ask(x, step) for x in xs]
    found = drive(*asked, Guided("cond", {"main": net(other)}).ask(xs[0], step))
    for x, got in zip((*xs, xs[0]), found, strict=True):
        torch.testing.assert_close(got.prediction.x0, toy(x, step.t, COND))
    assert sorted(map(len, spy.calls)) == [1, 2, 2] and list(map(len, other.calls)) == [2]


def test_the_smallest_max_rows_bounds_a_shared_call():
    spy, step, x = Spy(), steps("flow")[0], noise(4, 3)
    drive(
        Guided("cond", {"main": net(spy)}).ask(x, step),
        Guided("cond", {"main": net(spy)}, max_rows=3).ask(x, step),
    )
    assert max(map(len, spy.calls)) <= 3


def test_a_generator_that_asks_nothing_is_driven_too():
    def nothing():
        return 3
        yield

    assert drive(nothing(), nothing()) == [3, 3] and drive() == []


def test_evaluations_of_one_call_are_those_of_each_sample():
    guided = Guided(cfg([1, 3, 1]), {"main": net(Spy())})
    found = guided(noise(3, 4), steps("flow")[0])
    assert isinstance(found, GuidedStep) and found.evaluations.tolist() == [1, 2, 1]
    assert Guided("cfg(3)", {"main": net(Spy())})(noise(3, 4), steps("flow")[0]).evaluations == 2


@dataclass(frozen=True)
class Drawn:
    """A perturbation that adds one number a sample to the condition, drawn from the sample's own
    streams.
    """

    name = "drawn"

    @contextmanager
    def __call__(self, denoiser, rows=None, inputs=None):
        before, shift = (
            denoiser.moved,
            inputs.draw.gaussian("drawn") + inputs.step.tau + 0 * inputs.cond["c"],
        )

        def moved(x, level, cond):
            found = (
                torch.zeros(len(x), dtype=torch.float64)
                if before is None
                else before(x, level, cond)
            )
            return found.index_add(
                0, torch.arange(len(x))[rows.slice if rows else slice(None)], shift
            )

        denoiser.moved = moved
        yield
        denoiser.moved = before


@dataclass(frozen=True)
class Shuffled(Contrast):
    """``c − c_drawn``, and the same of the null."""

    name = "shuffled"

    def good(self, step):
        return C

    def bad(self, step):
        return Pass(perturb=Drawn())


@pytest.mark.parametrize("max_rows", [None, 1, 2])
@pytest.mark.parametrize("scales", [2.0, [3.0, 1.0, 0.0, 2.0]])
def test_a_perturbation_draws_from_the_streams_of_its_rows(max_rows, scales):
    """So it depends on the sample's seed and the step, not on who else is in its batch or run."""
    seeds, step, x = [3, 14, 15, 9], steps("flow")[0], noise(4, 5)
    out = Guided(Shuffled(scales), {"main": net(Spy())}, seeds=seeds, max_rows=max_rows)(
        x, step
    ).prediction.x0
    shift = Draw(seeds, step.index).gaussian("drawn") + step.tau
    c = toy(x, step.t, COND)
    weight = torch.as_tensor(scales, dtype=torch.float64).expand(4)[:, None]
    torch.testing.assert_close(
        out, c + weight * (c - toy(x, step.t, COND + shift)), rtol=1e-10, atol=1e-10
    )


def test_perturbations_of_two_runs_draw_each_from_its_own_step():
    spy, (first, second) = Spy(), steps("flow")
    xs = noise(2, 5), noise(3, 5, seed=1)
    asked = [
        Guided(Shuffled(2.0), {"main": net(spy)}, seeds=s).ask(x, t)
        for s, x, t in zip(([1, 2], [3, 4, 5]), xs, (first, second), strict=True)
    ]
    for found, s, x, t in zip(drive(*asked), ([1, 2], [3, 4, 5]), xs, (first, second), strict=True):
        c, shift = toy(x, t.t, COND), Draw(s, t.index).gaussian("drawn") + t.tau
        torch.testing.assert_close(
            found.prediction.x0, c + 2 * (c - toy(x, t.t, COND + shift)), rtol=1e-10, atol=1e-10
        )
    assert [len(c) for c in spy.calls] == [10]


def test_two_passes_of_one_perturbation_share_its_inputs():
    x, step, seeds = noise(3, 5), steps("flow")[0], [1, 2, 3]
    two = {Pass(perturb=Drawn()): None, Pass(cond="cat", perturb=Drawn()): torch.tensor([0, 2])}
    found = evaluated(two, x, step, {"main": net(Spy())}, streams=Draw(seeds, step.index))
    shift = Draw(seeds, step.index).gaussian("drawn") + step.tau
    torch.testing.assert_close(
        found[Pass(perturb=Drawn())].prediction.x0, toy(x, step.t, COND + shift)
    )
    torch.testing.assert_close(
        found[Pass(cond="cat", perturb=Drawn())].prediction.x0,
        toy(x[[0, 2]], step.t, 0.4 + shift[[0, 2]]),
    )


def test_a_function_is_walked_too():
    guided, grid = Guided("cfg(2)", {"main": net(Spy())}), uniform(SCHEDULES["flow"], 4)
    run = {"grid": grid, "solver": "ddim", "seeds": [1, 2], "shape": (3,)}

    def predict(x, step, state):
        return tuple(guided(x, step, state))

    assert torch.equal(sample(predict, **run), sample(guided, **run))
