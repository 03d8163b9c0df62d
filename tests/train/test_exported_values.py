"""What a finished training, student or cascade is made of and says of itself, by values by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.data.source import Column, InMemory
from guidestar.train import cascade, export
from guidestar.train.students import export as students
from helpers.noting import NET, noted, recipe


def source(columns=None, count=4):
    return InMemory(x=torch.zeros(count, 1, 4, 4), targets={}, columns=columns or {})


class Alone:
    """What a trained part holds."""

    def __init__(self, name, encoder="encoder"):
        self.denoiser = f"{name} denoiser"
        self.encoder = SimpleNamespace(alone=lambda: encoder)


def test_a_model_has_all_trained_parts(monkeypatch):
    noted(monkeypatch, export, "decoder_of", "decode")
    parts: Any = {"model": Alone("model"), "weak": Alone("weak", "own"), "classifier": "c",
                  "noisy_clip": "n", "clip": "k", "judge": "j"}  # fmt: skip
    known = recipe(export={"guidance": "cfg(4)", "steps": 9, "solver": "heun", "grid": "karras"})
    about: Any = {"a": 1}
    made: Any = export.model_of(known, parts, source(), about)
    assert (made.name, made.denoiser, made.encoder) == ("r", "model denoiser", "encoder")
    assert made.shape == (1, 4, 4) and made.decode == "decode" and made.card == {"a": 1}
    assert made.nets == {"weak": ("weak denoiser", "own")}
    assert made.classifiers == {"classifier": "c", "clip": "n", "clean_clip": "k"}
    assert made.judge == "j"
    assert made.defaults == {"guidance": "cfg(4)", "steps": 9, "solver": "heun", "grid": "karras"}
    parts["measuring_clip"] = "m"
    assert export.model_of(known, parts, source(), about).judge == "m"
    bare: Any = export.model_of(known, {"model": Alone("model")}, source(), about)  # type: ignore[dict-item]
    assert bare.nets == {} and bare.classifiers == {} and bare.judge is None


def test_the_guidance_that_a_model_recommends(monkeypatch):
    guidance = lambda wanted, encoder: export._guidance(
        recipe(**({"export": {"guidance": wanted}} if wanted else {})), encoder
    )
    assert guidance("cfg(4) | rescale(0.5)", "encoder") == "cfg(4) | rescale(0.5)"
    assert guidance("cfg(4) | rescale(0.5)", None) == "uncond | rescale(0.5)"
    assert guidance("cfg(4)", None) == "uncond"
    usual = recipe().export.guidance
    assert guidance(None, "encoder") == usual
    monkeypatch.setattr(export, "low_of", lambda encoder: "low")
    assert guidance(None, "encoder") == f"{usual} | threshold(0.995)"
    assert guidance("cfg(4)", "encoder") == "cfg(4)"


def test_early_weights_are_networks_by_their_steps(monkeypatch, tmp_path):
    known = recipe(model={**NET, "snapshots": [0.25, 0.5]})
    modules = []

    def build_part(*given):
        net: Any = nn.Linear(1, 1)
        net.denoiser, net.encoder = len(modules), SimpleNamespace(alone=lambda: "encoder")
        modules.append((given, net))
        return SimpleNamespace(module=net)

    monkeypatch.setattr(export, "build_part", build_part)
    read: list[Any] = []
    weights = {"weight": torch.tensor([[5.0]])}
    monkeypatch.setattr(export, "_snapshot", lambda file: read.append(file) or weights)
    data = source()
    found = export._snapshots(known, tmp_path, data)
    assert found == {"step-2": (0, "encoder"), "step-4": (1, "encoder")}
    assert [f.name for f in read] == ["model-000002.safetensors", "model-000004.safetensors"]
    given, net = modules[0]
    assert given == (known, "model", data, tmp_path)
    assert float(net.weight) == 5.0 and not net.training and not net.weight.requires_grad
    left_out = recipe(model={**NET, "snapshots": [0.25]}, export={"snapshots": False})
    assert export._snapshots(left_out, tmp_path, data) == {}


def test_early_weights_that_cannot_be_read(tmp_path):
    file = tmp_path / "s.safetensors"
    for write in (None, b"x"):
        if write:
            file.write_bytes(write)
        with pytest.raises(Exception, match=r"cannot be read .*; set export.snapshots = false"):
            export._snapshot(file)


def test_what_a_card_says(monkeypatch, tmp_path):
    states = {"model": {"seconds": 10.6, "loss": 0.1234567}, "judge": {"seconds": 3.2, "loss": 1.0}}
    monkeypatch.setattr(export, "checkpoint", lambda out, part: (out, part))
    monkeypatch.setattr(export, "read_checkpoint", lambda at: states[at[1]] if at[0] == "o" else 0)
    examined = noted(monkeypatch, export, "examine_parts", {"examined": 1})
    noted(monkeypatch, export, "identify", "identity")
    noted(monkeypatch, export, "machine", "machine")
    noted(monkeypatch, export, "scheduler_config", "scheduler")
    units = SimpleNamespace(mean=torch.tensor([1.0]), std=torch.tensor([2.0]))
    noted(monkeypatch, export, "standardiser_of", units)
    data = source({"label": Column(kind="class", classes=("a",))})
    trained: Any = {"model": nn.Linear(2, 3), "judge": nn.Linear(1, 1)}
    about = export._about(recipe(), "o", trained, data, "aside", "command")  # type: ignore[arg-type]
    assert about.pop("recipe")["name"] == "r"  # type: ignore[index]
    assert about.pop("summary").startswith("samples of [1, 4, 4], conditional on label, ")  # type: ignore[union-attr]
    assert len(about.pop("averages")) == 1  # type: ignore[arg-type]
    assert about == {
        "licence": "unknown",
        "data": "p (images, 4 training samples)",
        "data_identity": "identity",
        "scheduler": "scheduler",
        "shape": [1, 4, 4],
        "command": "command",
        "machine": "machine",
        "parameters": {"model": 9, "judge": 2},
        "seconds": {"model": 11, "judge": 3},
        "loss": {"model": 0.12346, "judge": 1.0},
        "scale": {"mean": [1.0], "std": [2.0]},
        "examined": 1,
    }
    assert examined[0][0][1:] == (trained, data, "aside")
    noted(monkeypatch, export, "standardiser_of", None)
    asked = noted(monkeypatch, export, "captions_of", ["b", "a", "b"])
    trained = {"model": nn.Linear(1, 1), "measuring_clip": nn.Linear(1, 1)}
    states["measuring_clip"] = states["judge"]
    own = recipe(summary="s", licence="MIT")
    about = export._about(own, "o", trained, data, None, "c")  # type: ignore[arg-type]
    assert about["captions"] == ["a", "b"] and "scale" not in about
    assert (about["summary"], about["licence"]) == ("s", "MIT")
    assert asked == [((data, range(4)), {"shortest": True})]
    many = source(count=20_001)
    export._about(own, "o", trained, many, None, "c")  # type: ignore[arg-type]
    assert asked[1][0][1] == range(20_000)


def test_what_a_card_says_of_conditions_and_data():
    label = {"label": Column(kind="class", classes=("a",))}
    words = lambda **more: export._summary(recipe(**more), source(label))
    kind = f"{recipe().predicts()}-prediction ({recipe().schedule.kind})"
    assert words() == f"samples of [1, 4, 4], conditional on label, {kind}"
    assert words(conditions={}) == f"samples of [1, 4, 4], unconditional, {kind}"
    assert words(conditions={"a": {}, "b": {}}).count("conditional on a, b, ") == 1
    data = lambda count=4, **more: export._data(
        recipe(data={"path": "p", **more}), SimpleNamespace(size=count)  # type: ignore[arg-type]
    )  # fmt: skip
    assert data() == "p (images, 4 training samples)"
    assert data(60_000) == "p (images, 60,000 training samples)"
    assert data(None, kind="shards") == "p (shards, a stream)"
    assert data(about="mine") == "mine"
    assert data(kind="fashion-mnist", about="x").startswith("Fashion-MNIST (60,000 training and")


# Students


def lesson(method="progressive", scale=(1.0, 4.0), summary="", licence="", **more):
    spec = SimpleNamespace(
        method=method, scale=scale, rank=None, stages=lambda: [("a", 8), ("b", 4)],
        spacing=lambda model: f"grid of {model.name}",
    )  # fmt: skip
    dump = lambda **given: {"dumped": given}
    made = SimpleNamespace(student=spec, name="s", summary=summary, licence=licence,
                           model_dump=dump)  # fmt: skip
    model = SimpleNamespace(
        name="teacher", schedule="schedule", shape=(1, 4, 4), decode="decode",
        classifiers={"c": 1}, judge="judge", card={"scheduler": "x", "other": 2, "licence": "L"},
        defaults={"guidance": "cfg(3)", "steps": 50, "solver": "heun", "extra": 1},
    )  # fmt: skip
    teacher = SimpleNamespace(guidance="cfg(w)")
    found: Any = SimpleNamespace(
        recipe=made, model=model, teacher=teacher, source="source", begun=None
    )
    return found


@pytest.fixture
def noting(monkeypatch):
    states = {
        "a": {"seconds": 1.6, "loss": 0.12345678, "module": {"x": torch.zeros(2, 3)}},
        "b": {"seconds": 9.2, "loss": 2.0, "module": {"x": torch.zeros(4), "y": torch.zeros(1)}},
    }
    monkeypatch.setattr(students, "checkpoint", lambda out, stage: stage)
    monkeypatch.setattr(students, "read_checkpoint", states.__getitem__)
    noted(monkeypatch, students, "identify", "identity")
    noted(monkeypatch, students, "machine", "machine")
    noted(monkeypatch, students, "stage_settings", "settings")
    averages = [SimpleNamespace(name="0.99"), SimpleNamespace(name="power")]
    noted(monkeypatch, students, "profiles", averages)
    dumped = lambda *given: SimpleNamespace(model_dump=lambda **more: (given[-1], more))
    monkeypatch.setattr(students, "training", dumped)
    monkeypatch.setattr(students, "data_of", dumped)
    noted(monkeypatch, students, "finished_stage", Alone("student"))
    noted(monkeypatch, students, "describe_pipeline", "pipeline")
    return SimpleNamespace(
        saved=noted(monkeypatch, students, "save"), cards=noted(monkeypatch, students, "write_card")
    )


def test_what_a_students_card_says(noting, tmp_path):
    given = lesson()
    about: Any = students._about(given, tmp_path, "command", 1)
    json = {"mode": "json"}
    assert about == {
        "scheduler": "x",
        "summary": "a student of teacher: cfg(w) for w in [1, 4] in one pass, in 4 steps",
        "licence": "L",
        "data_identity": "identity",
        "averages": ["0.99"],
        "command": "command",
        "machine": "machine",
        "parameters": {"a": 6, "b": 5},
        "recipe": {"a": {"train": ("a", json)}, "b": {"train": ("b", json)},
                   "data": (given.model, {**json, "exclude_none": True})},
        "seconds": {"a": 2, "b": 9},
        "loss": {"a": 0.123457, "b": 2.0},
        "student": {"teacher": "teacher", "guidance": "cfg(w)", "scale": [1.0, 4.0],
                    "method": "progressive", "stages": ["a", "b"]},
        "distillation": {"dumped": {**json, "exclude_none": True}},
    }  # fmt: skip
    early: Any = students._about(lesson("guided", None), tmp_path, "c", 0)
    assert early["summary"] == "a student of teacher: cfg(w) in one pass"
    assert early["student"]["scale"] is None and list(early["seconds"]) == ["a"]
    own: Any = students._about(lesson(summary="s", licence="MIT"), tmp_path, "c", 0)
    assert (own["summary"], own["licence"]) == ("s", "MIT")
    bare = lesson()
    bare.model.card = {}
    assert students._about(bare, tmp_path, "c", 0)["licence"] == "unknown"


@pytest.mark.parametrize(
    ("method", "index", "name", "changed"),
    [
        ("progressive", -1, "s", {"steps": 4, "grid": "grid of teacher", "solver": "ddim"}),
        ("progressive", 0, "s-8", {"steps": 8, "grid": "grid of teacher", "solver": "ddim"}),
        ("consistency", 1, "s", {"steps": 4, "grid": "grid of teacher", "solver": "consistency"}),
        ("meanflow", 1, "s", {"steps": 4, "grid": "grid of teacher", "solver": "meanflow"}),
        ("guided", -1, "s", {}),
        ("trajectory", -1, "s", {"steps": 4, "grid": "fitted", "solver": "ddim"}),
    ],
)
def test_a_student_is_assembled_from_its_teacher(
    noting, monkeypatch, tmp_path, method, index, name, changed
):
    grid = [SimpleNamespace(rho=r) for r in (9.0, 3.0, 1.0, 0.0)]
    noted(monkeypatch, students, "make_paths", "paths")
    ran = noted(monkeypatch, students, "runs_of", (grid, (0, 2, 3)))
    given = lesson(method)
    made: Any = students.assemble_student(given, tmp_path, command="c", index=index)
    assert made.name == name and made.denoiser == "student denoiser"
    assert (made.schedule, made.shape, made.decode, made.judge) == (
        "schedule", (1, 4, 4), "decode", "judge"
    )  # fmt: skip
    assert made.encoder == "encoder" and made.classifiers == {"c": 1}
    usual = {**given.model.defaults, "guidance": "cond", **changed}
    assert made.defaults == usual
    assert noting.saved == [((made, tmp_path / name), {})]
    card = {**made.card, "defaults": usual, "diffusers": "pipeline"}
    assert noting.cards == [((name, card, tmp_path / name), {})]
    if method == "trajectory":
        assert made.card["grids"] == {"4": [9.0, 1.0, 0.0]}
        assert ran == [((given, 1, "paths"), {})]
    else:
        assert "grids" not in made.card and not ran


def test_a_student_without_conditions_is_unconditional(noting, monkeypatch, tmp_path):
    noted(monkeypatch, students, "finished_stage", Alone("student", None))
    made = students.assemble_student(lesson("guided"), tmp_path)
    assert made.defaults["guidance"] == "uncond"


# Cascades


class Stages:
    """A cascade's recipe, whose stages are named."""

    name, summary, licence, clip = "cas", "", "", None

    def __init__(self, **more: Any) -> None:
        self.stages = {"base": 1, "large": 2}
        vars(self).update(more)

    def chosen(self, only):
        return [s for s in self.stages if only is None or s in only]

    def recipe(self, stage, out):
        return f"recipe of {stage}"


