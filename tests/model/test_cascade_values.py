"""What the samples of a cascade carry, and how they are written, by values by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from guidestar.model.cascade import Cascade
from guidestar.model.cascade_stages import CascadeSamples, StageSettings
from guidestar.model.samples import Samples, Settings

BASE = Settings(
    model="b", cond=("cat", "dog"), negative=None, guidance="cfg(2)", seeds=(50, 60), steps=3,
    solver="ddim", grid="uniform", lacking=("a loss",),
)  # fmt: skip
LARGE = replace(
    BASE, model="l", seeds=(70, 80), lacking=("the picture that was enlarged", "a reward")
)


def samples(settings: Settings, value: float, evaluations: tuple[int, ...] = (2, 4)) -> Samples:
    x = torch.full((2, 1, 2, 2), value)
    return Samples(x=x, images=x, settings=settings, evaluations=evaluations)


@pytest.mark.parametrize(
    ("cond", "kept"),
    [
        (None, None),
        ("cat", ["cat"]),
        (3, [3]),
        (("cat", "dog"), ["cat", "dog"]),
        (["cat"], ["cat"]),
    ],
)
def test_what_the_pictures_of_a_cascade_carry(cond, kept):
    subject: Any = object.__new__(Cascade)
    object.__setattr__(subject, "name", "tiny")
    chosen = {"base": StageSettings(), "large": StageSettings(augmentation=0.3)}
    done = {"base": samples(BASE, 0.0), "large": samples(LARGE, 0.0)}
    found = subject._carried(done, cond, (1, 2), chosen)
    stages = found.pop("stages")
    assert found == {"cascade": "tiny", "model": "tiny", "cond": kept, "seeds": [1, 2]}
    assert [s["augmentation"] for s in stages.values()] == [None, 0.3]
    # The picture comes from the stage before; what else a run depended on stays.
    assert [s["lacking"] for s in stages.values()] == [["a loss"], ["a reward"]]
    assert [tuple(s["seeds"]) for s in stages.values()] == [(50, 60), (70, 80)]


@pytest.mark.parametrize(("more", "first"), [({}, 0), ({"first": 7}, 7)])
def test_pictures_of_the_last_stage_are_written(tmp_path, more, first):
    stages = {"base": samples(BASE, -1.0, (6, 6)), "large": samples(LARGE, 1.0)}
    found = CascadeSamples(stages=stages, settings={"cascade": "tiny", "seeds": [1, 2]})
    assert found.last is stages["large"] and found.nfe == 6 + 3
    paths = found.save(tmp_path / "new", **more)
    names = [f"{first:04d}-cat-seed1.png", f"{first + 1:04d}-dog-seed2.png"]
    assert paths == [tmp_path / "new" / name for name in names]
    for k, path in enumerate(paths):
        with Image.open(path) as image:
            assert image.size == (2, 2) and image.convert("L").getextrema() == (255, 255)
            (text,) = [v for key, v in image.info.items() if "guidestar" in key.lower()]
        carried = json.loads(text)
        assert carried.items() >= {"cascade": "tiny", "index": k, "number": first + k}.items()


def stage_settings(**given: StageSettings) -> dict[str, StageSettings]:
    subject: Any = object.__new__(Cascade)
    for name, value in {
        "name": "tiny",
        "stages": dict.fromkeys(("base", "middle", "large"), SimpleNamespace()),
        "defaults": {"large": StageSettings(steps=5, augmentation=0.4)},
    }.items():
        object.__setattr__(subject, name, value)
    common = StageSettings(guidance="cfg(2)", steps=9, augmentation=0.2)
    return subject._settings(given or None, common)


def test_a_stages_own_settings_go_before_the_common_ones():
    found = stage_settings()
    assert [s.steps for s in found.values()] == [9, 9, 5]
    assert [s.augmentation for s in found.values()] == [None, 0.2, 0.4]
    assert {s.guidance for s in found.values()} == {"cfg(2)"}
    found = stage_settings(large=StageSettings(solver="heun"), base=StageSettings(steps=2))
    assert [(s.steps, s.solver, s.augmentation) for s in found.values()] == [
        (2, None, None),
        (9, None, 0.2),
        (9, "heun", 0.2),
    ]
    with pytest.raises(ValueError, match="'tiny' has no stage 'huge'; its stages are base, middle"):
        stage_settings(huge=StageSettings())
    with pytest.raises(ValueError, match="the base 'base' enlarges nothing, so it has no augment"):
        stage_settings(base=StageSettings(augmentation=0.1))
