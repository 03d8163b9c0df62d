"""Objectives have the exact answer as their minimiser, and draw levels and dropout as they say."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from guidestar.denoiser import Condition, Network
from guidestar.draw import Draw
from guidestar.levels import VE, VP, Flow, Level
from guidestar.train.classification import Classification, NoisyClassification
from guidestar.train.denoising import ClassConditional, Denoising, LogitNormal, dropped

F64 = torch.float64

# ---------------------------------------------------------------------------------------------
# The minimiser of an objective is the exact answer. Expectations are exact: in place of random
# numbers an objective is given the nodes of a quadrature, and losses are summed by its weights.
# ---------------------------------------------------------------------------------------------

MEANS, SCALES, SHARES = torch.tensor([-1.0, 0.8], dtype=F64), torch.tensor([0.3, 0.5], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
LEVELS = {"VP": (VP.linear(), [30.0, 300.0, 700.0]), "VE": (VE(), [0.1, 1.0, 5.0]), "Flow": (Flow(), [0.1, 0.5, 0.9])}


@dataclass
class Nodes:
    """Stands in for Draw: hands out the quadrature's noise."""

    noise: torch.Tensor

    def normal_like(self, tag, x):
        assert tag == "noise"
        return self.noise.to(x.dtype)


def quadrature():
    """Class, x0, noise and weight of nodes: the trapezoid rule is exact to rounding on Gaussians."""
    z = torch.linspace(-8, 8, 97, dtype=F64)
    w = torch.exp(-z * z / 2) / torch.exp(-z * z / 2).sum()
    k, u, e = (t.flatten() for t in torch.meshgrid(torch.arange(2), torch.arange(97), torch.arange(97), indexing="ij"))
    return k, (MEANS[k] + SCALES[k] * z[u])[:, None], z[e][:, None], SHARES[k] * w[u] * w[e]


def at(schedule, t, n):
    level = schedule(t)
    return lambda _schedule, _draw: Level(*(torch.full((n,), float(v), dtype=F64) for v in level))


def posterior(x, a, s):
    """p(k | x_t) and E[x0 | x_t, k] of the mixture, [N, 2] each."""
    var = a * a * SCALES**2 + s * s
    log = SHARES.log() - 0.5 * var.log() - (x - a * MEANS) ** 2 / (2 * var)
    return log.softmax(1), MEANS + a * SCALES**2 / var * (x - a * MEANS)


def mean_of_data(x, a, s):
    share, mean = posterior(x, a, s)
    return (share * mean).sum(1, keepdim=True)


BENDS = [torch.ones_like, torch.sin, lambda x: x, lambda x: torch.tanh(x - 0.2), lambda x: x * x]


def bent(theta, x, a, s):
    """A perturbation in five directions, smooth on the scale of x_t so that the quadrature resolves it."""
    return sum(size * bend(x / math.hypot(a, s)) for size, bend in zip(theta, BENDS, strict=True))


def losses_around(objective, nodes, target, net_of, size):
    """Expected loss, and its gradient with respect to the sizes ``θ`` of perturbations at θ = 0; and the loss at ±``size`` of each."""
    _, x0, noise, w = nodes

    def loss(theta):
        return (w * objective(net_of(theta), x0, target, Nodes(noise))).sum()

    count = len(BENDS)
    theta = torch.zeros(count, dtype=F64, requires_grad=True)
    here = loss(theta)
    (gradient,) = torch.autograd.grad(here, theta)
    away = [loss(sign * size * torch.eye(count, dtype=F64)[i]) for i in range(count) for sign in (1, -1)]
    return float(here.detach()), gradient, torch.stack(away).detach()


