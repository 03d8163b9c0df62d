"""A recipe that is proposed for data, line by line."""

import json
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from guidestar.train.recipe.propose import kind_of, propose
from guidestar.train.recipe.schema import checked

LEVELS = {"mean": -0.3, "std": 1.3}


def pictures(folder, sizes, mode="RGB"):
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new(mode, size).save(folder / f"{i}.png")
    return folder


def proposed(path, **more):
    text, found = propose(path, **{"name": "r", **more})
    content = tomllib.loads(text)
    checked(content, "r.toml")  # it can be trained
    return text, content, found


def trained(steps, **more):
    return {"train": {"steps": steps, **more}}


def small(steps, warmup):
    rest = {"batch": 64, "rate": 1e-3, "warmup": warmup, "decay": 0.99, "weight_decay": 0.01}
    return {"widths": [16, 32, 64], "dropout": 0.1, **trained(steps, **rest)}


def network(steps, warmup, precision="bfloat16"):
    rest = {"batch": 64, "rate": 2e-3, "warmup": warmup, "decay": 0.998, "precision": precision}
    return {"condition_dropout": 0.1, "snapshots": [0.25], **trained(steps, **rest)}


def test_class_folders(tmp_path):
    path = tmp_path / "pics"
    for name in "ab":
        pictures(path / name, [(22, 50), (90, 23), (21, 21), (30, 40), (23, 99)])
    text, content, found = proposed(path, name="My pics!")
    assert content == {
        "name": "My-pics",
        "licence": "",
        "seed": 0,
        "data": {
            "kind": "images",
            "path": str(path),
            "size": 20,  # the median shorter side is 23
            "flip": False,
            "max_bad": 10,
            "holdout": 0.1,
        },
        "conditions": {"label": {}},
        "levels": LEVELS,
        "model": {"widths": [24, 48, 72], **network(2000, 100)},
        "classifier": small(666, 50),
        "judge": small(666, 50),
        "preview": {"every": 500},
    }
    assert "[conditions.label] # class: a, b\n" in text
    assert found == (
        f"{path}: images, 9 samples to train on of [3, 20, 20]; columns: label (class, 2 classes)"
    )
    text, content, _ = proposed(path, size=52, steps=3)
    assert content["model"] == {"widths": [32, 64, 96], **network(3, 0)}
    assert content["classifier"] == small(1, 0) and content["preview"] == {"every": 1}
    assert content["data"]["size"] == 52
    assert proposed(path, size=48)[1]["model"]["widths"] == [24, 48, 72]
    for steps, warmups in ((30, (3, 1)), (999, (99, 33)), (1500, (100, 50))):
        _, content, _ = proposed(path, steps=steps)
        found = [content[part]["train"]["warmup"] for part in ("model", "judge")]
        assert tuple(found) == warmups and content["preview"]["every"] == steps // 4


def test_many_classes_are_named_in_part(tmp_path):
    names = ["a", "b\u202ec", "c", "d", "e", "f", "g", "h"]
    for name in names:
        pictures(tmp_path / "p" / name, [(8, 8)] * 2)
    text, _, _ = proposed(tmp_path / "p")
    assert "# class: a, bc, c, d, e, f, g, h\n" in text  # without what is not printed
    pictures(tmp_path / "p" / "i", [(8, 8)] * 2)
    assert "# class: a, bc, c, d, e, f, g, h, …\n" in proposed(tmp_path / "p")[0]


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(7, 7)], 8),
        ([(64, 64)], 64),
        ([(500, 300)], 64),
        ([(9, 9), (12, 9), (40, 44), (47, 41)], 40),
    ],
)
def test_the_size_is_the_median_shorter_side(tmp_path, sizes, side):
    path = tmp_path / "p"
    for name in "ab":
        pictures(path / name, sizes * 3)
    assert proposed(path)[1]["data"]["size"] == side


