"""The lines of a proposed recipe, by the numbers that each is made of."""

from types import SimpleNamespace
from typing import Any

import pytest

from guidestar.data.source import Column
from guidestar.train.recipe import propose
from guidestar.train.recipe.tables import Data


def source(shape=(3, 64, 64), size: Any = 100, **columns: Column):
    made: Any = SimpleNamespace(shape=shape, size=size, columns=columns)
    return made


LABEL, POSE, TEXT = (
    Column(kind="class", classes=("cat", "dog")),
    Column(kind="vector", width=2),
    Column(kind="text"),
)


def data(**more: Any) -> Data:
    return Data(**{"kind": "images", "path": "d", "size": 64, "holdout": 0.1, **more})


def test_lines_of_pictures_with_classes():
    found = propose._lines("my data", data(), source(label=LABEL), 2000)
    train = (
        "train = { steps = 666, batch = 64, rate = 1e-3, warmup = 50, decay = 0.99, "
        "weight_decay = 0.01 }"
    )
    assert found == [
        'name = "my-data"', 'licence = "" # of your data', "seed = 0", "",
        "[data]", 'kind = "images"', 'path = "d"', "size = 64",
        "flip = false # mirror images left to right",
        "max_bad = 10 # unreadable images to skip before giving up",
        "holdout = 0.1 # kept aside, to measure on", "",
        "[conditions.label] # class: cat, dog", "",
        "[levels]", "mean = -0.3", "std = 1.3", "",
        "[model]", "widths = [32, 64, 96]", "condition_dropout = 0.1", "snapshots = [0.25]",
        'train = { steps = 2000, batch = 64, rate = 2e-3, warmup = 100, decay = 0.998, '
        'precision = "bfloat16" }', "",
        "[classifier] # sees noise, and guides", "widths = [16, 32, 64]", "dropout = 0.1", train,
        "",
        "[judge] # sees none, and only measures", "widths = [16, 32, 64]", "dropout = 0.1", train,
        "", "[preview]", "every = 500", "",
    ]  # fmt: skip


def test_lines_of_few_steps_and_of_vectors():
    spec = data(kind="tensors", path="a.npy", test="b.npy", holdout=0.0)
    found = propose._lines("v", spec, source((5,), pose=POSE), 2)
    assert found == [
        'name = "v"', 'licence = "" # of your data', "seed = 0", "",
        "[data]", 'kind = "tensors"', 'path = "a.npy"', 'test = "b.npy" # to measure on',
        "standardise = true", "", "[conditions.pose] # vector", "",
        "[levels]", "mean = -0.3", "std = 1.3", "",
        "[model]", 'network = "sequence"', "width = 96", "layers = 4", "heads = 4",
        "condition_dropout = 0.1", "snapshots = [0.25]",
        'train = { steps = 2, batch = 64, rate = 2e-3, warmup = 0, decay = 0.998, '
        'precision = "float32" }', "",
        "[preview]", "every = 1", "",
    ]  # fmt: skip
    stream = propose._lines("v", data(), source(size=None), 2000)
    assert not any("holdout" in line for line in stream)


def test_lines_of_captions():
    found = propose._lines("v", data(), source(text=TEXT), 300)
    assert "channels = 3 # as CLIP takes them" in found
    at = found.index("[conditions.text] # a caption")
    assert found[at + 1].startswith('encoder = "clip" # trained here')
    train = (
        "train = { steps = 100, batch = 128, rate = 1e-3, warmup = 10, decay = 0.99, "
        "weight_decay = 0.05 }"
    )
    at = found.index("[clip] # encodes the captions")
    assert found[at + 1 : at + 8] == [
        "width = 64", "layers = 3", "text_width = 96", "text_layers = 2", "vocabulary = 1024",
        train, "",
    ]  # fmt: skip
    assert found[at + 9 : at + 16] == [
        "width = 96", "layers = 2", "text_width = 64", "text_layers = 2", "vocabulary = 768",
        train, "",
    ]  # fmt: skip
    assert found[at + 16 : at + 21] == [
        "[noisy_clip] # sees noise, and guides", "width = 64", "layers = 3", train, "",
    ]  # fmt: skip
    vectors = propose._lines("v", data(), source((5,), text=TEXT), 300)
    assert not any(line.startswith("[clip]") for line in vectors)
    at = vectors.index("[conditions.text] # a caption")
    assert vectors[at + 1].startswith('encoder = "openai/clip-vit-base-patch32" # from the Hugg')
    assert "channels = 3 # as CLIP takes them" not in vectors


