"""Every method against its formula, written out in plain torch.

Each on a variance-preserving, a variance-exploding and a flow schedule, and on a batch whose
samples are at levels of their own; those that remember, over two steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestar import (
    AND,
    DDIM,
    DDPM,
    NOT,
    Contrast,
    Guided,
    Heun,
    Net,
    Prediction,
    cfg,
    classifier,
    cond,
    parse,
    sample,
    uncond,
    uniform,
)
from guidestar.guidance.term import Traits
from helpers.scenes import PLACES, Scene, scenes, total
from helpers.toys import (
    COND,
    NEGATIVE,
    SCHEDULES,
    UNCOND,
    WORDS,
    Judge,
    Spy,
    col,
    condition,
    encode,
    log_prob,
    log_prob_gradient,
    mixed_step,
    net,
    noise,
    steps,
    toy,
)

TARGET = torch.tensor([3, 0, 7])


def test_cfg(scene):
    scene.check("cfg(4)", scene.u + 4 * (scene.c - scene.u), negative=None)
    scene.check("cfg(0)", scene.u, negative=None)
    scene.check("cfg(-1.5)", scene.u - 1.5 * (scene.c - scene.u), negative=None)


def test_cfg_negative(scene):
    scene.check("cfg(4)", scene.n + 4 * (scene.c - scene.n))
    blurry = scene.d(WORDS["blurry"])
    scene.check("cfg(4, 'blurry')", blurry + 4 * (scene.c - blurry))
    scene.check(cfg(4, negative=condition(0.25)), scene.d(0.25) + 4 * (scene.c - scene.d(0.25)))


def test_cfg_on_other_bases_keeps_its_weight(scene):
    scene.check("uncond + cfg(4)", scene.u + 3 * (scene.c - scene.u), negative=None)
    scene.check("neg + cfg(4)", scene.n + 3 * (scene.c - scene.n))


def test_cfg_per_sample(scene):
    scene.check(
        "cfg([1, 4, 0])", scene.n + col(torch.tensor([1.0, 4, 0]), scene.x) * (scene.c - scene.n)
    )


def test_cfg_on_a_subset_of_channels(scene):
    expected = scene.c.clone()
    expected[:, :3] += 3 * (scene.c - scene.u)[:, :3]
    scene.check("cfg(4, channels=3)", expected, negative=None)
    scene.check("cfg(4, channels=9)", scene.u + 4 * (scene.c - scene.u), negative=None)


def test_cfg_of_scale_one_is_one_pass(scene):
    spy = Spy()
    out, _ = Guided("cfg(1)", {"main": net(spy)})(scene.x, scene.step)
    assert spy.rows == 3 and torch.equal(out.x0, scene.c)


def test_cfgpp(scene):
    scene.check("cfgpp(0.6)", scene.u + 0.6 * (scene.c - scene.u), scene.eps(scene.u))
    scene.check(
        "cfgpp([0, 0.6, 1])",
        scene.u
        + col(torch.tensor([0, 0.6, 1], dtype=torch.float64), scene.x) * (scene.c - scene.u),
        scene.eps(scene.u),
    )


def test_cfgpp_under_ddim_is_cfg_of_another_weight(scene):
    out = scene.run("cfgpp(0.6)")[0]
    ours = scene.a_s * out.x0 + scene.s_s * out.eps
    weight = 0.6 / (1 - (scene.s_s / scene.a_s) / (scene.s / scene.a))
    d = scene.u + weight * (scene.c - scene.u)
    torch.testing.assert_close(ours, scene.a_s * d + scene.s_s * scene.eps(d), rtol=1e-9, atol=1e-9)


def test_cfgpp_and_cfg_add_up(scene):
    d = scene.u + 2 * (scene.c - scene.n)
    scene.check("cfg(3) + cfgpp(0.5)", d + 0.5 * (scene.c - scene.u), scene.eps(d))


def test_cfgpp_is_refused_by_a_solver_that_cannot_split():
    guided = Guided("cfgpp(0.6)", {"main": net(Spy())})
    DDIM().check(guided, uniform(SCHEDULES["flow"], 3))
    with pytest.raises(ValueError, match=r"cfgpp splits.*heun"):
        Heun().check(guided, uniform(SCHEDULES["flow"], 3))


def test_interval_is_open_below_and_closed_above():
    rho = [0.2, 0.2000001, 1.0, 3.0, 3.000001, 9.0]
    step = mixed_step("flow", rho, [r / 2 for r in rho])
    exact = step.t.rho.tolist()
    x = noise(6, 4)
    scene = Scene(step, x)
    inside = torch.tensor([exact[0] < r <= exact[3] for r in exact])
    assert inside.tolist() == [False, True, True, True, False, False]
    spy = Spy()
    out, _ = Guided(cfg(4, interval=(exact[0], exact[3])), {"main": net(spy)})(x, step)
    torch.testing.assert_close(out.x0, scene.c + 3 * col(inside.double(), x) * (scene.c - scene.n))
    assert spy.rows == 6 + 3
    for i, r in enumerate(exact):
        one = step.take(torch.tensor([i]))._replace(t=type(step.t)(*(float(v[i]) for v in step.t)))
        single, _ = Guided(
            cfg(4, interval=(exact[0], one.t.rho if i == 3 else exact[3])), {"main": net(Spy())}
        )(x[i : i + 1], one)
        torch.testing.assert_close(single.x0, out.x0[i : i + 1], msg=f"rho {r}")


def test_interval_may_reach_pure_noise():
    step = uniform(SCHEDULES["flow"], 4).step(0)
    scene = Scene(step, noise(3, 4))
    assert step.t.rho == math.inf
    scene.check("cfg(4, interval=(1, inf))", scene.n + 4 * (scene.c - scene.n))
    scene.check("cfg(4, interval=(1, 1000))", scene.c)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        ("linear", lambda w, tau: 2 * w * (1 - tau)),
        ("cosine", lambda w, tau: w * (1 + math.cos(math.pi * tau))),
        ("clamp(1.4)", lambda w, tau: max(1.4, 2 * w * (1 - tau))),
        ("clamp(2.2, cosine)", lambda w, tau: max(2.2, w * (1 + math.cos(math.pi * tau)))),
    ],
)
def test_weight_schedules(place, schedule, factor):
    for scene in scenes(place):
        for index in (0, 3, 7, 9):
            out = scene.run(f"cfg(3, schedule={schedule})", step=scene.step._replace(index=index))[
                0
            ]
            weight = factor(2.0, 1 - index / 10)
            torch.testing.assert_close(
                out.x0, scene.c + weight * (scene.c - scene.n), rtol=1e-10, atol=1e-10
            )
            out = scene.run(
                f"cfg([3, 2, 3], schedule={schedule})", step=scene.step._replace(index=index)
            )[0]
            weights = torch.tensor(
                [factor(w, 1 - index / 10) for w in (2.0, 1.0, 2.0)], dtype=torch.float64
            )
            torch.testing.assert_close(
                out.x0,
                scene.c + col(weights, scene.x) * (scene.c - scene.n),
                rtol=1e-10,
                atol=1e-10,
            )


def test_a_schedule_may_be_any_function(scene):
    scene.check(
        cfg(3, schedule=lambda w, step: w * step.index),
        scene.c + 2 * scene.step.index * (scene.c - scene.n),
    )


def test_linear_and_cosine_keep_the_mean_weight():
    for name in ("linear", "cosine"):
        term, grid = parse(f"cfg(3, schedule={name})").terms[0], uniform(SCHEDULES["flow"], 1000)
        assert abs(sum(term.weight(grid.step(i)) for i in range(1000)) / 1000 - 2) < 0.01


def test_and_not(scene):
    cat, dog = scene.d(WORDS["cat"]), scene.d(WORDS["dog"])
    u = scene.u
    scene.check(
        "AND(7.5, 'cat') + AND(2) + NOT(3, 'dog')",
        u + 7.5 * (cat - u) + 2 * (scene.c - u) - 3 * (dog - u),
    )
    scene.check(
        uncond + AND(2, condition(0.3)) + NOT([0, 1, 2], condition(0.6)),
        u + 2 * (scene.d(0.3) - u) - col(torch.tensor([0.0, 1, 2]), u) * (scene.d(0.6) - u),
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("eta", "beta", "radius"),
    [(0.0, -0.5, None), (0.3, -0.5, 0.8), (1.0, 0.0, None), (0.0, 0.6, 0.5)],
)
def test_apg_over_two_steps(place, eta, beta, radius):
    average, state = 0.0, None
    text = f"apg(5, eta={eta}, momentum={beta}, radius={radius})"
    for scene in scenes(place):
        average = (scene.c - scene.n) + beta * average
        size = total(average**2).sqrt()
        delta = (
            average
            if radius is None
            else average * torch.minimum(torch.ones_like(size), radius / size)
        )
        along = total(delta * scene.c) / total(scene.c**2) * scene.c
        out, state = scene.run(text, state)
        torch.testing.assert_close(
            out.x0, scene.c + 4 * (delta - along + eta * along), rtol=1e-10, atol=1e-10
        )
        torch.testing.assert_close(out.eps, scene.eps(out.x0), rtol=1e-9, atol=1e-9)
        if radius is not None:
            assert (size > radius).any()


def test_apg_with_everything_off_is_cfg(scene):
    scene.check("apg(5, eta=1, momentum=0)", scene.n + 5 * (scene.c - scene.n))


def test_apg_memory_of_a_sleeping_sample_stays():
    one, two = scenes("mixed")
    text = "apg([5, 1, 2], momentum=0.5)"
    _, state = one.run(text)
    _, state = two.run(text, state)
    expected = (two.c - two.n) + 0.5 * (one.c - one.n)
    expected[1] = 0
    torch.testing.assert_close(state[0]["average"], expected)


def test_apg_is_in_x0_where_diffusers_takes_the_raw_output():
    module = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    scene = scenes("vp")[0]
    ours = scene.run("apg(5, momentum=0)")[0]
    in_x0 = module.normalized_guidance(
        scene.c, scene.n, 4.0, eta=0.0, use_original_formulation=True
    )
    torch.testing.assert_close(ours.x0, in_x0)
    raw = module.normalized_guidance(scene.eps(scene.c), scene.eps(scene.n), 5.0, eta=0.0)
    assert (ours.eps - raw).norm() > 0.05 * ours.eps.norm()


def rescaled(guided: Tensor, wanted: Tensor, phi: float) -> Tensor:
    def deviation(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        return col((centred.square().sum(1) / (flat.shape[1] - 1)).sqrt(), x)

    return phi * guided * deviation(wanted) / deviation(guided) + (1 - phi) * guided


def test_rescale_in_v(scene):
    d = scene.n + 4 * (scene.c - scene.n)
    v, wanted = (scene.a * scene.eps(x) - scene.s * x for x in (d, scene.c))
    after = rescaled(v, wanted, 0.7)
    # v = αε − σx0 and x_t = αx0 + σε, solved for x0
    scene.check(
        "cfg(4) | rescale(0.7)", (scene.a * scene.x - scene.s * after) / (scene.a**2 + scene.s**2)
    )
    scene.check("cfg(4) | rescale(0)", d)


def test_rescale_in_other_spaces(scene):
    d = scene.n + 4 * (scene.c - scene.n)
    scene.check("cfg(4) | rescale(0.4, space='x0')", rescaled(d, scene.c, 0.4))
    flow = rescaled(scene.eps(d) - d, scene.eps(scene.c) - scene.c, 0.4)
    scene.check(
        "cfg(4) | rescale(0.4, space='velocity')", (scene.x - scene.s * flow) / (scene.a + scene.s)
    )
    eps = rescaled(scene.eps(d), scene.eps(scene.c), 0.4)
    scene.check("cfg(4) | rescale(0.4, space='eps')", (scene.x - scene.s * eps) / scene.a, eps)


@pytest.mark.parametrize("along", ["last", "third"])
@pytest.mark.parametrize("scene", scenes("flow", shape=(3, 2, 4, 5)))
def test_rescale_along_a_dimension(scene, along):
    d = scene.n + 4 * (scene.c - scene.n)
    guided, wanted = scene.eps(d) - d, scene.eps(scene.c) - scene.c
    norm = lambda x: (x**2).sum({"last": 3, "third": 2}[along], keepdim=True) ** 0.5
    flow = 0.6 * guided * norm(wanted) / norm(guided) + 0.4 * guided
    scene.check(
        f"cfg(4) | rescale(0.6, space='velocity', along='{along}')",
        (scene.x - scene.s * flow) / (scene.a + scene.s),
    )


@pytest.mark.parametrize("most", [0.5, 1.0, 1e6])
def test_rescale_of_what_is_too_large(scene, most):
    """Each sample's norm is at most so many times that of the conditional prediction."""
    d = scene.n + 4 * (scene.c - scene.n)
    guided, wanted = scene.eps(d) - d, scene.eps(scene.c) - scene.c
    norm = lambda x: (x**2).flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1)) ** 0.5
    flow = guided * (most * norm(wanted) / norm(guided)).clamp(max=1)
    scene.check(
        f"cfg(4) | rescale(1, space='velocity', along='norm', most={most})",
        (scene.x - scene.s * flow) / (scene.a + scene.s),
    )
    for wrong in ("0", "-1", "'a'"):
        with pytest.raises(ValueError, match="most must be"):
            parse(f"cfg(4) | rescale(1, most={wrong})")


