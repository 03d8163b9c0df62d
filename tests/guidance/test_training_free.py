"""Training-free guidance: each method against its own paper's step, in variance-preserving
coordinates.

The step of a paper is written out in plain torch for ``x' = x/n`` with ``n = √(α² + σ²)``; the
library takes the same step at x on a VP, VE or flow schedule, or at three levels at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestar import (
    DDIM,
    Draw,
    Guided,
    Heun,
    Level,
    Net,
    Observation,
    dps,
    freedom,
    lgd,
    mpgd,
    parse,
    tfg,
    ugd,
    ugd_backward,
    uniform,
)
from guidestar.guidance.methods.tfg import _along
from helpers.scenes import PLACES, SEEDS
from helpers.toys import (
    COND,
    UNCOND,
    Critic,
    Spy,
    col,
    condition,
    mixed_step,
    moved,
    net,
    noise,
    steps,
    toy,
)

Y = torch.tensor([[0.2, -0.4], [1.0, 0.3], [-0.6, 0.1]], dtype=torch.float64)[:, :, None].expand(
    3, 2, 2
)


def seen(x0: Tensor) -> Tensor:
    """An operator that is not linear: ``sin`` of the first two positions, half as large."""
    return 0.5 * x0[:, :2].sin()


def distance(x0: Tensor, y: Tensor = Y) -> Tensor:
    return ((y - 0.5 * x0[:, :2].sin()) ** 2).flatten(1).sum(1).sqrt()


def pull(x0: Tensor) -> Tensor:
    return 0.3 * ((x0 - 0.4) ** 2).flatten(1).sum(1) + 0.2 * x0.sin().flatten(1).sum(1)


def pull_gradient(x0: Tensor) -> Tensor:
    return 0.6 * (x0 - 0.4) + 0.2 * x0.cos()


@dataclass
class Paper:
    """A step in variance-preserving coordinates, as papers write it."""

    place: str
    index: int = 0

    def __post_init__(self) -> None:
        self.step = steps(self.place)[self.index]
        t, s = self.step.t, self.step.s
        x = noise(3, 4, 2)
        a, sigma, a_s, s_s = (
            col(v, x) + torch.zeros(3, 1, 1, dtype=x.dtype)
            for v in (t.alpha, t.sigma, s.alpha, s.sigma)
        )
        self.n, self.n_s = (a**2 + sigma**2).sqrt(), (a_s**2 + s_s**2).sqrt()
        self.a, self.s, self.a_s, self.s_s = (
            a / self.n,
            sigma / self.n,
            a_s / self.n_s,
            s_s / self.n_s,
        )
        self.x = x.requires_grad_()
        self.clean = self.d(self.x)
        self.eps = ((self.x - self.a * self.clean) / self.s).detach()

    def d(self, x: Tensor, c: float = COND) -> Tensor:
        return toy(x, Level(self.a.flatten(), self.s.flatten(), 0.0), c)

    def gradient(self, loss: Any, c: float = COND) -> Tensor:
        return torch.autograd.grad(loss(self.d(self.x, c)).sum(), self.x)[0]

    def ddim(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return where DDIM (η = 0) steps to."""
        return (self.a_s * x0 + self.s_s * eps).detach()

    def library(self, guidance: Any, **more: Any) -> Tensor:
        """Return the same step by the library, carried to these coordinates."""
        guided = world(guidance, **more)
        x, _ = moved(DDIM(), guided, (self.n * self.x).detach(), self.step, Draw(SEEDS))
        return x / self.n_s

    def check(self, guidance: Any, x_s: Tensor, **more: Any) -> None:
        torch.testing.assert_close(
            self.library(guidance, **more), x_s.detach(), rtol=1e-9, atol=1e-9
        )
        assert not torch.allclose(x_s, self.ddim(self.clean, self.eps), atol=1e-4)

    def noises(self, count: int) -> list[Tensor]:
        draw = Draw(SEEDS).at(self.step.index)
        return [draw.normal_like(f"smooth/{i}", self.x.detach()) for i in range(count)]


def world(guidance: Any, *, losses: Any = None, seeds: Any = SEEDS, **more: Any) -> Guided:
    losses = {"loss": pull, "seen": Observation(seen, Y)} if losses is None else losses
    return Guided(guidance, {"main": net(Spy())}, losses=losses, seeds=seeds, **more)


@pytest.fixture(params=PLACES)
def paper(request: Any) -> Paper:
    return Paper(request.param)


