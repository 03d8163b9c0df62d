"""A training that is resumed finds the data that it was started with, or says what changed."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from guidestar.apps.measure import references
from guidestar.train import run
from guidestar.train.export import assemble
from guidestar.train.loop import origins
from guidestar.train.recipe import schema as recipes

TEXT = """
name = "tiny"
[data]
kind = "images"
path = "{path}"
size = 8
holdout = 0.25
{more}
[model]
widths = [8]
head = 8
train = {{ steps = 2, batch = 2 }}
[classifier]
widths = [8]
train = {{ steps = 2, batch = 2 }}
[judge]
widths = [8]
train = {{ steps = 2, batch = 2 }}
[export]
steps = 2
"""


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    for k, name in enumerate(("cat", "dog")):
        for i in range(8):
            picture(tmp_path / "photos" / name / f"{i}.png", 100 * k + i)
    return tmp_path / "photos"


def recipe(tmp_path, path, more=""):
    (tmp_path / "r.toml").write_text(TEXT.format(path=path, more=more))
    return recipes.read_recipe(tmp_path / "r.toml")


def resumed(tmp_path, path, part, **more):
    """Make a step of a part that has come half-way."""
    return run.train(recipe(tmp_path, path), tmp_path / "out", only=[part], **more)


PARTS = ("model", "classifier", "judge")


@pytest.mark.slow
def test_every_part_refuses_a_renamed_class_and_added_pictures(tmp_path, photos):
    for part in PARTS:
        resumed(tmp_path, photos, part)
    before = {part: (tmp_path / "out" / "parts" / f"{part}.pt").read_bytes() for part in PARTS}
    resumed(
        tmp_path, shutil.copytree(photos, tmp_path / "elsewhere"), "model"
    )  # moved, and the same

    renamed = shutil.copytree(photos, tmp_path / "renamed")
    (renamed / "cat").rename(renamed / "zebra")  # dog becomes class 0
    for part in PARTS:
        for accept in (False, True):
            with pytest.raises(
                ValueError,
                match=r"other data \(the classes of 'label' now lack 'cat' and have 'zebra'\)",
            ) as caught:
                resumed(tmp_path, renamed, part, accept_data=accept)
            assert "\n" not in str(caught.value) and "--accept-data" not in str(caught.value)

    more = shutil.copytree(photos, tmp_path / "more")
    picture(more / "cat" / "new.png", 1000)
    for part in PARTS:
        with pytest.raises(
            ValueError, match=r"other data \(there were 12 samples and are 13\); .*--accept-data"
        ):
            resumed(tmp_path, more, part)
    assert before == {
        part: (tmp_path / "out" / "parts" / f"{part}.pt").read_bytes() for part in PARTS
    }
    with pytest.warns(UserWarning, match=r"there were 12 samples and are 13\), which was accepted"):
        resumed(tmp_path, more, "model", accept_data=True)

    changed = shutil.copytree(photos, tmp_path / "changed")
    picture(changed / "dog" / "3.png", 1001)
    with pytest.raises(ValueError, match="or the values of their columns, have changed"):
        resumed(tmp_path, changed, "model")


def test_what_was_accepted_is_what_the_next_checkpoint_is_made_from(tmp_path, photos):
    half = recipe(tmp_path, photos)
    steps = run.train_part(half, "model", tmp_path / "out", run.sources(half)[0])
    next(steps)
    steps.close()
    picture(photos / "cat" / "new.png", 1000)
    with pytest.warns(UserWarning, match="accepted"):
        resumed(tmp_path, photos, "model", accept_data=True)
    resumed(tmp_path, photos, "model")
    state = torch.load(tmp_path / "out" / "parts" / "model.pt", weights_only=True)
    assert (
        state["done"] == 2
        and state["data"]["size"] == 13
        and state["data"]["columns"] == {"label": ["class", ["cat", "dog"]]}
    )


def test_a_checkpoint_that_names_no_data_is_taken_up_where_that_is_accepted(tmp_path, photos):
    resumed(tmp_path, photos, "judge")
    file = tmp_path / "out" / "parts" / "judge.pt"
    state = torch.load(file, weights_only=True)
    del state["data"]
    torch.save(state, file)
    with pytest.raises(ValueError, match="of unknown identity"):
        resumed(tmp_path, photos, "judge")
    with pytest.warns(UserWarning, match="accepted"):
        resumed(tmp_path, photos, "judge", accept_data=True)


def test_a_model_is_measured_on_the_classes_it_was_trained_on(tmp_path, photos):
    whole = recipe(tmp_path, photos)
    run.train(whole, tmp_path / "out")
    model = assemble(whole, tmp_path / "out")
    references(model)
    other = shutil.copytree(photos, tmp_path / "renamed")
    (other / "cat").rename(other / "zebra")
    with pytest.raises(ValueError, match=r"not those that 'tiny' was trained on \(the classes"):
        references(model, other)
    picture(photos / "cat" / "new.png", 1000)
    with pytest.warns(UserWarning, match="held out may have been trained on"):
        references(model)


def test_other_units_are_not_accepted(tmp_path, photos):
    with pytest.raises(ValueError, match="takes its units from the data"):
        run.train(
            recipe(tmp_path, photos, "standardise = true"), tmp_path / "out", accept_data=True
        )


def test_digests_follow_names_values_and_shapes():
    a = {"x": torch.arange(6.0), "y": torch.zeros(2, dtype=torch.bfloat16)}
    assert origins.of_tensors(a) == origins.of_tensors(dict(reversed(a.items())))
    others = [
        {"x": a["x"].view(2, 3), "y": a["y"]},
        {"x": a["x"].double(), "y": a["y"]},
        {"x": a["x"] + 1, "y": a["y"]},
        {"z": a["x"], "y": a["y"]},
    ]
    assert len({origins.of_tensors(t) for t in (a, *others)}) == 5


def test_another_vae_is_another_training(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "w.safetensors").write_bytes(b"1")
    one = origins.of_files(tmp_path)
    (tmp_path / "README.md").write_text("x")
    assert origins.of_files(tmp_path) == one
    (tmp_path / "w.safetensors").write_bytes(b"2")
    assert origins.of_files(tmp_path) != one
