"""Mixtures against formulas written out in plain torch, and guidance against the exact truth."""

import math

import pytest
import torch

import guidestar as gs
from guidestar.data.mixtures import Mixture, blobs, moons

F64 = torch.float64
VP, VE, FLOW = gs.VP.linear(), gs.VE(), gs.Flow()
TINY = 1e-10


def odd() -> Mixture:
    """Four unequal components of three classes in three dimensions."""
    g = torch.Generator().manual_seed(3)
    root = torch.randn(4, 3, 3, generator=g, dtype=F64)
    return Mixture(
        weights=torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=F64),
        means=2 * torch.randn(4, 3, generator=g, dtype=F64),
        covariances=0.3 * root @ root.mT + 0.05 * torch.eye(3, dtype=F64),
        classes=torch.tensor([2, 0, 1, 0]),
    )


MIXTURES = {"blobs": blobs, "moons": lambda: moons(3), "odd": odd}
LEVELS = {
    "vp noisy": VP(900.0),
    "vp alpha 0.001": VP.at_rho(math.sqrt(1e6 - 1)),
    "vp middle": VP(300.0),
    "vp first": VP(0.0),
    "ve 80": VE(80.0),
    "ve 1": VE(1.0),
    "ve 0.002": VE(0.002),
    "ve 1e-6": gs.Level(1.0, 1e-6, 1e-6),
    "flow alpha 0.001": FLOW(0.999),
    "flow 0.5": FLOW(0.5),
    "flow 0.01": FLOW(0.01),
}
MIXED = gs.Level(
    torch.tensor([1.0, 0.001, 0.3, 0.9, 1.0, 0.5, 0.999], dtype=F64),
    torch.tensor([80.0, 0.9999995, 0.7, 0.1, 0.01, 0.5, 1e-3], dtype=F64),
    torch.zeros(7, dtype=F64),
)


@pytest.fixture(params=MIXTURES)
def mixture(request) -> Mixture:
    return MIXTURES[request.param]()


@pytest.fixture(params=[*LEVELS, "mixed"])
def level(request) -> gs.Level:
    return LEVELS.get(request.param, MIXED)


def numbers(level: gs.Level) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of seven samples, [7, 1]."""
    return tuple(
        torch.as_tensor(v, dtype=F64).expand(7)[:, None] for v in (level.alpha, level.sigma)
    )  # type: ignore[return-value]


def points(mixture: Mixture, level: gs.Level) -> torch.Tensor:
    """Seven samples of the forward process, stretched a little so that the tails are seen too."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (
        2 * torch.randn(7, mixture.dim, generator=g, dtype=F64),
        torch.randn(7, mixture.dim, generator=g, dtype=F64),
    )
    a, s = numbers(level)
    return a * x0 + 1.3 * s * eps


LABELS = torch.tensor([0, 1, 0, 1, 0, 1, 1])


def of_class(mixture: Mixture, k: int) -> list[int]:
    classes = mixture.classes if mixture.classes is not None else torch.arange(len(mixture.weights))
    return (classes == k).nonzero()[:, 0].tolist()


def log_gaussian(x: torch.Tensor, m: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """log N(x; m, C) of one point: −½ (x − m)ᵀ C⁻¹ (x − m) − ½ log det 2πC."""
    return -((x - m) @ torch.linalg.solve(c, x - m) + torch.logdet(2 * math.pi * c)) / 2


def log_joint(
    mixture: Mixture, x: torch.Tensor, a: torch.Tensor, s: torch.Tensor, components
) -> torch.Tensor:
    """log Σ_n π_n N(x; αm_n, α²Σ_n + σ²I) of one point, over some of the components."""
    eye, pi = torch.eye(mixture.dim, dtype=F64), mixture.weights / mixture.weights.sum()
    terms = [
        pi[n].log()
        + log_gaussian(x, a * mixture.means[n], a**2 * mixture.covariances[n] + s**2 * eye)
        for n in components
    ]
    return torch.stack(terms).logsumexp(0)


def expected_density(
    mixture: Mixture, x: torch.Tensor, level: gs.Level, labels=None
) -> torch.Tensor:
    a, s = numbers(level)
    everything = list(range(len(mixture.weights)))
    groups = [
        everything if labels is None or k == mixture.count else of_class(mixture, k)
        for k in (LABELS if labels is None else labels).tolist()
    ]
    priors = [(mixture.weights[g].sum() / mixture.weights.sum()).log() for g in groups]
    return torch.stack(
        [
            log_joint(mixture, *row) - p
            for row, p in zip(zip(x, a[:, 0], s[:, 0], groups, strict=True), priors, strict=True)
        ]
    )


def expected_score(mixture, x, level, labels=None) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(expected_density(mixture, x, level, labels).sum(), x)[0]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = TINY) -> None:
    """Within the tolerance, absolutely for values up to 1 and relatively beyond."""
    assert a.dtype == b.dtype and a.shape == b.shape
    error = ((a - b).abs() / b.abs().clamp_min(1)).max().item()
    assert error <= tolerance, error