def test_dps_steps_down_the_distance(paper):
    """Algorithm 1: x_{i-1} = x'_{i-1} − ζ ∇_{x_i} ‖y − A(x̂_0)‖."""
    x_s = paper.ddim(paper.clean, paper.eps) - 0.7 * paper.gradient(distance)
    paper.check(dps(0.7, Observation(seen, Y)), x_s)
    paper.check("dps(0.7, 'seen')", x_s)
    paper.check(dps(0.7, distance), x_s)


def test_the_squared_distance_and_one_of_ones_own():
    paper = Paper("flow")
    squared = paper.ddim(paper.clean, paper.eps) - 0.7 * paper.gradient(
        lambda x0: distance(x0) ** 2
    )
    paper.check(dps(0.7, Observation(seen, Y, distance="squared")), squared)
    cosine = Observation(
        seen, Y, distance=lambda y, shown: -torch.cosine_similarity(y.flatten(1), shown.flatten(1))
    )
    expected = paper.gradient(
        lambda x0: -torch.cosine_similarity(Y.flatten(1), seen(x0).flatten(1))
    )
    paper.check(dps(0.7, cosine), paper.ddim(paper.clean, paper.eps) - 0.7 * expected)


def test_freedom_steps_by_the_root_of_alpha_bar(paper):
    """Algorithm 1, with the step size of the authors' code: ρ_t = s √ᾱ_t."""
    paper.check(
        freedom(1.3), paper.ddim(paper.clean, paper.eps) - 1.3 * paper.a * paper.gradient(pull)
    )


def test_lgd_averages_the_likelihood(paper):
    def log_mean(x0: Tensor) -> Tensor:
        each = torch.stack([(-pull(x0 + paper.s * n)).exp() for n in paper.noises(5)])
        return each.mean(0).log()

    paper.check(
        lgd(0.9, samples=5), paper.ddim(paper.clean, paper.eps) + 0.9 * paper.gradient(log_mean)
    )


def test_mpgd_moves_the_clean_estimate(paper):
    """Algorithm 1: x̂_0 ← x̂_0 − c ∇_{x̂_0} L(x̂_0); the noise stays."""
    paper.check(mpgd(0.5), paper.ddim(paper.clean - 0.5 * pull_gradient(paper.clean), paper.eps))


def test_universal_guidance_forward(paper):
    """Section 3.1: ε̂ = ε + s √(1 − ᾱ) ∇_{x_t} ℓ, from which x̂_0 follows."""
    eps = paper.eps + 0.8 * paper.s * paper.gradient(pull)
    paper.check(ugd(0.8), paper.ddim((paper.x - paper.s * eps) / paper.a, eps))


def test_universal_guidance_forward_is_a_displacement():
    """Of r_t = s σ²(1 − ρ_s/ρ_t) under DDIM: (α_s/α_t) r_t ∇ log f."""
    for place in PLACES:
        paper = Paper(place)
        r = 0.8 * paper.s**2 * (1 - paper.s_s * paper.a / (paper.a_s * paper.s))
        paper.check(
            ugd(0.8),
            paper.ddim(paper.clean, paper.eps) - paper.a_s / paper.a * r * paper.gradient(pull),
        )


def test_universal_guidance_backward(paper):
    """Section 3.2: Δ = argmin ℓ(x̂_0 + Δ) by descent from 0; ε̃ = ε − √(ᾱ/(1 − ᾱ)) Δ."""
    delta = 0.0
    for _ in range(3):
        delta = delta - 0.2 * pull_gradient(paper.clean + delta)
    x_s = paper.ddim(paper.clean + delta, paper.eps - paper.a / paper.s * delta)
    paper.check(ugd_backward(1.0, steps=3, rate=0.2), x_s)


def test_universal_guidance_of_both_parts_starts_backward_at_the_estimate_without_guidance():
    paper = Paper("vp")
    delta = -0.2 * pull_gradient(paper.clean)
    eps = paper.eps + 0.8 * paper.s * paper.gradient(pull) - paper.a / paper.s * delta
    paper.check(
        "ugd(0.8) + ugd_backward(1, steps=1, rate=0.2)",
        paper.ddim((paper.x - paper.s * eps) / paper.a, eps),
    )


def course(name: str, paper: Paper) -> Tensor:
    """A course of the paper: proportional to α_t, to 1 − α_t (one step's), or constant; the mean
    over the run is 1.
    """

    def raw(t: Level, s: Level) -> Any:
        bar_t, bar_s = (v.alpha**2 / (v.alpha**2 + v.sigma**2) for v in (t, s))
        return {
            "increase": bar_t / bar_s,
            "decrease": 1 - bar_t / bar_s,
            "constant": bar_t / bar_t if isinstance(bar_t, Tensor) else 1.0,
        }[name]

    grid = paper.step.grid
    mean = sum(raw(grid[i], grid[i + 1]) for i in range(grid.steps)) / grid.steps
    return col(raw(paper.step.t, paper.step.s) / mean, paper.x)