def test_rescale_in_eps_is_that_of_diffusers():
    module = pytest.importorskip("diffusers.guiders.guider_utils")
    scene = scenes("vp")[0]
    guided = scene.eps(scene.n) + 4 * (scene.eps(scene.c) - scene.eps(scene.n))
    theirs = module.rescale_noise_cfg(guided, scene.eps(scene.c), 0.7)
    torch.testing.assert_close(scene.run("cfg(4) | rescale(0.7, 'eps')")[0].eps, theirs)


def test_rescale_leaves_a_constant_prediction():
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    flat = Spy(lambda x, level, c: torch.ones_like(x) * col(c, x))
    guided = Guided("cfg(3) | rescale(1, 'x0')", {"main": net(flat)})
    torch.testing.assert_close(
        guided(x, steps("flow")[0])[0].x0, torch.full_like(x, COND + 2 * (COND - NEGATIVE))
    )


@pytest.mark.parametrize("p", [0.9, 0.995, 1.0])
def test_threshold(scene, p):
    d = scene.n + 6 * (scene.c - scene.n)
    rows = []
    for one in d:
        values = one.abs().flatten().sort().values
        place = p * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        q = max(1.0, float(values[low] + (place - low) * (values[high] - values[low])))
        rows.append(one.clamp(-q, q) / q)
    assert any(r.abs().max() < s.abs().max() for r, s in zip(rows, d, strict=True))
    scene.check(f"cfg(6) | threshold({p})", torch.stack(rows))


