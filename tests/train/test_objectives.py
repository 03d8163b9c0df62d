"""Objectives have the exact answer as their minimiser, and draw levels and dropout as they say."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from guidestar.core.denoiser import Condition
from guidestar.core.levels import VE, VP, Flow, Level
from guidestar.core.rng import Draw
from guidestar.networks.network import Network
from guidestar.train.build.schedules import denoising
from guidestar.train.objectives.classification import (
    Classification,
    NoisyClassification,
    NoisyRegression,
)
from guidestar.train.objectives.denoising import Conditional, Denoising, LogitNormal, dropped
from guidestar.train.objectives.level_distributions import UniformTime
from guidestar.train.objectives.weighting import EDM, MinSNR, Sigmoid, SNRPlusOne, Uniform
from guidestar.train.recipe.schema import read_recipe

F64 = torch.float64

# ---------------------------------------------------------------------------------------------
# The minimiser of an objective is the exact answer. Expectations are exact: in place of random
# numbers an objective is given the nodes of a quadrature, and losses are summed by its weights.
# ---------------------------------------------------------------------------------------------

MEANS, SCALES, SHARES = (
    torch.tensor([-1.0, 0.8], dtype=F64),
    torch.tensor([0.3, 0.5], dtype=F64),
    torch.tensor([0.3, 0.7], dtype=F64),
)
LEVELS = {
    "VP": (VP.linear(), [30.0, 300.0, 700.0]),
    "VE": (VE(), [0.1, 1.0, 5.0]),
    "Flow": (Flow(), [0.1, 0.5, 0.9]),
}


@dataclass
class Nodes:
    """Stands in for Draw: hands out the quadrature's noise."""

    noise: torch.Tensor

    def normal_like(self, tag, x):
        assert tag == "noise"
        return self.noise.to(x.dtype)


def quadrature():
    """Class, x0, noise and weight of nodes: the trapezoid rule is exact to rounding on
    Gaussians.
    """
    z = torch.linspace(-8, 8, 97, dtype=F64)
    w = torch.exp(-z * z / 2) / torch.exp(-z * z / 2).sum()
    k, u, e = (
        t.flatten()
        for t in torch.meshgrid(torch.arange(2), torch.arange(97), torch.arange(97), indexing="ij")
    )
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
    """A perturbation in five directions, smooth on the scale of x_t so that the quadrature resolves
    it.
    """
    return sum(size * bend(x / math.hypot(a, s)) for size, bend in zip(theta, BENDS, strict=True))


def losses_around(objective, nodes, target, net_of, size):
    """Expected loss, and its gradient with respect to the sizes ``θ`` of perturbations at θ = 0;
    and the loss at ±``size`` of each.
    """
    _, x0, noise, w = nodes

    def loss(theta):
        return (w * objective(net_of(theta), x0, target, Nodes(noise))).sum()

    count = len(BENDS)
    theta = torch.zeros(count, dtype=F64, requires_grad=True)
    here = loss(theta)
    (gradient,) = torch.autograd.grad(here, theta)
    away = [
        loss(sign * size * torch.eye(count, dtype=F64)[i]) for i in range(count) for sign in (1, -1)
    ]
    return float(here.detach()), gradient, torch.stack(away).detach()