@pytest.mark.parametrize(
    ("variance_course", "mean_course"),
    [("increase", "decrease"), ("decrease", "constant"), ("constant", "increase")],
)
def test_tfg_is_its_algorithm(paper, variance_course, mean_course):
    """Algorithm 1, without recurrence: x_s = Sample(x_t, x̂_0) + Δ_t/√α_t + √ᾱ_s Δ_0, √α_t =
    √ᾱ_t/√ᾱ_s.
    """
    noises = paper.noises(2)

    def log_f(x0: Tensor) -> Tensor:
        return torch.stack([(-pull(x0 + 0.3 * paper.s * n)).exp() for n in noises]).mean(0).log()

    delta_t = 0.7 * course(variance_course, paper) * paper.gradient(log_f)
    delta_0 = torch.zeros_like(paper.x)
    for _ in range(3):
        place = (paper.clean + delta_0).detach().requires_grad_()
        delta_0 = (
            delta_0
            + 0.4 * course(mean_course, paper) * torch.autograd.grad(log_f(place).sum(), place)[0]
        )
    x_s = paper.ddim(paper.clean, paper.eps) + delta_t / (paper.a / paper.a_s) + paper.a_s * delta_0
    term = tfg(
        1.0,
        variance=0.7,
        mean=0.4,
        iterations=3,
        smoothing=0.3,
        samples=2,
        variance_course=variance_course,
        mean_course=mean_course,
    )
    paper.check(term, x_s)


def test_others_are_settings_of_tfg():
    paper = Paper("flow")
    a_t = float((paper.a / paper.a_s).flatten()[0])
    steady = {"variance_course": "constant", "mean_course": "constant"}
    paper.check(tfg(1.0, variance=0.7 * a_t, mean=0.0, **steady), paper.library(dps(0.7)))
    paper.check(
        tfg(1.0, variance=0.7 * a_t, mean=0.0, smoothing=1.0, samples=5, **steady),
        paper.library(lgd(0.7, samples=5)),
    )
    paper.check(tfg(1.0, variance=0.0, mean=0.5, iterations=1, **steady), paper.library(mpgd(0.5)))


@pytest.mark.parametrize("kind", ["increase", "decrease", "constant"])
@pytest.mark.parametrize("place", ["vp", "ve", "flow"])
def test_a_course_is_one_on_average(kind, place):
    grid = steps(place)[0].grid
    values = [_along(kind, grid.step(i)) for i in range(grid.steps)]
    assert sum(values) / len(values) == pytest.approx(1.0)
    bars = [level.alpha**2 / (level.alpha**2 + level.sigma**2) for level in grid]
    kept = [t / s for t, s in pairwise(bars)]
    raw = {"increase": kept, "decrease": [1 - k for k in kept], "constant": [1.0] * grid.steps}[
        kind
    ]
    assert [float(v) for v in values] == pytest.approx(
        [r * grid.steps / sum(raw) for r in raw], rel=1e-9
    )


@pytest.mark.parametrize(
    "term",
    [
        dps(1.0, distance),
        freedom(1.0, distance),
        ugd(1.0, distance),
        tfg(1.0, distance, mean=0.0, variance_course="constant"),
    ],
)
def test_gradients_are_those_of_finite_differences(term):
    step, x, h = mixed_step("flow", [2.0, 1.0, 0.5], [1.0, 0.5, 0.2]), noise(3, 4, 2), 1e-5

    def energy(x: Tensor) -> Tensor:
        return distance(toy(x, step.t, COND))

    gradient = torch.zeros_like(x)
    for i in range(4):
        for j in range(2):
            e = torch.zeros(4, 2, dtype=x.dtype)
            e[i, j] = h
            gradient[:, i, j] = (energy(x + e) - energy(x - e)) / (2 * h)
    a, s, a_s, s_s = (col(v, x) for v in (step.t.alpha, step.t.sigma, step.s.alpha, step.s.sigma))
    n, n_s = (a**2 + s**2).sqrt(), (a_s**2 + s_s**2).sqrt()
    size = {"dps": n * n_s / a_s, "freedom": a * n_s / a_s, "ugd": s**2 / a, "tfg": n**2 / a}[
        term.name
    ]
    out, _ = world(term)(x, step)
    torch.testing.assert_close(
        out.x0 - toy(x, step.t, COND), -size * gradient, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("made", "linked"),
    [
        (dps, False),
        (freedom, False),
        (lgd, False),
        (mpgd, False),
        (tfg, False),
        (ugd, True),
        (ugd_backward, True),
    ],
)
def test_eps_follows_or_stays(made, linked):
    paper = Paper("flow")
    x = (paper.n * paper.x).detach()
    out, _ = world(made(1.0))(x, paper.step)
    a, s = paper.step.t.alpha, paper.step.t.sigma
    expected = (x - a * out.x0) / s if linked else paper.eps
    torch.testing.assert_close(out.eps, expected, rtol=1e-9, atol=1e-9)