def test_threshold_leaves_what_lies_within_the_range(scene):
    calm = Spy(lambda x, level, c: toy(x, level, c) / 2)
    out = Guided("cond | threshold(0.9)", {"main": net(calm)})(scene.x, scene.step)[0]
    torch.testing.assert_close(out.x0, scene.c / 2)


def test_clip(scene):
    scene.check("cfg(6) | clip_x0(0.8)", (scene.n + 6 * (scene.c - scene.n)).clamp(-0.8, 0.8))


def test_posts_run_from_left_to_right(scene):
    d = scene.n + 6 * (scene.c - scene.n)
    scene.check(
        "cfg(6) | clip_x0(1) | rescale(1, space='x0')", rescaled(d.clamp(-1, 1), scene.c, 1.0)
    )
    scene.check(
        "cfg(6) | rescale(1, space='x0') | clip_x0(1)", rescaled(d, scene.c, 1.0).clamp(-1, 1)
    )


def test_classifier_score_form(scene):
    gradient = log_prob_gradient(scene.x, scene.step.t, TARGET)
    d = scene.c + 3 * scene.s**2 / scene.a * gradient
    scene.check("classifier(3)", d, scene.eps(scene.c) - 3 * scene.s * gradient)
    scene.check("uncond + classifier(3)", scene.u + 3 * scene.s**2 / scene.a * gradient)


