"""What a student is taught, row by row, and the runs that it learns from, by values by hand."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import guidestar as gs
from guidestar.core.denoiser import Condition
from guidestar.core.levels import VP, Level
from guidestar.core.rng import Draw
from guidestar.data.paths import Paths
from guidestar.data.source import Column, InMemory
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.network import Network
from guidestar.sampling.grids import log_snr
from guidestar.train.objectives import students as shared
from guidestar.train.objectives.teacher import (
    Conditioning,
    Teacher,
    draw_conditioning,
    step_between,
    takes_scale,
    with_input,
    with_scale,
)
from guidestar.train.objectives.trajectory_distillation import TrajectoryDistillation
from guidestar.train.recipe.parts import Training
from guidestar.train.students import paths, stages
from guidestar.train.students.recipe import Student
from helpers.noting import noted

F64 = torch.float64
SCHEDULE = VP.linear()


def conditioning(count=3, **more: Any) -> Conditioning:
    given: dict[str, Any] = {
        "rows": {"a": torch.arange(count) * 10},
        "drop": torch.tensor([False, True, False][:count]),
        "scale": torch.arange(1.0, count + 1, dtype=F64),
        "draw": Draw(list(range(5, 5 + count))),
        "prompts": ("x", "y", "z")[:count],
    }
    return Conditioning(**{**given, **more})


def test_what_was_asked_is_taken_by_sample():
    found = conditioning().take(torch.tensor([2, 1]))
    assert found.rows["a"].tolist() == [20, 10] and found.drop.tolist() == [False, True]
    assert found.scale is not None and found.scale.tolist() == [3.0, 2.0]
    assert list(found.draw.seeds) == [7, 6] and found.prompts == ("z", "y")
    bare = conditioning(scale=None, prompts=None).take(torch.tensor([0]))
    assert bare.scale is None and bare.prompts is None


def test_what_a_batch_is_asked_for():
    x, draw = torch.zeros(400, 1), Draw(range(400))
    nulls = lambda name: torch.tensor([-1])
    rows = {"a": torch.arange(400)}
    found = draw_conditioning(x, {"rows": rows}, nulls, draw, rate=0.25, scale=(2.0, 5.0))
    free = draw.uniform("drop all") < 0.25
    assert found.drop.tolist() == free.tolist() and 60 < int(free.sum()) < 140
    assert found.rows["a"].tolist() == torch.where(free, -1, rows["a"]).tolist()
    assert found.scale is not None and found.scale.dtype == F64
    u = draw.uniform("scale").double()
    assert torch.allclose(found.scale, 2 * 2.5**u)
    assert 3.0 < float(found.scale.median()) < 3.32  # √10, not 3.5
    assert found.draw is draw and found.prompts is None
    other = draw_conditioning(x, {"rows": {}, "prompts": ["p"]}, nulls, draw, rate=0.25, scale=None)
    signed = draw_conditioning(x, {"rows": rows}, nulls, draw, rate=0.25, scale=(-2.0, 5.0))
    whole = draw_conditioning(x, {"rows": rows}, nulls, draw, rate=0.25, scale=(0.0, 5.0))
    assert signed.scale is not None and torch.allclose(signed.scale, -2 + 7 * u)
    assert whole.scale is not None and torch.allclose(whole.scale, 5 * u)
    assert not other.drop.any() and other.drop.dtype == torch.bool and len(other.drop) == 400
    assert other.scale is None and other.prompts == ("p",)


def test_a_scale_in_words_and_as_an_input():
    assert takes_scale("cfg(w)") and takes_scale("cfg(2*w)") and takes_scale("a - w")
    assert not takes_scale("cfg(2, weight=1)") and not takes_scale("x.w(3)")
    assert with_scale("cfg(w) + pag(w)", 2) == "cfg(2) + pag(2)"
    assert with_scale("cfg(w)", (1, 2.5)) == "cfg([1.0, 2.5])"
    cond = Condition(c=torch.zeros(2, 3))
    found = with_input(cond, torch.tensor([1.0, 2.0], dtype=F64))
    assert found["guidance_scale"].tolist() == [1.0, 2.0] and found["c"] is cond["c"]
    assert found["guidance_scale"].dtype == torch.float32
    assert with_input(Condition({}), torch.tensor([3.0]))["guidance_scale"].tolist() == [3.0]


def test_a_step_of_its_own():
    t, s = Level(0.6, 0.8, 5.0), Level(1.0, 0.0, 0.0)
    step = step_between(t, s, SCHEDULE)
    assert (step.t, step.s, step.index) == (t, s, 0)
    assert list(step.grid) == [t, s] and step.grid.schedule is SCHEDULE


class Told(nn.Module):
    """Estimates a number by the condition: 100 without one."""

    def forward(self, x_t, level, cond):
        told = cond["class_labels"][:, :1] if "class_labels" in cond else torch.full((1, 1), 100.0)
        more = cond["guidance_scale"][:, None] if "guidance_scale" in cond else 0
        return torch.zeros_like(x_t) + told + more


def encoder() -> Conditions:
    labels = ClassEncoder(("a", "b"), 4)
    with torch.no_grad():
        labels.table.weight.copy_(torch.tensor([1.0, 2.0, 7.0])[:, None].expand(3, 4))  # 7: null
    return Conditions({"label": labels})


def lesson_teacher(**more: Any) -> Teacher:
    given: dict[str, Any] = {"denoiser": Told(), "encoder": encoder(), "guidance": "cfg(w)",
                             "schedule": SCHEDULE}  # fmt: skip
    return Teacher(**{**given, **more})


STEP = step_between(SCHEDULE.at_rho(1.0), SCHEDULE.clean, SCHEDULE)


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        # 7 + w (1 − 7) and 7 + w (2 − 7), with w = 1, 2, 3; the null's own where dropped.
        ([False, False, False], [1.0, -3.0, -11.0]),
        ([False, True, False], [1.0, 7.0, -11.0]),
        ([True, True, True], [7.0, 7.0, 7.0]),
    ],
)
def test_a_teacher_guides_each_sample_by_its_scale_and_leaves_out_the_dropped(drop, expected):
    given = conditioning(rows={"label": torch.tensor([0, 1, 0])}, drop=torch.tensor(drop))
    with torch.inference_mode():
        x = torch.arange(6.0).view(3, 2)
    found = lesson_teacher().predict(x, STEP, given)
    assert found.x0[:, 0].tolist() == pytest.approx(expected)
    assert torch.allclose(found.x_t, torch.arange(6.0).view(3, 2))
    assert not found.x0.is_inference()  # it may enter a graph


def test_a_student_that_teaches_takes_the_scale_as_an_input():
    """One pass of its condition, 1 + w, and of its null, 7 + 1."""
    given = conditioning(
        rows={"label": torch.tensor([0, 0, 0])}, drop=torch.zeros(3, dtype=torch.bool)
    )
    later = lesson_teacher(guidance="cond", is_student=True)
    found = later.predict(torch.zeros(3, 2), STEP, given)
    assert found.x0[:, 0].tolist() == [2.0, 3.0, 4.0]
    net = later._net(later.denoiser, later.encoder, given)
    assert net.cond is not None and net.null is not None
    assert net.cond["guidance_scale"].tolist() == [1.0, 2.0, 3.0]
    assert net.null["guidance_scale"].tolist() == [1.0]
    plain = lesson_teacher()._net(later.denoiser, later.encoder, given)
    assert "guidance_scale" not in plain.cond and "guidance_scale" not in plain.null  # type: ignore[operator]
    bare = lesson_teacher(encoder=Conditions({}))
    net = bare._net(bare.denoiser, bare.encoder, given)
    assert net.cond is None and net.null is None


def test_what_is_entered_while_a_teacher_predicts():
    entered: list[str] = []

    class Context:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *_):
            entered.append("out")

    given = conditioning(rows={"label": torch.tensor([0, 1, 0])})
    x = torch.zeros(3, 2, requires_grad=True)
    found = lesson_teacher(context=Context).predict(x, STEP, given)
    assert entered == ["in", "out"] and not found.x0.requires_grad


def test_classifiers_find_the_class_of_each_sample():
    """Of the column that is the target; ``prompts`` and seeds go along."""
    made: list[Any] = []

    class Noting(gs.Guided):
        def __init__(self, *given: Any, **more: Any) -> None:
            made.append((given, more))
            super().__init__(*given, **more)

    given = conditioning(
        rows={"label": torch.tensor([1, 0, 1])}, drop=torch.zeros(3, dtype=torch.bool)
    )
    from guidestar.train.objectives import teacher as module

    before = module.Guided
    try:
        module.Guided = Noting
        lesson_teacher(target="label").predict(torch.zeros(3, 2), STEP, given)
        lesson_teacher().predict(torch.zeros(3, 2), STEP, given)
    finally:
        module.Guided = before
    assert made[0][1]["target"].tolist() == [1, 0, 1] and made[1][1]["target"] is None
    assert made[0][1]["prompts"] == ("x", "y", "z") and list(made[0][1]["seeds"]) == [5, 6, 7]
    assert str(made[0][0][0]) == "cfg([1, 2, 3])" and list(made[0][0][1]) == ["main"]


# What objectives share


def test_steps_of_ddim_and_back():
    t, s = Level(0.6, 0.8, 5.0), Level(0.8, 0.6, 2.0)
    x0, eps = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    x_t, x_s = 0.6 * x0 + 0.8 * eps, 0.8 * x0 + 0.6 * eps
    assert torch.allclose(shared.landing(x_t, x_s, t, s), x0)
    noised = shared.noise_rows(x0, t, Draw([3]))
    assert torch.allclose(noised, 0.6 * x0 + 0.8 * Draw([3]).normal_like("noise", x0))
    # (4 · 3 · error)² over two numbers, halved
    error = torch.tensor([[1.0, 3.0]])
    assert shared.squared(error, 4.0).tolist() == [4 * (1 + 9) / 2]
    assert shared.squared(error, torch.tensor([4.0])).tolist() == [4 * (1 + 9) / 2]
    grid = log_snr(SCHEDULE, 3)
    found = shared.chosen(grid, torch.tensor([2, 0]))
    for name in ("alpha", "sigma", "t"):
        expected = [float(getattr(grid[k], name)) for k in (2, 0)]
        assert getattr(found, name).tolist() == expected


# Stages


def spec(**more: Any) -> Student:
    return Student(**{"teacher": "t", "train": Training(steps=9), **more})


class Small(nn.Module):
    """A network with a time embedding of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embedding = nn.Linear(8, 8)

    def forward(self, x, t, **cond):
        return x


