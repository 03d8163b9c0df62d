"""CADS against its formula: what the network is told, sample by sample, at each part of the run."""

import math

import pytest
import torch

from guidestar import Condition, Draw, Guided, Net, cads, cfg, parse, sample, uniform
from guidestar.core.passes import NULL, Pass
from helpers.scenes import SEEDS
from helpers.toys import SCHEDULES, noise

N = 20
GRID = uniform(SCHEDULES["flow"], N)
Y = noise(3, 2, 4, seed=5) * 2 + 1


class Heard:
    """A network that is told ``y`` (and ``k``, whole numbers), and remembers it."""

    def __init__(self):
        self.told = []

    def __call__(self, x, level, cond):
        self.told.append(dict(cond))
        return 0.5 * x + cond["y"].flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))


def net(heard, y=Y):
    return Net(
        denoiser=heard,
        cond=Condition(y=y, k=torch.arange(len(y))),
        null=Condition(y=torch.zeros(1, 2, 4, dtype=torch.float64), k=torch.tensor([-1])),
    )


def told(text, index, *, seeds=SEEDS, y=Y, step=None, **more):
    heard = Heard()
    guided = Guided(text, {"main": net(heard, y)}, seeds=seeds, **more)
    guided(noise(len(y), 4), (step or GRID.step(index)))
    return torch.cat([t["y"] for t in heard.told]), guided


def annealed(y, index, s=0.25, tau1=0.6, tau2=0.9, psi=1.0, seeds=SEEDS):
    tau = 1 - index / N
    gamma = 1.0 if tau <= tau1 else 0.0 if tau >= tau2 else (tau2 - tau) / (tau2 - tau1)
    out = []
    for one, n in zip(y, Draw(seeds).at(index).normal("cads/y", (2, 4)).double(), strict=True):
        noisy = math.sqrt(gamma) * one + s * math.sqrt(1 - gamma) * n
        rescaled = (noisy - noisy.mean()) / noisy.std() * one.std() + one.mean()
        out.append(psi * rescaled + (1 - psi) * noisy)
    return torch.stack(out)