def test_classifier_of_a_target_of_its_own(scene):
    for target, y in (("2", [2, 2, 2]), ("[1, 0, 5]", [1, 0, 5])):
        gradient = log_prob_gradient(scene.x, scene.step.t, torch.tensor(y))
        scene.check(
            f"classifier(3, target={target})", scene.c + 3 * scene.s**2 / scene.a * gradient
        )
    term = classifier(3, target=torch.tensor([1, 0, 5]))
    scene.check(term, scene.c + 3 * scene.s**2 / scene.a * gradient)
    assert term == classifier(3, target=[1, 0, 5]) and hash(term) == hash(
        classifier(3, target=(1, 0, 5))
    )


def test_classifier_of_a_named_target():
    scene = scenes("flow")[0]
    nets, judges = {"main": net(Spy())}, {"classifier": Judge()}
    guided = Guided("classifier(2, 'boot')", nets, classifiers=judges, index=["bag", "boot"].index)
    gradient = log_prob_gradient(scene.x, scene.step.t, torch.tensor([1]))
    torch.testing.assert_close(
        guided(scene.x, scene.step)[0].x0, scene.c + 2 * scene.s**2 / scene.a * gradient
    )
    with pytest.raises(ValueError, match="'boot' has no index"):
        Guided("classifier(2, 'boot')", nets, classifiers=judges)
    with pytest.raises(ValueError, match="no class was requested"):
        Guided("classifier(2)", nets, classifiers=judges)
    with pytest.raises(ValueError, match=r"no classifier 'other' \(there is classifier\)"):
        Guided("classifier(2, net='other')", nets, classifiers=judges)