@pytest.mark.parametrize("labels", [None, LABELS, torch.tensor([0, 1, 2, 2, 1, 0, 2])])
def test_density_and_score(mixture, level, labels):
    x = points(mixture, level)
    close(mixture.log_density(x, level, labels), expected_density(mixture, x, level, labels))
    close(mixture.score(x, level, labels), expected_score(mixture, x, level, labels))


@pytest.mark.parametrize("labels", [None, LABELS])
def test_denoiser_is_tweedies(mixture, level, labels):
    a, s = numbers(level)
    x = points(mixture, level)
    close(
        mixture.denoiser(x, level, labels),
        (x + s**2 * expected_score(mixture, x, level, labels)) / a,
    )


def test_denoiser_of_one_gaussian(level):
    full = odd()
    m, c = full.means[1], full.covariances[1]
    one = Mixture(weights=torch.ones(1, dtype=F64), means=m[None], covariances=c[None])
    x, (a, s) = points(one, level), numbers(level)
    inverses = [
        torch.linalg.inv(ai**2 * c + si**2 * torch.eye(3, dtype=F64))
        for ai, si in zip(a, s, strict=True)
    ]
    close(
        one.denoiser(x, level),
        torch.stack(
            [m + ai * c @ inv @ (xi - ai * m) for xi, ai, inv in zip(x, a, inverses, strict=True)]
        ),
    )


