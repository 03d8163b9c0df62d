"""CFG-Zero* against its formula, its still start in every solver, and Diffusers' guider."""

import pytest
import torch

from guidestar import (
    DDIM,
    DPMpp2M,
    Draw,
    Guided,
    Heun,
    cfg_zero,
    log_snr,
    parse,
    sample,
    trajectory,
    uniform,
)
from helpers.scenes import SEEDS, scenes, total
from helpers.toys import COND, SCHEDULES, WORDS, Spy, col, condition, net, noise, steps


def expected(scene, s, bad):
    """The formula in velocity, back in x0 by ``v = ε − x0`` and ``x_t = αx0 + σε``."""
    c, u = (scene.eps(d) - d for d in (scene.c, bad))
    a = total(c * u) / total(u * u)
    v = a * u + s * (c - a * u)
    return (scene.x - scene.s * v) / (scene.a + scene.s)


def test_formula(scene):
    scene.check("cfg_zero(4)", expected(scene, 4, scene.n))
    scene.check("cfg_zero(4)", expected(scene, 4, scene.u), negative=None)
    scene.check("cfg_zero(0)", expected(scene, 0, scene.n))
    scene.check("cfg_zero(3, negative='blurry')", expected(scene, 3, scene.d(WORDS["blurry"])))
    scene.check(
        "cfg_zero([3, 1, -2])", expected(scene, col(torch.tensor([3.0, 1, -2]), scene.x), scene.n)
    )


def test_on_another_base_it_keeps_its_push(scene):
    scene.check("uncond + cfg_zero(4)", scene.u + expected(scene, 4, scene.n) - scene.c)


@pytest.mark.parametrize(
    ("n", "zero", "still"),
    [(10, None, 1), (25, None, 1), (50, None, 2), (100, None, 4), (10, 0, 0), (10, 3, 3)],
)
@pytest.mark.parametrize("place", ["vp", "ve", "flow"])
def test_in_the_first_steps_nothing_moves_and_nothing_is_evaluated(place, n, zero, still):
    grid, spy = uniform(SCHEDULES[place], n), Spy()
    guided = Guided(cfg_zero(4, zero=zero), {"main": net(spy)})
    plan = guided.plan(grid)
    x = noise(2, 4) * grid[0].sigma
    states = trajectory(guided, x, grid=grid, solver=DDIM(), draw=Draw([0, 1]))
    for index, state in zip(range(still + 2), states, strict=False):
        now, before = (level.alpha + level.sigma for level in (state.step.s, state.step.t))
        unmoved = torch.allclose(state.x / now, x / before, rtol=1e-12)
        assert unmoved == (index < still) == (not spy.calls) == (plan.steps[index].nfe == 0)
        if unmoved:
            assert torch.equal(state.prediction.x0, state.prediction.eps)
            torch.testing.assert_close(
                state.step.t.alpha * state.prediction.x0
                + state.step.t.sigma * state.prediction.eps,
                x,
            )
        x = state.x
    assert plan.nfe == plan.least == 2 * (n - still)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), Heun(), Heun(form="flow")], ids=repr)
def test_in_every_solver_and_on_every_grid(solver):
    for place in ("vp", "ve", "flow"):
        grid = log_snr(SCHEDULES[place], 8)
        x = noise(2, 4) * grid[0].sigma
        states = trajectory(
            Guided(cfg_zero(4, zero=2), {"main": net(Spy())}),
            x,
            grid=grid,
            solver=solver,
            draw=Draw([0, 1]),
        )
        for _, state in zip(range(2), states, strict=False):
            torch.testing.assert_close(
                state.x / (state.step.s.alpha + state.step.s.sigma),
                x / (grid[0].alpha + grid[0].sigma),
            )
        assert next(states).x.isfinite().all()


def test_in_a_flow_from_pure_noise_x_itself_stays():
    grid = uniform(SCHEDULES["flow"], 10)
    assert grid[0].alpha == 0
    x = noise(2, 4)
    first = next(
        trajectory(
            Guided(cfg_zero(4), {"main": net(Spy())}),
            x,
            grid=grid,
            solver=DDIM(),
            draw=Draw([0, 1]),
        )
    )
    torch.testing.assert_close(first.x, x, rtol=1e-14, atol=0)
    assert (
        sample(
            Guided(cfg_zero(4), {"main": net(Spy())}),
            grid=grid,
            solver="ddim",
            seeds=[0],
            shape=(4,),
        )
        .isfinite()
        .all()
    )