# What multiplies the squared error of the clean estimate, of alpha and sigma, as published.
WEIGHTINGS = {
    "v": (Uniform(space="v"), lambda a, s: ((a**2 + s**2) / s) ** 2),
    "eps": (Uniform(space="eps"), lambda a, s: (a / s) ** 2),
    "x0": (Uniform(space="x0"), lambda a, s: a**0),
    "velocity": (Uniform(space="velocity"), lambda a, s: ((a + s) / s) ** 2),
    "min-snr": (MinSNR(gamma=3.0), lambda a, s: torch.minimum(a**2 / s**2, 3 * a**0)),
    "snr+1": (SNRPlusOne(), lambda a, s: a**2 / s**2 + 1),
    # λ(σ) = (σ² + d²)/(σ d)², EDM's table 1, with σ/α for σ
    "edm": (EDM(sigma_data=0.7), lambda a, s: ((s / a) ** 2 + 0.49) / ((s / a) * 0.7) ** 2),
    # sigmoid(b − λ) ‖ε − ε̂‖² with λ = ln(α²/σ²), and ‖Δε‖² = (α/σ)² ‖Δx0‖²
    "sigmoid": (
        Sigmoid(bias=-1.5),
        lambda a, s: torch.sigmoid(-1.5 - (a**2 / s**2).log()) * (a / s) ** 2,
    ),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", LEVELS)
def test_the_exact_denoiser_minimises_denoising_with_every_weighting(name, weighting):
    schedule, times = LEVELS[name]
    nodes = quadrature()
    for t in times:
        level = schedule(t)
        a, s = float(level.alpha), float(level.sigma)

        def net_of(theta, a=a, s=s):
            return lambda x, _level, _cond: mean_of_data(x, a, s) + bent(theta, x, a, s)

        objective = Denoising(
            schedule=schedule,
            levels=at(schedule, t, len(nodes[0])),
            weighting=WEIGHTINGS[weighting][0],
        )
        here, gradient, away = losses_around(objective, nodes, Condition(), net_of, 0.1)
        assert gradient.abs().max() < 1e-9 * here, (t, gradient)
        assert (away > here).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", LEVELS)
def test_losses_are_weighted_as_published(name, weighting):
    schedule, times = LEVELS[name]
    x0, noise = torch.randn(3, 2, 4, dtype=F64), torch.randn(3, 2, 4, dtype=F64)
    level = schedule(torch.tensor(times, dtype=F64))
    a, s = level.alpha, level.sigma
    weight = WEIGHTINGS[weighting][1](a, s)
    objective = Denoising(
        schedule=schedule, levels=lambda *_: level, weighting=WEIGHTINGS[weighting][0]
    )
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
    found = Denoising(schedule=schedule, levels=lambda *_: level, weighting=Uniform(space=space))(
        net, x0, Condition(), Nodes(noise)
    )
    target = wanted(a, s, x0, noise)
    assert torch.allclose(
        found, ((torch.cos(2 * (a * x0 + s * noise)) - target) ** 2).mean(1), rtol=1e-9
    )


# What a network outputs where its clean estimate is exact, by the definitions of the five kinds;
# and how it is trained.
EXACT = {
    "eps": ("VP", Uniform(space="eps"), lambda a, s, x, d: (x - a * d) / s),
    "x0": ("VP", Uniform(space="x0"), lambda a, s, x, d: d),
    "v": ("VP", Uniform(space="v"), lambda a, s, x, d: a * (x - a * d) / s - s * d),
    "velocity": ("Flow", Uniform(space="velocity"), lambda a, s, x, d: (x - a * d) / s - d),
    # F = (D − c_skip x)/c_out, EDM's table 1 with sigma_data 0.7
    "edm": (
        "VE",
        EDM(sigma_data=0.7),
        lambda a, s, x, d: (d - 0.49 / (s**2 + 0.49) * x) * math.sqrt(s**2 + 0.49) / (s * 0.7),
    ),
}


@pytest.mark.parametrize("predicts", EXACT)
def test_what_a_network_predicts_of_the_exact_denoiser_minimises_its_own_objective(predicts):
    name, weighting, output = EXACT[predicts]
    schedule, times = LEVELS[name]
    nodes = quadrature()
    for t in times:
        level = schedule(t)
        a, s = float(level.alpha), float(level.sigma)
        shrunk = (
            math.sqrt(s**2 + 0.49) if predicts == "edm" else 1.0
        )  # c_in: what the network is given is x divided by this

        def net_of(theta, a=a, s=s, shrunk=shrunk):
            def net(x, _t):
                x_t = x * shrunk
                return output(a, s, x_t, mean_of_data(x_t, a, s)) + bent(theta, x_t, a, s)

            return Network(net, predicts=predicts, sigma_data=0.7, dtype=F64)

        objective = Denoising(
            schedule=schedule, levels=at(schedule, t, len(nodes[0])), weighting=weighting
        )
        here, gradient, away = losses_around(objective, nodes, Condition(), net_of, 0.1)
        assert gradient.abs().max() < 1e-8 * max(here, 1), (t, gradient)
        assert (away > here).all()


def test_edm_regresses_a_target_of_unit_size_with_unit_weight():
    """λ(σ) c_out² = 1: the loss is ‖F − (x0 − c_skip x)/c_out‖²."""
    s, d = torch.tensor([0.05, 0.6, 9.0], dtype=F64), 0.7
    x0, noise = torch.randn(3, 5, dtype=F64), torch.randn(3, 5, dtype=F64)
    net = Network(
        lambda x, t: torch.cos(2 * x) + t[:, None], predicts="edm", sigma_data=d, dtype=F64
    )
    found = Denoising(schedule=VE(), levels=lambda *_: VE()(s), weighting=EDM(sigma_data=d))(
        net, x0, Condition(), Nodes(noise)
    )
    x, c = x0 + s[:, None] * noise, s[:, None]
    total = c**2 + d**2
    target = (x0 - d**2 / total * x) * total.sqrt() / (c * d)
    assert torch.allclose(
        found, ((torch.cos(2 * x / total.sqrt()) + c.log() / 4 - target) ** 2).mean(1), rtol=1e-9
    )


@pytest.mark.parametrize("name", LEVELS)
def test_the_exact_posterior_minimises_noisy_classification(name):
    schedule, times = LEVELS[name]
    nodes = quadrature()
    for t in times:
        level = schedule(t)
        a, s = float(level.alpha), float(level.sigma)

        def net_of(theta, a=a, s=s):
            def net(x, _level):
                return posterior(x, a, s)[0].log() + torch.cat(
                    [bent(theta, x, a, s), torch.zeros_like(x)], 1
                )

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
    Classification(shift=1)(
        lambda x: seen.append(x) or torch.zeros(len(x), 2),
        x,
        torch.zeros(200, dtype=torch.int64),
        Draw(range(200)),
    )
    (moved,) = seen
    assert (
        moved.shape == x.shape
        and (moved == 1).flatten(1).sum(1).eq(1).all()
        and (moved == -1).flatten(1).sum(1).eq(24).all()
    )
    places = torch.bincount((moved == 1).flatten(1).long().argmax(1), minlength=25).reshape(5, 5)
    assert (places[1:4, 1:4] >= 8).all() and int(
        places[1:4, 1:4].sum()
    ) == 200  # 22 expected at each


# --- levels and dropout ---


def test_log_rho_is_normal():
    level = LogitNormal(mean=-0.4, std=1.3)(Flow(), Draw(range(4000)))
    z, _ = ((level.sigma / level.alpha).log().add(0.4) / 1.3).sort()
    cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    ranks = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    assert (cdf - ranks).abs().max() < 1.63 / math.sqrt(4000)  # Kolmogorov–Smirnov, 1 %
    # and σ/(α + σ) is its logistic
    assert torch.allclose(
        torch.logit(level.sigma / (level.alpha + level.sigma)), (level.sigma / level.alpha).log()
    )


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


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weightings_are_finite_at_pure_noise(weighting):
    level = VP.linear().zero_terminal_snr()(torch.tensor([10.0, 999.0], dtype=F64))
    assert float(level.alpha[1]) == 0
    found = WEIGHTINGS[weighting][0](level)
    assert found.isfinite().all()
    # SNR = 0: nothing is left but what does not fall with it
    wanted = {"v": 1.0, "snr+1": 1.0, "x0": 1.0, "velocity": 1.0, "edm": 1 / 0.49}.get(
        weighting, 0.0
    )
    assert float(found[1]) == pytest.approx(wanted, abs=1e-12)
    one = WEIGHTINGS[weighting][0](Level(*(float(v[0]) for v in level)))  # plain numbers, too
    assert one == pytest.approx(float(found[0]), rel=1e-12)


def test_single_precision_is_enough_at_high_noise():
    level = VP.linear()(torch.tensor([999.0], dtype=F64))  # sigma/alpha = 157
    x0, noise = torch.randn(1, 500, dtype=F64), torch.randn(1, 500, dtype=F64)
    losses = []
    for dtype in (torch.float32, F64):
        net = Network(lambda x, t: torch.cos(2 * x), predicts="eps", dtype=dtype)
        objective = Denoising(
            schedule=VP.linear(), levels=lambda *_: level, weighting=Uniform(space="eps")
        )
        losses.append(float(objective(net, x0.to(dtype), Condition(), Nodes(noise))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "schedule",
    [VP.linear(), VE(), Flow(), VP.linear().zero_terminal_snr()],
    ids=["VP", "VE", "Flow", "zero SNR"],
)
def test_uniform_times_are_uniform_over_the_schedule(schedule):
    t, _ = UniformTime()(schedule, Draw(range(4000))).t.sort()
    ranks = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    assert (
        (t - schedule.t_min) / (schedule.t_max - schedule.t_min) - ranks
    ).abs().max() < 1.63 / math.sqrt(4000)
    level = UniformTime()(schedule, Draw(range(4000)))
    assert (level.sigma > 0).all()


def test_discrete_times_are_the_steps_of_ddpm():
    t = UniformTime(discrete=True)(VP.linear(50), Draw(range(4000))).t
    counts = torch.bincount(t.long(), minlength=50)
    assert (
        torch.equal(t, t.round()) and len(counts) == 50 and (counts > 40).all()
    )  # 80 expected at each


def test_edms_levels_are_a_log_normal():
    """With its mean and deviation, LogitNormal is EDM's distribution of sigma."""
    level = LogitNormal(mean=-1.2, std=1.2)(VE(), Draw(range(500)))
    z = Draw(range(500)).gaussian("level")
    assert torch.allclose(level.sigma, (-1.2 + 1.2 * z).exp().clamp(0.002, 80))


def test_levels_are_offset_by_the_logarithm_of_the_datas_deviation():
    level = LogitNormal(mean=-0.4, std=1.2, data_std=0.25)(Flow(), Draw(range(50)))
    z = Draw(range(50)).gaussian("level")
    assert torch.allclose((level.sigma / level.alpha).log(), math.log(0.25) - 0.4 + 1.2 * z)


RECIPE = (
    'name = "r"\n[data]\nkind = "fashion-mnist"\n[model]\nwidths = [8]\nhead = 8\ntrain = { '
    "steps = 1 }\n"
)


@pytest.mark.parametrize(
    ("tables", "weighting", "levels"),
    [
        ("", Uniform(space="v"), LogitNormal(mean=0.0, std=1.0)),
        ('[objective]\npredicts = "eps"', Uniform(space="eps"), LogitNormal()),
        (
            '[objective]\npredicts = "x0"\nweighting = "min-snr"\ngamma = 3.0',
            MinSNR(gamma=3.0),
            LogitNormal(),
        ),
        (
            '[objective]\nweighting = "snr+1"\n[levels]\nkind = "uniform"',
            SNRPlusOne(),
            UniformTime(),
        ),
        (
            '[objective]\nweighting = "sigmoid"\nbias = -1.0\n[levels]\nmean = -0.3\nstd = '
            "1.3\ndata_std = 0.5",
            Sigmoid(bias=-1.0),
            LogitNormal(mean=-0.3, std=1.3, data_std=0.5),
        ),
        (
            '[objective]\nweighting = "edm"\n[schedule]\nsigma_data = 0.3',
            EDM(sigma_data=0.3),
            LogitNormal(),
        ),
        ('[schedule]\nkind = "flow"', Uniform(space="velocity"), LogitNormal()),
        ('[schedule]\nkind = "edm"\nsigma_data = 0.6', EDM(sigma_data=0.6), LogitNormal()),
        (
            '[schedule]\nkind = "edm"\n[objective]\nweighting = "uniform"',
            Uniform(space="x0"),
            LogitNormal(),
        ),
    ],
)
def test_a_recipe_says_how_errors_are_weighted_and_levels_drawn(
    tmp_path, tables, weighting, levels
):
    (tmp_path / "r.toml").write_text(RECIPE + tables)
    found = denoising(read_recipe(tmp_path / "r.toml"))
    assert found.weighting == weighting and found.levels == levels


def test_zero_terminal_snr_is_trained_to_its_end(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE + "[schedule]\nzero_terminal_snr = true")
    with pytest.raises(ValueError, match=r"a logit-normal hardly draws pure noise"):
        read_recipe(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text(
        RECIPE + '[schedule]\nzero_terminal_snr = true\n[levels]\nkind = "uniform"'
    )
    objective = denoising(read_recipe(tmp_path / "r.toml"))
    # "Common Diffusion Noise Schedules": √ᾱ is shifted so that the last is 0 and scaled so that the
    # first stays.
    root = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0).sqrt()
    wanted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    assert (
        torch.allclose(objective.schedule(torch.arange(1000, dtype=F64)).alpha, wanted, atol=1e-12)
        and objective.schedule(999.0).alpha == 0
    )
    assert (
        float(objective.levels(objective.schedule, Draw(range(4000))).alpha.min()) < 1e-4
    )  # all but pure noise


# --- dropping conditions ---

ROWS = {"label": torch.arange(3000) % 10, "pose": torch.randn(3000, 2)}
NULLS = {"label": torch.tensor(10), "pose": torch.full((2,), float("nan"))}


def drop(rates, joint=0.0, rows=ROWS, seeds=range(3000), step=0):
    return dropped(rows, NULLS.__getitem__, rates, joint, Draw(seeds, step))


def gone(kept):
    return kept["label"] == 10, kept["pose"].isnan().all(1)


def test_conditions_are_dropped_per_sample_and_per_step_each_with_its_own_rate():
    rates = {"label": 0.1, "pose": 0.3}
    one, two = (gone(drop(rates, step=step)) for step in (0, 1))
    for label, pose in (one, two):
        assert float(label.double().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 3000))
        assert float(pose.double().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 3000))
        assert float((label & pose).double().mean()) == pytest.approx(
            0.03, abs=4 * math.sqrt(0.03 / 3000)
        )  # independent of each other
    assert float((one[0] & two[0]).double().mean()) == pytest.approx(
        0.01, abs=4 * math.sqrt(0.01 / 3000)
    )  # and from step to step
    few = drop(rates, rows={k: v[7:9] for k, v in ROWS.items()}, seeds=[7, 8], step=1)
    assert torch.equal(gone(few)[0], two[0][7:9]) and torch.equal(gone(few)[1], two[1][7:9])
    kept = drop(rates)
    assert torch.equal(kept["label"][~one[0]], ROWS["label"][~one[0]]) and torch.equal(
        kept["pose"][~one[1]], ROWS["pose"][~one[1]]
    )