def test_a_displacement_of_x_s_reads_the_level_it_leads_to():
    """So a solver that evaluates twice a step would take it at another level, and refuses it."""
    for made in (dps, freedom, lgd, tfg):
        assert world(made(1.0)).reads_target == [made.name]
    for made in (mpgd, ugd, ugd_backward):
        assert world(made(1.0)).reads_target == []


@pytest.mark.parametrize("made", [dps, freedom, lgd, mpgd, ugd, tfg])
def test_each_sample_has_its_own_observation_also_when_others_sleep(made):
    paper = Paper("mixed")
    x, scales = (paper.n * paper.x).detach(), [0.7, 0.0, -0.4]
    together, _ = world(made(scales, Observation(seen, Y)), max_rows=2)(x, paper.step)
    for i, scale in enumerate(scales):
        one, _ = world(made(scale, Observation(seen, Y[i : i + 1])), seeds=SEEDS[i : i + 1])(
            x[i : i + 1], paper.step.take(torch.tensor([i]))
        )
        torch.testing.assert_close(together.x0[i : i + 1], one.x0, rtol=1e-10, atol=1e-10)


def test_it_looks_through_the_base_or_the_pass_it_is_told():
    paper = Paper("vp")
    free = paper.ddim(
        paper.d(paper.x, UNCOND), (paper.x - paper.a * paper.d(paper.x, UNCOND)) / paper.s
    )
    paper.check(parse("uncond") + dps(0.7, distance), free - 0.7 * paper.gradient(distance, UNCOND))
    paper.check(
        dps(0.7, distance, through="uncond"),
        paper.ddim(paper.clean, paper.eps) - 0.7 * paper.gradient(distance, UNCOND),
    )


def test_with_other_guidance_it_shares_the_pass():
    spy = Spy()
    Guided("cfg(3) + dps(1) + mpgd(1) + tfg(1)", {"main": net(spy)}, losses={"loss": pull})(
        noise(3, 4), steps("vp")[0]
    )
    assert spy.rows == 6


def test_mpgd_leaves_the_network_alone():
    @torch.no_grad()
    def sealed(x: Tensor, level: Level, cond: Any) -> Tensor:
        return toy(x, level, cond["c"])

    x, step = noise(3, 4), steps("vp")[0]
    run = {"losses": {"loss": pull}, "cond": condition(COND), "null": condition(UNCOND)}
    out, _ = Guided("mpgd(1) + ugd_backward(1) + tfg(1, variance=0)", sealed, **run)(x, step)
    assert not torch.allclose(out.x0, toy(x, step.t, COND))
    for text in ("dps(1)", "freedom(1)", "lgd(1)", "ugd(1)", "tfg(1)"):
        with pytest.raises(ValueError, match="'main' cannot be differentiated"):
            Guided(text, sealed, seeds=SEEDS, **run)(x, step)


@pytest.mark.parametrize(
    ("guidance", "more", "said"),
    [
        ("dps(1)", {"losses": {}}, r"no loss 'loss' \(there is none\)"),
        ("dps(1, 'lost')", {}, "no loss 'lost' .*loss, seen"),
        (dps(1.0, lambda x0: x0.sum()), {}, r"one number for each of 3 samples, not a tensor \(\)"),
        (
            dps(1.0, lambda x0: x0.detach().flatten(1).sum(1)),
            {},
            "dps: the loss cannot be differentiated",
        ),
        (
            mpgd(1.0, lambda x0: x0.detach().flatten(1).sum(1)),
            {},
            "mpgd: the loss cannot be differentiated",
        ),
        ("lgd(1)", {"seeds": None}, "seeds="),
        ("tfg(1, smoothing=0.1)", {"seeds": None}, "seeds="),
        (dps(1.0, Observation(seen, Y[:2])), {}, "2 values were given for 3 samples"),
        ("dps(1, through='middle')", {}, "through must be"),
        ("tfg(1, samples=0)", {}, "samples 1 or more"),
        ("tfg(1, mean_course='up')", {}, "mean_course must be"),
        ("lgd(1, samples=0)", {}, "at least one sample"),
        ("ugd_backward(1, steps=0)", {}, "at least one step"),
        ("discriminator(1)", {}, "no discriminator 'discriminator'"),
        ("pigdm(1)", {}, "must be an Observation whose operator is linear"),
        ("mmps(1, 'seen')", {}, "must be an Observation whose operator is linear"),
    ],
)
def test_what_cannot_be_is_refused_by_name(guidance, more, said):
    with pytest.raises(ValueError, match=said):
        world(guidance, **more)(noise(3, 4, 2), steps("vp")[0])


