"""Reuse: pushes that are carried over, with every carried push written out."""

import math
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar import Guided, Level, parse
from guidestar.core.levels import Grid
from guidestar.core.rng import Draw
from guidestar.sampling import trajectory
from helpers.toys import COND, NEGATIVE, SCHEDULES, Spy, condition, net, noise, toy

RHOS = (30.0, 9.0, 4.0, 1.5, 0.7, 0.3, 0.1)
SCALE = 3.0


def grid_of(schedule, rhos=RHOS):
    return Grid(levels=(*(schedule.at_rho(r) for r in rhos), schedule.clean), schedule=schedule)


def factor(level, space):
    """k in Δ = k Δx0."""
    a, s = level.alpha, level.sigma
    return {"x0": 1.0, "eps": -a / s, "velocity": -(a + s) / s}[space]


def contrast(x, level):
    c, u = (toy(x, level, torch.full((len(x),), v, dtype=torch.float64)) for v in (COND, NEGATIVE))
    return c, c - u


def by_hand(grid, x, evaluated, space="x0", extrapolate=False):
    """DDIM, with the push evaluated at the steps ``evaluated``; yield x after each step."""
    kept = []
    for i in range(grid.steps):
        t, s = grid[i], grid[i + 1]
        here = math.log(t.alpha / t.sigma)
        c, push = contrast(x, t)
        if i in evaluated:
            kept.append((here, factor(t, space) * push))
        else:
            (at, value), share = kept[-1], 0.0
            if extrapolate and len(kept) > 1:
                share = (here - at) / (at - kept[-2][0])
                value = value + share * (value - kept[-2][1])
            push = value / factor(t, space)
        x0 = c + (SCALE - 1) * push
        x = s.alpha * x0 + s.sigma * (x - t.alpha * x0) / t.sigma
        yield x


def run(guidance, grid, x, solver="ddim"):
    spy = Spy()
    guided = Guided(guidance, net(spy, condition(*[COND] * len(x))))
    states = list(trajectory(guided, x, grid=grid, solver=solver, draw=Draw(range(len(x)))))
    return states, guided, spy


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
@pytest.mark.parametrize("space", ["x0", "eps", "velocity"])
@pytest.mark.parametrize("extrapolate", [False, True])
@pytest.mark.parametrize(("every", "evaluated"), [(2, (0, 2, 4, 6)), (3, (0, 3, 6))])
def test_a_carried_push_written_out(name, space, extrapolate, every, evaluated):
    grid = grid_of(SCHEDULES[name])
    x = noise(2, 5) * grid[0].sigma
    term = gs.cfg(SCALE, every=every, carry=space, extrapolate=extrapolate)
    states, guided, spy = run(term, grid, x)
    expected = by_hand(grid, x, evaluated, space, extrapolate)
    for state, y in zip(states, expected, strict=True):
        torch.testing.assert_close(state.x, y, rtol=1e-10, atol=1e-10)
    passes = grid.steps + len(evaluated)
    assert states[-1].evaluations == (passes, passes)
    plan = guided.plan(grid)
    assert plan.nfe == plan.least == passes and spy.rows == 2 * passes


def test_every_second_step_costs_one_and_a_half_passes():
    plan = Guided("cfg(3, every=2)", net(Spy())).plan(gs.uniform(SCHEDULES["vp"], 20))
    assert plan.nfe == 1.5 * 20


@pytest.mark.parametrize("interval", [(0.2, 5.0), (0.05, 2.0)])
def test_the_first_step_within_an_interval_is_evaluated(interval):
    """The count begins where the term begins to act."""
    grid = grid_of(SCHEDULES["vp"])
    inside = [i for i, r in enumerate(RHOS) if interval[0] < r <= interval[1]]
    guided = Guided(f"cfg(3, interval={interval}, every=2)", net(Spy()))
    two = [s.index for s in guided.plan(grid).steps if s.nfe == 2]
    assert two == inside[::2]
    states, *_ = run(gs.cfg(3, interval=interval, every=2), grid, noise(1, 4))
    assert states[-1].evaluations[0] == grid.steps + len(two)