def test_joint_dropout_takes_all_conditions_together():
    label, pose = gone(drop({}, joint=0.2))
    assert torch.equal(label, pose) and float(label.double().mean()) == pytest.approx(
        0.2, abs=4 * math.sqrt(0.16 / 3000)
    )
    # InstructPix2Pix: 5 % each and 5 % both gives the four combinations by inclusion and exclusion.
    label, pose = gone(drop({"label": 0.05, "pose": 0.05}, joint=0.05))
    assert float((label & pose).double().mean()) == pytest.approx(
        0.05 + 0.95 * 0.0025, abs=4 * math.sqrt(0.05 / 3000)
    )
    assert float((label & ~pose).double().mean()) == pytest.approx(
        0.95 * 0.05 * 0.95, abs=4 * math.sqrt(0.045 / 3000)
    )


def test_nothing_is_dropped_at_rate_zero():
    kept = drop({"label": 0.0})
    assert all(torch.equal(kept[k], ROWS[k]) for k in ROWS)


def test_the_conditional_objective_trains_the_null_where_conditions_are_dropped():
    class Encoder:
        def null_rows(self, name):
            return NULLS[name]

        def __call__(self, rows):
            return Condition(label=rows["label"])

    seen = []
    pair = SimpleNamespace(
        encoder=Encoder(), denoiser=lambda x, level, cond: seen.append(cond["label"]) or x
    )
    objective = Conditional(
        denoising=Denoising(schedule=Flow(), levels=LogitNormal()), dropout={"label": 0.5}
    )
    labels = torch.tensor([0, 1] * 20)
    loss = objective(pair, torch.randn(40, 3), {"label": labels}, Draw(range(40), 4))
    assert loss.shape == (40,)
    wanted = torch.where(Draw(range(40), 4).uniform("drop label") < 0.5, 10, labels)
    assert torch.equal(seen[0], wanted) and (seen[0] == 10).any() and (seen[0] != 10).any()