def test_captions(tmp_path):
    path = pictures(tmp_path / "p", [(16, 16)] * 10, "L")
    (path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{i}.png", "text": f"a {i}"}) + "\n" for i in range(10))
    )
    text, content, found = proposed(path, steps=900)
    tower = {"batch": 128, "rate": 1e-3, "warmup": 30, "decay": 0.99, "weight_decay": 0.05}
    tower = trained(300, **tower)
    assert content["data"]["channels"] == 3 and content["conditions"] == {
        "text": {"encoder": "clip"}
    }
    assert content["clip"] == {
        "width": 64,
        "layers": 3,
        "text_width": 96,
        "text_layers": 2,
        "vocabulary": 1024,
        **tower,
    }
    assert content["measuring_clip"] == {
        "width": 96,
        "layers": 2,
        "text_width": 64,
        "text_layers": 2,
        "vocabulary": 768,
        **tower,
    }
    assert content["noisy_clip"] == {"width": 64, "layers": 3, **tower}
    assert "classifier" not in content and "judge" not in content
    assert "[conditions.text] # a caption\n" in text and found.endswith("columns: text (text)")
    few = proposed(path, steps=2)[1]["clip"]["train"]
    assert (few["steps"], few["warmup"]) == (1, 0)
    many = proposed(path, steps=9000)[1]["noisy_clip"]["train"]
    assert (many["steps"], many["warmup"]) == (3000, 50)


def test_tensors(tmp_path):
    path = tmp_path / "t.safetensors"
    given = {"x": torch.randn(20, 9, 2), "odd name": torch.randn(20, 3)}
    save_file(given, path)
    text, content, found = proposed(path, steps=25)
    assert content["data"] == {
        "kind": "tensors",
        "path": str(path),
        "standardise": True,
        "holdout": 0.1,
    }
    sequence = {"network": "sequence", "width": 96, "layers": 4, "heads": 4}
    assert content["model"] == {**sequence, **network(25, 2, "float32")}
    assert content["preview"] == {"every": 6} and content["conditions"] == {"odd name": {}}
    assert '[conditions."odd name"] # vector\n' in text and set(content) == {
        *("name", "licence", "seed", "data", "conditions", "levels", "model", "preview")
    }
    assert found == f"{path}: tensors, 18 samples to train on of [9, 2]; columns: odd name (vector)"
    save_file({"x": torch.randn(20, 2), "y": torch.arange(20) % 2}, path)
    assert proposed(path)[1]["judge"] == small(666, 50)
    save_file({"x": torch.randn(20, 2)}, path)
    assert proposed(path)[2].endswith("columns: none")


def test_data_that_are_split(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for name in "ab":
            pictures(tmp_path / "p" / part / name, [(16, 16)] * count)
    text, content, found = proposed(tmp_path / "p")
    assert content["data"] == {
        "kind": "images",
        "path": str(tmp_path / "p" / "train"),
        "test": str(tmp_path / "p" / "test"),
        "size": 16,
        "flip": False,
        "max_bad": 10,
    }
    assert " # to measure on\n" in text and "6 samples to train on" in found


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a b/c", "a-b-c"), ("..x-.", "x"), ("!!", "model"), ("z" * 99, "z" * 60), ("é_1.2", "é_1.2")],
)
def test_a_recipes_name_is_made_of_a_files(tmp_path, name, wanted):
    save_file({"x": torch.randn(20, 2)}, tmp_path / "t.safetensors")
    assert proposed(tmp_path / "t.safetensors", name=name)[1]["name"] == wanted


def test_kinds_of_data(tmp_path):
    for file, kind in (
        ("a.safetensors", "tensors"),
        ("a.npy", "tensors"),
        ("a.parquet", "parquet"),
        ("a.tar", "shards"),
    ):
        (tmp_path / file).write_bytes(b"")
        assert kind_of(tmp_path / file) == kind
    # of a folder that holds several, the first of these
    assert kind_of(tmp_path) == "shards"
    (tmp_path / "a.tar").unlink()
    assert kind_of(tmp_path) == "parquet"
    (tmp_path / "a.bvh").write_bytes(b"")
    assert kind_of(tmp_path) == "motion"
    (tmp_path / "a.bvh").unlink()
    (tmp_path / "a.parquet").unlink()
    assert kind_of(tmp_path) == "tensors"
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ValueError, match=r"holds no images \(.png, .jpg, .*parquet, webdataset"):
        kind_of(tmp_path)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.PNG")
    assert kind_of(tmp_path) == "images"
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a.txt: data are a folder of images"):
        kind_of(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"none: there is no such file or folder$"):
        kind_of(tmp_path / "none")


@pytest.mark.parametrize(
    ("count", "share"), [(1, 0), (2, 0.5), (3, 0.34), (4, 0.25), (5, 0.2), (6, 0.1)]
)
def test_few_samples_leave_some_to_train_on_and_one_to_measure_on(tmp_path, count, share):
    path = pictures(tmp_path / "few", [(16, 16)] * count)
    _, content, found = proposed(path)
    assert content["data"]["holdout"] == share
    aside = round(share * count)
    assert found.startswith(f"{path}: images, {count - aside} samples to train on of [3, 16, 16]")
    assert aside == (count > 1)