def test_only_its_own_samples_are_held():
    step = uniform(SCHEDULES["flow"], 10).step(1)._replace(index=0)
    scene = scenes("flow")[0]
    scene = type(scene)(step, scene.x)
    for max_rows in (None, 1, 2, 5):
        spy = Spy()
        guided = Guided(
            "cfg_zero([1, 4, 1]) + apg([3, 3, 1], momentum=0.5)",
            {"main": net(spy)},
            max_rows=max_rows,
        )
        found = guided(scene.x, step, explain=True)
        (out, state), pushes = found, found.pushes
        held = scene.x / (scene.a + scene.s)
        apg = (scene.c - scene.n) - total((scene.c - scene.n) * scene.c) / total(
            scene.c**2
        ) * scene.c
        torch.testing.assert_close(
            out.x0,
            torch.stack([(scene.c + 2 * apg)[0], held[1], scene.c[2]]),
            rtol=1e-10,
            atol=1e-10,
        )
        torch.testing.assert_close(out.eps[1], held[1])
        assert (
            torch.equal(out.x_t, scene.x)
            and spy.rows == 3
            and found.evaluations.tolist() == [2, 0, 1]
        )
        (average,) = state[1].values()
        assert (
            average[0].any() and not average[1:].any() and not pushes["cfg_zero([1, 4, 1])"].any()
        )
        assert sum(guided.plan(step.grid, batch=3).steps[0].passes.values()) == 3


def test_held_samples_follow_their_seeds_and_conditions():
    step = uniform(SCHEDULES["flow"], 10).step(0)
    x, own = noise(3, 4), condition(0.1, 0.2, 0.3)
    spy = Spy()
    Guided("cfg_zero([1, 4, 1]) + cfg(2)", {"main": net(spy, own)}, seeds=SEEDS)(x, step)
    assert sorted(spy.calls[0]) == sorted([0.1, 0.3, -0.7, -0.7])


def test_posts_do_not_move_what_is_held():
    step, x = uniform(SCHEDULES["flow"], 10).step(0), 5 * noise(3, 4)
    out, _ = Guided("cfg_zero(4) | threshold(0.9) | rescale(0.7)", {"main": net(Spy())})(x, step)
    torch.testing.assert_close(out.x0, x)


def test_scale_one_and_a_sleeping_interval_hold_nothing():
    step = uniform(SCHEDULES["vp"], 10).step(0)
    for text in ("cfg_zero(1)", "cfg_zero(4, interval=(0, 1))"):
        spy = Spy()
        Guided(text, {"main": net(spy)})(noise(3, 4), step)
        assert spy.calls == [[COND] * 3]


def test_two_steps(scene):
    state = None
    for step in steps("flow"):
        out, state = scene.run("cfg_zero(4)", state, step=step)
        assert state == ({},) and out.x0.isfinite().all()


def test_what_makes_no_sense_is_refused():
    for text in ("cfg_zero(4, zero=-1)", "cfg_zero(4, zero=0.5)"):
        with pytest.raises(ValueError, match="cfg_zero: zero must be"):
            parse(text)


def test_diffusers_guider_is_right_in_velocity_only():
    guiders = pytest.importorskip("diffusers.guiders")
    scene = scenes("flow")[0]
    guider = guiders.ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=1)
    guider.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(0))
    out = scene.run("cfg_zero(4)")[0]
    velocity = guider.forward(*(scene.eps(d) - d for d in (scene.c, scene.n))).pred
    torch.testing.assert_close(out.view("velocity"), velocity, rtol=1e-5, atol=1e-5)
    # From a network that predicts ε it takes the factor, and applies it, in ε.
    raw = guider.forward(scene.eps(scene.c), scene.eps(scene.n)).pred
    assert (out.eps - raw).norm() > 0.02 * out.eps.norm()
    # And holds ε, not the velocity, at 0: on a variance-preserving schedule x then moves.
    guider.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(0))
    assert not guider.forward(scene.eps(scene.c), scene.eps(scene.n)).pred.any()