# --- regression ---


def test_the_exact_posterior_minimises_noisy_regression():
    """y = x0 + 0.4 n, x0 ~ N(0.2, 0.6²): p(y | x_t) is normal with the mean and variance of the
    textbook.
    """
    m, d, n, a, s = 0.2, 0.6, 0.4, 0.8, 0.6
    z = torch.linspace(-8, 8, 61, dtype=F64)
    w = torch.exp(-z * z / 2) / torch.exp(-z * z / 2).sum()
    i, j, k = (t.flatten() for t in torch.meshgrid(*[torch.arange(61)] * 3, indexing="ij"))
    x0 = (m + d * z[i])[:, None]
    y, weight = x0 + n * z[k][:, None], w[i] * w[j] * w[k]
    gain = a * d * d / (a * a * d * d + s * s)
    variance = d * d - gain * a * d * d + n * n

    def loss(theta):
        def net(x, level):
            mean = m + gain * (x - a * m) + theta[0] + theta[1] * x
            return torch.cat(
                [
                    mean,
                    (torch.tensor(variance, dtype=F64).log() + theta[2] + theta[3] * x).expand_as(
                        mean
                    ),
                ],
                1,
            )

        level = Level(a, s, 0.5)
        return (
            weight
            * NoisyRegression(schedule=Flow(), levels=lambda *_: level)(
                net, x0, y, Nodes(z[j][:, None])
            )
        ).sum()

    theta = torch.zeros(4, dtype=F64, requires_grad=True)
    here = loss(theta)
    (gradient,) = torch.autograd.grad(here, theta)
    assert gradient.abs().max() < 1e-6  # the loss is taken in float32
    assert float(here.detach()) == pytest.approx(
        0.5 * (math.log(2 * math.pi * variance) + 1), rel=1e-6
    )  # the entropy of that normal
    for index in range(4):
        for sign in (-1, 1):
            assert (
                float(loss(sign * 0.3 * torch.eye(4, dtype=F64)[index]))
                > float(here.detach()) + 1e-3
            )