def test_a_classifier_is_proposed_where_any_column_is_a_class():
    found = propose._lines("v", data(), source(text=TEXT, label=LABEL), 300)
    assert "[classifier] # sees noise, and guides" in found
    assert "[clip] # encodes the captions" in found


def test_names_of_conditions_and_their_classes():
    of = lambda name, *classes: propose._condition(
        name, Column(kind="class", classes=classes), True
    )[0]
    assert of("a", *"abcdefgh") == "[conditions.a] # class: a, b, c, d, e, f, g, h"
    assert of("a", *"abcdefghi") == "[conditions.a] # class: a, b, c, d, e, f, g, h, …"
    assert of("a b", "x\ny", "z\x07") == '[conditions."a b"] # class: x y, z'
    assert propose.quoted('ü"\x7f') == '"ü\\"\\u007f"'
    assert propose._fit("..a b/c.-") == "a-b-c" and propose._fit("...") == "model"
    assert propose._fit("x" * 61) == "x" * 60


def test_sizes_and_columns_in_words():
    wide = lambda side: propose._network(source((3, side, side)))
    assert wide(48) == ["widths = [24, 48, 72]"] and wide(49) == ["widths = [32, 64, 96]"]
    line = propose._columns(source(label=LABEL, text=TEXT))
    assert line == "columns: label (class, 2 classes), text (text)"
    assert propose._columns(source()) == "columns: none"


@pytest.mark.parametrize(
    ("size", "share"), [(5, 0.2), (6, 0.1), (15, 0.1), (4, 0.25), (3, 0.34), (2, 0.5), (1, 0.0)]
)
def test_a_tenth_or_one_sample_is_held_out(size, share):
    assert propose._share(size) == share


def test_a_proposal_says_what_was_found(monkeypatch, tmp_path):
    asked: list[Any] = []

    def sources(recipe):
        asked.append(recipe)
        return source((3, 32, 32), size=40, label=LABEL), None

    monkeypatch.setattr(propose, "sources", sources)
    monkeypatch.setattr(propose, "_lines", lambda *given: ["a", str(given[1].holdout)])
    monkeypatch.setattr(propose, "_side", lambda path: 24)
    monkeypatch.setattr(propose, "find_pictures", lambda path: [])
    splits: dict[str, Any] = {}
    monkeypatch.setattr(propose, "find_splits", lambda path, found: splits)
    kinds = ["images"]
    monkeypatch.setattr(propose, "kind_of", lambda path: kinds[0])
    text, line = propose.propose(tmp_path, name="n")
    assert text == "a\n0.1\n"
    assert line == (
        f"{tmp_path}: images, 36 samples to train on of [3, 32, 32]; columns: label (class, 2 "
        "classes)"
    )
    spec = asked[0].data
    assert (spec.kind, spec.path, spec.test, spec.size, spec.max_bad, spec.holdout) == (
        "images", str(tmp_path), None, 24, 10, 0.0
    )  # fmt: skip
    splits.update(train=tmp_path / "x", test=tmp_path / "y")
    text, line = propose.propose(tmp_path, name="n", size=48)
    spec = asked[1].data
    assert (spec.path, spec.test, spec.size) == (str(tmp_path / "x"), str(tmp_path / "y"), 48)
    assert "40 samples to train on" in line and text.endswith("0.0\n")
    splits.update(val=tmp_path / "z")  # of several to measure on, the first
    propose.propose(tmp_path, name="n")
    assert asked.pop().data.test == str(tmp_path / "y")
    kinds[0] = "tensors"
    propose.propose(tmp_path, name="n")
    assert (asked[2].data.size, asked[2].data.test) == (32, None)
    monkeypatch.setattr(propose, "sources", lambda recipe: (source(size=None), None))
    assert ": tensors, a stream of [3, 64, 64]" in propose.propose(tmp_path, name="n")[1]