def test_an_observation_says_what_it_cannot_be():
    with pytest.raises(ValueError, match="unknown operator 'grey'"):
        Observation("grey", 0.0)
    with pytest.raises(ValueError, match="noise must be"):
        Observation("gray", 0.0, noise=-1.0)
    with pytest.raises(ValueError, match="distance must be"):
        Observation("gray", 0.0, distance="l1")


def test_heun_refuses_a_split():
    with pytest.raises(ValueError, match="dps splits the prediction"):
        Heun().check(world("dps(1)"), steps("ve")[0].grid)


def test_discriminator_guidance_turns_the_model_into_the_data():
    """Of normal data N(m, 1) and a model of N(0, 1): the exact log odds make the exact score."""
    m = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)

    def denoise(x: Tensor, level: Level, mean: Any = 0.0) -> Tensor:
        a, s = col(level.alpha, x), col(level.sigma, x)
        return mean + a / (a**2 + s**2) * (x - a * mean)

    def log_odds(x: Tensor, level: Level) -> Tensor:
        a, s = col(level.alpha, x), col(level.sigma, x)
        return ((x**2 - (x - a * m) ** 2) / (2 * (a**2 + s**2))).sum(1)

    for place in PLACES:
        x, step = noise(3, 4), steps(place)[0]
        critic = Critic(answer=lambda x, level, _: log_odds(x, level))
        guided = Guided(
            "discriminator(1)",
            lambda x, level, cond: denoise(x, level),
            classifiers={"discriminator": critic},
        )
        torch.testing.assert_close(
            guided(x, step)[0].x0, denoise(x, step.t, m), rtol=1e-10, atol=1e-10
        )


def test_a_discriminator_that_is_not_there_is_named():
    class Deaf:
        pass

    def bound(text, **given):
        return Guided(text, {"main": net(Spy())}, classifiers=given)

    known = {"deaf": Deaf(), "one": Critic(answer=None), "two": Critic(answer=None)}
    with pytest.raises(
        ValueError, match=r"no discriminator 'discriminator' \(there is one, two\);"
    ):
        bound("discriminator(1)", **known)
    with pytest.raises(ValueError, match=r"no discriminator 'x' \(there is none\); give log_odds="):
        bound("discriminator(1, net='x')", deaf=Deaf())
    with pytest.raises(ValueError, match=r"no discriminator 'deaf' \(there is none\)"):
        bound("discriminator(1, net='deaf')", deaf=Deaf())


def test_checkpointed_blocks_are_computed_again_and_give_the_same():
    class Block(torch.nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            Block.calls += 1
            return x + self.inner(x).tanh()

    class Deep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = torch.nn.ModuleList([Block(), Block(), Block()])

        def forward(self, x: Tensor, level: Level, cond: Any) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    deep, x, step = Deep(), noise(3, 4), steps("flow")[0]
    results, counts = [], []
    for checkpoint in (False, True):
        Block.calls = 0
        out, _ = Guided(
            "dps(1)", {"main": Net(denoiser=deep)}, losses={"loss": pull}, checkpoint=checkpoint
        )(x, step)
        results.append(out.x0)
        counts.append(Block.calls)
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    assert counts == [3, 6] and not any("forward" in vars(b) for b in deep.blocks)
    with pytest.raises(ValueError, match="nothing to checkpoint"):
        Guided("dps(1)", {"main": net(Spy())}, losses={"loss": pull}, checkpoint=True)(x, step)


def test_nothing_is_drawn_twice_where_a_step_is_taken_again():
    grid, x = uniform(steps("vp")[0].grid.schedule, 10), noise(3, 4)
    first, again, third = (
        world("lgd(1)")(x, grid.step(4)._replace(visit=v))[0].x0 for v in (0, 1, 0)
    )
    assert torch.equal(first, third) and not torch.allclose(first, again, atol=1e-3)
