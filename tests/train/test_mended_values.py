"""What a student that is mended, narrowed, or of low rank is made of (`train/students/`), and the
order of a distillation, by values by hand.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from guidestar.core.levels import VP, Level
from guidestar.data.paths import Paths
from guidestar.networks.conditions import Conditions
from guidestar.networks.network import Network
from guidestar.train.objectives.distribution_matching import DistributionMatching, Matched
from guidestar.train.objectives.teacher import Teacher
from guidestar.train.recipe.parts import Training
from guidestar.train.students import export, smaller, stages
from guidestar.train.students import run as students
from guidestar.train.students.recipe import Distillation, Student
from helpers.noting import noted

TRAIN = Training(steps=10, batch=4)


def recipe(method: str = "matching", **student: Any) -> Distillation:
    more = {"begin": "b", "guidance": "cfg(3)"} if method == "matching" else {}
    given = {"teacher": "t", "method": method, "steps": 2, "train": TRAIN, **more, **student}
    return Distillation(name="d", student=Student(**given), seed=100)


class Weighted(nn.Module):
    def __init__(self, value: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value]))


def lesson(known: Distillation, **more: Any) -> Any:
    teacher = SimpleNamespace(
        guidance="cfg(3)", denoiser=1, encoder=2, nets={}, classifiers={}, schedule=VP.linear()
    )
    model = SimpleNamespace(name="m", card={}, denoiser="its", defaults={"solver": "heun"})
    source = SimpleNamespace(size=1234, shape=(3, 4, 4))
    given = {"recipe": known, "model": model, "teacher": teacher, "source": source,
             "digest": "abc"}  # fmt: skip
    return students.Lesson(**{**given, **more})


def begun(**more: Any) -> Any:
    given = {"denoiser": "begun's", "grid": lambda: "its levels", "defaults": {}, "name": "begun"}
    return SimpleNamespace(**{**given, **more})


# A student that "matching" mends


def test_what_shapes_the_weights_of_a_mended_student(monkeypatch):
    noted(monkeypatch, students, "network_of", "net")
    digests = noted(monkeypatch, students, "digest", "its digest")
    found = students.made_from(lesson(recipe(), begun=begun()), 0)
    assert found["begin (its weights)"] == "its digest" and digests == [(("net",), {})]
    assert students.made_from(lesson(recipe("guided")), 0)["begin (its weights)"] is None


def test_a_lesson_holds_the_student_that_is_mended(monkeypatch):
    noted(monkeypatch, students, "load", "model")
    noted(monkeypatch, students, "student_source", "source")
    bare = SimpleNamespace(denoiser=nn.Linear(1, 1), encoder=nn.Identity(), nets={})
    noted(monkeypatch, students, "teacher_of", bare)
    asked = noted(monkeypatch, students, "_begun", "begun")
    found = students.read_lesson(recipe())
    assert found.begun == "begun" and asked == [((found.recipe.student,), {})]


def test_a_mended_student_begins_with_its_own_weights_and_a_fake_of_the_teachers(monkeypatch):
    fresh = Weighted(3.0)
    noted(monkeypatch, students, "_fresh", fresh)

    def begin(fresh, other, source):
        fresh.w.data.fill_(7.0)  # after the fake was copied
        calls.append((other, source))
        return fresh

    calls: list[Any] = []
    monkeypatch.setattr(students, "begun_student", begin)
    other = begun()
    given = lesson(recipe(), begun=other)
    found, teacher = students.student_of(given, 0, None)
    assert isinstance(found, Matched) and teacher is given.teacher
    assert calls == [(other, given.source)] and found.student is fresh
    assert found.student.w.item() == 7.0 and found.fake.w.item() == 3.0  # type: ignore[arg-type]


def test_the_student_of_a_finished_matching(monkeypatch, tmp_path):
    (tmp_path / "c").write_text("")
    monkeypatch.setattr(students, "checkpoint", lambda out, name: out / "c")
    held = {"student.w": torch.tensor([1.0]), "fake.w": torch.tensor([2.0])}
    state = {"done": 10, "module": held, "averages": {"a": "average"}}
    noted(monkeypatch, students, "read_checkpoint", state)
    noted(monkeypatch, students, "_fresh", Weighted())
    weights = lambda: {"student.w": torch.tensor([5.0])}
    average = SimpleNamespace(load_state_dict=lambda kept: None, weights=weights)
    noted(monkeypatch, students, "EMA", average)
    found: Any = students.finished_stage(lesson(recipe(), begun=begun()), 0, tmp_path)
    assert isinstance(found, Weighted) and found.w.item() == 5.0 and not found.w.requires_grad


def test_the_levels_of_a_mended_student():
    assert students.student_grid(lesson(recipe(), begun=begun())) == "its levels"
    assert students.student_grid(lesson(recipe("guided"))) is None


def test_a_stage_of_matching_has_its_numbers():
    module: Any = SimpleNamespace(encoder=SimpleNamespace(parts={}, rows=lambda targets: "rows"))
    teacher = Teacher(denoiser=Network(nn.Identity(), predicts="eps"), encoder=Conditions({}),
                      guidance="cond", schedule=VP.linear())  # fmt: skip
    grid = teacher.schedule.at_rho(torch.tensor([4.0, 1.0, 0.0]).double())
    levels: Any = SimpleNamespace(steps=2, levels=grid)
    known = recipe(lead=0.26, through=1, dropout=0.3)
    built = stages.build_stage(known, "matching", 2, teacher, module, None, levels)
    found: Any = built.objective
    assert isinstance(found, DistributionMatching) and built.module is module
    assert found.teacher is teacher and found.grid is levels
    assert (found.levels.mean, found.levels.std) == (0.0, 1.5)
    assert (found.lead, found.through, found.dropout) == (3, 1, 0.3)  # of 10 steps
    assert found.weighting.space == "eps"
    targets: Any = {}
    assert built.prepare(targets) == {"rows": "rows"}


def test_a_mended_student_takes_the_weights_of_another(monkeypatch):
    monkeypatch.setattr(stages, "network_of", lambda net: net)
    fresh: Any = SimpleNamespace(denoiser=Weighted(1.0), encoder=Weighted(2.0))
    given: Any = SimpleNamespace(name="old", denoiser=Weighted(5.0), encoder="encoder")
    asked = noted(monkeypatch, stages, "conditions_of", Weighted(6.0))
    assert stages.begun_student(fresh, given, "data") is fresh  # type: ignore[arg-type]
    assert (fresh.denoiser.w.item(), fresh.encoder.w.item()) == (5.0, 6.0)
    assert asked == [((given, "encoder", "data"), {})]
    given.denoiser = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"student.begin: old is no student of this teacher"):
        stages.begun_student(fresh, given, "data")  # type: ignore[arg-type]


def test_the_levels_of_a_mended_student_are_written(monkeypatch, tmp_path):
    module: Any = SimpleNamespace(denoiser="net", encoder=SimpleNamespace(alone=lambda: "encoder"))
    noted(monkeypatch, export, "finished_stage", module)
    noted(monkeypatch, export, "_about", {"a": 1})
    noted(monkeypatch, export, "student_grid", [Level(0.0, 1.0, 1.0), Level(0.8, 0.4, 0.5)])
    saved = noted(monkeypatch, export, "save")
    written = noted(monkeypatch, export, "write_card")
    noted(monkeypatch, export, "describe_pipeline", None)
    known = recipe()
    model = SimpleNamespace(schedule=1, shape=(1,), decode=None, classifiers={}, judge=None,
                            defaults={"steps": 9, "x": 1}, denoiser="d")  # fmt: skip
    made = export.assemble_student(lesson(known, begun=begun(), model=model), tmp_path)
    assert made.card == {"a": 1, "grids": {"2": [float("inf"), 0.5]}}
    assert made.defaults == {"steps": 2, "x": 1, "guidance": "cond", "grid": "fitted",
                             "solver": "ddim"}  # fmt: skip
    assert saved == [((made, tmp_path / "d"), {})] and len(written) == 1


def test_a_student_of_low_rank_is_written_as_a_difference(monkeypatch, tmp_path):
    module: Any = SimpleNamespace(denoiser="net", encoder=SimpleNamespace(alone=lambda: None))
    noted(monkeypatch, export, "finished_stage", module)
    noted(monkeypatch, export, "_about", {})
    noted(monkeypatch, export, "save")
    noted(monkeypatch, export, "write_card")
    noted(monkeypatch, export, "describe_pipeline", None)
    monkeypatch.setattr(export, "network_of", lambda net: f"network of {net}")
    few = noted(monkeypatch, export, "low_rank_of", {"w": 1})
    wrote = noted(monkeypatch, export, "write_difference")
    model = SimpleNamespace(schedule=1, shape=(1,), decode=None, classifiers={}, judge=None,
                            defaults={}, denoiser="teacher's")  # fmt: skip
    given = lesson(recipe("guided", rank=2), model=model)
    export.assemble_student(given, tmp_path)
    assert few == [((module, given), {})]
    file = tmp_path / "d" / "difference.safetensors"
    assert wrote == [(({"w": 1}, "network of teacher's", file), {})]
    export.assemble_student(lesson(recipe("guided"), model=model), tmp_path)
    assert len(few) == len(wrote) == 1


# What a fresh student is given


@pytest.mark.parametrize(
    ("method", "more"),
    [("meanflow", {"rank": 3}), ("guided", {"width": 0.5}), ("consistency", {})],
)
def test_a_fresh_student_is_as_the_recipe_says(monkeypatch, method, more):
    made = noted(monkeypatch, students, "fresh_student", "fresh")
    scales = noted(monkeypatch, students, "default_scale", 2.5)
    known = recipe(method, guidance="cfg(w)", scale=(1.0, 4.0), **more)
    given = lesson(known)
    assert students._fresh(given) == "fresh"
    assert made == [
        ((given.teacher, (1.0, 4.0), 2.5, more.get("rank")),
         {"interval": method == "meanflow", "width": more.get("width")})
    ]  # fmt: skip
    assert scales == [((known.student, given.model), {})]


def teacher(net: nn.Module) -> Teacher:
    return Teacher(
        denoiser=Network(net), encoder=Conditions({}), guidance="cond", schedule=VP.linear()
    )


def test_what_a_student_takes_beside_its_condition(monkeypatch):
    """The interval within the scale, each as wide as the network's time."""
    widths = noted(monkeypatch, stages, "embedding_width", 8)
    interval = noted(monkeypatch, stages, "Interval", "interval")
    within = noted(monkeypatch, stages, "IntervalNetwork", nn.Identity())
    scale = noted(monkeypatch, stages, "GuidanceScale", "scale")
    around = noted(monkeypatch, stages, "ScaledNetwork", nn.Identity())
    net = Weighted()
    stages.fresh_student(teacher(net), None, 1.5)
    assert not within and not around
    stages.fresh_student(teacher(net), None, 1.5, interval=True)
    assert interval == [((8,), {})] and isinstance(within[0][0][0], Weighted) and not around
    assert within[0][0][1] == "interval" and widths[0][0][0] is within[0][0][0]
    stages.fresh_student(teacher(net), (1.0, 4.0), 1.5, interval=True)
    assert scale == [((8, 1.0, 4.0, 1.5), {})]
    assert isinstance(around[0][0][0], nn.Identity) and around[0][0][1] == "scale"