@pytest.fixture
def trained(monkeypatch):
    found = SimpleNamespace(runs=[], built=[], answer=True)

    def train(recipe, work, report, **more):
        found.runs.append((recipe, work, more))
        if report:
            report("model", "progress", 9)
        return found.answer

    def assemble(recipe, work, *, command, folder):
        found.built.append((recipe, work, command, folder))
        folder.mkdir(parents=True)
        (folder / cascade.NAME).write_text("{}")

    monkeypatch.setattr(cascade, "train", train)
    monkeypatch.setattr(cascade, "assemble", assemble)
    monkeypatch.setattr(cascade, "finish_cascade", lambda *given: given)
    return found


def test_stages_are_trained_one_after_the_other(trained, tmp_path):
    spec: Any = Stages()
    heard: list[Any] = []
    found = cascade.train_cascade(spec, tmp_path, lambda *w: heard.append(w), say=print,
                                  accept_data=True, command="c")  # type: ignore[arg-type]  # fmt: skip
    assert found == (spec, tmp_path, "c")
    more = {"stop": None, "say": print, "accept_data": True}
    assert trained.runs == [(f"recipe of {s}", tmp_path / "stages" / s, more)
                            for s in ("base", "large")]  # fmt: skip
    assert [(b[2], b[3]) for b in trained.built] == [("c", tmp_path / "cas" / s)
                                                     for s in ("base", "large")]  # fmt: skip
    assert heard == [(f"{s}/model", "progress", 9) for s in ("base", "large")]