def test_samples_of_a_batch_count_for_themselves():
    """Scales, levels and their first active step may differ: all equals one by one."""
    schedule, x = SCHEDULES["flow"], noise(3, 4)
    grids = [
        grid_of(schedule, rhos)
        for rhos in ((9.0, 4.0, 1.0, 0.3), (4.0, 2.0, 1.0, 0.5), (1.2, 0.9, 0.4, 0.1))
    ]
    levels = [
        Level(*(torch.tensor(v, dtype=torch.float64) for v in zip(*column, strict=True)))
        for column in zip(*grids, strict=True)
    ]
    scales = [2.0, 1.0, 4.0]
    options = {"interval": (0.2, 3.0), "every": 2, "extrapolate": True, "carry": "velocity"}
    together, guided, _ = run(
        gs.cfg(scales, **options), Grid(levels=tuple(levels), schedule=schedule), x, "dpmpp-2m"
    )
    for k, grid in enumerate(grids):
        alone, *_ = run(gs.cfg(scales[k], **options), grid, x[k : k + 1], "dpmpp-2m")
        torch.testing.assert_close(together[-1].x[k : k + 1], alone[-1].x)
        assert together[-1].evaluations[k] == alone[-1].evaluations[0]
    grid = together[0].step.grid
    assert guided.plan(grid).nfe * 3 == sum(together[-1].evaluations)
    few = Guided(gs.cfg(scales, **options), net(Spy(), condition(*[COND] * 3)), max_rows=2)
    *_, last = trajectory(few, x, grid=grid, solver="dpmpp-2m", draw=Draw([0, 1, 2]))
    torch.testing.assert_close(last.x, together[-1].x)
    assert last.evaluations == together[-1].evaluations


@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("extrapolate", [False, True])
def test_the_rule_written_out(threshold, extrapolate):
    """Evaluated again once rate · gap in λ passes the threshold; the first two always."""
    grid, x = grid_of(SCHEDULES["vp"]), noise(1, 5) * 2
    states, guided, _ = run(
        gs.cfg(SCALE, reuse=threshold, carry="velocity", extrapolate=extrapolate), grid, x
    )
    kept, rate, count, y = [], math.inf, 0, x
    for i in range(grid.steps):
        t, s = grid[i], grid[i + 1]
        here = math.log(t.alpha / t.sigma)
        c, push = contrast(y, t)
        estimate = None
        if kept:
            at, estimate = kept[-1]
            if extrapolate and len(kept) > 1:
                before, value = kept[-2]
                estimate = estimate + (here - at) / (at - before) * (estimate - value)
        if not kept or rate * abs(here - kept[-1][0]) > threshold:
            new, count = factor(t, "velocity") * push, count + 1
            if kept:
                rate = float((new - estimate).norm() / new.norm()) / abs(here - kept[-1][0])
            kept.append((here, new))
        else:
            push = estimate / factor(t, "velocity")
        x0 = c + (SCALE - 1) * push
        y = s.alpha * x0 + s.sigma * (y - t.alpha * x0) / t.sigma
        torch.testing.assert_close(states[i].x, y, rtol=1e-9, atol=1e-9)
    assert states[-1].evaluations == (grid.steps + count,)
    plan = guided.plan(grid)
    assert plan.least == grid.steps + 2 <= grid.steps + count <= plan.nfe == 2 * grid.steps
    assert 2 <= count < grid.steps or threshold < 0.1


def test_a_small_threshold_is_plain_guidance_and_samples_decide_alone():
    grid, x = grid_of(SCHEDULES["ve"]), noise(3, 5) * torch.tensor([[1.0], [30.0], [4.0]])
    plain, *_ = run(gs.cfg(SCALE), grid, x)
    exact, *_ = run(gs.cfg(SCALE, reuse=1e-12), grid, x)
    assert torch.equal(plain[-1].x, exact[-1].x)
    together, *_ = run(gs.cfg(SCALE, reuse=0.2), grid, x)
    for k in range(3):
        alone, *_ = run(gs.cfg(SCALE, reuse=0.2), grid, x[k : k + 1])
        torch.testing.assert_close(together[-1].x[k : k + 1], alone[-1].x)
        assert together[-1].evaluations[k] == alone[-1].evaluations[0]


