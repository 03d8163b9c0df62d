"""The recipe of each stage of a cascade, key by key; and cascades that cannot be."""

import copy
from pathlib import Path
from typing import Any

import pytest

from guidestar.train.recipe.cascade import CascadeRecipe, read_cascade

NET = {"widths": [8, 8], "groups": 4, "head": 8, "train": {"steps": 2, "batch": 4}}
PART = {"widths": [8], "train": {"steps": 3}}
CLIP = {"width": 8, "layers": 1, "text_width": 8, "text_layers": 1, "heads": 1,
        "vocabulary": 600, "embed": 8, "train": {"steps": 4}}  # fmt: skip


def content(**more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "data": {"path": "p", "size": 16, "channels": 1},
        "stages": {
            "base": {"size": 4, "model": NET},
            "middle": {"size": 8, "model": NET, "augmentation": 0.4, "dropout": 0.2,
                       "weak": NET, "preview": {"every": 5}},
            "large": {"size": 16, "model": NET},
        },
        "levels": {"mean": -0.5},
        "preview": {"every": 9},
    }  # fmt: skip
    return copy.deepcopy({**given, **more})


def made(**more: Any) -> CascadeRecipe:
    return CascadeRecipe.model_validate(content(**more))


def test_stages_are_recipes_of_their_own():
    spec, out = made(), Path("o")
    base, middle, large = (spec.recipe(name, out) for name in spec.stages)
    assert [r.name for r in (base, middle, large)] == ["base", "middle", "large"]
    assert [r.seed for r in (base, middle, large)] == [7, 1016, 2025]
    assert middle.summary == "tiny: the stage middle, 8 pixels"
    assert made(summary="s").recipe("base", out).summary == "s: the stage base, 4 pixels"
    assert made(seed=2**32 - 1).recipe("middle", out).seed == 1008
    assert [r.data.reduced for r in (base, middle, large)] == [4, 8, None]
    assert all(r.data.size == 16 and r.data.path == "p" for r in (base, middle, large))
    assert base.upscale is None
    up: Any = middle.upscale
    assert (up.size, up.augmentation, up.dropout) == (4, 0.4, 0.2)
    up = large.upscale
    assert (up.size, up.augmentation, up.dropout) == (8, 0.5, 0.0)
    assert [r.preview.every for r in (base, middle, large)] == [9, 5, 9]
    assert all(r.levels.mean == -0.5 for r in (base, middle, large))
    assert middle.weak is not None and base.weak is None and base.model.widths == (8, 8)
    assert base.export.guidance == "cfg(2) | threshold(0.995)"
    assert made(export={"guidance": "cfg(3)"}).recipe("base", out).export.guidance == "cfg(3)"
    own = content()
    own["stages"]["large"]["export"] = {"steps": 9}
    found = CascadeRecipe.model_validate(own).recipe("large", out).export
    assert (found.guidance, found.steps) == ("cfg(2) | threshold(0.995)", 9)


def test_parts_are_trained_with_the_stage_that_they_are_of():
    spec = made(classifier=PART, judge=PART)
    parts = {n: spec.recipe(n, Path("o")) for n in spec.stages}
    assert [n for n, r in parts.items() if r.classifier is not None] == ["base"]
    assert [n for n, r in parts.items() if r.judge is not None] == ["large"]


def test_a_clip_is_trained_with_the_first_stage_and_read_by_the_others():
    spec = made(
        clip=CLIP,
        measuring_clip=CLIP,
        conditions={"text": {"encoder": "clip"}, "other": {"encoder": "folder"}},
        data={"path": "p", "size": 16, "channels": 3},
    )
    base, middle, large = (spec.recipe(name, Path("o")) for name in spec.stages)
    assert base.clip is not None and middle.clip is None
    assert base.measuring_clip is None and large.measuring_clip is not None
    encoders = [{n: c.encoder for n, c in r.conditions.items()} for r in (base, middle, large)]  # type: ignore[union-attr]
    assert encoders[0] == {"text": "clip", "other": "folder"}
    assert encoders[1] == encoders[2] == {"text": "o/tiny/base", "other": "folder"}


@pytest.mark.parametrize(
    ("stage", "key", "value", "line"),
    [
        ("middle", "size", 6, "stages.middle.size must be a multiple of that of 'base' before"),
        ("middle", "size", 4, r"stages.middle.size must be a multiple .*\(4\), not 4"),
        ("large", "size", 32, "the last stage makes pictures of 32 pixels a side, .* not 16"),
        ("base", "augmentation", 0.0, "stages.base: the first stage enlarges nothing; leave"),
        ("base", "dropout", 0.1, "stages.base: the first stage enlarges nothing; leave"),
    ],
)
def test_stages_that_cannot_be(stage, key, value, line):
    given = content()
    given["stages"][stage][key] = value
    with pytest.raises(ValueError, match=line):
        CascadeRecipe.model_validate(given)


def test_cascades_that_cannot_be():
    for more in ({"vae": "v"}, {"reduced": 8}):
        with pytest.raises(ValueError, match="learn pixels; leave vae and reduced out"):
            made(data={"path": "p", "size": 16, **more})
    sizes = {"base": {"size": 14, "model": NET}, "large": {"size": 28, "model": NET}}
    found = made(stages=sizes, data={"kind": "fashion-mnist", "size": 32})
    assert list(found.stages) == ["base", "large"]
    assert made().chosen(None) == ["base", "middle", "large"]
    assert made().chosen(["large", "base"]) == ["base", "large"] and made().chosen([]) == []
    with pytest.raises(ValueError, match=r"the recipe 'tiny' has no stage 'larg'.* are base, mid"):
        made().chosen(["larg"])


def test_a_recipe_without_stages_is_no_cascade(tmp_path):
    file = tmp_path / "r.toml"
    assert read_cascade(file) is None
    for text in ("[", 'name = "a"'):
        file.write_text(text)
        assert read_cascade(file) is None
    file.write_text('name = "a"\n[stages.x]\nsize = 4\n')
    with pytest.raises(ValueError, match=r"r\.toml: .*stages"):
        read_cascade(file)