def test_truth_is_the_integral_over_the_data():
    """No algebra of Gaussians: p_t(x) = ∫ p(x0) N(x; αx0, σ²) dx0 by quadrature, and D = E[x0 |
    x].
    """
    pi, m, v = [0.3, 0.7], [-1.0, 1.5], [0.2, 0.5]
    mixture = Mixture(
        weights=torch.tensor(pi, dtype=F64),
        means=torch.tensor(m, dtype=F64)[:, None],
        covariances=torch.tensor(v, dtype=F64)[:, None, None],
    )
    x0 = torch.linspace(-12, 12, 24001, dtype=F64)
    prior = sum(
        p * torch.exp(-((x0 - mean) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)
        for p, mean, var in zip(pi, m, v, strict=True)
    )
    x = torch.tensor([[-2.0], [0.1], [0.8]], dtype=F64)
    for a, s in [(0.8, 0.6), (1.0, 2.0), (0.3, 0.7), (0.001, 1.0)]:
        joint = prior * torch.exp(-((x - a * x0) ** 2) / (2 * s**2)) / math.sqrt(2 * math.pi * s**2)
        density = torch.trapezoid(joint, x0)
        close(mixture.log_density(x, gs.Level(a, s, 0.0)), density.log())
        close(
            mixture.denoiser(x, gs.Level(a, s, 0.0))[:, 0],
            torch.trapezoid(x0 * joint, x0) / density,
        )


def test_posterior_is_bayes(mixture, level):
    x, (a, s) = points(mixture, level), numbers(level)
    rows = list(zip(x, a[:, 0], s[:, 0], strict=True))
    each = torch.stack(
        [
            torch.stack(
                [log_joint(mixture, *row, of_class(mixture, k)) for k in range(mixture.count)]
            )
            for row in rows
        ]
    )
    expected = each - each.logsumexp(-1, keepdim=True)
    close(mixture.log_posterior(x, level), expected)
    close(mixture.log_prob(x, level, LABELS), expected[torch.arange(7), LABELS])
    close(mixture.log_prob(x, level, torch.tensor([1])), expected[:, 1])


def test_classifier_gradient_is_bayes(mixture, level):
    x = points(mixture, level).requires_grad_()
    gradient = torch.autograd.grad(mixture.log_prob(x, level, LABELS).sum(), x)[0]
    close(
        gradient,
        expected_score(mixture, x.detach(), level, LABELS)
        - expected_score(mixture, x.detach(), level),
    )


def test_truths_differentiate_twice(mixture):
    x, level = points(mixture, FLOW(0.4)).requires_grad_(), FLOW(0.4)
    for f in (mixture.log_density, mixture.score, mixture.denoiser, mixture.log_posterior):
        assert torch.autograd.gradcheck(lambda v, f=f: f(v, level), x)
    assert torch.autograd.gradgradcheck(lambda v: mixture.log_prob(v, level, LABELS), x)


def test_ends_of_the_schedule(mixture):
    noise, clean = gs.Level(0.0, 1.5, 1.0), gs.Level(0.5, 0.0, 0.0)
    x = points(mixture, VE(1.0))
    pi = mixture.weights / mixture.weights.sum()
    close(mixture.denoiser(x, noise), (pi[:, None] * mixture.means).sum(0).expand(7, -1))
    mine = of_class(mixture, 1)
    mean = (mixture.weights[mine, None] * mixture.means[mine]).sum(0) / mixture.weights[mine].sum()
    close(mixture.denoiser(x, noise, torch.ones(7, dtype=torch.int64)), mean.expand(7, -1))
    close(mixture.score(x, noise), -x / 1.5**2)
    close(
        mixture.log_posterior(x, noise),
        torch.stack([pi[of_class(mixture, k)].sum().log() for k in range(mixture.count)]).expand(
            7, -1
        ),
    )
    close(mixture.denoiser(x, clean), x / 0.5)
    close(mixture.denoiser(x, clean, LABELS), x / 0.5)
    close(mixture.score(x, clean), expected_score(mixture, x, clean))
    close(mixture.log_density(x, clean), expected_density(mixture, x, clean))


def test_digits_are_kept_where_alpha_is_tiny(mixture):
    """As alpha → 0, σ²/α ∇log p(k|x) → E[x0 | k] − E[x0]; differences of log densities would keep
    no digit of it.
    """
    alpha = 1e-12
    x = points(mixture, VE(1.0)).requires_grad_()
    gradient = torch.autograd.grad(mixture.log_prob(x, gs.Level(alpha, 1.0, 0.0), LABELS).sum(), x)[
        0
    ]
    pi = mixture.weights / mixture.weights.sum()
    means = torch.stack(
        [
            (pi[c, None] * mixture.means[c]).sum(0) / pi[c].sum()
            for c in (of_class(mixture, k) for k in LABELS.tolist())
        ]
    )
    close(gradient / alpha, means - (pi[:, None] * mixture.means).sum(0))


def test_float32_is_the_rounded_truth(mixture, level):
    x = points(mixture, level).float()
    wide = x.double()
    for f in (mixture.log_density, mixture.score, mixture.denoiser, mixture.log_posterior):
        assert f(x, level).dtype == torch.float32
        close(f(x, level), f(wide, level).float(), 0.0)


def test_mixed_levels_are_the_samples_one_by_one(mixture):
    x = points(mixture, MIXED)
    for f in (mixture.log_density, mixture.score, mixture.denoiser, mixture.log_posterior):
        alone = [f(x[i : i + 1], gs.Level(*(float(v[i]) for v in MIXED))) for i in range(7)]
        close(f(x, MIXED), torch.cat(alone), 1e-13)


def test_sample_has_the_moments():
    mixture, n = odd(), 20_000
    x, k = mixture.sample(gs.Draw(range(n)))
    pi = torch.tensor([0.3, 0.2, 0.5], dtype=F64)  # of the classes 0 (components 1 and 3), 1 and 2
    frequency = torch.bincount(k, minlength=3) / n
    assert bool(((frequency - pi).abs() < 4 * (pi * (1 - pi) / n).sqrt()).all())
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    away = mixture.means - mean
    covariance = (
        mixture.weights[:, None, None] * (mixture.covariances + away[:, :, None] * away[:, None, :])
    ).sum(0)
    assert bool(((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all())
    assert torch.allclose(x.T.cov(), covariance, atol=0.05 * float(covariance.diagonal().max()))
    second = x[k == 1]  # class 1 is component 2 alone
    assert torch.allclose(second.mean(0), mixture.means[2], atol=0.1) and torch.allclose(
        second.T.cov(), mixture.covariances[2], atol=0.1
    )


def test_sample_within_classes_and_one_by_one():
    mixture, labels = moons(), torch.tensor([0, 1, 1, 2, 0])
    x, k = mixture.sample(gs.Draw([5, 6, 7, 8, 9]), labels)
    assert k[[0, 1, 2, 4]].tolist() == [0, 1, 1, 0]
    alone, _ = mixture.sample(gs.Draw([7]), labels[2:3])
    assert torch.equal(alone[0], x[2])


# Guidance against the truth


def step_at(schedule: gs.Schedule, level: gs.Level) -> gs.Step:
    return gs.Step(
        level, schedule.clean, 0, gs.Grid(levels=(level, schedule.clean), schedule=schedule)
    )


ALPHA_001 = {"vp": math.sqrt(1e6 - 1), "ve": 80.0, "flow": 999.0}
STEPS = {
    f"{name} rho {rho:g}": step_at(schedule, schedule.at_rho(rho))
    for name, schedule in {"vp": VP, "ve": VE, "flow": FLOW}.items()
    for rho in (ALPHA_001[name], 3.0, 0.3, 0.003)
}
_RHOS = torch.tensor([999.0, 80.0, 9.0, 2.0, 0.7, 0.1, 0.01], dtype=F64)
STEPS |= {
    f"{name} mixed": step_at(schedule, schedule.at_rho(_RHOS))
    for name, schedule in {"vp": VP, "ve": VE, "flow": FLOW}.items()
}
TARGETS = torch.tensor([0, 1, 1, 0, 1, 0, 1])


def guided(text: str, mixture: Mixture, targets: torch.Tensor = TARGETS, **more) -> gs.Guided:
    """Conditions and classes of each sample."""
    cond, null = mixture.condition(targets), mixture.null()
    return gs.Guided(
        text,
        mixture,
        cond=cond,
        null=null,
        classifiers={"classifier": mixture},
        target=targets,
        **more,
    )


def class_estimate(
    mixture: Mixture, x: torch.Tensor, level: gs.Level, targets: torch.Tensor
) -> torch.Tensor:
    """E[x0 | x, class] written out: Σ_n r_n (m_n + αΣ_n C_n⁻¹ (x − αm_n)) over the class's
    components.
    """
    a, s = numbers(level)
    rows = []
    for xi, ai, si, k in zip(x, a[:, 0], s[:, 0], targets.tolist(), strict=True):
        parts, logits = [], []
        for n in range(len(mixture.weights)) if k == mixture.count else of_class(mixture, k):
            c = ai**2 * mixture.covariances[n] + si**2 * torch.eye(mixture.dim, dtype=F64)
            parts.append(
                mixture.means[n]
                + ai * mixture.covariances[n] @ torch.linalg.solve(c, xi - ai * mixture.means[n])
            )
            logits.append(mixture.weights[n].log() + log_gaussian(xi, ai * mixture.means[n], c))
        rows.append((torch.stack(logits).softmax(0)[:, None] * torch.stack(parts)).sum(0))
    return torch.stack(rows)


@pytest.fixture(params=STEPS)
def step(request) -> gs.Step:
    return STEPS[request.param]


def test_classifier_guidance_of_scale_1_is_the_conditional_model(mixture, step):
    x = points(mixture, step.t)
    truth = class_estimate(mixture, x, step.t, TARGETS)
    close(guided("uncond + classifier(1)", mixture)(x, step)[0].x0, truth)
    close(guided("cond", mixture)(x, step)[0].x0, truth)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 8.0])
def test_both_guidances_are_one(mixture, step, scale):
    x = points(mixture, step.t)
    c, u = (
        class_estimate(mixture, x, step.t, k) for k in (TARGETS, torch.full((7,), mixture.count))
    )
    truth = u + scale * (c - u)
    for text in (
        f"cfg({scale})",
        f"cond + classifier({scale - 1})",
        f"uncond + classifier({scale})",
        f"uncond + AND({scale})",
    ):
        close(guided(text, mixture)(x, step)[0].x0, truth)


def test_scales_of_each_sample(mixture, step):
    x, s = points(mixture, step.t), [1, 2, 4, 0, -1, 8, 1]
    c, u = (
        class_estimate(mixture, x, step.t, k) for k in (TARGETS, torch.full((7,), mixture.count))
    )
    truth = u + torch.tensor(s, dtype=F64)[:, None] * (c - u)
    for text in (
        f"cfg({s})",
        f"cond + classifier({[v - 1 for v in s]})",
        f"uncond + classifier({s})",
    ):
        close(guided(text, mixture)(x, step)[0].x0, truth)
        close(guided(text, mixture, max_rows=3)(x, step)[0].x0, truth)


def test_both_at_once_add_their_weights(mixture, step):
    x = points(mixture, step.t)
    c, u = (
        class_estimate(mixture, x, step.t, k) for k in (TARGETS, torch.full((7,), mixture.count))
    )
    close(guided("cfg(2.5) + classifier(1.5)", mixture)(x, step)[0].x0, u + 4 * (c - u))


def test_one_target_of_all_samples(mixture, step):
    x, k = points(mixture, step.t), torch.tensor([1])
    truth = class_estimate(mixture, x, step.t, k.expand(7))
    close(guided("uncond + classifier(1)", mixture, k)(x, step)[0].x0, truth)
    close(guided("uncond + classifier(1, target=1)", mixture)(x, step)[0].x0, truth)


def test_without_a_condition_the_mixture_is_unconditional(mixture, step):
    x = points(mixture, step.t)
    truth = class_estimate(mixture, x, step.t, torch.full((7,), mixture.count))
    close(gs.Guided("uncond", mixture)(x, step)[0].x0, truth)
    close(guided("uncond", mixture)(x, step)[0].x0, truth)


@pytest.mark.parametrize("schedule", [VP, VE, FLOW], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "sde-dpmpp-2m", "heun", "ddpm"])
def test_whole_runs_agree(schedule, solver):
    mixture, targets = blobs(), torch.tensor([0, 1, 2, 0])
    grid = gs.log_snr(schedule, 12, rho_max=80.0, rho_min=0.01)
    runs = [
        gs.sample(
            guided(text, mixture, targets),
            grid=grid,
            solver=solver,
            seeds=range(4),
            shape=(2,),
            dtype=F64,
        )
        for text in (
            "cfg(3)",
            "uncond + classifier(3)",
            "cond + classifier(2)",
            "cfg(2) + classifier(1)",
        )
    ]
    for other in runs[1:]:
        close(other, runs[0])


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.tensor([0.5, -0.5], dtype=F64)}, "positive numbers"),
        ({"means": torch.zeros(3, 2, dtype=F64)}, "2 components in 2 dimensions"),
        ({"covariances": torch.zeros(2, 2, 2, dtype=F64)}, "positive definite"),
        ({"covariances": torch.tensor([[[1.0, 0.5], [0.0, 1.0]]] * 2, dtype=F64)}, "symmetric"),
        ({"classes": torch.tensor([0, 2])}, r"must use all of 0 … K − 1, not \[0, 2\]"),
        ({"classes": torch.tensor([0])}, "classes"),
    ],
)
def test_bad_mixtures_are_refused(change, message):
    good = {
        "weights": torch.ones(2, dtype=F64),
        "means": torch.zeros(2, 2, dtype=F64),
        "covariances": torch.eye(2, dtype=F64).expand(2, 2, 2),
    }
    with pytest.raises(ValueError, match=message):
        Mixture(**{**good, **change})


def test_bad_calls_are_refused():
    mixture, x, level = blobs(), torch.zeros(2, 2, dtype=F64), VE(1.0)
    with pytest.raises(ValueError, match=r"2 labels in 0 … 3 \(3: no class\), not \[0, 4\]"):
        mixture.denoiser(x, level, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"\[B, 2\], not \(2, 3\)"):
        mixture.score(torch.zeros(2, 3), level)
    with pytest.raises(ValueError, match="conditioned on 'label' alone, not on labels"):
        mixture(x, level, gs.Condition(labels=torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="2 labels"):
        mixture.score(x, level, torch.tensor([0]))
