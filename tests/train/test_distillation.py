"""Objectives of distillation against closed forms written out here, on exact Gaussian teachers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from guidestar.core.levels import VE, VP, Flow
from guidestar.core.rng import Draw
from guidestar.sampling.grids import uniform as uniform_grid
from guidestar.train.objectives.consistency_distillation import ConsistencyDistillation
from guidestar.train.objectives.guided_distillation import GuidedDistillation
from guidestar.train.objectives.progressive_distillation import ProgressiveDistillation
from guidestar.train.objectives.teacher import Teacher, takes_scale, with_scale
from guidestar.train.objectives.trajectory_distillation import TrajectoryDistillation
from helpers.students import Rows

MEANS, SPREADS = (-1.0, 2.0, 0.25), (0.5, 0.8, 1.5)
"""Of two classes, and of all data together (the null)."""
SCHEDULES = {"vp": VP.linear(), "flow": Flow(), "edm": VE(t_min=0.01, t_max=20.0)}


def column(value, x):
    return torch.as_tensor(value, dtype=torch.float64).expand(len(x)).reshape(-1, 1)


def gaussian(x, level, label):
    """E[x0 | x_t] of N(m, s²) data: ``m + αs²/(α²s² + σ²)·(x − αm)``."""
    a, s = column(level.alpha, x), column(level.sigma, x)
    m = torch.tensor(MEANS, dtype=torch.float64)[label][:, None]
    v = torch.tensor(SPREADS, dtype=torch.float64)[label][:, None] ** 2
    return m + a * v / (a * a * v + s * s) * (x - a * m)


class Exact:
    """The exact denoiser of a class, and a student that records where it was evaluated."""

    def __init__(self, answer=None):
        self.calls, self.answer = [], answer

    def __call__(self, x, level, cond):
        self.calls.append((x.detach().clone(), level, dict(cond)))
        if self.answer is not None:
            return self.answer(x, level, cond)
        return gaussian(x, level, cond["label"])


class Net:
    def __init__(self, answer):
        self.encoder, self.denoiser = Rows(), Exact(answer)


def teacher(schedule, guidance="cfg(w)", **more):
    return Teacher(denoiser=Exact(), encoder=Rows(), guidance=guidance, schedule=schedule, **more)


def batch(count=6):
    x0 = torch.linspace(-2, 2, count, dtype=torch.float64)[:, None]
    return x0, {"rows": {"label": torch.arange(count) % 2}}, Draw(list(range(10, 10 + count)), 3)


def guided_x0(x, level, label, w, dropped):
    """uncond + w·(cond − uncond); of a dropped sample the plain unconditional estimate."""
    null = torch.full_like(label, 2)
    cond, uncond = gaussian(x, level, label), gaussian(x, level, null)
    return torch.where(dropped[:, None], uncond, uncond + w[:, None] * (cond - uncond))


def seen(net, at=0):
    """Where a student was evaluated, and the labels and scales that it was given."""
    x, level, cond = net.denoiser.calls[at]
    label = cond["label"]
    return x, level, label, cond["guidance_scale"].double(), label == 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_guided_distillation_is_the_weighted_error_of_the_guided_estimate(name):
    schedule = SCHEDULES[name]
    x0, target, draw = batch()
    objective = GuidedDistillation(
        teacher=teacher(schedule),
        levels=lambda s, d: s.at_rho(torch.linspace(0.2, 4, 6, dtype=torch.float64)),
        weighting=lambda level: level.rho**2 + 3.0,
        scale=(1.0, 5.0),
        dropout=0.4,
    )
    net = Net(lambda x, level, cond: 0.3 * x)
    loss = objective(net, x0, target, draw)
    x, level, label, w, dropped = seen(net)
    assert dropped.any() and not dropped.all()
    assert torch.equal(label[~dropped], (torch.arange(6) % 2)[~dropped])
    assert ((w >= 1) & (w <= 5)).all() and w.unique().numel() == 6
    a, s = column(level.alpha, x), column(level.sigma, x)
    z = draw.normal_like("noise", x0)
    torch.testing.assert_close(x, a * x0 + s * z)
    wanted = guided_x0(x, level, label, w, dropped)
    rho = torch.linspace(0.2, 4, 6, dtype=torch.float64)
    expected = (rho**2 + 3) * (0.3 * x - wanted).square()[:, 0]
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)


def test_scales_are_drawn_evenly_in_their_range():
    x0, target, draw = batch(400)
    net = Net(lambda x, level, cond: x)
    objective = GuidedDistillation(
        teacher=teacher(SCHEDULES["vp"]), levels=lambda s, d: s.at_rho(1.0), scale=(2.0, 4.0)
    )
    objective(net, x0, target, draw)
    w = net.denoiser.calls[0][2]["guidance_scale"].double()
    assert 2 <= w.min() < 2.05 and 3.95 < w.max() <= 4
    assert abs(w.mean() - 3) < 0.1 and abs(w.var() - 4 / 12) < 0.05


def affine(x_from, x_to):
    """The affine map through two pairs of points, as slope and intercept."""
    slope = (x_to[1] - x_to[0]) / (x_from[1] - x_from[0])
    return slope, x_to[0] - slope * x_from[0]


def walked(schedule, levels, x, label, w):
    """Several DDIM steps of the guided teacher: ``x_s = α_s x0 + σ_s (x − α_t x0)/σ_t``."""
    for t, s in pairwise(levels):
        null = torch.full_like(label, 2)
        cond, uncond = gaussian(x, t, label), gaussian(x, t, null)
        x0 = uncond + w[:, None] * (cond - uncond)
        x = s.alpha * x0 + s.sigma * (x - t.alpha * x0) / t.sigma
    return x


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("weighting", ["truncated", "snr+1"])
def test_progressive_student_lands_where_the_teacher_walks(name, weighting):
    schedule = SCHEDULES[name]
    grid, fine = uniform_grid(schedule, 4), uniform_grid(schedule, 8)
    x0, target, draw = batch(24)
    objective = ProgressiveDistillation(
        teacher=teacher(schedule),
        grid=grid,
        walked=fine,
        weighting=weighting,
        scale=(1.0, 3.0),
        dropout=0.0,
    )
    net = Net(lambda x, level, cond: 0.5 * x - 0.1)
    loss = objective(net, x0, target, draw)
    x, level, label, w, _ = seen(net)
    starts = [float(start.t) for start in grid.levels[:-1]]
    found = [starts.index(float(t)) for t in level.t]
    assert set(found) == {0, 1, 2, 3}
    for k, i in enumerate(found):
        t, s = grid[i], grid[i + 1]
        one = x[k : k + 1]
        end = walked(schedule, fine.levels[2 * i : 2 * i + 3], one, label[k : k + 1], w[k : k + 1])
        # One DDIM step with the student's estimate d lands at α_s d + σ_s (x − α_t d)/σ_t.
        d = 0.5 * one - 0.1
        landed = s.alpha * d + s.sigma * (one - t.alpha * d) / t.sigma
        per = s.alpha - s.sigma / t.sigma * t.alpha
        snr = t.alpha**2 / t.sigma**2
        weight = max(snr, 1.0) if weighting == "truncated" else snr + 1
        expected = weight * float((landed - end) / per) ** 2
        assert math.isclose(float(loss[k]), expected, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_progressive_loss_is_zero_of_the_composed_maps_alone(name):
    schedule = SCHEDULES[name]
    grid, fine = uniform_grid(schedule, 4), uniform_grid(schedule, 16)
    x0, _, draw = batch(24)
    rows = {"rows": {"label": torch.zeros(24, dtype=torch.int64)}}
    maps = {}
    for i in range(4):
        probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        two = torch.zeros(2, dtype=torch.int64)
        end = walked(schedule, fine.levels[4 * i : 4 * i + 5], probe, two, torch.full((2,), 2.0))
        t, s = grid[i], grid[i + 1]
        a, b = affine(probe, end)
        per = s.alpha - s.sigma / t.sigma * t.alpha
        maps[float(t.t)] = ((a - s.sigma / t.sigma) / per, b / per)

    def best(x, level, cond):
        pairs = [maps[float(t)] for t in level.t]
        return torch.stack([m * row + c for (m, c), row in zip(pairs, x, strict=True)])

    objective = ProgressiveDistillation(
        teacher=teacher(schedule, "cfg(2)"), grid=grid, walked=fine, dropout=0.0
    )
    assert objective.substeps == 4
    assert objective(Net(best), x0, rows, draw).abs().max() < 1e-16
    assert objective(Net(lambda *a: best(*a) + 0.01), x0, rows, draw).min() > 1e-5


def step_of(kind, schedule):
    shared = {"teacher": teacher(schedule), "dropout": 0.4, "scale": (1.0, 3.0)}
    grid = uniform_grid(schedule, 4)
    if kind == "progressive":
        return ProgressiveDistillation(grid=grid, walked=grid, **shared)
    return ConsistencyDistillation(
        spacing=uniform_grid, steps=9, first=4, last=4, huber=0.0, **shared
    )


@pytest.mark.parametrize("kind", ["progressive", "consistency"])
def test_dropped_samples_follow_the_unconditional_teacher(kind):
    schedule = SCHEDULES["flow"]
    x0, target, draw = batch(24)
    net = Net(lambda x, level, cond: 0.0 * x)
    step_of(kind, schedule)(net, x0, target, draw)
    # The consistency's first call is where the teacher landed.
    x, level, label, w, dropped = seen(net, -1)
    assert dropped.any() and not dropped.all()
    assert torch.equal(label[~dropped], (torch.arange(24) % 2)[~dropped])
    grid = uniform_grid(schedule, 4)
    starts = [float(start.t) for start in grid.levels[:-1]]
    losses = step_of(kind, schedule)(Net(lambda x, level, cond: 0.0 * x), x0, target, draw)
    for k, i in enumerate(starts.index(float(t)) for t in level.t):
        t, s = grid[i], grid[i + 1]
        one = [v[k : k + 1] for v in (x, label, w, dropped)]
        drawn = torch.where(one[3], 2, one[1])
        guided = guided_x0(one[0], t, drawn, one[2], one[3])
        landed = s.alpha * guided + s.sigma * (one[0] - t.alpha * guided) / t.sigma
        if kind == "progressive":  # one step of the teacher is one of the student: G itself
            expected = max(t.alpha**2 / t.sigma**2, 1.0) * float(guided) ** 2
        else:
            expected = abs(float(landed)) if s.sigma == 0 else 0.0
        assert math.isclose(float(losses[k]), expected, rel_tol=1e-6, abs_tol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_consistency_matches_its_own_estimate_after_one_guided_step(name):
    schedule = SCHEDULES[name]
    x0, target, draw = batch(24)
    objective = ConsistencyDistillation(
        teacher=teacher(schedule),
        spacing=uniform_grid,
        steps=1000,
        first=4,
        last=4,
        huber=0.1,
        scale=(1.0, 3.0),
        dropout=0.0,
    )
    net = Net(lambda x, level, cond: x * column(level.alpha, x) * 0.7)
    loss = objective(net, x0, target, draw)
    x, level, label, w, _ = seen(net, 1)  # the first call is at the end of the step
    grid = uniform_grid(schedule, 4)
    starts = [float(start.t) for start in grid.levels[:-1]]
    for k, t in enumerate(float(t) for t in level.t):
        i = starts.index(t)
        one, s = x[k : k + 1], grid[i + 1]
        end = walked(schedule, grid.levels[i : i + 2], one, label[k : k + 1], w[k : k + 1])
        wanted = end / s.alpha if s.sigma == 0 else 0.7 * s.alpha * end
        error = float(0.7 * grid[i].alpha * one - wanted) ** 2
        expected = math.sqrt(error + 0.01) - 0.1
        assert math.isclose(float(loss[k]), expected, rel_tol=1e-6, abs_tol=1e-9)


def test_consistency_target_is_held_fixed():
    x0, target, draw = batch()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    net = Net(lambda x, level, cond: x * scale)
    objective = ConsistencyDistillation(
        teacher=teacher(SCHEDULES["vp"], "cfg(2)"),
        spacing=uniform_grid,
        steps=10,
        huber=0.1,
    )
    (found,) = torch.autograd.grad(objective(net, x0, target, draw).sum(), scale)
    (x_s, *_), (x_t, *_) = net.denoiser.calls
    clean = x_s * 0.7
    level = net.denoiser.calls[0][1]
    ends = torch.as_tensor(level.sigma)[:, None] == 0
    clean = torch.where(ends, x_s, clean)
    d = x_t * 0.7 - clean
    expected = (d * x_t / (d.square() + 0.01).sqrt()).sum()
    torch.testing.assert_close(found, expected)


def test_consistency_grid_doubles_along_the_training():
    objective = ConsistencyDistillation(
        teacher=teacher(SCHEDULES["vp"]), spacing=uniform_grid, steps=100, first=4, last=32
    )
    assert [objective.fineness(k) for k in (0, 24, 25, 49, 50, 74, 75, 99, 500)] == [
        4,
        4,
        8,
        8,
        16,
        16,
        32,
        32,
        32,
    ]


def test_grids_that_do_not_nest_are_refused():
    schedule = SCHEDULES["vp"]
    with pytest.raises(ValueError, match="a student of 4 steps needs a teacher whose steps"):
        ProgressiveDistillation(
            teacher=teacher(schedule),
            grid=uniform_grid(schedule, 4),
            walked=uniform_grid(schedule, 6),
        )


@pytest.mark.parametrize(
    ("guidance", "reason"),
    [
        ("cfgpp(0.6)", "splits the prediction"),
        ("cfg(3) + adaptive(2)", "keeps a state"),
        ("cfg(3, schedule=linear)", "changes its weight along the steps"),
    ],
)
def test_terms_that_one_pass_cannot_give_are_refused_by_name(guidance, reason):
    with pytest.raises(ValueError, match=reason):
        teacher(SCHEDULES["vp"], guidance).check()


def test_w_is_a_word_of_its_own():
    assert takes_scale("cfg(w)") and takes_scale("cond + pag(w, layers='mid')")
    assert not takes_scale("weak + cfg(2)") and not takes_scale("cfg(2.w)")
    assert with_scale("cfg(w) + window(1)", [1, 2.5]) == "cfg([1.0, 2.5]) + window(1)"


def runs(schedule, levels, labels, seed, w, dropped):
    """States of DDIM runs of the guided teacher, from noise of their own."""
    count = len(labels)
    x = torch.linspace(-1.5, 1.5, count, dtype=torch.float64)[:, None] * levels[0].sigma
    states = [x]
    for t, s in pairwise(levels):
        x0 = guided_x0(x, t, labels, w, dropped)
        x = s.alpha * x0 + s.sigma * (x - t.alpha * x0) / t.sigma
        states.append(x)
    return torch.stack(states, 1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_trajectory_student_goes_from_visit_to_visit_of_the_runs(name):
    schedule, visits, count = SCHEDULES[name], (0, 3, 4, 6), 24
    grid = uniform_grid(schedule, 6)
    paths = torch.arange(count) + 100
    own = Draw([5000 + 100 + k for k in range(count)])
    dropped, w = own.uniform("drop all") < 0.4, 3 ** own.uniform("scale")
    labels = torch.arange(count) % 2
    states = runs(schedule, grid.levels, labels, 2, w, dropped)
    objective = TrajectoryDistillation(
        levels=grid, visits=visits, first_seed=5000, dropout=0.4, scale=(1.0, 3.0)
    )
    net = Net(lambda x, level, cond: 0.5 * x - 0.1)
    target = {"rows": {"label": labels}, "path": paths}
    loss = objective(net, states, target, Draw(list(range(count)), 7))
    x, level, label, scale, _ = seen(net)
    assert torch.equal(label == 2, dropped) and dropped.any() and not dropped.all()
    torch.testing.assert_close(scale, w, rtol=1e-6, atol=0)
    starts = [float(grid[i].t) for i in visits[:-1]]
    found = [starts.index(float(t)) for t in level.t]
    assert set(found) == {0, 1, 2}
    for k, i in enumerate(found):
        t, s = grid[visits[i]], grid[visits[i + 1]]
        one, end = states[k, visits[i]], states[k, visits[i + 1]]
        assert torch.equal(x[k], one)
        d = 0.5 * one - 0.1
        landed = s.alpha * d + s.sigma * (one - t.alpha * d) / t.sigma
        per = s.alpha - s.sigma / t.sigma * t.alpha
        expected = max(t.alpha**2 / t.sigma**2, 1.0) * float((landed - end) / per) ** 2
        assert math.isclose(float(loss[k]), expected, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("visits", [(0, 2), (1, 4), (0, 2, 2, 4), (0,), (0, 3, 1, 4)])
def test_visits_rise_from_the_first_level_to_the_last(visits):
    with pytest.raises(ValueError, match="visits must rise from 0 to 4, the teacher's steps"):
        TrajectoryDistillation(levels=uniform_grid(SCHEDULES["vp"], 4), visits=visits)