def test_a_fresh_student_is_a_copy_whose_text_tower_rests(monkeypatch):
    noted(monkeypatch, stages, "embedding_width", 8)
    made = noted(monkeypatch, stages, "GuidanceScale", nn.Linear(1, 1))
    wrapped = noted(monkeypatch, stages, "ScaledNetwork", nn.Identity())
    known = Conditions({"label": ClassEncoder(("a", "b"), 4), "caption": nn.Linear(2, 2)})
    part: Any = known.parts["caption"]
    part.text = nn.Linear(2, 2)
    given = lesson_teacher(denoiser=Network(Small()), encoder=known)
    for p in (*given.denoiser.parameters(), *known.parameters()):  # type: ignore[attr-defined]
        p.requires_grad_(False)
    student: Any = stages.fresh_student(given, None, 1.5)
    assert not made and student.denoiser is not given.denoiser
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    assert {n for n, _ in student.named_parameters()} - trained == {
        f"encoder.parts.caption.{name}" for name in ("weight", "bias", "text.weight", "text.bias")
    }
    assert not any(p.requires_grad for p in known.parameters())
    student = stages.fresh_student(given, (1.0, 4.0), 1.5)
    assert made == [((8, 1.0, 4.0, 1.5), {})] and isinstance(student.denoiser.net, nn.Identity)
    assert isinstance(wrapped[0][0][0], Small)


