"""Ten terms at once, a scale for each sample, eight rows a call: every sample is what it is
alone.
"""

import pytest
import torch

import guidestar as gs
from guidestar import Draw, Guided, Net, log_snr, trajectory
from helpers.toys import SCHEDULES, Judge, Spy, col, condition, encode

SEEDS, OWN, TARGET = [11, 12, 13, 14, 15], [0.9, -0.4, 0.3, 1.2, 0.0], torch.tensor([3, 0, 7, 1, 5])


def mixture(x, level, c, spread=0.2):
    """The exact estimate of a mixture of three normals in every number of x; the condition tilts
    their weights.
    """
    a, s, c = col(level.alpha, x), col(level.sigma, x), col(c, x)
    means = (-1.0, 0.3, 1.1)
    total = a**2 * spread + s**2
    logits = torch.stack([3 * c * m - (x - a * m) ** 2 / (2 * total) for m in means])
    clean = torch.stack([m + a * spread / total * (x - a * m) for m in means])
    return (logits.softmax(0) * clean).sum(0)


def weak(x, level, c):
    return mixture(x, level, 0.5 * c, 0.6)


def ten(k=None):
    """The ten terms with the scales of all samples, or of one; three remember, one goes to sleep,
    one holds still.
    """

    def s(*scales):
        return list(scales) if k is None else scales[k]

    linear, cosine = gs.linear, gs.cosine
    return (
        gs.cfg(s(3, 1, 2, 0.5, 4), interval=(0.1, 6.0))
        + gs.cfg(s(1.5, 2, 1, 1.2, 1), schedule=cosine)
        + gs.autoguidance(s(1, 1.5, 2, 1, 1.2))
        + gs.pag(s(0.5, 0, 1, 0.7, -0.3), layers="flat")
        + gs.apg(s(2, 1.5, 1, 3, 2), momentum=-0.5)
        + gs.apg(s(1, 1.2, 1.4, 1, 1.1), eta=0.3, momentum=0.4, schedule=linear)
        + gs.classifier(s(0.1, 0.2, 0, 0.05, 0.1))
        + gs.adaptive(s(1.5, 2, 1, 1.3, 1.2), gamma=0.9)
        + gs.cfg_zero(s(1, 1.5, 1, 2, 1), zero=2)
        + gs.mambo(s(2, 1, 1.5, 1, 3), damping=1.0)
    ) | gs.cads(0.2)


def world(guidance, rows, **more):
    one = {"negative": condition(-0.7), "null": condition(0.0), "encode": encode}
    cond = condition(*(OWN[i] for i in rows))
    nets = {
        "main": Net(denoiser=Spy(mixture), cond=cond, **one),
        "weak": Net(denoiser=Spy(weak), cond=cond, **one),
    }
    return Guided(
        guidance,
        nets,
        classifiers={"classifier": Judge()},
        target=TARGET[rows],
        seeds=[SEEDS[i] for i in rows],
        **more,
    )


@pytest.mark.parametrize("solver", ["ddim", "sde-dpmpp-2m"])
@pytest.mark.parametrize("place", SCHEDULES)
def test_on_mixtures_every_sample_is_what_it_is_alone(place, solver):
    grid, everyone = log_snr(SCHEDULES[place], 8), list(range(5))
    assert len(ten().terms) == 10

    def states(guidance, rows, **more):
        draw = Draw([SEEDS[i] for i in rows])
        x = grid[0].sigma * draw.at(-1).normal("start", (2, 3)).double()
        return list(
            trajectory(
                world(guidance, rows, **more), x, grid=grid, solver=gs.get_solver(solver), draw=draw
            )
        )

    together = states(ten(), everyone, max_rows=8)
    for k in everyone:
        for here, alone in zip(together, states(ten(k), [k]), strict=True):
            for a, b in ((here.x[k], alone.x[0]), (here.prediction.x0[k], alone.prediction.x0[0])):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            assert here.evaluations[k] == alone.evaluations[0]
    spy = world(ten(), everyone, max_rows=8)
    spy(grid[3].sigma * torch.ones(5, 2, 3, dtype=torch.float64), grid.step(3))
    calls = spy.nets["main"].denoiser.calls
    assert (
        max(map(len, calls)) <= 8
        and sum(map(len, calls)) + sum(map(len, spy.nets["weak"].denoiser.calls)) < 5 * 4
    )
    plain = list(
        trajectory(
            world("cond", everyone),
            together[0].prediction.x_t,
            grid=grid,
            solver=gs.get_solver("ddim"),
            draw=Draw(SEEDS),
        )
    )
    assert (plain[-1].x - together[-1].x).abs().max() > 0.1


@pytest.mark.slow
def test_on_the_shipped_network_every_sample_is_what_it_is_alone():
    model = gs.load("fashion-mnist")
    names, everyone = ["bag", "coat", "sneaker"], range(3)

    def shipped(k=None):
        def s(*scales):
            return list(scales) if k is None else scales[k]

        return (
            gs.cfg(s(2, 1, 1.5), interval=(0.3, 3.0))
            + gs.cfg(s(1.2, 1.5, 1), schedule=gs.cosine)
            + gs.autoguidance(s(1, 1.5, 1.3))
            + gs.pag(s(0.5, 0, 0.3))
            + gs.apg(s(1.5, 1.2, 1), momentum=-0.5)
            + gs.classifier(s(0.5, 0, 1))
            + gs.adaptive(s(1.2, 1.3, 1), gamma=0.99)
            + gs.cfg_zero(s(1, 1.2, 1), zero=1)
            + gs.mambo(s(1, 1.5, 2))
            + gs.cfg(s(1.1, 1, 1.2), negative="shirt")
        ) | gs.cads(0.1)

    def run(rows, guidance, **more):
        return model.guided(
            guidance, cond=[names[i] for i in rows], seeds=list(rows), negative="dress", **more
        )

    assert len(shipped().terms) == 10
    step = model.grid(20).step(9)
    x = step.t.norm * torch.cat([Draw([i]).normal("x", model.shape) for i in everyone])
    together = run(everyone, shipped(), max_rows=8)(x, step)[0]
    for k in everyone:
        alone = run([k], shipped(k))(x[k : k + 1], step)[0]
        torch.testing.assert_close(together.x0[k : k + 1], alone.x0, rtol=0, atol=1e-5)
    sampled = model.sample(
        names, guidance=shipped(), seeds=everyone, negative="dress", steps=20, max_rows=8
    )
    for k in everyone:
        alone = model.sample(names[k], guidance=shipped(k), seeds=[k], negative="dress", steps=20)
        torch.testing.assert_close(sampled.x[k : k + 1], alone.x, rtol=0, atol=1e-4)
        assert sampled.evaluations[k] == alone.evaluations[0]
    assert 20 < sampled.nfe < 20 * 6
