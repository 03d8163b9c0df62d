"""Adaptive guidance against its rule, step by step and sample by sample."""

import pytest
import torch

from guidestar import (
    DDIM,
    Draw,
    Guided,
    Heun,
    adaptive,
    load,
    log_snr,
    parse,
    sample,
    trajectory,
    uniform,
)
from helpers.scenes import scenes, total
from helpers.toys import COND, NEGATIVE, SCHEDULES, Spy, col, condition, mixed_step, net, noise, toy


def cosine(x, level, c, u):
    a, s = col(level.alpha, x), col(level.sigma, x)
    one, other = ((x - a * d) / s - d for d in (c, u))
    return (total(one * other) / (total(one**2) * total(other**2)).sqrt()).flatten()


def walk(text, grid, x, *, solver=None, **more):
    spy = Spy()
    guided = Guided(text, {"main": net(spy)}, **more)
    return (
        guided,
        spy,
        list(
            trajectory(
                guided, x, grid=grid, solver=solver or DDIM(), draw=Draw(list(range(len(x))))
            )
        ),
    )


@pytest.mark.parametrize("place", ["vp", "ve", "flow"])
@pytest.mark.parametrize(("gamma", "below"), [(0.9, 5.0), (0.97, 1.0), (0.99, 5.0), (1.0, 5.0)])
def test_a_run_follows_the_rule(place, gamma, below):
    grid = log_snr(SCHEDULES[place], 12, rho_max=20, rho_min=0.05)
    x = noise(6, 3) * float(grid[0].sigma)
    guided, spy, states = walk(adaptive(3, gamma=gamma, below=below), grid, x)
    done, count = torch.zeros(6, dtype=torch.bool), torch.zeros(6)
    for state in states:
        t, s = state.step.t, state.step.s
        c, n = toy(x, t, COND), toy(x, t, NEGATIVE)
        d = torch.where(done[:, None], c, n + 3 * (c - n))
        torch.testing.assert_close(state.prediction.x0, d, rtol=1e-9, atol=1e-9)
        count += 2 - done.double()
        # What is seen in this step counts from the next.
        done |= (cosine(x, t, c, n) > gamma) & (t.rho <= below)
        x = s.alpha * d + s.sigma * (x - t.alpha * d) / t.sigma
        torch.testing.assert_close(state.x, x, rtol=1e-9, atol=1e-9)
    evaluations = states[-1].evaluations
    assert list(evaluations) == count.long().tolist() and spy.rows == count.sum()
    plan = guided.plan(grid, batch=6)
    assert plan.least <= min(evaluations) <= max(evaluations) <= plan.nfe == 24
    if gamma == 0.97:
        assert 12 < min(evaluations) < 24


def test_samples_stop_at_different_steps():
    grid = uniform(SCHEDULES["flow"], 20)
    _, _, states = walk("adaptive(3, gamma=0.97)", grid, noise(16, 3))
    assert len(set(states[-1].evaluations)) > 2


def test_the_cosine_is_of_velocities_and_only_once_the_noise_is_low():
    """Six samples at one noisy and one less noisy level, told apart by rho alone."""
    step = mixed_step(
        "flow", [9.0, 5.0001, 4.9999, 1.0, 0.2, 0.05], [6.0, 4.0, 4.0, 0.7, 0.1, 0.02]
    )
    x = noise(6, 4)
    _, state = Guided("adaptive(3, gamma=-0.999)", {"main": net(Spy())})(x, step)
    (done,) = state[0].values()
    c, n = toy(x, step.t, COND), toy(x, step.t, NEGATIVE)
    assert (
        done.tolist()
        == ((cosine(x, step.t, c, n) > -0.999) & (step.t.rho <= 5)).double().tolist()
        == [0, 0, 1, 1, 1, 1]
    )
    edge = float(cosine(x, step.t, c, n)[3])
    for gamma, expected in ((edge - 1e-9, 1.0), (edge + 1e-9, 0.0)):
        _, state = Guided(adaptive(3, gamma=gamma), {"main": net(Spy())})(x, step)
        assert state[0]["done"][3] == expected
    eps = [(x - col(step.t.alpha, x) * d) / col(step.t.sigma, x) for d in (c, n)]
    assert (total(eps[0] * eps[1]) / (total(eps[0] ** 2) * total(eps[1] ** 2)).sqrt()).flatten()[
        0
    ] > 0.99