def test_a_term_with_state_rounds_or_gradients_keeps_them():
    """APG's momentum moves at evaluated steps alone; icg and a classifier run as they are."""
    grid, x = grid_of(SCHEDULES["vp"]), noise(2, 2, 3)
    for text in (
        "apg(3, momentum=-0.5, every=2)",
        "cfg(2) + apg(3, every=3, carry='eps')",
        "autoguidance(2, every=2)",
        "cfgpp(0.6, every=2)",
        "cfg(2, every=2) | rescale(0.5)",
    ):
        guided = Guided(
            text, {"main": net(Spy(), condition(1.0, 0.5)), "weak": net(Spy(), condition(1.0, 0.5))}
        )
        *_, last = trajectory(guided, x, grid=grid, solver="ddim", draw=Draw([1, 2]))
        assert last.x.isfinite().all()
        assert last.evaluations == (guided.plan(grid).nfe,) * 2


def test_pushes_are_those_that_were_added():
    grid, x = grid_of(SCHEDULES["vp"]), noise(1, 5)
    guided = Guided("cfg(3, every=2, carry='x0')", net(Spy()))
    draw = Draw([0])
    states = list(trajectory(guided, x, grid=grid, solver="ddim", draw=draw, explain=True))
    first, second = (s.pushes[next(iter(s.pushes))] for s in states[:2])
    assert torch.equal(first, second) and first.abs().max() > 0


@pytest.mark.parametrize("solver", ["heun", "dpmpp-2s"])
def test_both_evaluations_of_a_step_do_the_same(solver):
    """Second evaluations stand at the level of the step: evaluated where it is, carried else."""
    grid, x = grid_of(SCHEDULES["vp"]), noise(1, 5)
    states, guided, _ = run(gs.cfg(SCALE, every=2), grid, x, solver)
    plan = guided.plan(grid, evaluations=gs.get_solver(solver).evaluations)
    assert states[-1].evaluations[0] == plan.nfe
    assert [s.nfe for s in plan.steps[:4]] == [2, 2, 1, 1]


def test_text_and_settings():
    for text in (
        "cfg(3, every=2)",
        "cfg(3, reuse=0.02, carry='eps')",
        "pag(2, every=3, extrapolate=True)",
    ):
        assert str(parse(text)) == text
    model = gs.load("fashion-mnist")
    samples = model.sample("bag", guidance="cfg(3, every=2)", steps=4, seeds=[0, 1])
    assert samples.nfe == 6 and samples.settings.guidance == "cfg(3, every=2)"
    assert torch.equal(model.again(vars(samples.settings)).x, samples.x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cfg(3, every=0)", "cfg: every must be a whole number from 1 to 1,000, not 0"),
        ("cfg(3, every=1.5)", "cfg: every must be a whole number"),
        ("cfg(3, reuse=0)", "cfg: reuse must be a positive relative change"),
        ("cfg(3, reuse='a')", "cfg: reuse must be a number or None"),
        ("cfg(3, every=2, reuse=0.1)", "cfg: give every or reuse, not both"),
        ("cfg(3, carry='v')", "cfg: carry must be 'x0' or 'eps' or 'velocity', not 'v'"),
        ("cfg(3, extrapolate=1)", "cfg: extrapolate must be True or False"),
        ("adaptive(3, every=2)", "adaptive decides itself when it is evaluated"),
        ("cfg_zero(3, every=2)", "cfg_zero decides itself"),
        ("dps(1, every=2)", "dps depends on the level that a step leads to"),
    ],
)
def test_what_has_no_meaning_is_refused(text: str, message: str) -> Any:
    with pytest.raises(ValueError, match=message):
        parse(text)
