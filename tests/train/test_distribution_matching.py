"""Distribution matching against closed forms on Gaussian teachers, and as a stage of its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import guidestar as gs
from guidestar.cli import main
from guidestar.core.levels import VE, VP, Flow
from guidestar.core.rng import Draw
from guidestar.sampling.grids import uniform as uniform_grid
from guidestar.train.loop.signals import Stop
from guidestar.train.objectives.distribution_matching import DistributionMatching
from guidestar.train.objectives.teacher import Teacher
from guidestar.train.students.export import assemble_student
from guidestar.train.students.run import distill, read_lesson, student_of
from helpers.students import Rows, recipe_of

MEANS, SPREADS = (-1.0, 2.0, 0.25), (0.5, 0.8, 1.5)
"""Of two classes, and of all data together (the null)."""
SCHEDULES = {"vp": VP.linear(), "flow": Flow(), "edm": VE(t_min=0.01, t_max=20.0)}
RHO = torch.linspace(0.2, 4, 6, dtype=torch.float64)


def column(value, x):
    return torch.as_tensor(value, dtype=torch.float64).expand(len(x)).reshape(-1, 1)


def gaussian(x, level, label, means=MEANS, spreads=SPREADS):
    """E[x0 | x_t] of N(m, s²) data: ``m + αs²/(α²s² + σ²)·(x − αm)``."""
    a, s = column(level.alpha, x), column(level.sigma, x)
    m = torch.tensor(means, dtype=torch.float64)[label][:, None]
    v = torch.tensor(spreads, dtype=torch.float64)[label][:, None] ** 2
    return m + a * v / (a * a * v + s * s) * (x - a * m)


class Net:
    def __init__(self, answer):
        self.encoder = Rows()
        self.denoiser = lambda x, level, cond: answer(x, level, cond["label"])


class Pair(Net):
    def __init__(self, answer, fake):
        super().__init__(answer)
        self.fake = Net(fake)


def objective_of(schedule, steps=3, **more):
    teacher = Teacher(
        denoiser=lambda x, level, cond: gaussian(x, level, cond["label"]),
        encoder=Rows(),
        guidance="cfg(2)",
        schedule=schedule,
    )
    settings = {
        "teacher": teacher,
        "levels": lambda s, d: s.at_rho(RHO),
        "weighting": lambda level: level.rho**2 + 3.0,
        "dropout": 0.0,
        "through": 2,
    }
    grid = uniform_grid(schedule, steps)
    return DistributionMatching(grid=grid, **{**settings, **more})


def batch():
    x0 = torch.zeros(6, 1, dtype=torch.float64)
    return x0, {"rows": {"label": torch.arange(6) % 2}}, Draw(list(range(10, 16)), 3)


def numbers(*values):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


def run_of(grid, draw, x0, slope, shift, free):
    """The student's DDIM run of ``D(x) = slope·x + shift``; all but ``free`` steps held fixed."""
    x = float(grid[0].sigma) * draw.normal_like("start", x0)
    for i in range(grid.steps):
        t, s = grid[i], grid[i + 1]
        p, q = (slope, shift) if i >= grid.steps - free else (slope.detach(), shift.detach())
        estimate = p * x + q
        eps = (x - float(t.alpha) * estimate) / float(t.sigma)
        x = float(s.alpha) * estimate + float(s.sigma) * eps
    return x


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("through", [1, 2, 3])
def test_the_loss_and_its_gradients_are_those_of_the_formula(name, through):
    schedule, (x0, target, draw) = SCHEDULES[name], batch()
    objective = objective_of(schedule, through=through)
    slope, shift, f_slope, f_shift = numbers(0.4, 0.1, 0.7, -0.2)
    pair = Pair(lambda x, level, c: slope * x + shift, lambda x, level, c: f_slope * x + f_shift)
    loss = objective(pair, x0, target, draw)
    found = torch.autograd.grad(loss.sum(), [slope, shift, f_slope, f_shift])

    label, (p, q, fp, fq) = target["rows"]["label"], numbers(0.4, 0.1, 0.7, -0.2)
    x = run_of(objective.grid, draw, x0, p, q, through)
    made, level = x.detach(), schedule.at_rho(RHO)
    x_t = column(level.alpha, x) * made + column(level.sigma, x) * draw.normal_like("noise", x0)
    cond, null = (gaussian(x_t, level, k) for k in (label, torch.full_like(label, 2)))
    real = null + 2 * (cond - null)
    fake = fp * x_t + fq
    g = (fake.detach() - real) / (made - real).abs()
    learned = (RHO**2 + 3)[:, None] * (fake - made).square()
    torch.testing.assert_close(loss, (learned + g.square() / 2)[:, 0], rtol=1e-6, atol=1e-9)
    expected = torch.autograd.grad((learned + g * x).sum(), [p, q, fp, fq])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_gradient_is_zero_where_both_distributions_are_one(name):
    schedule, (x0, target, draw) = SCHEDULES[name], batch()
    slope, shift = numbers(0.4, 0.1)
    guided = lambda x, level, c: (
        2 * gaussian(x, level, c) - gaussian(x, level, torch.full_like(c, 2))
    )
    pair = Pair(lambda x, level, c: slope * x + shift, guided)
    loss = objective_of(schedule)(pair, x0, target, draw)
    for gradient in torch.autograd.grad(loss.sum(), [slope, shift]):
        assert abs(float(gradient)) < 1e-6