def test_a_trained_student_teaches_by_its_one_pass():
    before = lesson_teacher(classifiers={"c": 1}, target="label")
    module: Any = nn.Module()
    module.denoiser, module.encoder = nn.Linear(1, 1), nn.Linear(1, 1)
    module.train()
    for takes in (True, False):
        found = stages.as_teacher(module, before, takes_scale=takes)
        assert (found.denoiser, found.encoder) == (module.denoiser, module.encoder)
        assert (found.guidance, found.schedule, found.is_student) == ("cond", SCHEDULE, takes)
        assert not found.classifiers and found.target is None
    assert not module.training and not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("guidance", "scale", "found"),
    [
        ("cfg(2)", (1, 4), 2.0),
        ("cfg(9)", (1, 4), 4.0),
        ("cfg(0.5)", (1, 4), 1.0),
        ("pag(2) + cfg(3)", (1, 4), 3.0),
        ("cfg(2) + cfg(3)", (1, 4), 2.0),
        ("cond + pag(2)", (1, 4), 2.5),
        ("cond + pag(2)", None, 1.0),
        ("cfg(3)", None, 1.0),
    ],
)
def test_the_scale_of_a_student_where_none_is_given(guidance, scale, found):
    model: Any = SimpleNamespace(expression=lambda given: gs.parse(guidance))
    more = {} if scale is None else {"guidance": "cfg(w)", "scale": scale}
    assert stages.default_scale(spec(**more), model) == found