def test_a_cascade_that_is_not_whole_is_not_written(trained, tmp_path):
    spec: Any = Stages()
    assert cascade.train_cascade(spec, tmp_path, only=["large"]) is None
    assert len(trained.runs) == len(trained.built) == 1
    stop: Any = SimpleNamespace(agreed=True)
    assert cascade.train_cascade(spec, tmp_path, only=["base"], stop=stop) is None
    assert len(trained.built) == 1
    trained.answer = False
    assert cascade.train_cascade(spec, tmp_path, only=["base"]) is None and len(trained.built) == 1
    trained.answer = True
    assert cascade.train_cascade(spec, tmp_path, only=["base"]) == (
        spec,
        tmp_path,
        "guidestar train",
    )


def test_later_stages_need_the_text_encoder_of_the_first(trained, tmp_path):
    spec: Any = Stages(clip="clip")
    with pytest.raises(ValueError, match="'large' needs the text encoder that is trained with 'ba"):
        cascade.train_cascade(spec, tmp_path, only=["large"])
    assert not trained.runs
    assert cascade.train_cascade(spec, tmp_path) is not None


def test_what_a_cascades_folder_says(monkeypatch, tmp_path):
    model = SimpleNamespace(shape=(1, 8, 8), card={"parameters": {"model": 12345}},
                            defaults={"guidance": "cfg(2)", "steps": 9})  # fmt: skip
    read = noted(monkeypatch, cascade, "read_about", {"recipe": {"a": 1}, "other": 2})
    index = noted(monkeypatch, cascade, "write_cascade_index")
    made = SimpleNamespace(stages={"base": model, "large": model})
    noted(monkeypatch, cascade, "load_cascade", made)
    (tmp_path / "cas").mkdir()
    assert cascade.finish_cascade(Stages(), tmp_path, "c") is made  # type: ignore[arg-type]
    about = {"summary": "a cascade of 2 stages", "licence": "unknown", "command": "c",
             "recipe": {"a": 1}}  # fmt: skip
    assert index == [((tmp_path / "cas", ["base", "large"], about), {})]
    assert read == [((tmp_path / "cas" / "large",), {})]
    text = (tmp_path / "cas" / "README.md").read_text()
    assert text.startswith("# cas\n\na cascade of 2 stages. Licence: unknown.\n\n")
    wanted = ["[base](base/README.md)", "1 × 8 × 8", "12,345", "`cfg(2)`", "9"]
    rows = [[w.strip() for w in line.strip("|").split("|")] for line in text.splitlines()]
    assert wanted in rows
    assert f"guidestar upscale {tmp_path / 'cas' / 'large'} picture.png" in text
    own: Any = Stages(summary="s", licence="MIT")
    cascade.finish_cascade(own, tmp_path, "c")
    assert (index[1][0][2]["summary"], index[1][0][2]["licence"]) == ("s", "MIT")