@pytest.mark.parametrize("name", SCHEDULES)
def test_samples_off_the_teachers_mean_are_moved_towards_it(name):
    """Of Gaussians of one spread, ``F − R = (m' − m)σ²/(α²s² + σ²)``."""
    schedule, (x0, target, draw) = SCHEDULES[name], batch()
    (shift,) = numbers(0.3)
    off = lambda x, level, c: gaussian(x, level, c, means=[m + 0.3 for m in MEANS])
    pair = Pair(lambda x, level, c: off(x, level, c) - 0.3 + shift, off)
    teacher = Teacher(
        denoiser=lambda x, level, cond: gaussian(x, level, cond["label"]),
        encoder=Rows(),
        guidance="cond",
        schedule=schedule,
    )
    objective = objective_of(schedule, teacher=teacher, through=1, weighting=lambda level: 0.0)
    loss = objective(pair, x0, target, draw)
    # The last step ends at data, where the sample is the estimate, whose derivative is 1.
    found = torch.autograd.grad(loss.sum(), shift)[0]
    with torch.no_grad():
        x = objective.sample(pair, x0, *_asked(x0, target, draw))
    level = schedule.at_rho(RHO)
    a, s = column(level.alpha, x), column(level.sigma, x)
    x_t = a * x + s * draw.normal_like("noise", x0)
    v = torch.tensor(SPREADS, dtype=torch.float64)[target["rows"]["label"]][:, None] ** 2
    real = gaussian(x_t, level, target["rows"]["label"])
    expected = (0.3 * s * s / (a * a * v + s * s) / (x - real).abs()).sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert found > 0


def _asked(x0, target, draw):
    from guidestar.train.objectives.teacher import draw_conditioning

    return draw_conditioning(x0, target, Rows().null_rows, draw, rate=0.0, scale=None), draw


def test_the_student_stands_still_while_the_fake_leads():
    x0, target, draw = batch()
    slope, f_slope = numbers(0.4, 0.7)
    pair = Pair(lambda x, level, c: slope * x, lambda x, level, c: f_slope * x)
    gradients = []
    for lead in (4, 3):  # it is step 3
        loss = objective_of(SCHEDULES["flow"], lead=lead)(pair, x0, target, draw)
        found = torch.autograd.grad(loss.sum(), [slope, f_slope], allow_unused=True)
        gradients.append(found)
    assert gradients[0][0] is None and gradients[1][0] is not None
    torch.testing.assert_close(gradients[0][1], gradients[1][1])  # the fake learns the same


@pytest.mark.parametrize("through", [0, 4])
def test_a_gradient_through_other_steps_than_there_are_is_refused(through):
    with pytest.raises(ValueError, match=f"from 1 to the student's 3 steps, not {through}"):
        objective_of(SCHEDULES["flow"], through=through)


def matching_of(teacher, begin, **student):
    more = {"method": "matching", "guidance": "cfg(2)", "scale": None, "begin": str(begin)}
    return recipe_of(teacher, **{**more, "start": None, "lead": 0.25, **student})


