"""Average velocities: the objective and the solver against closed forms, on Gaussian teachers."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import pytest
import torch
from torch import nn

import guidestar as gs
from guidestar.core.denoiser import Condition
from guidestar.core.levels import VE, VP, Flow, Level, Step
from guidestar.core.passes import Net
from guidestar.core.rng import Draw
from guidestar.diffusers.export import describe_pipeline
from guidestar.guidance import Guided, parse
from guidestar.networks.interval import Interval, IntervalNetwork
from guidestar.networks.network import Network
from guidestar.sampling import DDIM, Heun, MeanFlow, trajectory
from guidestar.sampling.grids import uniform as uniform_grid
from guidestar.train.loop.signals import Stop
from guidestar.train.objectives.teacher import Teacher
from guidestar.train.objectives.velocity_distillation import VelocityDistillation
from guidestar.train.students.export import assemble_student
from guidestar.train.students.run import distill
from helpers.students import Rows, recipe_of

MEAN, SPREADS = 0.25, (0.5, 0.8, 1.5)
"""Of two classes, and of all data together (the null), whose means are one."""
SCHEDULES = {"vp": VP.linear(), "flow": Flow(), "edm": VE(t_min=0.01, t_max=20.0)}


def column(value, x):
    return torch.as_tensor(value, dtype=torch.float64).expand(len(x)).reshape(-1, 1)


def spread(label):
    return torch.tensor(SPREADS, dtype=torch.float64)[label][:, None]


def gaussian(x_t, level, cond):
    """E[x0 | x_t] of N(m, s²) data: ``m + αs²/(α²s² + σ²)·(x − αm)``."""
    a, s, v = column(level.alpha, x_t), column(level.sigma, x_t), spread(cond["label"]) ** 2
    return MEAN + a * v / (a * a * v + s * s) * (x_t - a * MEAN)


def averaged(x, level, interval, label, w):
    """The clean data with which one straight step goes where the guided flow leads.

    In ``y = x_t/α`` over ``ρ = σ/α`` the guided path keeps
    ``(y − m)/((v_c + ρ²)^{w/2} (v_∅ + ρ²)^{(1−w)/2})``; and of a straight step
    ``y_s = (1 − ρ_s/ρ_t) F + (ρ_s/ρ_t) y_t``. Pure noise (α = 0) is the limit, as a flow.
    """
    a, s = column(level.alpha, x), column(level.sigma, x)
    tau = s / (a + s)
    tau_s = (1 - column(interval, x)) * tau
    v, free = spread(label) ** 2, SPREADS[2] ** 2

    def size(tau):  # of z − αm: y's, times α of the flow, 1 − τ
        one, other = ((1 - tau) ** 2 * k + tau**2 for k in (v, torch.tensor(free)))
        return one ** (w / 2) * other ** ((1 - w) / 2)

    z = x / (a + s)
    z_s = (1 - tau_s) * MEAN + (z - (1 - tau) * MEAN) * size(tau_s) / size(tau)
    r = tau_s / tau
    return (z_s - r * z) / (1 - r)


class Pupil:
    """A student that notes where it was evaluated."""

    takes_interval = True

    def __init__(self, answer):
        self.encoder, self.denoiser, self.answer, self.calls = Rows(), self, answer, []

    def __call__(self, x_t, level, cond):
        self.calls.append((x_t.detach(), level, cond))
        return self.answer(x_t, level, cond)


def objective_of(schedule, steps=8, **more) -> Any:
    teacher = Teacher(
        denoiser=gaussian, encoder=cast(Any, Rows()), guidance="cfg(w)", schedule=schedule
    )
    more = {"scale": (1.0, 3.0), "delta": 1e-6, "dropout": 0.0, **more}
    return VelocityDistillation(teacher=teacher, grid=uniform_grid(schedule, steps), **more)


def batch(count=32):
    x0 = torch.linspace(-2, 2, count, dtype=torch.float64)[:, None]
    return x0, {"rows": {"label": torch.arange(count) % 2}}, Draw(list(range(count)), 3)


def exact(x, level, cond):
    return averaged(
        x, level, cond["interval"], cond["label"], cond["guidance_scale"].double()[:, None]
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_is_zero_of_the_guided_flows_average_velocity(name):
    objective = objective_of(SCHEDULES[name], instant=0.0, huber=0.0)
    assert objective(Pupil(exact), *batch()).max() < 1e-6


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_of_a_constant_error_of_the_velocity_is_its_size(name):
    """Of ``F + c τ`` is ``u − c``: of the identity ``r c τ + (1 − r) c τ`` is left, c in u."""
    objective = objective_of(SCHEDULES[name], instant=0.0, huber=0.0)

    def off(x, level, cond):
        return exact(x, level, cond) + 0.01 * column(level.sigma / (level.alpha + level.sigma), x)

    loss = objective(Pupil(off), *batch())
    torch.testing.assert_close(loss, torch.full_like(loss, 0.01), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_is_what_is_left_of_the_identity(name):
    """Of a student ``F = 0.3 z + 0.2 l``: ``τ dF/dτ = 0.3 (z − G) + 0.2 τ_s/τ`` along the path."""
    schedule = SCHEDULES[name]
    grid = uniform_grid(schedule, 8)

    def answer(x, level, cond):
        z = x / (column(level.alpha, x) + column(level.sigma, x))
        return 0.3 * z + 0.2 * cond["interval"][:, None]

    pupil = Pupil(answer)
    loss = objective_of(schedule, huber=0.1, instant=0.3)(pupil, *batch())
    x, level, cond = pupil.calls[-1]  # the first two are those of the difference
    a, s, w = column(level.alpha, x), column(level.sigma, x), cond["guidance_scale"].double()
    x0, target, draw = batch()
    torch.testing.assert_close(x, a * x0 + s * draw.normal_like("noise", x0))
    assert torch.equal(cond["label"], target["rows"]["label"])
    free = gaussian(x, level, {"label": torch.full_like(cond["label"], 2)})
    guided = free + w[:, None] * (gaussian(x, level, cond) - free)
    z, tau, r = x / (a + s), s / (a + s), 1 - cond["interval"][:, None]
    found = 0.3 * z + 0.2 * (1 - r)
    wanted = r * guided + (1 - r) * (found - 0.3 * (z - guided) - 0.2 * r)
    error = ((found - wanted) / tau).square()[:, 0]
    torch.testing.assert_close(loss, (error + 0.01).sqrt() - 0.1, rtol=1e-5, atol=1e-7)
    times = [float(k.sigma / (k.alpha + k.sigma)) for k in grid]
    for here, share in zip(level.t.tolist(), cond["interval"].tolist(), strict=True):
        at = next(i for i, k in enumerate(grid) if float(k.t) == here)
        ends = [1 - times[j] / times[at] for j in range(at, 9)]
        assert any(math.isclose(share, e, abs_tol=1e-12) for e in ends)


def test_dropped_samples_follow_the_unconditional_flow():
    pupil = Pupil(lambda x, level, cond: 0.0 * x)
    objective = objective_of(SCHEDULES["flow"], instant=1.0, huber=0.0, dropout=0.5)
    loss = objective(pupil, *batch())
    x, level, cond = pupil.calls[-1]
    dropped = cond["label"] == 2
    assert dropped.any() and not dropped.all()
    free = gaussian(x, level, {"label": torch.full_like(cond["label"], 2)})
    expected = (free[:, 0] / level.sigma).abs()  # σ is the flow's time
    torch.testing.assert_close(loss[dropped], expected[dropped], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(loss[~dropped], expected[~dropped])


def test_only_the_estimate_itself_is_differentiated():
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    pupil = Pupil(lambda x, level, cond: scale * x)
    objective = objective_of(SCHEDULES["flow"], instant=0.0, huber=0.1)
    (found,) = torch.autograd.grad(objective(pupil, *batch()).sum(), scale)
    x, level, cond = pupil.calls[-1]
    w, r = cond["guidance_scale"].double()[:, None], 1 - cond["interval"][:, None]
    free = gaussian(x, level, {"label": torch.full_like(cond["label"], 2)})
    guided = free + w * (gaussian(x, level, cond) - free)
    left = r * (0.7 * x - guided) + (1 - r) * 0.7 * (x - guided)
    tau = level.sigma[:, None]
    expected = left * x / tau**2 / ((left / tau) ** 2 + 0.01).sqrt()
    torch.testing.assert_close(found, expected.sum(), rtol=1e-5, atol=1e-8)


def test_intervals_are_drawn_evenly_behind_their_start():
    objective = objective_of(SCHEDULES["flow"], steps=4, instant=0.25)
    here, there = objective._interval(Draw(list(range(8000))))
    assert all(abs(float((here == i).double().mean()) - 0.25) < 0.02 for i in range(4))
    assert abs(float((there == here).double().mean()) - 0.25) < 0.02
    behind = there[(here == 1) & (there > here)]
    assert {*behind.tolist()} == {2, 3, 4}
    assert all(abs(float((behind == j).double().mean()) - 1 / 3) < 0.05 for j in (2, 3, 4))


def ended(nets, x, solver, grid):
    """Where the conditional flow leads by a solver."""
    draw, guided = Draw(list(range(len(x)))), Guided(parse("cond"), nets)
    return [state.x for state in trajectory(guided, x, grid=grid, solver=solver, draw=draw)][-1]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_solver_lands_where_the_flow_leads_in_any_number_of_steps(name, steps):
    schedule, label = SCHEDULES[name], torch.tensor([0, 1, 0])
    grid = uniform_grid(schedule, steps)
    one = torch.ones(3, 1, dtype=torch.float64)

    class Averages:
        takes_interval = True

        def __call__(self, x_t, level, cond):
            return averaged(x_t, level, cond["interval"], cond["label"], one)

    net = Net(denoiser=Averages(), cond=Condition(label=label))
    start = torch.tensor([[-1.2], [0.3], [2.0]], dtype=torch.float64)
    x = start * grid[0].sigma
    found = ended({"main": net}, x, MeanFlow(), grid)
    # At data: m + s (x_T − αm)/√(α²s² + σ²).
    a, s, deviation = grid[0].alpha, grid[0].sigma, spread(label)
    expected = MEAN + deviation * (x - a * MEAN) / (a**2 * deviation**2 + s**2).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("solver", "takes"), [(Heun(), True), (DDIM(), True), (MeanFlow(), False)])
def test_the_velocity_at_a_level_is_evaluated_without_an_interval(solver, takes):
    seen = []

    class Plain:
        takes_interval = takes

        def __call__(self, x_t, level, cond):
            seen.append("interval" in cond)
            return gaussian(x_t, level, cond)

    net = Net(denoiser=Plain(), cond=Condition(label=torch.tensor([0, 1])))
    x, grid = torch.randn(2, 1, dtype=torch.float64), uniform_grid(SCHEDULES["vp"], 3)
    found = ended({"main": net}, x, solver, grid)
    assert seen and not any(seen)
    if not takes:
        assert torch.equal(found, ended({"main": net}, x, DDIM(), grid))


def test_the_interval_of_a_step_is_its_share_of_the_flows_time():
    grid = uniform_grid(SCHEDULES["flow"], 4)
    assert [grid.step(i).interval for i in range(4)] == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])
    t = Level(torch.tensor([0.8, 0.6]).double(), torch.tensor([0.6, 0.8]).double(), 0.0)
    step = Step(t, Level(1.0, 0.5, 0.0), 0, grid)
    expected = [1 - (0.5 / 1.5) / (0.6 / 1.4), 1 - (0.5 / 1.5) / (0.8 / 1.4)]
    shares = torch.as_tensor(step.interval), torch.as_tensor(step._replace(s=t).interval)
    assert shares[0].tolist() == pytest.approx(expected) and shares[1].tolist() == [0, 0]


def test_the_embedding_of_an_interval_is_its_formula():
    embed = Interval(6)
    assert not embed(torch.tensor([0.3])).any()
    torch.nn.init.normal_(embed.second.weight)
    share = torch.tensor([0.0, 0.25, 1.0])
    waves = torch.stack([torch.sin(math.pi * 2 ** (k / 2 - 2) * share) for k in range(8)], 1)
    hidden = waves @ embed.first.weight.T
    expected = (hidden * torch.sigmoid(hidden)) @ embed.second.weight.T
    torch.testing.assert_close(embed(share), expected)
    assert torch.equal(embed(share)[0], torch.zeros(6))


def test_networks_without_a_time_embedding_of_its_width_are_refused():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="nor an interval can be added to it"):
        IntervalNetwork(net, Interval(4))


PUPIL = {"method": "meanflow", "finest": 8}


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("averages")
    lesson = distill(recipe_of(teacher, **PUPIL), out)
    assert lesson is not None
    return assemble_student(lesson, out), gs.load(out / "pupil"), out


def test_a_student_of_average_velocities_is_an_ordinary_model(student):
    made, loaded, out = student
    assert (loaded.defaults["solver"], loaded.defaults["steps"]) == ("meanflow", 2)
    net = loaded.denoiser
    assert isinstance(net, Network) and net.takes_interval
    with torch.no_grad():  # trained for too little to show, so a weight is moved
        for model in (made, loaded):
            inner = model.denoiser.net.net  # type: ignore[attr-defined]
            assert isinstance(inner, IntervalNetwork)
            inner.interval.second.weight.fill_(0.05)
    whole = loaded.sample("c", seeds=[5, 6], scale=2.0)
    assert whole.nfe == 2 and loaded.sample("c", seeds=[5], steps=1, scale=2.0).nfe == 1
    torch.testing.assert_close(
        made.sample("c", seeds=[5, 6], scale=2.0).x, whole.x, rtol=0, atol=0.05
    )
    assert not torch.equal(whole.x, loaded.sample("c", seeds=[5, 6], solver="ddim", scale=2.0).x)
    about = json.loads((out / "pupil" / "guidestar.json").read_text())
    assert about["student"]["method"] == about["defaults"]["solver"] == "meanflow"


@pytest.mark.parametrize("scale", [None, [1, 4]])
def test_no_pipeline_takes_an_interval(teacher, tmp_path, scale):
    more = {"guidance": "cfg(2)" if scale is None else "cfg(w)", "scale": scale, **PUPIL}
    lesson: Any = distill(recipe_of(teacher, **more), tmp_path)
    made = assemble_student(lesson, tmp_path)
    reason = "the interval of a step is an input" if scale is None else "its guidance scale is an"
    assert reason in describe_pipeline(made)["needs"]


def test_what_embeds_the_interval_is_read_back(student):
    made, loaded, out = student
    del made
    again = cast(Any, gs.load(out / "pupil").denoiser).net.net.interval
    first = loaded.denoiser.net.net.interval.first.weight
    assert torch.equal(again.first.weight, first) and first.abs().sum() > 0


def test_a_student_of_average_velocities_is_no_teacher(student, tmp_path):
    _, _, out = student
    recipe = recipe_of(out / "pupil", guidance="cond", scale=None)
    with pytest.raises(ValueError, match="is a student already; distil its teacher"):
        distill(recipe, tmp_path)


def test_a_stopped_training_goes_on_to_the_bit(teacher, tmp_path):
    recipe = recipe_of(teacher, **PUPIL)
    assert distill(recipe, tmp_path / "whole") is not None
    stop, done = Stop(), []

    def count(stage, progress, steps):
        done.append(stage)
        stop.requested = len(done) == 2

    assert distill(recipe, tmp_path / "halted", count, stop=stop) is None
    assert done == ["meanflow"] * 3
    assert distill(recipe, tmp_path / "halted") is not None
    one, other = (
        torch.load(tmp_path / place / "parts" / "meanflow.pt", weights_only=True)["module"]
        for place in ("whole", "halted")
    )
    assert [k for k in one if not torch.equal(one[k], other[k])] == []