def test_a_student_may_be_of_low_rank_or_narrow(monkeypatch):
    adapted = noted(monkeypatch, stages, "adapt")
    monkeypatch.setattr(stages, "network_of", lambda denoiser: denoiser.net)
    narrow = Network(Weighted(9.0)), Conditions({})
    asked = noted(monkeypatch, stages, "narrower", narrow)
    given = teacher(Weighted())
    student: Any = stages.fresh_student(given, None, 1.0, 3)
    assert adapted == [((student.denoiser.net, 3), {})] and not asked
    student = stages.fresh_student(given, None, 1.0, width=0.5)
    assert student.denoiser.net.w.item() == 9.0 and student.encoder is narrow[1]
    ((copy, encoder, width), more) = asked[0]
    assert width == 0.5 and copy is not given.denoiser and not more
    assert encoder is not given.encoder and len(adapted) == 1
    other: Any = SimpleNamespace(denoiser=print, encoder=None)
    with pytest.raises(ValueError, match="denoiser is a builtin_function_or_method; only networks"):
        stages.fresh_student(other, None, 1.0)


# The order of a distillation


@pytest.fixture
def ready(monkeypatch):
    """Put notes in the place of all that a distillation does."""
    told = SimpleNamespace(main=True, told=[], first=0, waited=0, trained=[])

    def waits():
        told.waited += 1

    def first():
        told.first += 1
        return nullcontext()

    class Accelerator:
        device = torch.device("cpu")

        def __init__(self, cpu=False):
            self.is_main_process = told.main
            self.main_process_first, self.wait_for_everyone = first, waits

    def train_stage(lesson, index, out, accelerator, stop, paths):
        told.trained.append((index, out, stop, paths))
        yield "one"
        yield "two"

    monkeypatch.setattr(accelerate, "Accelerator", Accelerator)
    monkeypatch.setattr(students, "_train_stage", train_stage)
    told.locks = noted(monkeypatch, students, "locked", nullcontext())
    told.moved = noted(monkeypatch, students, "_move")
    told.paths = noted(monkeypatch, students, "make_paths", "paths")
    return told