def test_how_long_a_stage_trains():
    first = Training(steps=3)
    known = spec(first=first)
    assert stages.training(known, "guided") is first
    assert stages.training(known, "student-4") is known.train
    assert stages.training(spec(), "guided").steps == 9


def test_a_stage_of_runs_is_built_of_their_levels():
    module: Any = SimpleNamespace(encoder=SimpleNamespace(parts={}, rows=lambda targets: "rows"))
    grid = log_snr(SCHEDULE, 3)
    student = spec(method="trajectory", steps=2, start=3, first_seed=7, dropout=0.3,
                   guidance="cfg(w)", scale=[1, 2])  # fmt: skip
    recipe: Any = SimpleNamespace(student=student)
    built = stages.build_stage(recipe, "student-2", 2, lesson_teacher(), module, (grid, (0, 1, 3)))
    found: Any = built.objective
    assert isinstance(found, TrajectoryDistillation) and built.module is module
    assert (found.levels, found.visits, found.first_seed) == (grid, (0, 1, 3), 7)
    assert (found.dropout, found.scale) == (0.3, (1.0, 2.0))
    targets: Any = {"path": torch.tensor([4])}
    assert built.prepare(targets) == {"rows": "rows", "path": targets["path"]}


def test_what_a_model_teaches():
    model: Any = SimpleNamespace(
        name="t", shape=(2,), denoiser=Told(), encoder=encoder(), schedule=SCHEDULE,
        nets={"weak": ("weak denoiser", None), "other": ("other denoiser", None)},
        classifiers={"c": 1}, defaults={"guidance": "cfg(2)"},
    )  # fmt: skip
    data = InMemory(x=torch.zeros(2, 2), targets={},
                    columns={"label": Column(kind="class", classes=("a", "b"))})  # fmt: skip
    found = stages.teacher_of(model, spec(guidance="cond + autoguidance(2)"), data)
    assert found.guidance == "cond + autoguidance(2)" and found.target == "label"
    assert list(found.nets) == ["weak"] and found.nets["weak"][0] == "weak denoiser"
    assert (found.denoiser, found.encoder) == (model.denoiser, model.encoder)
    assert found.classifiers == {"c": 1} and found.schedule is SCHEDULE and not found.is_student
    usual = stages.teacher_of(model, spec(), data)
    assert usual.guidance == "cfg(2)" and not usual.nets
    model.defaults, model.encoder = {}, None
    bare = stages.teacher_of(model, spec(), data)
    assert bare.guidance == "cond" and bare.target is None and not list(bare.encoder.parts)


# Runs


def lesson(**more: Any) -> Any:
    count = 5
    source = InMemory(x=torch.zeros(count, 2), targets={"label": torch.arange(count)},
                      columns={"label": Column(kind="class", classes=tuple("abcde"))})  # fmt: skip
    given = {"method": "trajectory", "steps": 2, "start": 3, "paths": 5, "first_seed": 100, **more}
    student = spec(**given)
    recipe = SimpleNamespace(student=student, seed=3)
    model = SimpleNamespace(defaults={"grid": "karras", "solver": "heun"})
    teacher = SimpleNamespace(guidance="cfg(2)", schedule=SCHEDULE)
    return SimpleNamespace(recipe=recipe, source=source, model=model, digest="d", teacher=teacher)