def test_classifier_with_a_function_of_its_own(scene):
    term = classifier(2, log_prob=lambda x, level, target: -(x**2).flatten(1).sum(1))
    out = Guided(term, {"main": net(Spy())})(scene.x, scene.step)[0]
    torch.testing.assert_close(out.x0, scene.c - 4 * scene.s**2 / scene.a * scene.x)


def test_classifier_says_nothing_at_pure_noise():
    scene = Scene(uniform(SCHEDULES["flow"], 4).step(0), noise(3, 4))
    scene.check("classifier(3)", scene.c)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("through", ["cond", "uncond"])
def test_classifier_through_the_network_of_a_gaussian(place, through):
    # Of data N(m, v) the estimate is m + α v (x − αm)/(α²v + σ²): its derivative is known.
    scene = scenes(place)[0]
    m, v = 0.3 if through == "cond" else -0.2, 0.49

    def gaussian(x: Tensor, level: Any, c: Any) -> Tensor:
        a, s, m = col(level.alpha, x), col(level.sigma, x), col(c * 0.5 - 0.2, x)
        return m + a * v * (x - a * m) / (a * a * v + s * s)

    d = m + scene.a * v * (scene.x - scene.a * m) / (scene.a**2 * v + scene.s**2)
    gradient = (
        scene.a
        * v
        / (scene.a**2 * v + scene.s**2)
        * log_prob_gradient(d, scene.step.grid.schedule.clean, TARGET)
    )
    base = gaussian(scene.x, scene.step.t, torch.tensor(1.0, dtype=torch.float64))
    guided = Guided(
        f"classifier(3, through='{through}')",
        {"main": net(Spy(gaussian))},
        classifiers={"classifier": Judge()},
        target=TARGET,
    )
    torch.testing.assert_close(
        guided(scene.x, scene.step)[0].x0,
        base + 3 * scene.s**2 / scene.a * gradient,
        rtol=1e-10,
        atol=1e-10,
    )