def distill(monkeypatch, ready, known, out, **more: Any):
    given = lesson(known)
    ready.read = noted(monkeypatch, students, "read_lesson", given)
    report = lambda *words: ready.told.append(words)
    return students.distill(known, out, report, **more), given


def test_stages_of_a_distillation_follow_one_another(monkeypatch, ready, tmp_path):
    known = recipe("progressive", start=8)
    stop: Any = SimpleNamespace(agreed=False)
    found, given = distill(monkeypatch, ready, known, tmp_path / "o", stop=stop, say=print)
    assert found is given and ready.read == [((known, print), {})]
    assert ready.locks == [((tmp_path / "o",), {})] and (tmp_path / "o").is_dir()
    assert ready.trained == [(0, tmp_path / "o", stop, None), (1, tmp_path / "o", stop, None)]
    assert ready.told == [
        ("student-4", "one", 10), ("student-4", "two", 10),
        ("student-2", "one", 10), ("student-2", "two", 10),
    ]  # fmt: skip
    assert (ready.first, ready.waited) == (1, 2) and not ready.paths and not ready.moved


def test_a_distillation_that_is_stopped_trains_no_further_stage(monkeypatch, ready, tmp_path):
    stop: Any = SimpleNamespace(agreed=True)
    known = recipe("progressive", start=8)
    found, _ = distill(monkeypatch, ready, known, tmp_path, stop=stop)
    assert found is None and len(ready.trained) == 1 and ready.waited == 0
    students.distill(known, tmp_path)  # nobody is told, and nothing stops it
    assert len(ready.trained) == 3 and len(ready.told) == 2