def test_runs_are_written_in_files_of_so_many(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "SHARD", 3)
    monkeypatch.setattr(paths, "_BATCH", 2)
    sampled: list[Any] = []

    def sample_runs(lesson, known, runs, device):
        sampled.append((runs, device))
        return torch.stack([torch.full((4, 2), float(k)) for k in runs])

    monkeypatch.setattr(paths, "sample_runs", sample_runs)
    told: list[Any] = []
    found = paths.make_paths(lesson(), tmp_path, device="d", report=lambda *w: told.append(w))
    assert sampled == [([0, 1], "d"), ([2], "d"), ([3, 4], "d")]
    assert found is not None and found.states[:, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.states.dtype == torch.float16 and found.first_seed == 100
    assert sorted(f.name for f in (tmp_path / "paths").iterdir()) == [
        "00000000.safetensors", "00000003.safetensors"
    ]  # fmt: skip
    order = torch.randperm(5, generator=torch.Generator().manual_seed(3 * 1_000_003)).tolist()
    assert list(found.rows) == order
    assert [(w[0], w[1].step, w[1].samples, w[2]) for w in told] == [
        ("paths", 1, 3, 2), ("paths", 2, 5, 2)
    ]  # fmt: skip
    assert told[0][1].loss == told[0][1].norm == told[0][1].rate == 0.0
    sampled.clear()
    less = paths.make_paths(lesson(paths=4), tmp_path)
    assert not sampled and less is not None and len(less.states) == 4
    more = paths.make_paths(lesson(paths=6), tmp_path)  # the second file lacks a run
    assert [runs for runs, _ in sampled] == [[3, 4], [5]] and more is not None and more.size == 6
    stop: Any = SimpleNamespace(requested=True)
    assert paths.make_paths(lesson(), tmp_path, stop=stop) is None
    stop.requested = False
    assert paths.make_paths(lesson(), tmp_path, stop=stop) is not None
    with pytest.raises(ValueError, match=r"00000000\.safetensors holds runs of another teacher"):
        paths.make_paths(lesson(start=4), tmp_path)


def test_runs_are_known_by_all_that_they_depend_on():
    same = paths._mark(lesson())
    assert paths._mark(lesson()) == same and len(same) == 32
    assert paths._mark(lesson(paths=9)) == same and paths._mark(lesson(steps=1)) == same
    others = [
        lesson(solver="ddim"), lesson(grid="uniform"), lesson(start=4), lesson(dropout=0.2),
        lesson(first_seed=101), lesson(guidance="cfg(w)", scale=[1, 2]),
    ]  # fmt: skip
    changes: tuple[tuple[str | None, str, Any], ...] = (
        ("recipe", "seed", 4), ("teacher", "guidance", "cfg(3)"), (None, "digest", "e"),
        ("source", "x", torch.ones(5, 2)),
    )  # fmt: skip
    for part, key, value in changes:
        other = copy.copy(lesson())
        if part == "source":
            other.source = InMemory(x=value, targets={}, columns={})
        else:
            setattr(getattr(other, part) if part else other, key, value)
        others.append(other)
    assert len({same, *map(paths._mark, others)}) == 1 + len(others)


def test_blank_runs_have_the_shape_of_all():
    blank = paths.blank_paths(lesson())
    assert blank.states.shape == (1, 4, 2) and not blank.states.any()
    assert list(blank.rows) == [0] and blank.first_seed == 100 and blank.shape == (4, 2)
    assert list(paths.path_grid(lesson(grid="log_snr"))) == list(log_snr(SCHEDULE, 3))


def test_runs_as_data():
    source = InMemory(x=torch.zeros(3, 2), targets={"label": torch.tensor([4, 5, 6])},
                      columns={"label": Column(kind="vector", width=1)})  # fmt: skip
    states = torch.arange(12.0).view(2, 3, 2).half()
    found = Paths(states=states, source=source, rows=[2, 0], first_seed=9)
    assert (found.shape, found.size) == ((3, 2), 2) and found.columns is source.columns
    x, targets = found.batch([1, 0], Draw([0, 1]))
    assert x.dtype == torch.float32 and x[0].tolist() == states[1].float().tolist()
    assert targets["label"].tolist() == [4, 6] and targets["path"].tolist() == [1, 0]  # type: ignore[union-attr]
    assert list(found.draw([1, 0]).seeds) == [10, 9]