def test_formula(scene):
    scene.check("adaptive(4)", scene.n + 4 * (scene.c - scene.n))
    scene.check("adaptive(0)", scene.u, negative=None)
    scene.check(
        "adaptive([4, 1, -2])",
        scene.n + col(torch.tensor([4.0, 1, -2]), scene.x) * (scene.c - scene.n),
    )
    scene.check("adaptive(4, negative='blurry')", scene.d(1.7) + 4 * (scene.c - scene.d(1.7)))


def test_two_steps_of_samples_that_have_stopped():
    first, second = scenes("mixed")
    _, state = first.run("adaptive(4, gamma=-0.999)")
    done = (first.step.t.rho <= 5) & (cosine(first.x, first.step.t, first.c, first.n) > -0.999)
    out, after = second.run("adaptive(4, gamma=-0.999)", state)
    assert done.tolist() == [False, True, True]
    torch.testing.assert_close(
        out.x0,
        torch.where(
            col(done.double(), second.x) > 0, second.c, second.n + 4 * (second.c - second.n)
        ),
    )
    assert after[0]["done"].tolist() == [float(second.step.t.rho[0] <= 5), 1, 1]


def test_other_terms_go_on():
    """The null pass of another term stays; only this term's push ends."""
    first, second = scenes("mixed")
    text = "adaptive(4, gamma=-0.999) + cfg(2)"
    _, state = first.run(text)
    out = second.run(text, state)[0]
    torch.testing.assert_close(out.x0[1:], (second.c + (second.c - second.n))[1:])
    torch.testing.assert_close(out.x0[:1], (second.c + 4 * (second.c - second.n))[:1])


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5])
def test_chunks_stop_alike(max_rows):
    grid, x = uniform(SCHEDULES["flow"], 12), noise(5, 3)
    _, _, states = walk("adaptive(3, gamma=0.97)", grid, x)
    _, spy, others = walk("adaptive(3, gamma=0.97)", grid, x, max_rows=max_rows)
    torch.testing.assert_close(states[-1].x, others[-1].x)
    assert states[-1].evaluations == others[-1].evaluations and max(map(len, spy.calls)) <= max(
        max_rows, 2
    )


def test_a_solver_that_evaluates_twice_decides_once_a_step():
    grid, x = uniform(SCHEDULES["vp"], 8), noise(4, 3)
    guided, spy, states = walk("adaptive(3, gamma=0.9)", grid, x, solver=Heun())
    plan = guided.plan(grid, batch=4, evaluations=Heun().evaluations)
    total = sum(states[-1].evaluations)
    assert total == spy.rows and plan.least <= total / 4 <= plan.nfe


def test_the_plan_tells_a_range():
    grid = uniform(SCHEDULES["flow"], 10)
    text = str(Guided("adaptive(3)", {"main": net(Spy())}).plan(grid))
    # ρ = (1 − i/n)/(i/n) is at most 5 from step 2 on, and what it sees there counts from step 3.
    assert "total NFE 13 to 20 a sample" in text and text.count("  1-2  ") == 7
    assert "total NFE 20 a sample" in str(Guided("cfg(3)", {"main": net(Spy())}).plan(grid))
    asleep = Guided("adaptive(1)", {"main": net(Spy())}).plan(grid)
    assert asleep.least == asleep.nfe == 10


def test_a_model_tells_the_evaluations_of_each_sample():
    model = load("fashion-mnist")
    samples = model.sample(
        ["bag", "coat", "sandal"],
        guidance="adaptive(2, gamma=0.9)",
        seeds=[0, 1, 2],
        steps=8,
        solver="ddim",
    )
    assert len(samples.evaluations) == 3 and all(8 <= n <= 16 for n in samples.evaluations)
    assert samples.nfe == sum(samples.evaluations) / 3
    plain = model.sample(["bag", "coat"], guidance="cfg(2)", seeds=[0, 1], steps=3, solver="ddim")
    assert plain.evaluations == (6, 6) and plain.nfe == 6


def test_the_count_of_a_second_run_begins_anew():
    grid = uniform(SCHEDULES["flow"], 4)
    guided = Guided("cfg(3)", {"main": net(Spy(), condition(1.0))})
    for batch in (2, 2, 3):
        *_, last = trajectory(
            guided, noise(batch, 3), grid=grid, solver=DDIM(), draw=Draw(list(range(batch)))
        )
        assert last.evaluations == (8,) * batch
    assert sample(guided, grid=grid, solver="ddim", seeds=[0], shape=(3,)).shape == (1, 3)


def test_what_makes_no_sense_is_refused():
    for text, said in (
        ("adaptive(3, gamma=1.5)", "gamma must be in"),
        ("adaptive(3, below=0)", "a positive noise ratio"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(text)