def test_classifier_through_the_network_by_finite_differences(scene):
    def energy(x: Tensor) -> Tensor:
        return log_prob(toy(x, scene.step.t, COND), scene.step.grid.schedule.clean, TARGET)

    gradient, h = torch.zeros_like(scene.x), 1e-6
    for i in range(scene.x[0].numel()):
        move = torch.zeros_like(scene.x)
        move.flatten(1)[:, i] = h
        gradient.flatten(1)[:, i] = (energy(scene.x + move) - energy(scene.x - move)) / (2 * h)
    out = scene.run("classifier(2, through='cond')")[0]
    torch.testing.assert_close(
        (out.x0 - scene.c) * scene.a / scene.s**2, 2 * gradient, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_classifier_mean_form(variance, per_sample):
    step = mixed_step("vp", [3.0, 1.0, 0.3], [2.0, 0.8, 0.1]) if per_sample else steps("vp")[0]
    scene = Scene(step, noise(3, 4, 2))
    share = noise(3, 4, 2, seed=5).clamp(-1, 1)

    def learned(x: Tensor, level: Any, c: Any) -> Prediction:
        return replace(Prediction.from_x0(x, level, toy(x, level, c)), log_var=share[: len(x)])

    added = scene.s**2 - (scene.a / scene.a_s) ** 2 * scene.s_s**2
    small, large = scene.s_s**2 * added / scene.s**2, added
    frac = (share + 1) / 2
    sigma = {
        "small": small,
        "large": large,
        "learned": torch.exp(frac * large.log() + (1 - frac) * small.log()),
    }[variance]
    gradient = log_prob_gradient(scene.x, step.t, TARGET)
    guided = Guided(
        f"classifier(3, form='mean', variance='{variance}')",
        {"main": net(Spy(learned))},
        classifiers={"classifier": Judge()},
        target=TARGET,
    )
    out = guided(scene.x, step)[0]
    torch.testing.assert_close(out.eps, scene.eps(scene.c))
    # The mean of q(x_s | x_t, x0) is displaced by sΣ∇.
    mean = scene.a_s * out.x0 + (scene.s_s**2 - small).sqrt() * out.eps
    plain = scene.a_s * scene.c + (scene.s_s**2 - small).sqrt() * scene.eps(scene.c)
    torch.testing.assert_close(mean, plain + 3 * sigma * gradient, rtol=1e-9, atol=1e-9)


def test_classifier_mean_form_is_refused_by_name_elsewhere():
    run = {"classifiers": {"classifier": Judge()}, "target": TARGET}
    guided = Guided("classifier(3, form='mean')", {"main": net(Spy())}, **run)
    DDPM().check(guided, uniform(SCHEDULES["vp"], 3))
    with pytest.raises(ValueError, match=r"classifier .* solver 'ddpm' only, not with 'ddim'"):
        sample(guided, grid=uniform(SCHEDULES["vp"], 3), solver=DDIM(), seeds=[1, 2, 3], shape=(4,))
    for variance in (
        "large",
        "learned",
    ):  # the mean would be displaced by another variance than the step's
        with pytest.raises(
            ValueError,
            match=r"classifier has variance='small', but the solver 'ddpm' has "
            rf"variance='{variance}'; give both the same$",
        ):
            sample(
                guided,
                grid=uniform(SCHEDULES["vp"], 3),
                solver=DDPM(variance=variance),
                seeds=[1, 2, 3],
                shape=(4,),
            )
    large = Guided("classifier(3, form='mean', variance='large')", {"main": net(Spy())}, **run)
    DDPM(variance="large").check(large, uniform(SCHEDULES["vp"], 3))
    for place in ("flow", "ve"):
        with pytest.raises(
            ValueError,
            match=f"variance-preserving schedules, not on {type(SCHEDULES[place]).__name__}",
        ):
            guided(noise(3, 4), steps(place)[0])
    with pytest.raises(ValueError, match="needs a network that predicts its variance"):
        Guided("classifier(3, form='mean', variance='learned')", {"main": net(Spy())}, **run)(
            noise(3, 4), steps("vp")[0]
        )


def test_a_classifier_guides_only_where_it_is_trusted():
    step = mixed_step("flow", [9.0, 2.0, 0.3], [5.0, 1.0, 0.1])
    scene = Scene(step, noise(3, 4))
    push = scene.s**2 / scene.a * log_prob_gradient(scene.x, step.t, TARGET)
    for text, rows in (
        ("classifier(3)", [0, 1, 1]),
        ("classifier(3, interval=(0, inf))", [1, 1, 1]),
        ("classifier(3, interval=(1, 3))", [0, 1, 0]),
    ):
        guided = Guided(
            text,
            {"main": net(Spy())},
            classifiers={"classifier": Judge(rho_max=2.5)},
            target=TARGET,
        )
        torch.testing.assert_close(
            guided(scene.x, step)[0].x0, scene.c + 3 * col(torch.tensor(rows), scene.x) * push
        )


def test_a_classifier_that_knows_nothing_is_refused():
    run = {"classifiers": {"classifier": Judge(rho_max=0.0)}, "target": TARGET}
    with pytest.raises(ValueError, match="of no use"):
        Guided("classifier(3)", {"main": net(Spy())}, **run)
    assert Guided("classifier(3, interval=(0, 1))", {"main": net(Spy())}, **run).terms[
        0
    ].interval == (0, 1)


def test_a_classifier_that_knows_a_little_is_used_there():
    guided = Guided(
        "classifier(3)",
        {"main": net(Spy())},
        classifiers={"classifier": Judge(rho_max=0.5)},
        target=TARGET,
    )
    assert guided.terms[0].interval == (0.0, 0.5) and guided.reads_target == []
    assert Guided(
        "classifier(3, form='mean')",
        {"main": net(Spy())},
        classifiers={"classifier": Judge()},
        target=TARGET,
    ).reads_target == ["classifier"]


def test_a_classifier_that_names_its_classes_knows_no_others():
    class Naming(Judge):
        config = {"classes": ["bag", "boot", "coat"]}

    run = {"classifiers": {"classifier": Naming()}}
    for target in ([0, 1, 2], [2, 0, 0]):
        Guided(classifier(3, target=target), {"main": net(Spy())}, **run)
    for target in (-1, 3):
        with pytest.raises(
            ValueError, match=rf"no class {target} to steer to; the classifier knows 0 to 2"
        ):
            Guided(classifier(3, target=[0, target, 1]), {"main": net(Spy())}, **run)


def test_a_sum_of_several(scene):
    gradient = scene.s**2 / scene.a * log_prob_gradient(scene.x, scene.step.t, TARGET)
    blurry, contrast = scene.d(WORDS["blurry"]), scene.c - scene.n
    along = total(contrast * scene.c) / total(scene.c**2) * scene.c
    expected = (
        scene.c + 3 * contrast + 0.5 * (scene.c - blurry) + 2 * gradient + 2 * (contrast - along)
    )
    terms = ["cfg(4)", "cfg(1.5, negative='blurry')", "classifier(2)", "apg(3)"]
    scene.check(" + ".join(terms), expected)
    scene.check(" + ".join(reversed(terms)), expected)


def test_explained_pushes_sum_to_guided_minus_base(scene):
    guided = Guided(
        "cfg(4) + cfg(4) + apg([2, 1, 1]) + classifier(2, interval=(0, 0.1)) + classifier(1)",
        {"main": net(Spy())},
        classifiers={"classifier": Judge()},
        target=TARGET,
    )
    found = guided(scene.x, scene.step, explain=True)
    out, pushes = found.prediction, found.pushes
    torch.testing.assert_close(sum(pushes.values()), out.x0 - scene.c, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pushes["cfg(4)"], 6 * (scene.c - scene.n))
    assert set(pushes) == {
        "cfg(4)",
        "apg([2, 1, 1])",
        "classifier(2, interval=(0, 0.1))",
        "classifier(1)",
    }


def test_a_split_term_is_explained_too():
    scene = scenes("flow")[0]
    pushes = Guided("cfgpp(0.5)", {"main": net(Spy())})(scene.x, scene.step, explain=True).pushes
    torch.testing.assert_close(pushes["cfgpp(0.5)"], 0.5 * (scene.c - scene.u))


def test_bases():
    scene = scenes("flow")[0]
    for text, expected in (
        ("cond", scene.c),
        ("uncond", scene.u),
        ("neg", scene.n),
        ("AND(0)", scene.u),
        ("cfgpp(0)", scene.u),
        ("cfg(1)", scene.c),
    ):
        scene.check(text, expected)
    judges, lone = {"classifier": Judge()}, {"main": Net(denoiser=Spy(), null=condition(UNCOND))}
    out = Guided("classifier(0)", lone, classifiers=judges, target=TARGET)(scene.x, scene.step)[0]
    torch.testing.assert_close(out.x0, scene.u)


def test_bases_that_do_not_agree_are_refused_by_name():
    nets = {"main": net(Spy())}
    for text, said in (
        ("cond + cfgpp(0.5)", "cfgpp needs the base 'uncond', not 'cond'"),
        ("neg + AND(2, 'cat')", "AND needs the base 'uncond', not 'neg'"),
    ):
        with pytest.raises(ValueError, match=said):
            Guided(text, nets)
    assert Guided("uncond + cfgpp(0.5) + AND(2, 'cat')", nets).base.cond.value == "uncond"

    @dataclass(frozen=True)
    class OnCond(Contrast):
        name = "on_cond"
        traits = Traits(requires=cond.base)

        def good(self, step):
            raise NotImplementedError

        bad = good

    with pytest.raises(
        ValueError,
        match=r"cfgpp needs the base 'uncond' and on_cond needs the base 'cond'; use one of them",
    ):
        Guided(parse("cfgpp(0.5)") + OnCond(2), nets)


def test_a_contrast_of_the_condition_needs_one():
    for text in ("cfg(3)", "apg(3)", "cfgpp(0.5)"):
        with pytest.raises(ValueError, match="no condition was given; give cond="):
            Guided(text, Net(denoiser=Spy()).denoiser, encode=encode)


def test_values_out_of_range_are_refused():
    for text, said in (
        ("apg(3, radius=0)", "apg: the radius must be positive"),
        ("cfg(3, channels=0)", "cfg: channels must be at least 1"),
        ("cond | rescale(1.2)", r"rescale: the scale must be in \[0, 1\]"),
        ("cond | rescale(0.5, space='score')", "rescale: the space must be v, eps, x0 or velocity"),
        ("cond | threshold(0)", r"threshold: the percentile must be in \(0, 1\]"),
        ("cond | clip_x0(-1)", "clip_x0: the limit must be positive"),
        ("classifier(1, form='middle')", "classifier: form must be 'score' or 'mean'"),
        ("classifier(1, through='neg')", "classifier: through must be 'cond' or 'uncond' or None"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(text)
    for make in (
        lambda: classifier(1, form="middle"),
        lambda: cfg(3, schedule="linear"),
        lambda: cfg(3, interval=(1,)),
        lambda: cfg(float("nan")),
        lambda: cfg(10**400),
    ):
        with pytest.raises(ValueError, match=r"must be"):
            make()
