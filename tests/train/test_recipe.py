"""Recipes say everything about a training; what is misspelt, missing or changed is named."""

import os
from pathlib import Path

import pytest
import torch

from guidestar.train import run, snapshots
from guidestar.train.build import networks as build
from guidestar.train.build.data import sources
from guidestar.train.recipe import schema as recipes
from helpers.recipes import use_six_pictures

SHIPPED = Path(__file__).parents[2] / "recipes" / "fashion-mnist.toml"
SMALL = """
name = "small"
[data]
kind = "fashion-mnist"
[levels]
mean = -0.3
[model]
widths = [8, 8]
head = 8
snapshots = [0.5, 1]
train = { steps = 4, batch = 2, warmup = 1 }
[classifier]
widths = [8, 8]
train = { steps = 2, batch = 2, precision = "bfloat16" }
[judge]
widths = [8, 8]
shift = 1
train = { steps = 2, batch = 2 }
"""


def written(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_the_shipped_recipe_reads():
    recipe = recipes.read_recipe(SHIPPED)
    assert recipe.parts() == ["model", "weak", "classifier", "judge"]
    assert recipe.model.widths == (32, 64, 96) and recipe.model.snapshots == (1 / 16, 1 / 8, 1 / 4)
    assert (
        recipe.weak.widths == (16, 32, 48)
        and recipe.weak.train.steps == recipe.model.train.steps // 4
    )


WRONG = {
    "a misspelt key": (
        "steps = 4",
        "stesp = 4",
        r"unknown key 'model.train.stesp' \(did you mean 'steps'\?\)",
    ),
    "a misspelt table": ("[judge]", "[jugde]", r"unknown key 'jugde' \(did you mean 'judge'\?\)"),
    "a misspelt key of an optional table": (
        "shift = 1",
        "shfit = 1",
        r"unknown key 'judge.shfit' \(did you mean 'shift'\?\)",
    ),
    "an unknown key": ("mean = -0.3", "colour = 1", r"unknown key 'levels.colour'$"),
    "a missing key": ('name = "small"', "", r"missing key 'name'$"),
    "a missing key below": ("steps = 4, ", "", r"missing key 'model.train.steps'$"),
    "a word for a number": (
        "steps = 4",
        'steps = "4"',
        r"model.train.steps: input should be a valid integer, not '4'$",
    ),
    "a truth for a number": (
        "steps = 4",
        "steps = true",
        r"model.train.steps: input should be a valid integer, not True$",
    ),
    "a fraction for a count": (
        "steps = 4",
        "steps = 4.5",
        r"model.train.steps: input should be a valid integer",
    ),
    "a number for a list": (
        "snapshots = [0.5, 1]",
        "snapshots = 1",
        r"model.snapshots: [^\n]*, not 1$",
    ),
    "none": (
        "steps = 4",
        "steps = 0",
        r"model.train.steps: input should be greater than 0, not 0$",
    ),
    "infinite": (
        "mean = -0.3",
        "mean = inf",
        r"levels.mean: input should be a finite number, not inf$",
    ),
    "not a number": (
        "mean = -0.3",
        "mean = nan",
        r"levels.mean: input should be a finite number, not nan$",
    ),
    "a snapshot past the end": (
        "snapshots = [0.5, 1]",
        "snapshots = [1.5]",
        r"model.snapshots.0: input should be less than or equal to 1, not 1.5$",
    ),
    "no widths": ("widths = [8, 8]\nhead", "widths = []\nhead", r"model.widths: "),
    "negative widths": (
        "widths = [8, 8]\nhead",
        "widths = [8, -8]\nhead",
        r"model.widths.1: input should be greater than 0, not -8$",
    ),
    "widths that do not group": (
        "widths = [8, 8]\nhead",
        "widths = [8, 12]\nhead",
        r"model: widths must be multiples of groups \(8\), not 12$",
    ),
    "a head wider than the net": (
        "head = 8",
        "head = 16",
        r"model: head must be at most the last width \(8\), not 16$",
    ),
    "betas that fall": (
        "[levels]",
        "[schedule]\nbeta_start = 0.1\n[levels]",
        r"schedule: beta_start must be at most beta_end, not 0.1 and 0.02$",
    ),
    "an unknown choice": (
        '"bfloat16"',
        '"int8"',
        r"classifier.train.precision: input should be 'float32', 'bfloat16' or 'float64', not "
        r"'int8'$",
    ),
    "not TOML": ("[judge]", "[judge", r"is not TOML: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_the_key(tmp_path, name):
    old, new, message = WRONG[name]
    assert old in SMALL
    path = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        recipes.read_recipe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_several_mistakes_are_all_named(tmp_path):
    path = written(tmp_path, SMALL.replace("steps = 4", "stesp = 4").replace("mean", "maen"))
    with pytest.raises(ValueError, match=r"maen[^\n]*model\.train\.steps[^\n]*stesp"):
        recipes.read_recipe(path)


def test_a_recipe_that_cannot_be_read_is_one_line(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in [
        (tmp_path / "none.toml", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (binary, "is not TOML"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            recipes.read_recipe(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small recipe, with little data in place of the real ones."""
    use_six_pictures(monkeypatch)
    return recipes.read_recipe(written(tmp_path, SMALL))


def test_a_recipe_trains_all_its_parts_and_goes_on_where_it_was(tmp_path, small):
    out, seen = tmp_path / "out", []
    run.train(small, out, lambda part, progress, steps: seen.append((part, progress.step, steps)))
    assert seen == [
        *(("model", n, 4) for n in range(1, 5)),
        ("classifier", 1, 2),
        ("classifier", 2, 2),
        ("judge", 1, 2),
        ("judge", 2, 2),
    ]
    assert sorted(os.listdir(out / "parts")) == ["classifier.pt", "judge.pt", "model.pt"]
    assert sorted(os.listdir(out / "snapshots")) == [
        "model-000002.safetensors",
        "model-000004.safetensors",
    ]
    run.train(small, out, lambda *_: pytest.fail("nothing is left to train"))


def test_snapshots_hold_the_averaged_weights_in_half_precision(tmp_path, small):
    from safetensors.torch import load_file

    run.train(small, tmp_path / "out", only=["model"])
    wanted = torch.load(snapshots.checkpoint(tmp_path / "out", "model"), weights_only=True)[
        "averages"
    ]["ema-0.999"]["weights"]
    found = load_file(tmp_path / "out" / "snapshots" / "model-000004.safetensors")
    assert found.keys() == wanted.keys() and all(
        torch.equal(found[k], wanted[k].half()) for k in wanted
    )


def test_a_stopped_recipe_equals_an_unbroken_one(tmp_path, small):
    class Stopped(Exception):
        pass

    def stop(part, progress, steps):
        if (part, progress.step) == ("model", 3):
            raise Stopped

    run.train(small, tmp_path / "whole", only=["model"])
    with pytest.raises(Stopped):
        run.train(small, tmp_path / "broken", stop)
    assert (
        torch.load(snapshots.checkpoint(tmp_path / "broken", "model"), weights_only=True)["done"]
        == 3
    )  # saved as the report failed
    run.train(small, tmp_path / "broken", only=["model"])
    whole, broken = (
        torch.load(snapshots.checkpoint(tmp_path / name, "model"), weights_only=True)
        for name in ("whole", "broken")
    )
    assert all(torch.equal(whole["module"][k], broken["module"][k]) for k in whole["module"])


def test_parts_can_be_chosen(tmp_path, small):
    seen = []
    run.train(
        small, tmp_path / "out", lambda part, *_: seen.append(part), only=["judge", "classifier"]
    )
    assert seen == ["classifier"] * 2 + ["judge"] * 2  # in the recipe's order


def test_a_part_that_the_recipe_has_not_is_refused_before_anything_is_written(tmp_path, small):
    with pytest.raises(
        ValueError,
        match=r"no part 'clasifier' \(did you mean 'classifier'\?\); its parts are model, "
        r"classifier, judge$",
    ):
        run.train(small, tmp_path / "out", only=["clasifier"])
    with pytest.raises(ValueError, match="no part 'weak'"):
        run.train(small, tmp_path / "out", only=["weak"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("blocked", ["", "parts", "snapshots"])
def test_an_unwritable_out_is_refused_before_training(tmp_path, small, blocked):
    out = tmp_path / "out"
    path = out / blocked
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(OSError, match=r"^cannot write to the folder [^\n]*out[^\n]*$"):
        run.train(small, out, lambda *_: pytest.fail("it trained"))


@pytest.mark.parametrize(
    ("edit", "part", "named"),
    [
        (("widths = [8, 8]\nhead", "widths = [8, 16]\nhead"), "model", "model.widths"),
        (("mean = -0.3", "mean = 0.3"), "classifier", "levels.mean"),
        (("shift = 1", "shift = 2"), "judge", "judge.shift"),
        (("[levels]", "[schedule]\nbeta_end = 0.03\n[levels]"), "model", "schedule.beta_end"),
        (("steps = 4", "steps = 5"), "model", "steps"),
    ],
)
def test_a_recipe_that_changed_is_refused_by_name(tmp_path, small, edit, part, named):
    run.train(small, tmp_path / "out", only=[part])
    other = recipes.read_recipe(written(tmp_path, SMALL.replace(*edit)))
    with pytest.raises(ValueError, match=rf"other settings \({named}\)"):
        run.train(other, tmp_path / "out", only=[part])


def test_levels_do_not_concern_the_judge(tmp_path, small):
    run.train(small, tmp_path / "out", only=["judge"])
    other = recipes.read_recipe(written(tmp_path, SMALL.replace("mean = -0.3", "mean = 0.3")))
    run.train(
        other, tmp_path / "out", lambda *_: pytest.fail("nothing is left to train"), only=["judge"]
    )


def test_parts_start_from_the_recipes_seed_alone(small):
    torch.manual_seed(1)
    source = sources(small)[0]
    one = build.build_part(small, "classifier", source).module
    torch.manual_seed(2)
    two = build.build_part(small, "classifier", source).module
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