def test_other_processes_neither_lock_nor_report(monkeypatch, ready, tmp_path):
    ready.main = False
    known = recipe("trajectory", paths=3, start=4)
    found, given = distill(monkeypatch, ready, known, tmp_path)
    assert found is given and not ready.locks and not ready.told
    assert ready.paths == [
        ((given, tmp_path), {"device": torch.device("cpu"), "stop": None, "report": None})
    ]


def test_a_teachers_runs_are_made_before_its_students(monkeypatch, ready, tmp_path):
    known = recipe("trajectory", paths=3, start=4)
    stop: Any = SimpleNamespace(agreed=False)
    _, given = distill(monkeypatch, ready, known, tmp_path, stop=stop)
    assert ready.moved == [((given.teacher, torch.device("cpu")), {})] and ready.first == 2
    more = ready.paths[0][1]
    assert more["stop"] is stop and more["report"] is not None
    assert ready.trained == [(0, tmp_path, stop, "paths")]
    noted(monkeypatch, students, "make_paths", None)  # it was stopped in them
    assert distill(monkeypatch, ready, known, tmp_path, stop=stop)[0] is None
    assert len(ready.trained) == 1


def test_what_a_distillation_of_runs_would_do(monkeypatch):
    known = recipe("trajectory", paths=5000, start=8, grid="karras")
    given = lesson(known)
    noted(monkeypatch, students, "read_lesson", given)
    noted(monkeypatch, students, "student_of", ("module", "teacher"))
    blank = object.__new__(Paths)
    object.__setattr__(blank, "states", torch.zeros(1, 9, 2))
    noted(monkeypatch, students, "blank_paths", blank)
    asked = noted(monkeypatch, students, "runs_of", "runs")
    net = nn.Linear(1, 1)
    build = noted(monkeypatch, students, "build_stage", SimpleNamespace(module=net))
    memory = noted(monkeypatch, students, "training_memory", {"a": 1.0})
    each = noted(monkeypatch, students, "activations", 10.0)
    lines = students.plan_distillation(known, print)
    assert lines[2] == "paths: 5,000 runs of the teacher, 8 steps of heun on karras"
    assert asked == [((given, 0, blank), {})] and build[0][0][5] == "runs"
    assert memory[0][0][0] is net and each[0][0][1] is blank
    assert lines[3].endswith("about 41 MB of memory in one process")


def test_parts_of_a_batch_are_held_one_at_a_time(monkeypatch):
    """Of 10 in 4 parts, the largest part has 3."""
    train = Training(steps=10, batch=10, accumulate=4)
    known = recipe("guided", train=train)
    noted(monkeypatch, students, "read_lesson", lesson(known))
    noted(monkeypatch, students, "student_of", ("module", "teacher"))
    noted(monkeypatch, students, "build_stage", SimpleNamespace(module=nn.Linear(1, 1)))
    noted(monkeypatch, students, "training_memory", {"a": 1.0})
    noted(monkeypatch, students, "activations", 100.0)
    assert students.plan_distillation(known)[-1] == (
        "guided: 2 parameters, for any number of steps; 10 training steps of 10; about 301 MB of "
        "memory in one process"
    )


# A narrower student