@pytest.mark.parametrize("index", [0, 1, 2, 3, 5, 7])
@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("cads()", {}),
        ("cads(0.1, mix=0.4)", {"s": 0.1, "psi": 0.4}),
        ("cads(0.5, 0.7, 0.95, 0)", {"s": 0.5, "tau1": 0.7, "tau2": 0.95, "psi": 0.0}),
    ],
)
def test_what_the_network_is_told(index, text, options):
    torch.testing.assert_close(
        told(f"cond | {text}", index)[0], annealed(Y, index, **options), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("index", [8, 9, 15, 19])
def test_late_in_the_run_the_condition_is_told_as_it_is(index):
    assert torch.equal(told("cond | cads(0.25)", index)[0], Y)
    plain, _ = told("cfg(3) | cads(0.25)", index, seeds=None)
    assert torch.equal(plain[:3], Y)


def test_only_the_condition_is_annealed_and_only_its_real_numbers():
    heard = Heard()
    out, _ = Guided("cfg(3) | cads(0.25)", {"main": net(heard)}, seeds=SEEDS)(
        noise(3, 4), GRID.step(3)
    )
    (call,) = heard.told
    assert call["k"].tolist() == [0, 1, 2, -1, -1, -1] and not call["y"][3:].any()
    c, u = (
        0.5 * noise(3, 4) + y.flatten(1).mean(1)[:, None] for y in (call["y"][:3], call["y"][3:])
    )
    torch.testing.assert_close(out.x0, u + 3 * (c - u))


def test_every_term_hears_the_same():
    """One pass for all that ask for the condition, whatever the term or network."""
    y, _ = told("cfg(3) + apg(2) + AND(0) | cads(0.25) | rescale(0.7)", 3)
    assert len(y) == 6
    small, heard = Heard(), Heard()
    Guided("autoguidance(2) | cads(0.25)", {"main": net(heard), "weak": net(small)}, seeds=SEEDS)(
        noise(3, 4), GRID.step(3)
    )
    assert torch.equal(heard.told[0]["y"], small.told[0]["y"])


def test_a_sample_hears_the_same_in_any_batch_and_chunk():
    whole, _ = told("cond | cads(0.25)", 3)
    for rows in ([2], [1, 0], [0, 1]):
        part, _ = told("cond | cads(0.25)", 3, seeds=[SEEDS[i] for i in rows], y=Y[rows])
        torch.testing.assert_close(part, whole[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        told("cond | cads(0.25)", 3, max_rows=1)[0], whole, rtol=1e-12, atol=1e-12
    )


def test_a_single_number_is_noised_and_not_rescaled():
    """It has no deviation to be rescaled to; to rescale it all the same would take its noise
    away.
    """
    heard = Heard()
    one = Net(denoiser=heard, cond=Condition(y=torch.tensor([[0.3], [0.6]]).double()))
    Guided("cond | cads(0.5, 0.2, 0.9)", {"main": one}, seeds=[1, 2])(noise(2, 4), GRID.step(3))
    gamma = (0.9 - (1 - 3 / N)) / 0.7
    n = Draw([1, 2]).at(3).normal("cads/y", (1,)).double()
    assert 0 < gamma < 1
    torch.testing.assert_close(
        heard.told[0]["y"],
        math.sqrt(gamma) * torch.tensor([[0.3], [0.6]]).double() + 0.5 * math.sqrt(1 - gamma) * n,
    )


def test_passes_that_another_term_edits_are_annealed_too():
    """Else a contrast would be one of noise and no noise: tsg's pass has the condition, at another
    time.
    """
    heard = Heard()
    one = Net(denoiser=heard, cond=Condition(y=Y))
    Guided("tsg(2) | cads(0.25)", {"main": one}, seeds=SEEDS)(noise(len(Y), 4), GRID.step(3))
    both = torch.cat([t["y"] for t in heard.told])
    torch.testing.assert_close(both, torch.cat([annealed(Y, 3)] * 2), rtol=1e-6, atol=1e-6)


def test_it_stands_once():
    with pytest.raises(ValueError, match="cads is there twice"):
        Guided(
            "cond | cads(0.25) | cads(0.1)",
            {"main": Net(denoiser=Heard(), cond=Condition(y=Y))},
            seeds=SEEDS,
        )(noise(len(Y), 4), GRID.step(0))


def test_a_run_depends_on_its_seeds_alone():
    runs = [
        sample(
            Guided("cfg(3) | cads(0.25)", {"main": net(Heard(), Y[rows])}, seeds=seeds),
            grid=GRID,
            solver="ddim",
            seeds=seeds,
            shape=(4,),
        )
        for rows, seeds in (([0, 1], [5, 6]), ([1], [6]))
    ]
    torch.testing.assert_close(runs[0][1:], runs[1])


def test_the_plan_tells_where_it_edits():
    guided = Guided("cfg(3) | cads(0.25)", {"main": net(Heard())})
    plan = guided.plan(GRID)
    assert plan.nfe == 2 * N
    assert [any(p.edit for p in step.passes) for step in plan.steps] == [i < 8 for i in range(N)]
    assert NULL in plan.steps[0].passes and Pass() not in plan.steps[0].passes


def test_what_makes_no_sense_is_refused():
    for text, said in (
        ("cond | cads(-1)", "0 or more"),
        ("cond | cads(1, tau1=0.9, tau2=0.6)", "tau1 < tau2"),
        ("cond | cads(1, mix=2)", "a mix in"),
        ("cads(0.2)", "write it after '|'"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(text)
    with pytest.raises(ValueError, match=r"draws random numbers.*seeds="):
        told("cond | cads(0.25)", 3, seeds=None)
    with pytest.raises(ValueError, match="2 seeds were given for 3 samples"):
        told("cond | cads(0.25)", 3, seeds=[1, 2])
    with pytest.raises(
        ValueError, match=r"the condition has none named 'z': it is y \(float64\), k \(int64\)"
    ):
        told(cfg(1) | cads(0.25, only="z"), 3)
