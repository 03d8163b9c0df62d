"""What one function of a training hands to the next: every argument, whatever it is called by."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.levels import VP
from guidestar.data.pictures import PictureFormat
from guidestar.data.source import Column, InMemory
from guidestar.networks.network import Network
from guidestar.sampling.grids import karras, uniform
from guidestar.train import export
from guidestar.train import run as runs
from guidestar.train.build import data as build
from guidestar.train.objectives.consistency_distillation import ConsistencyDistillation
from guidestar.train.objectives.guided_distillation import GuidedDistillation
from guidestar.train.objectives.progressive_distillation import ProgressiveDistillation
from guidestar.train.recipe.parts import Training
from guidestar.train.recipe.schema import checked, explain
from guidestar.train.recipe.tables import Data
from guidestar.train.students import stages
from guidestar.train.students.lora import LoRA
from guidestar.train.students.recipe import Student
from helpers.noting import noted

STEP = {"steps": 8}
PARTS = {"model": {"widths": [32], "train": STEP}}


def recipe(**tables: Any):
    return checked({"name": "r", "data": {"path": "p"}, **PARTS, **tables}, "r.toml")


@pytest.mark.parametrize(("kind", "reader"), [("images", "image_folder"), ("parquet", "parquet")])
def test_pictures_are_read_as_the_recipe_says(monkeypatch, kind, reader):
    calls = noted(monkeypatch, build, reader, "read")
    said: list[str] = []
    spec = Data(kind=kind, path="p", size=24, channels=1, crop="random", flip=True, max_bad=3,
                cache="c", columns={"a": "class"}, classes=("x", "y"))  # fmt: skip
    assert build._read(recipe(), spec, "p", said.append) == "read"
    ((path, format), more) = calls[0]
    assert path == "p" and format == PictureFormat(
        size=24, channels=1, crop="random", flip=True, enlarge=True
    )
    assert more == {"columns": {"a": "class"}, "classes": ("x", "y"), "max_bad": 3,
                    "cache": Path("c"), "say": said.append}  # fmt: skip
    build._read(recipe(), spec.model_copy(update={"cache": None}), "p", None)
    assert calls[1][1]["cache"] is None and calls[1][1]["say"] is None


def test_shards_are_read_as_the_recipe_says(monkeypatch):
    calls = noted(monkeypatch, build, "Shards")
    spec = Data(kind="shards", path="p", shuffle=7, max_bad=2, classes=("x",))
    build._read(recipe(seed=5), spec, "p", None)
    assert calls[0][1] == {"classes": ("x",), "buffer": 7, "seed": 5, "max_bad": 2, "say": None}


def test_pictures_have_the_channels_of_a_vae(monkeypatch, tmp_path):
    calls = noted(monkeypatch, build, "image_folder")
    for text, channels in (('{"in_channels": 1}', 1), ("{}", 3)):
        (tmp_path / "config.json").write_text(text)
        build._read(recipe(), Data(path="p", vae=str(tmp_path)), "p", None)
        assert calls[-1][0][1].channels == channels


def test_the_units_of_a_source_within_others():
    held = InMemory(x=torch.tensor([[1.0], [3.0]]), targets={}, columns={})
    scaled = build.Standardised(source=held, scale=build.Standardiser.of(held.x))
    assert build.standardiser_of(scaled) is scaled.scale
    assert build.standardiser_of(build.Subset(source=scaled, kept=(0,))) is scaled.scale
    assert build.standardiser_of(held) is None and build.standardiser_of(None) is None
    columns = {"a": Column(kind="class", classes=("x",)), "b": Column(kind="vector", width=1)}
    assert build._classes(InMemory(x=held.x, targets={}, columns=columns)) == ("x",)
    two = {"a": columns["a"], "b": columns["a"]}
    assert build._classes(InMemory(x=held.x, targets={}, columns=two)) == ()


def test_a_model_is_assembled_from_its_folder(monkeypatch, tmp_path):
    read = noted(monkeypatch, export, "sources", ("source", "aside"))
    taken = noted(monkeypatch, export, "averaged", "net")
    about = noted(monkeypatch, export, "_about", {})
    made = SimpleNamespace(name="m", card={"a": 1}, defaults={"steps": 3}, nets={})
    built = noted(monkeypatch, export, "model_of", made)
    noted(monkeypatch, export, "_snapshots", {"step-2": 1})
    saved = noted(monkeypatch, export, "save")
    averages = noted(monkeypatch, export, "write_average")
    card = noted(monkeypatch, export, "write_card")
    noted(monkeypatch, export, "describe_pipeline", "words")
    known = recipe(model={"widths": [32], "train": {**STEP, "power": [0.1]}})
    assert export.assemble(known, tmp_path, command="c") is made
    assert read == [((known,), {"out": tmp_path})]
    assert taken[0] == ((known, "model", tmp_path, "source"), {})
    assert about[0][0] == (known, tmp_path, {"model": "net"}, "source", "aside", "c")
    assert built[0][0] == (known, {"model": "net"}, "source", {}, tmp_path)
    assert made.nets == {"step-2": 1}
    assert saved == [((made, tmp_path / "r"), {})]
    assert len(averages) == 1 and averages[0][0][0] == "net"
    name = averages[0][0][2]
    assert taken[1][0] == (known, "model", tmp_path, "source", name) and "0.1" in name
    whole = {"a": 1, "defaults": {"steps": 3}, "diffusers": "words"}
    assert card == [(("m", whole, tmp_path / "r"), {})]


def test_a_part_is_trained_with_what_was_given(monkeypatch, tmp_path):
    made = noted(monkeypatch, runs, "Trainer", SimpleNamespace(done=0))
    ran: list[Any] = []

    def fit(trainer, path, **more):
        ran.append((path, more))
        yield from ()

    built = SimpleNamespace(module=nn.Linear(1, 1), objective="objective", prepare="prepare")
    noted(monkeypatch, runs, "build_part", built)
    noted(monkeypatch, runs, "Board", SimpleNamespace(close=lambda: None, add=print))
    noted(monkeypatch, runs, "describe_origin", {"a": 1})
    noted(monkeypatch, runs, "read_origins", {"b": 2})
    previews = noted(monkeypatch, runs, "_previews", ["hook"])
    monkeypatch.setattr(runs, "fit", fit)
    source = InMemory(x=torch.zeros(4, 2), targets={}, columns={})
    for every in (0, 3):
        known = recipe(checkpoint_seconds=7.0, keep_checkpoints=3, preview={"every": every})
        list(runs.train_part(known, "model", tmp_path, source, aside="aside",  # type: ignore[arg-type]
                             stop="stop", accelerator="a", accept_data=True))  # type: ignore[arg-type]  # fmt: skip
    (module, objective, data, _, origin), more = made[0]
    assert (module, objective, data, origin) == (
        built.module,
        "objective",
        source,
        {"a": 1, "b": 2},
    )
    assert more == {"prepare": "prepare", "accelerator": "a", "accept_data": True}
    path, given = ran[0]
    assert path == tmp_path / "parts" / "model.pt"
    assert (given["every"], given["keep"], given["stop"], len(given["after"])) == (
        7.0,
        3,
        "stop",
        1,
    )
    assert len(previews) == 1 and ran[1][1]["after"][1:] == ["hook"]
    assert previews[0][0][1:5] == ("model", tmp_path, source, "aside")


def test_accepted_data_need_units_of_their_own(tmp_path):
    source = InMemory(x=torch.zeros(4, 2), targets={}, columns={})
    known = recipe(data={"kind": "tensors", "path": "p", "standardise": True})
    with pytest.raises(ValueError, match="takes its units from the data, so a training cannot go"):
        next(runs.train_part(known, "model", tmp_path, source, accept_data=True))


def test_early_weights_are_kept_after_shares_of_the_steps():
    spec = {"widths": [32], "snapshots": [0.01, 0.25, 0.26, 1.0], "train": STEP}
    assert runs.snapshot_steps(recipe(model=spec), "model") == [1, 2, 8]
    assert runs.snapshot_steps(recipe(), "model") == []
    path = runs.snapshot_file(Path("o"), "model", 25)
    assert path == Path("o/snapshots/model-000025.safetensors")


def test_what_previews_are_drawn_of(monkeypatch):
    drawn = noted(monkeypatch, runs, "preview_hook", "drawn")
    again = noted(monkeypatch, runs, "reconstruction_hook", "again")
    source = InMemory(x=torch.zeros(4, 2), targets={}, columns={})
    aside = InMemory(x=torch.ones(4, 2), targets={}, columns={})
    own = {"widths": [8], "train": STEP}
    known = recipe(autoencoder=own, data={"path": "p", "vae": "autoencoder", "size": 32},
                   classifier={"widths": [8], "train": STEP})  # fmt: skip
    out, board = Path("o"), SimpleNamespace()
    given: Any = (out, source, aside, board)
    assert runs._previews(known, "model", *given) == ["drawn"]
    assert drawn == [((known, "model", out, source, board), {})]
    assert runs._previews(known, "autoencoder", *given) == ["again"]
    assert again[0][0] == (known, "autoencoder", out, aside, board)
    runs._previews(known, "autoencoder", out, source, None, board)  # type: ignore[arg-type]
    assert again[1][0][3] is source
    assert runs._previews(known, "classifier", *given) == []


class Net(nn.Module):
    def forward(self, x, t):
        return x


def teacher(predicts: Any = "v", sigma_data=0.5):
    denoiser = Network(Net(), predicts=predicts, sigma_data=sigma_data)
    return SimpleNamespace(denoiser=denoiser, schedule=VP.linear())


def student(**more: Any) -> Student:
    train = Training(steps=9)
    return Student(**{"teacher": "t", "train": train, "steps": 4, "start": 16, **more})


def test_each_stage_has_its_objective():
    given: Any = teacher()
    spec = student(dropout=0.25, weighting="snr+1")
    found: Any = stages._objective(spec, "student-4", 4, given)
    assert isinstance(found, ProgressiveDistillation) and found.teacher is given
    assert (found.dropout, found.scale, found.weighting) == (0.25, None, "snr+1")
    assert list(found.grid) == list(uniform(VP.linear(), 4))
    assert list(found.walked) == list(uniform(VP.linear(), 8))
    found = stages._objective(student(), "guided", 4, given)
    assert isinstance(found, GuidedDistillation)
    assert (found.levels.mean, found.levels.std, found.levels.data_std) == (0.0, 1.5, 1.0)  # type: ignore[attr-defined]
    spec = student(method="consistency", finest=32)
    found = stages._objective(spec, "consistency", 4, given)
    assert isinstance(found, ConsistencyDistillation)
    assert (found.steps, found.first, found.last) == (9, 4, 32)
    assert found.spacing is uniform
    found = stages._objective(student(method="consistency", grid="karras"), "consistency", 4, given)
    assert found.spacing is karras


def test_a_guided_student_is_weighted_in_what_it_predicts():
    found: Any = stages.weighting(teacher("eps"))  # type: ignore[arg-type]
    assert found.space == "eps"
    found = stages.weighting(teacher("edm", 0.7))  # type: ignore[arg-type]
    assert found.sigma_data == 0.7
    other: Any = SimpleNamespace(denoiser=print)
    assert stages.weighting(other).space == "v"  # type: ignore[attr-defined]


def test_prompts_are_kept_for_a_classifier_that_reads_them():
    parts = {"caption": SimpleNamespace(tokenizer=1), "label": SimpleNamespace()}
    encoder: Any = SimpleNamespace(parts=parts, rows=lambda targets: "rows")
    targets: Any = {"caption": ["a", "b"]}
    clip: Any = SimpleNamespace(classifiers={"clip": 1})
    batch = stages.prepare(encoder, clip)(targets)
    assert batch == {"rows": "rows", "prompts": ["a", "b"]}
    none: Any = SimpleNamespace(classifiers={})
    assert stages.prepare(encoder, none)(targets) == {"rows": "rows"}
    bare: Any = SimpleNamespace(parts={"label": parts["label"]}, rows=lambda targets: "rows")
    assert stages.prepare(bare, clip)(targets) == {"rows": "rows"}


def test_a_loras_numbers():
    given: Any = {"teacher": "t", "guidance": "cfg(2)", "prompts": ("a",), "train": None}
    assert LoRA(**given, rank=1, samples=1).samples == 1
    for more, text in [
        ({"rank": 0}, "the rank of a LoRA must be at least 1, not 0"),
        ({"samples": 0}, "the teacher must give at least 1 sample, not 0"),
        ({"prompts": ()}, "there are no prompts to distil on"),
        ({"guidance": "cfg(w)"}, "a LoRA has no input for the scale w"),
    ]:
        with pytest.raises(ValueError, match=text):
            LoRA(**{**given, **more})


def test_as_many_mistakes_as_are_listed():
    from pydantic import BaseModel

    class Many(BaseModel):
        pass

    for count, more in ((12, ""), (13, "; and 1 more"), (15, "; and 3 more")):
        errors = [{"loc": (f"k{i}",), "type": "missing", "msg": ""} for i in range(count)]
        error: Any = SimpleNamespace(errors=lambda errors=errors: errors)
        listed = "; ".join(f"missing key 'k{i}'" for i in range(12))
        assert explain(error, Many) == listed + more


@pytest.mark.parametrize(("size", "scales", "fits"), [(4, 2, True), (8, 2, True), (4, 3, False)])
def test_pictures_are_large_enough_for_an_autoencoders_scales(size, scales, fits):
    own = {"widths": [8, 8], "scales": scales, "train": STEP}
    given: Any = {"autoencoder": own, "data": {"path": "p", "vae": "autoencoder", "size": size}}
    if fits:
        found: Any = recipe(**given).autoencoder
        assert found.scales == scales
    else:
        with pytest.raises(ValueError, match="pictures of 4 cannot be halved 3 times"):
            recipe(**given)