class Wide:
    """A network that is made anew of its settings."""

    def __init__(self, **config: Any):
        self.config = {"norm_num_groups": 4, "block_out_channels": (16, 24), **config}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class Part:
    def __init__(self, width: int, other: int = 1):
        self.config = {"width": width, "other": other, "_class_name": "Part"}


def narrowed(monkeypatch, width=0.5, parts=None, **config: Any):
    net = Wide(**config)
    held = SimpleNamespace(net=net)
    denoiser: Any = SimpleNamespace(net=held)
    monkeypatch.setattr(smaller, "network_of", lambda given: given.net.net)
    monkeypatch.setattr(smaller, "Conditions", dict)
    encoder: Any = SimpleNamespace(parts=parts or {})
    found, own = smaller.narrower(denoiser, encoder, width)
    assert found is denoiser and held.net is not net
    return held.net.config, own


@pytest.mark.parametrize(
    ("config", "fewer", "head"),
    [
        ({}, [8, 12], 8),  # without heads, of the first channels
        ({"attention_head_dim": 9}, [8, 12], 8),
        ({"attention_head_dim": 4}, [8, 12], 4),
        ({"attention_head_dim": 20, "block_out_channels": (24, 16)}, [12, 8], 8),
        ({"norm_num_groups": None, "block_out_channels": (2, 6)}, [1, 3], 1),
    ],
)
def test_a_narrower_network_has_a_share_of_the_channels(monkeypatch, config, fewer, head):
    found, _ = narrowed(monkeypatch, **config)
    assert (found["block_out_channels"], found["attention_head_dim"]) == (fewer, head)
    assert found["norm_num_groups"] == config.get("norm_num_groups", 4)


def test_channels_are_rounded_and_divided_by_the_groups(monkeypatch):
    found, _ = narrowed(monkeypatch, 0.27, block_out_channels=(16, 30))  # 4.32 and 8.1
    assert found["block_out_channels"] == [4, 8]
    for width, wrong in ((0.45, r"\[7, 11\]"), (0.01, r"\[0, 0\]"), (0.75, r"\[12, 18\]")):
        with pytest.raises(ValueError, match=f"student.width: {width:g} makes {wrong} channels"):
            narrowed(monkeypatch, width)


def test_conditions_beside_the_time_are_made_anew(monkeypatch):
    """Of 4 × 16 numbers, now 4 × 8; others stay as they are."""
    fits, other, bare = Part(64, 5), Part(63), SimpleNamespace()
    _, found = narrowed(monkeypatch, parts={"a": fits, "b": other, "c": bare})
    assert (found["b"], found["c"]) == (other, bare)
    assert isinstance(found["a"], Part) and found["a"] is not fits
    assert found["a"].config == {"width": 32, "other": 5, "_class_name": "Part"}


def test_one_pass_is_learned_in_what_the_network_predicts():
    """Of guidance in one pass; what is drawn is that of the recipe."""
    denoiser = Network(nn.Identity(), predicts="eps")
    given = Teacher(denoiser=denoiser, encoder=Conditions({}), guidance="cond",
                    schedule=VP.linear())  # fmt: skip
    known = recipe("guided", guidance="cfg(w)", scale=(1.0, 4.0), dropout=0.3)
    found: Any = stages._objective(known.student, "guided", 2, given)
    assert found.weighting.space == "eps" and found.teacher is given
    assert (found.dropout, found.scale) == (0.3, (1.0, 4.0))
    assert (found.levels.mean, found.levels.std) == (0.0, 1.5)
    swift: Any = stages._objective(
        recipe("meanflow", finest=5, dropout=0.2).student, "meanflow", 2, given
    )
    assert swift.grid.steps == 5 and swift.dropout == 0.2 and swift.scale is None


def test_data_of_a_distillation_are_the_part_to_train_on(monkeypatch):
    from guidestar.train.recipe.tables import Data
    from guidestar.train.students import data

    asked = noted(monkeypatch, data, "sources", ("to train on", "aside"))
    spec = Data(path="p")
    assert data._read(spec, print) == "to train on"
    ((made, say), more) = asked[0]
    assert made.data == spec and say is print and not more


def test_prompts_are_those_of_the_first_text():
    parts = {"b": SimpleNamespace(tokenizer=1), "a": SimpleNamespace(tokenizer=2)}
    encoder: Any = SimpleNamespace(parts=parts, rows=lambda targets: "rows")
    guided: Any = SimpleNamespace(classifiers={"clip": 1})
    targets: Any = {"a": ["x"], "b": ["y"]}
    assert stages.prepare(encoder, guided)(targets) == {"rows": "rows", "prompts": ["y"]}
