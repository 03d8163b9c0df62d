"""What each key of a recipe is by default, and between which numbers it must be: written out."""

import copy

import pytest
from pydantic import BaseModel

from guidestar.train.recipe.schema import Recipe, checked

TRAIN = {"steps": 10}
LEAST = {
    "name": "r",
    "data": {"path": "x"},
    "model": {"widths": [32], "train": TRAIN},
    "classifier": {"widths": [8], "train": TRAIN},
    "clip": {"train": TRAIN},
    "noisy_clip": {"train": TRAIN},
}
"""The shortest recipe with a table of each kind."""

HIGH = 10**9
SIDE, WIDE, DEEP = 16_384, 65_536, 1_000
TOWER = {"width": (128, 1, WIDE), "heads": (4, 1, WIDE), "patch": (4, 1, SIDE)}
TOWER |= {"layers": (4, 1, DEEP), "shift": (0, 0, SIDE)}
# The default, and the least and largest that are taken; whole numbers, whose neighbours are not.
WHOLE = {
    "": {"seed": (0, 0, 2**32 - 1), "keep_checkpoints": (2, 1, 1_000)},
    "data": {"size": (32, 1, SIDE), "shuffle": (10_000, 1, 10_000_000), "max_bad": (0, 0, None)},
    "schedule": {"num_train_timesteps": (1000, 2, 1_000_000)},
    "preview": {"every": (0, 0, None), "seeds": (8, 1, 10_000), "steps": (20, 1, 10_000)},
    "export": {"steps": (20, 1, 10_000)},
    "model": {
        "layers": (1, 1, DEEP),
        "groups": (8, 1, None),
        "head": (32, 1, 32),
        "width": (128, 1, WIDE),
        "heads": (4, 1, WIDE),
        "patch": (1, 1, SIDE),
    },
    "model.train": {
        "batch": (64, 1, 1_000_000),
        "accumulate": (1, 1, 64),
        "warmup": (200, 0, HIGH),
        "steps": (10, 1, HIGH),
    },
    "classifier": {"layers": (1, 1, DEEP), "groups": (8, 1, None), "shift": (0, 0, SIDE)},
    "noisy_clip": TOWER,
    "clip": {
        **TOWER,
        "text_width": (128, 1, WIDE),
        "text_layers": (3, 1, DEEP),
        "text_heads": (4, 1, WIDE),
        "embed": (128, 1, WIDE),
        "vocabulary": (3072, 514, 1_000_000),
        "length": (24, 3, 16_384),
    },
}
# The default, what is taken near the bounds, and what is not.
REAL = {
    "": {
        "joint_dropout": (0.0, (0.0, 0.99), (-0.01, 1.0)),
        "checkpoint_seconds": (60.0, (0.001,), (0.0, -1.0)),
    },
    "data": {"holdout": (0.1, (0.0, 0.99), (-0.01, 1.0))},
    "schedule": {
        "beta_start": (1e-4, (1e-9, 0.02), (0.0, 0.021, 1.0)),
        "beta_end": (0.02, (1e-4, 0.99), (0.0, 0.9e-4, 1.0)),
        "shift": (1.0, (0.01, 100.0), (0.0,)),
        "sigma_min": (0.002, (1e-9, 79.9), (0.0, 80.0)),
        "sigma_max": (80.0, (0.0021, 1e5), (0.0, 0.002)),
        "sigma_data": (0.5, (0.01, 100.0), (0.0,)),
    },
    "levels": {
        "mean": (0.0, (-9.0, 9.0), (float("inf"),)),
        "std": (1.0, (0.01, 9.0), (0.0,)),
        "data_std": (1.0, (0.01, 9.0), (0.0,)),
    },
    "objective": {
        "gamma": (5.0, (0.01, 99.0), (0.0,)),
        "bias": (0.0, (-9.0, 9.0), (float("nan"),)),
    },
    "model": {"condition_dropout": (0.1, (0.0, 0.99), (-0.01, 1.0))},
    "model.train": {
        "rate": (1e-3, (1e-9, 10.0), (0.0,)),
        "clip": (1.0, (1e-9, 99.0), (0.0,)),
        "decay": (0.999, (0.0, 0.9999), (-0.01, 1.0)),
        "weight_decay": (0.0, (0.0, 9.0), (-0.01,)),
    },
    "classifier": {"dropout": (0.0, (0.0, 0.99), (-0.01, 1.0))},
}
OTHER = {
    "": {"summary": "", "licence": "", "conditions": None, "weak": None, "judge": None},
    "data": {
        "kind": "images",
        "columns": None,
        "classes": (),
        "channels": None,
        "crop": "center",
        "flip": False,
        "cache": None,
        "vae": None,
        "reduced": None,
        "standardise": False,
        "test": None,
        "about": "",
    },
    "schedule": {"kind": "vp", "beta_schedule": "linear", "zero_terminal_snr": False},
    "levels": {"kind": "logit-normal"},
    "objective": {"predicts": None, "weighting": None},
    "preview": {"guidance": ("cfg(1)", "cfg(2)", "cfg(4)"), "prompts": ()},
    "export": {"guidance": "cfg(2)", "solver": "dpmpp-2m", "grid": "log_snr", "snapshots": True},
    "model": {"network": "unet", "config": {}, "snapshots": ()},
    "model.train": {"power": (), "precision": "float32", "compile": False},
    "classifier": {"column": None, "calibrate": True},
}


