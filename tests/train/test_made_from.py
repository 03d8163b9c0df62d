"""What a checkpoint is made from, by dotted names, and what of a recipe shapes nothing."""

import pytest

from guidestar.train.origin import describe_origin
from guidestar.train.recipe.schema import checked
from guidestar.train.snapshots import snapshot_file, snapshot_steps

TRAIN = {"steps": 10}
RECIPE = {
    "name": "r",
    "joint_dropout": 0.05,
    "data": {"path": "x", "size": 16},
    "conditions": {"label": {"dropout": 0.2}},
    "model": {"widths": [32], "train": TRAIN, "snapshots": [0.26, 1.0, 0.001, 0.3]},
    "weak": {"widths": [32], "train": TRAIN},
    "classifier": {"widths": [8], "train": TRAIN},
    "judge": {"widths": [8], "train": TRAIN},
    "clip": {"train": TRAIN},
    "measuring_clip": {"train": TRAIN},
    "noisy_clip": {"train": TRAIN},
}
NOISE = ("schedule", "levels", "objective")


@pytest.mark.parametrize("part", ["model", "weak", "classifier", "noisy_clip"])
def test_what_sees_noise_is_made_from_it(part):
    found = describe_origin(checked(RECIPE, "r"), part)
    assert found["schedule.beta_end"] == 0.02 and found["levels.std"] == 1.0
    assert found["objective.gamma"] == 5.0 and found["data.size"] == 16
    assert found["joint_dropout"] == 0.05
    assert found["conditions.label"] == {
        "dropout": 0.2,
        "encoder": None,
        "layer": "last",
        "output": "states",
    }
    other = {"model", "weak", "classifier", "noisy_clip"} - {part}
    assert not any(key.startswith(f"{name}.") for key in found for name in other)


@pytest.mark.parametrize("part", ["judge", "clip", "measuring_clip"])
def test_what_sees_none_is_not(part):
    found = describe_origin(checked(RECIPE, "r"), part)
    assert not any(key.startswith(NOISE) for key in found) and "data.size" in found


def test_own_keys_are_lists_and_numbers():
    found = describe_origin(checked(RECIPE, "r"), "model")
    assert found["model.widths"] == [32] and found["model.head"] == 32
    assert {k for k in found if k.startswith("model.")} == {
        f"model.{key}"
        for key in (
            *("network", "widths", "layers", "groups", "head", "width", "heads", "patch"),
            *("config", "condition_dropout"),
        )
    }
    assert not {"data.path", "data.cache", "data.test", "data.max_bad", "data.about"} & set(found)
    assert "data.holdout" in found and "data.classes" in found
    judge = describe_origin(checked(RECIPE, "r"), "judge")
    assert "judge.calibrate" not in judge and judge["judge.widths"] == [8]
    bare = {k: v for k, v in RECIPE.items() if k != "conditions"}
    assert not any(k.startswith("conditions") for k in describe_origin(checked(bare, "r"), "model"))


def test_an_autoencoder_is_made_from_neither_noise_nor_how_its_config_states_its_spread():
    autoencoder = {"widths": [8, 8], "groups": 4, "spread": "scalar", "train": TRAIN}
    given = {
        **RECIPE,
        "data": {"path": "x", "size": 16, "channels": 3, "vae": "autoencoder"},
        "autoencoder": autoencoder,
        "decoder": {"noise": 0.1, "train": TRAIN},
    }
    found = describe_origin(checked(given, "r"), "autoencoder")
    assert {k for k in found if not k.startswith("data.")} == {
        f"autoencoder.{key}"
        for key in ("network", "widths", "layers", "groups", "latent_channels", "config", "scales")
    } | {"autoencoder.kl"}
    idle = ("path", "vae", "columns", "classes", "reduced", "motion", "cache", "test", "max_bad")
    assert found["data.size"] == 16 and not {f"data.{key}" for key in idle} & set(found)
    decoder = describe_origin(checked(given, "r"), "decoder")
    assert {k: v for k, v in decoder.items() if not k.startswith("data.")} == {
        "decoder.scales": 2,
        "decoder.features": 0.0,
        "decoder.noise": 0.1,
    }


def test_snapshots_lie_at_shares_of_the_steps(tmp_path):
    found = checked(RECIPE, "r")
    assert snapshot_steps(found, "model") == [1, 3, 10]
    assert snapshot_steps(found, "weak") == snapshot_steps(found, "judge") == []
    assert snapshot_file(tmp_path, "model", 3) == (
        tmp_path / "snapshots" / "model-000003.safetensors"
    )