@pytest.fixture(scope="module")
def begun(teacher, tmp_path_factory):
    """A student of two steps, not yet mended."""
    out = tmp_path_factory.mktemp("begun")
    more = {"method": "trajectory", "guidance": "cfg(2)", "scale": None, "start": 6, "paths": 8}
    assemble_student(distill(recipe_of(teacher, **more), out), out)
    return out / "pupil"


def assert_same_weights(one, other):
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys() and mine
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def check_equal(one, other):
    """Compare outputs of equal weights; where they lie in memory changes the last bit of products
    on some machines.
    """
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_it_starts_as_the_student_that_it_mends_to_the_bit(teacher, begun):
    lesson, before = read_lesson(matching_of(teacher, begun)), gs.load(begun)
    module, _ = student_of(lesson, 0, None)
    x, level = torch.randn(2, 1, 8, 8), before.schedule.at_rho(1.0)
    cond = before.encoder.encode(["a", "c"])
    own = module.encoder(module.encoder.rows({"label": torch.tensor([0, 2])}))
    check_equal(module.denoiser(x, level, own), before.denoiser(x, level, cond))
    assert_same_weights(module.denoiser, before.denoiser)
    plain, fake = gs.load(teacher), module.fake
    given = fake.encoder(fake.encoder.rows({"label": torch.tensor([0, 2])}))
    wanted = plain.denoiser(x, level, plain.encoder.encode(["a", "c"]))
    check_equal(fake.denoiser(x, level, given), wanted)
    assert_same_weights(fake.denoiser, plain.denoiser)


def test_a_mended_student_is_an_ordinary_one_on_the_same_levels(teacher, begun, tmp_path):
    student = assemble_student(distill(matching_of(teacher, begun), tmp_path), tmp_path)
    read, before = gs.load(tmp_path / "pupil"), gs.load(begun)
    levels = [[float(v.rho) for v in model.grid()] for model in (read, before)]
    assert levels[0] == pytest.approx(levels[1], rel=1e-9)
    assert read.defaults == before.defaults and student.sample("b", seeds=[1]).nfe == 2
    changed = zip(read.denoiser.parameters(), before.denoiser.parameters(), strict=True)
    assert not all(torch.equal(p, q) for p, q in changed)
    assert isinstance(read.denoiser, nn.Module)


def test_a_stopped_matching_goes_on_to_the_bit(teacher, begun, tmp_path):
    recipe = matching_of(teacher, begun)
    assert distill(recipe, tmp_path / "whole") is not None
    stop, count = Stop(), itertools.count(1)

    def report(*_):
        stop.requested = next(count) == 2

    assert distill(recipe, tmp_path / "parts", report, stop=stop) is None
    assert distill(recipe, tmp_path / "parts") is not None
    one, other = (
        torch.load(tmp_path / where / "parts" / "matching.pt", weights_only=True)["module"]
        for where in ("whole", "parts")
    )
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"begin": None}, "begin is the student of few steps that method 'matching' mends"),
        ({"method": "guided"}, "the two go together"),
        ({"rank": 2}, "in all its weights; leave scale and rank out"),
        ({"guidance": "cfg(w)", "scale": [1, 2]}, "a student of one guidance"),
        ({"through": 3}, "through must be at most the student's 2 steps, not 3"),
    ],
)
def test_mistakes_in_a_recipe_of_matching_are_named(teacher, student, message):
    given = {"begin": "x", **student}
    if given["begin"] is None:
        with pytest.raises(ValueError, match=message):
            recipe_of(teacher, method="matching", guidance="cfg(2)", scale=None, start=None)
        return
    with pytest.raises(ValueError, match=message):
        matching_of(teacher, **given)


def test_a_student_of_other_steps_is_refused(teacher, begun):
    with pytest.raises(
        ValueError, match=r"student.begin: it must be a student of 1 steps of ddim, and .* is"
    ):
        read_lesson(matching_of(teacher, begun, steps=1, through=1))
    with pytest.raises(ValueError, match="is of 8 steps of dpmpp-2m; correct steps or begin"):
        read_lesson(matching_of(teacher, teacher))


def test_the_command_names_the_student_that_it_mends(teacher, begun, tmp_path, capsys):
    command = f"distill {teacher} --method matching --begin {begun} --steps 2 --guidance cfg(2)"
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--dry-run", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and lines[-1].startswith("matching: ")
    assert "for 2 steps; 1,000 training steps of 64" in lines[-1]