def recipe(table="", **values):
    content = copy.deepcopy(LEAST)
    place = content
    for name in filter(None, table.split(".")):
        place = place.setdefault(name, {})
    place.update(values)
    return checked(content, "r.toml")


def value(recipe: BaseModel, table: str):
    for name in filter(None, table.split(".")):
        recipe = getattr(recipe, name)
    return recipe


def rows(tables):
    return [(t, key, *about) for t, keys in tables.items() for key, about in keys.items()]


def test_what_is_not_given():
    known = {
        t: {k: v[0] for k, v in {**WHOLE.get(t, {}), **REAL.get(t, {})}.items()} | OTHER.get(t, {})
        for t in {*WHOLE, *REAL, *OTHER}
    }
    least = recipe()
    for table, defaults in known.items():
        found = value(least, table)
        assert {k: getattr(found, k) for k in defaults} == defaults, table
        told = {"name", "path", "widths", "train", *(LEAST if not table else ())}
        tables = {"schedule", "objective", "levels", "preview", "export", "measuring_clip"}
        tables |= {"autoencoder", "decoder", "bound", "variance", "upscale", "motion"}
        assert set(type(found).model_fields) - set(defaults) <= told | tables, table


@pytest.mark.parametrize(("table", "key", "default", "least", "most"), rows(WHOLE))
def test_whole_numbers_up_to_their_bounds(table, key, default, least, most):
    for good in (least, *(() if most is None else (most,))):
        assert getattr(value(recipe(table, **{key: good}), table), key) == good
    for bad in (least - 1, least + 0.5, *(() if most is None else (most + 1,))):
        with pytest.raises(ValueError, match=rf"^r.toml: .*\b{key}\b"):
            recipe(table, **{key: bad})


@pytest.mark.parametrize(("table", "key", "default", "taken", "refused"), rows(REAL))
def test_real_numbers_up_to_their_bounds(table, key, default, taken, refused):
    for good in taken:
        assert getattr(value(recipe(table, **{key: good}), table), key) == good
    for bad in refused:
        with pytest.raises(ValueError, match=rf"^r.toml: .*\b{key}\b"):
            recipe(table, **{key: bad})


def test_lists_of_numbers_up_to_their_bounds():
    for table, key, good, bad in [
        ("model", "widths", [[32] * 16, [WIDE]], [[], [32] * 17, [0, 32], [WIDE + 8], [36]]),
        ("classifier", "widths", [[8] * 16, [WIDE]], [[], [8] * 17, [0], [WIDE + 8], [12]]),
        ("model", "snapshots", [[], [1e-9, 1.0], [0.5] * 1_000], [[0.0], [1.01], [0.5] * 1_001]),
        ("model.train", "power", [[1e-9, 0.25]], [[0.0], [0.2501], [0.1] * 1_001]),
    ]:
        for numbers in good:
            assert getattr(value(recipe(table, **{key: numbers}), table), key) == tuple(numbers)
        for numbers in bad:
            with pytest.raises(ValueError, match=rf"^r.toml: .*\b{key}\b"):
                recipe(table, **{key: numbers})
    with pytest.raises(ValueError, match="accumulate parts a batch of 64, and cannot be 65"):
        recipe("model.train", accumulate=65)
    with pytest.raises(ValueError, match=r"head must be at most the last width \(32\), not 33"):
        recipe("model", head=33)
    assert recipe("model.train", batch=65, accumulate=65).model.train.accumulate == 65
    assert Recipe.model_config["extra"] == "forbid"
