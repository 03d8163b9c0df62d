"""What each stage of a distillation is given, and how it is planned, by values by hand
(`train/students/run.py`).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.data.latents import Unencoded
from guidestar.data.source import InMemory, Subset
from guidestar.diffusers.read.vae import Decoder
from guidestar.sampling.grids import GRIDS
from guidestar.train.recipe.parts import Training
from guidestar.train.recipe.schema import Recipe
from guidestar.train.recipe.tables import OWN_VAE, Data
from guidestar.train.students import data, stages
from guidestar.train.students import run as students
from guidestar.train.students.recipe import Distillation, Student
from helpers.noting import noted


def recipe(method: str = "progressive", **more: Any) -> Distillation:
    given = {"teacher": "t", "method": method, "guidance": "cfg(3)", "steps": 2, "start": 8,
             "train": Training(steps=9, batch=4, rate=0.5)}  # fmt: skip
    spec = Student(**{**given, **more.pop("student", {})})
    return Distillation(name="d", student=spec, seed=100, **more)


def lesson(known: Distillation, **more: Any) -> Any:
    teacher = SimpleNamespace(guidance="cfg(3)", denoiser=1, encoder=2, nets={}, classifiers={})
    source = SimpleNamespace(size=1234, shape=(3, 4, 4))
    given = {"recipe": known, "model": SimpleNamespace(name="m", card={}), "teacher": teacher,
             "source": source, "digest": "abc"}  # fmt: skip
    return students.Lesson(**{**given, **more})


def test_stages_train_as_long_as_they_say_each_with_its_seed():
    known = recipe()
    names = [name for name, _ in known.student.stages()]
    assert len(names) > 1
    for k in range(len(names)):
        found = students.stage_settings(known, k)
        assert (found.steps, found.batch, found.rate, found.seed) == (9, 4, 0.5, 100 + k)


def test_what_shapes_a_stages_weights():
    known = recipe()
    names = [name for name, _ in known.student.stages()]
    for k, name in enumerate(names):
        found = students.made_from(lesson(known), k)
        assert (found["guidance"], found["stage"]) == ("cfg(3)", name)
        assert found["teacher (its weights)"] == "abc"
        assert found["earlier stages"] == [known.student.train.model_dump(mode="json")] * k
        assert found["student.steps"] == 2 and found["student.start"] == 8
        assert not {"student.train", "student.first", "student.teacher"} & set(found)
        assert "draws of the scale" not in found
    scaled = recipe(student={"guidance": "cfg(w)", "scale": (1.0, 4.0)})
    found = students.made_from(lesson(scaled), 0)
    assert found["draws of the scale"] == "logarithmic" and found["student.scale"] == [1.0, 4.0]


class Student1(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3))


def test_a_stage_begins_where_the_one_before_ended(monkeypatch):
    known = recipe()
    given = lesson(known)
    monkeypatch.setattr(students, "fresh_student", lambda *given, **more: Student1())
    scales = noted(monkeypatch, students, "default_scale", 7.0)
    trained = Student1()
    finished = noted(monkeypatch, students, "finished_stage", trained)
    taught = noted(monkeypatch, students, "as_teacher", "student as teacher")
    torch.manual_seed(100)
    first = torch.randn(3)
    module, teacher = students.student_of(given, 0, Path("o"))
    assert torch.equal(module.w, first) and teacher is given.teacher  # type: ignore[attr-defined]
    torch.manual_seed(101)
    second = torch.randn(3)
    module, teacher = students.student_of(given, 1, None)
    assert torch.equal(module.w, second) and teacher is given.teacher  # type: ignore[attr-defined]
    assert finished == []
    module, teacher = students.student_of(given, 1, Path("o"))
    assert torch.equal(module.w, trained.w) and teacher == "student as teacher"  # type: ignore[attr-defined]
    assert finished == [((given, 0, Path("o")), {})]
    assert taught == [((trained, given.teacher), {"takes_scale": False})]
    assert scales[0][0] == (known.student, given.model)
    spec = {"guidance": "cfg(w)", "scale": (1.0, 4.0)}
    students.student_of(lesson(recipe(student=spec)), 1, Path("o"))
    assert taught[1][1] == {"takes_scale": True}
    walked = lesson(recipe("trajectory", student={"paths": 4}))
    module, teacher = students.student_of(walked, 1, Path("o"))  # the runs stay those of the first
    assert torch.equal(module.w, trained.w) and teacher is walked.teacher  # type: ignore[attr-defined]


def test_the_levels_that_runs_visit(monkeypatch):
    grid = SimpleNamespace()
    noted(monkeypatch, students, "path_grid", grid)
    chosen = noted(monkeypatch, students, "choose_visits", (0, 1, 8))
    paths: Any = SimpleNamespace(states=torch.arange(1000))
    known = recipe("trajectory", student={"steps": 4, "paths": 4})
    given = lesson(known)
    last = len(known.student.stages()) - 1
    assert students.runs_of(given, last, paths) == (grid, (0, 1, 8))
    (states, levels, steps), _ = chosen[0]
    assert states.tolist() == list(range(256)) and levels is grid
    assert steps == known.student.stages()[last][1]
    named = recipe("trajectory", student={"steps": 2, "paths": 4, "visits": (0, 3, 8)})
    ends = len(named.student.stages()) - 1
    assert students.runs_of(lesson(named), ends, paths) == (grid, (0, 3, 8))
    assert students.runs_of(lesson(named), -1, paths) == (grid, (0, 3, 8))
    assert len(chosen) == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("walked", [False, True])
def test_a_stage_is_trained_with_all_that_it_has(monkeypatch, device, walked):
    known = recipe(checkpoint_seconds=7.0, keep_checkpoints=3)
    given = lesson(known)
    stage, steps = known.student.stages()[1]
    noted(monkeypatch, students, "student_of", ("module", "teacher"))
    noted(monkeypatch, students, "runs_of", "runs")
    built = SimpleNamespace(module="m", objective="o", prepare="p")
    build = noted(monkeypatch, students, "build_stage", built)
    suited = noted(monkeypatch, students, "_suit_cpu_training")
    made = noted(monkeypatch, students, "Trainer", "trainer")
    moved = noted(monkeypatch, students, "_move")
    noted(monkeypatch, students, "made_from", {"a": 1})
    fits: list[Any] = []

    def fit(*args, **more):
        fits.append((args, more))
        yield "progress"

    monkeypatch.setattr(students, "fit", fit)
    accelerator: Any = SimpleNamespace(device=torch.device(device))
    paths: Any = "paths" if walked else None
    stop: Any = "stop"
    found = list(students._train_stage(given, 1, Path("o"), accelerator, stop, paths))
    assert found == ["progress"]
    runs = "runs" if walked else None
    assert build == [((known, stage, steps, "teacher", "module", runs, None), {})]
    assert suited == ([(("module",), {})] if device == "cpu" else [])
    source = "paths" if walked else given.source
    settings = students.stage_settings(known, 1)
    assert made == [(("m", "o", source, settings, {"a": 1}),
                     {"prepare": "p", "accelerator": accelerator})]  # fmt: skip
    assert moved == [(("teacher", accelerator.device), {})]
    ((args, more),) = fits
    assert args == ("trainer", students.checkpoint(Path("o"), stage))
    assert more == {"stop": "stop", "every": 7.0, "keep": 3}


def test_networks_are_laid_out_for_training_on_a_cpu(monkeypatch):
    plain = noted(monkeypatch, students, "plain_attention")
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    assert not net.weight.is_contiguous()
    students._suit_cpu_training(net)
    assert net.weight.is_contiguous() and plain == [((net,), {})]
    students._suit_cpu_training(net.double())
    assert len(plain) == 1


def test_all_networks_of_a_teacher_are_moved():
    parts = [nn.Linear(1, 1) for _ in range(5)]
    teacher: Any = SimpleNamespace(denoiser=parts[0], encoder=parts[1],
                                   nets={"weak": (parts[2], parts[3])},
                                   classifiers={"c": parts[4], "f": print})  # fmt: skip
    students._move(teacher, torch.device("meta"))
    assert [p.weight.device.type for p in parts] == ["meta"] * 5


def test_data_are_the_recipes_or_those_of_the_teacher():
    """Of `train/students/data.py`."""
    own = Data(path="q")
    card = {"recipe": {"data": {"kind": "images", "path": "p", "old": 1, "size": 24, "test": "t"}}}
    model: Any = SimpleNamespace(name="m", card=card)
    known = data.data_of(recipe(), model)
    assert (known.path, known.size, known.test, known.holdout) == ("p", 24, None, 0.0)
    found = data.data_of(recipe(data=own), model)
    assert (found.path, found.size) == ("q", 24)
    for whole in (Data(path="q", size=8), Data(path="q", kind="tensors")):
        assert data.data_of(recipe(data=whole), model) == whole
    for bare in ({}, {"recipe": {}}, {"recipe": {"data": None}}):
        model = SimpleNamespace(name="m", card=bare)
        assert data.data_of(recipe(data=own), model) == own
        with pytest.raises(ValueError, match="the card of 'm' does not name its training data"):
            data.data_of(recipe(), model)


@pytest.mark.parametrize(
    ("method", "vae", "shape", "made"),
    [
        ("progressive", None, (3, 16, 16), "latents"),
        ("progressive", OWN_VAE, (3, 16, 16), "latents"),
        ("progressive", "other", (3, 16, 16), "read"),
        ("progressive", None, (4, 2, 2), "read"),
        ("trajectory", None, (3, 16, 16), "unencoded"),
        ("trajectory", "other", (3, 16, 16), "read"),
    ],
)
@pytest.mark.parametrize("part", [True, False])
@pytest.mark.parametrize("cache", [None, "kept"])
def test_pictures_of_a_teacher_of_latents(monkeypatch, method, vae, shape, made, part, cache):
    pictures: Any = SimpleNamespace(shape=shape)
    if part:
        pictures = Subset(source=InMemory(x=torch.zeros(4, *shape), targets={}, columns={}),
                          kept=(3, 1))  # fmt: skip
    read = noted(monkeypatch, data, "_read", pictures)
    encoded = noted(monkeypatch, data, "encode_pictures", InMemory(
        x=torch.ones(4, 4, 2, 2), targets={}, columns={}
    ))  # fmt: skip
    given = Data(path="q/photos", kind="images", vae=vae, cache=cache, size=16)
    monkeypatch.setattr(data, "data_of", lambda recipe, model: given)
    decode: Any = object.__new__(Decoder)
    decode.vae = "its vae"
    model: Any = SimpleNamespace(decode=decode, shape=(4, 2, 2))
    spec = recipe(method, student={"paths": 4} if method == "trajectory" else {})
    found: Any = data.student_source(spec, model, print)
    ((asked, say), _) = read[0]
    assert say is print and len(read) == 1
    assert asked.vae == (vae if made == "read" and vae else None) and asked.size == 16
    if made == "read":
        assert found is pictures and not encoded
        return
    whole = pictures.source if part else pictures
    if part:
        assert isinstance(found, Subset) and found.kept == (3, 1)
    inner = found.source if part else found
    if made == "unencoded":
        assert isinstance(inner, Unencoded) and not encoded and inner.pictures is whole
        assert inner.latent_shape == (4, 2, 2) and inner.encode == decode.encode
        return
    where = Path(cache) if cache else Path("q/.latents")
    assert encoded == [((whole, "its vae", where), {})]
    plain: Any = SimpleNamespace(decode=None, shape=(3, 16, 16))
    assert data.student_source(spec, plain) is pictures and read[1][0] == (given, None)


def test_a_student_that_is_mended_is_for_as_many_steps(monkeypatch):
    assert students._begun(recipe().student) is None
    defaults = {"steps": 2, "solver": "ddim"}
    loaded = noted(monkeypatch, students, "load", SimpleNamespace(defaults=defaults))
    spec: Any = SimpleNamespace(begin="b", steps=2)
    assert students._begun(spec).defaults is defaults and loaded == [(("b",), {})]  # type: ignore[union-attr]
    for wrong in ({"steps": 3, "solver": "ddim"}, {"steps": 2, "solver": "heun"}, {}):
        noted(monkeypatch, students, "load", SimpleNamespace(defaults=wrong))
        with pytest.raises(
            ValueError, match=r"student.begin: it must be a student of 2 steps of ddim, and b"
        ):
            students._begun(spec)


def test_a_lesson_is_read_with_its_data(monkeypatch):
    model = SimpleNamespace(name="m", card={})
    loaded = noted(monkeypatch, students, "load", model)
    sources = noted(monkeypatch, students, "student_source", "source")
    net, encoder, weak = nn.Linear(1, 1), nn.Linear(2, 1), nn.Linear(3, 1)
    teacher = SimpleNamespace(denoiser=net, encoder=encoder, nets={"weak": (weak, nn.Identity())})
    taught = noted(monkeypatch, students, "teacher_of", teacher)
    digests = noted(monkeypatch, students, "of_tensors", "digest")
    known = recipe(data=Data(path="q"))
    found = students.read_lesson(known, print)
    assert (found.model, found.source, found.digest) == (model, "source", "digest")
    assert found.teacher is teacher and found.recipe is known
    assert loaded == [(("t",), {})] and sources == [((known, model, print), {})]
    assert found.begun is None
    assert taught == [((model, known.student, "source"), {})]
    ((tensors,), _) = digests[0]
    assert sorted(tensors) == sorted(
        ["main.0.weight", "main.0.bias", "main.1.weight", "main.1.bias", "weak.0.weight",
         "weak.0.bias"]
    )  # fmt: skip
    assert tensors["weak.0.weight"].shape == (1, 3) and tensors["main.1.weight"].shape == (1, 2)


@pytest.mark.parametrize("size", [1234, None])
def test_what_a_distillation_would_do(monkeypatch, size):
    known = recipe()
    given = lesson(known, source=SimpleNamespace(size=size, shape=(3, 4, 4)))
    noted(monkeypatch, students, "read_lesson", given)
    noted(monkeypatch, students, "student_of", ("module", "teacher"))
    net = nn.Linear(9, 111)
    build = noted(monkeypatch, students, "build_stage", SimpleNamespace(module=net))
    noted(monkeypatch, students, "training_memory", {"a": 1000.0, "b": 500.0})
    noted(monkeypatch, students, "activations", 10.0)
    lines = students.plan_distillation(known)
    count = "a stream" if size is None else "1,234 samples"
    assert lines[:2] == ["teacher: m, guided by cfg(3)", f"data: {count} of [3, 4, 4]"]
    stages = known.student.stages()
    assert [row.partition(":")[0] for row in lines[2:]] == [name for name, _ in stages]
    for row, (name, steps) in zip(lines[2:], stages, strict=True):
        sampled = "any number of steps" if name == "guided" else f"{steps} steps"
        assert row == (
            f"{name}: 1,110 parameters, for {sampled}; 9 training steps of 4; about 1,540 MB of "
            "memory in one process"
        )
    assert [args[1:3] for args, _ in build] == [tuple(s) for s in stages]
    assert all(args[3:] == ("teacher", "module", None, None) for args, _ in build)


def test_a_stage_that_was_not_trained_to_its_end(monkeypatch, tmp_path):
    known, place = recipe(), []
    given = lesson(known)
    stage = known.student.stages()[0][0]
    monkeypatch.setattr(students, "checkpoint", lambda out, name: place.append(name) or out / "c")
    with pytest.raises(ValueError, match=f"holds no trained stage '{stage}' yet"):
        students.finished_stage(given, 0, tmp_path)
    (tmp_path / "c").write_text("")
    state: Any = {"done": 8}
    noted(monkeypatch, students, "read_checkpoint", state)
    with pytest.raises(ValueError, match=f"'{stage}' is trained for 8 of its 9 steps; run the"):
        students.finished_stage(given, 0, tmp_path)
    assert place == [stage, stage]
    module = Student1()
    fresh = noted(monkeypatch, students, "fresh_student", module)
    noted(monkeypatch, students, "default_scale", 2.5)
    average = noted(monkeypatch, students, "EMA", SimpleNamespace(
        load_state_dict=place.append, weights=lambda: {"w": torch.ones(3)}
    ))  # fmt: skip
    state.update(done=9, module={"w": torch.zeros(3)}, averages={"first": "a", "second": "b"})
    found: Any = students.finished_stage(given, 0, tmp_path)
    assert found is module and found.w.tolist() == [1, 1, 1]
    assert not found.w.requires_grad and not found.training and place[-1] == "a"
    assert fresh[0] == ((given.teacher, None, 2.5, None), {"interval": False, "width": None})
    assert average[0][0][0] is module


def test_the_objective_of_consistency_begins_with_the_students_steps():
    spec: Any = SimpleNamespace(
        dropout=0.3, range_of_scale=(1.0, 2.0), grid="karras", steps=3, finest=12,
        train=SimpleNamespace(steps=77),
    )  # fmt: skip
    teacher: Any = SimpleNamespace()
    found: Any = stages._objective(spec, "consistency", 3, teacher)
    assert (found.first, found.last, found.steps) == (3, 12, 77)
    assert (found.dropout, found.scale, found.teacher) == (0.3, (1.0, 2.0), teacher)
    assert found.spacing is GRIDS["karras"]
    spec.grid = None
    found = stages._objective(spec, "consistency", 3, teacher)
    assert found.spacing is GRIDS["uniform"]


@pytest.mark.parametrize(("size", "scales", "fits"), [(4, 2, True), (3, 2, False), (2, 1, True)])
def test_pictures_are_large_enough_to_be_halved(size, scales, fits):
    known: Any = SimpleNamespace(
        decoder=SimpleNamespace(features=0.0, scales=scales),
        data=SimpleNamespace(vae="autoencoder", size=size),
        clip=None,
    )
    if fits:
        Recipe._check_decoder(known)
        return
    with pytest.raises(ValueError, match=f"pictures of {size} cannot be halved {scales} times"):
        Recipe._check_decoder(known)