@pytest.mark.parametrize("space", ["v", "eps", "x0", "velocity"])
@pytest.mark.parametrize("name", LEVELS)
def test_the_exact_denoiser_minimises_denoising_in_every_space(name, space):
    schedule, times = LEVELS[name]
    nodes = quadrature()
    for t in times:
        level = schedule(t)
        a, s = float(level.alpha), float(level.sigma)

        def net_of(theta, a=a, s=s):
            return lambda x, _level, _cond: mean_of_data(x, a, s) + bent(theta, x, a, s)

        objective = Denoising(schedule=schedule, levels=at(schedule, t, len(nodes[0])), space=space)
        here, gradient, away = losses_around(objective, nodes, Condition(), net_of, 0.1)
        assert gradient.abs().max() < 1e-9 * here, (t, gradient)
        assert (away > here).all()


@pytest.mark.parametrize("space", ["v", "eps", "x0", "velocity"])
@pytest.mark.parametrize("name", LEVELS)
def test_losses_are_weighted_by_the_slope_of_their_space(name, space):
    schedule, times = LEVELS[name]
    x0, noise = torch.randn(3, 2, 4, dtype=F64), torch.randn(3, 2, 4, dtype=F64)
    level = schedule(torch.tensor(times, dtype=F64))
    a, s = level.alpha, level.sigma
    weight = {"x0": a**0, "eps": (a / s) ** 2, "velocity": ((a + s) / s) ** 2, "v": ((a**2 + s**2) / s) ** 2}[space]
    objective = Denoising(schedule=schedule, levels=lambda *_: level, space=space)
    found = objective(lambda x, *_: torch.sin(x), x0, Condition(), Nodes(noise))
    x_t = a[:, None, None] * x0 + s[:, None, None] * noise
    assert found.shape == (3,)
    assert torch.allclose(found, weight * ((torch.sin(x_t) - x0) ** 2).mean((1, 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("predicts", "space", "wanted"),
    [
        ("v", "v", lambda a, s, x, e: a * e - s * x),
        ("eps", "eps", lambda a, s, x, e: e),
        ("velocity", "velocity", lambda a, s, x, e: e - x),
        ("x0", "x0", lambda a, s, x, e: x),
    ],
)
def test_a_network_trained_in_its_own_space_regresses_its_usual_target(predicts, space, wanted):
    schedule = VP.linear()
    level = schedule(torch.tensor([20.0, 400.0, 900.0], dtype=F64))
    x0, noise = torch.randn(3, 5, dtype=F64), torch.randn(3, 5, dtype=F64)
    a, s = level.alpha[:, None], level.sigma[:, None]
    net = Network(lambda x, t: torch.cos(2 * x), predicts=predicts, dtype=F64)
    found = Denoising(schedule=schedule, levels=lambda *_: level, space=space)(net, x0, Condition(), Nodes(noise))
    target = wanted(a, s, x0, noise)
    assert torch.allclose(found, ((torch.cos(2 * (a * x0 + s * noise)) - target) ** 2).mean(1), rtol=1e-9)


@pytest.mark.parametrize("name", LEVELS)
def test_the_exact_posterior_minimises_noisy_classification(name):
    schedule, times = LEVELS[name]
    nodes = quadrature()
    for t in times:
        level = schedule(t)
        a, s = float(level.alpha), float(level.sigma)

        def net_of(theta, a=a, s=s):
            def net(x, _level):
                return posterior(x, a, s)[0].log() + torch.cat([bent(theta, x, a, s), torch.zeros_like(x)], 1)

            return net

        objective = NoisyClassification(schedule=schedule, levels=at(schedule, t, len(nodes[0])))
        here, gradient, away = losses_around(objective, nodes, nodes[0], net_of, 0.5)
        assert gradient.abs().max() < 1e-6, (t, gradient)  # cross-entropy is taken in float32
        assert (away > here + 1e-5).all()


def test_classification_of_clean_images_is_cross_entropy():
    x, y = torch.randn(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    found = Classification()(net, x, y, Draw(range(6)))
    assert torch.allclose(found, -torch.stack([net(x)[i].log_softmax(0)[y[i]] for i in range(6)]))


def test_shifts_move_whole_pictures_by_every_offset():
    x = torch.zeros(200, 1, 5, 5) - 1
    x[:, 0, 2, 2] = 1
    seen = []
    Classification(shift=1)(lambda x: seen.append(x) or torch.zeros(len(x), 2), x, torch.zeros(200, dtype=torch.int64), Draw(range(200)))
    (moved,) = seen
    assert moved.shape == x.shape and (moved == 1).flatten(1).sum(1).eq(1).all() and (moved == -1).flatten(1).sum(1).eq(24).all()
    places = torch.bincount((moved == 1).flatten(1).long().argmax(1), minlength=25).reshape(5, 5)
    assert (places[1:4, 1:4] >= 8).all() and int(places[1:4, 1:4].sum()) == 200  # 22 expected at each


# --- levels and dropout ---


def test_log_rho_is_normal():
    level = LogitNormal(mean=-0.4, std=1.3)(Flow(), Draw(range(4000)))
    z, _ = ((level.sigma / level.alpha).log().add(0.4) / 1.3).sort()
    cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    ranks = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    assert (cdf - ranks).abs().max() < 1.63 / math.sqrt(4000)  # Kolmogorov–Smirnov, 1 %
    # and σ/(α + σ) is its logistic
    assert torch.allclose(torch.logit(level.sigma / (level.alpha + level.sigma)), (level.sigma / level.alpha).log())


def test_levels_stay_on_the_schedule():
    schedule = VP.linear()
    level = LogitNormal(mean=0.0, std=20.0)(schedule, Draw(range(300)))
    assert float(level.t.min()) == 0.0 and float(level.t.max()) == 999.0
    assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones(300, dtype=F64))
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)
    assert float(level.alpha.min()) == pytest.approx(float(bar[-1].sqrt()))


def test_levels_of_a_sample_differ_between_steps_and_not_between_batches():
    levels = LogitNormal()
    assert not torch.equal(levels(Flow(), Draw(range(8), 0)).t, levels(Flow(), Draw(range(8), 1)).t)
    assert torch.equal(levels(Flow(), Draw(range(8), 3)).t[5:6], levels(Flow(), Draw([5], 3)).t)


def test_labels_are_dropped_per_sample_and_per_step():
    labels = torch.arange(3000) % 10
    one, two = (dropped(labels, 10, 0.1, Draw(range(3000), step)) for step in (0, 1))
    for kept in (one, two):
        assert ((kept == labels) | (kept == 10)).all()
        assert float((kept == 10).double().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 3000))
    both = ((one == 10) & (two == 10)).double().mean()  # independent between steps: 1 %
    assert float(both) == pytest.approx(0.01, abs=4 * math.sqrt(0.0099 / 3000))
    assert torch.equal(dropped(labels[7:9], 10, 0.1, Draw([7, 8], 1)), two[7:9])


def test_nothing_is_dropped_at_rate_zero():
    labels = torch.arange(50)
    assert torch.equal(dropped(labels, 99, 0.0, Draw(range(50))), labels)


def test_class_conditional_trains_the_null_where_labels_are_dropped():
    class Encoder:
        null_index = 2

        def __call__(self, labels):
            return Condition(label=labels)

    seen = []
    pair = SimpleNamespace(encoder=Encoder(), denoiser=lambda x, level, cond: seen.append(cond["label"]) or x)
    objective = ClassConditional(denoising=Denoising(schedule=Flow(), levels=LogitNormal()), p=0.5)
    labels = torch.tensor([0, 1] * 20)
    loss = objective(pair, torch.randn(40, 3), labels, Draw(range(40), 4))
    assert loss.shape == (40,)
    assert torch.equal(seen[0], dropped(labels, 2, 0.5, Draw(range(40), 4))) and (seen[0] == 2).any() and (seen[0] != 2).any()
