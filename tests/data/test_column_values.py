"""Classes, kinds and sizes of columns, at their bounds."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from guidestar.data import identity
from guidestar.data.columns import _describe_classes
from guidestar.data.folders import _as_table
from guidestar.data.tensors import _describe

PATH = Path("d")


def described(values, classes=(), several=False, names=None):
    feature = {"a": datasets.ClassLabel(names=names)} if names else None
    features = datasets.Features(feature) if feature else None  # type: ignore[arg-type]
    table = datasets.Dataset.from_dict({"a": values}, features=features)
    return _describe_classes(table, "a", PATH, classes, several).classes


def test_classes_by_words():
    assert described(["dog", "cat", None, "dog"]) == ("cat", "dog")
    assert described(["dog", "cat"], ("dog", "owl", "cat")) == ("dog", "owl", "cat")
    assert described(["dog", "cat"], ("owl",), several=True) == ("cat", "dog")
    assert described([0, 1, 1], names=["x", "y", "z"]) == ("x", "y", "z")
    with pytest.raises(
        ValueError, match="d: 'a' holds the class 'dog', which is not one of cat, o"
    ):
        described(["dog", "cat"], ("cat", "owl"))


def test_classes_by_numbers():
    assert described([2, 0, None]) == ("0", "1", "2")
    assert described([1, 0], ("x", "y")) == ("x", "y")
    assert described([0], ("x", "y")) == ("x", "y")
    for values, low, high in (([0, 2], 0, 2), ([-1, 1], -1, 1), ([0, 3], 0, 3)):
        line = f"the classes of 'a' run from {low} to {high}, but there are 2 names; classes must b"
        with pytest.raises(ValueError, match=line):
            described(values, ("x", "y"))
    with pytest.raises(
        ValueError, match="run from -1 to 0, but there are 1 names; classes must be"
    ):
        described([-1, 0])


def tensor(values, stated=None, names=(), count=None):
    return _describe(PATH, "a", values, len(values) if count is None else count, stated, names)


@pytest.mark.parametrize(
    ("values", "stated", "kind", "width", "classes"),
    [
        (torch.tensor([0, 2]), None, "class", 0, ("0", "1", "2")),
        (torch.tensor([0, 2]), "vector", "vector", 1, ()),
        (torch.tensor([[0, 2]]), None, "vector", 2, ()),
        (torch.tensor([0.5, 2]), None, "vector", 1, ()),
        (torch.tensor([True, False]), None, "vector", 1, ()),
        (torch.zeros(3, 4), None, "vector", 4, ()),
    ],
)
def test_the_kind_of_a_tensor(values, stated, kind, width, classes):
    found = tensor(values, stated)
    assert (found.kind, found.classes) == (kind, classes)
    assert kind == "class" or found.width == width


@pytest.mark.parametrize(
    ("values", "stated"),
    [
        (torch.zeros(2), "text"),
        (torch.zeros(2), "class"),
        (torch.zeros(2, 1).long(), "class"),
        (torch.zeros(2).bool(), "class"),
        (torch.zeros(2, 3, 1), None),
        (torch.zeros(2, 3, 1).long(), "vector"),
        (torch.zeros(2, dtype=torch.complex64), None),
    ],
)
def test_tensors_that_are_not_of_the_kind(values, stated):
    kind = stated or ("vector" if values.ndim > 1 else "class")
    with pytest.raises(ValueError, match=rf"'a' is not a {kind}: it holds \[2.*\] of torch"):
        tensor(values, stated)


def test_tensors_that_do_not_fit():
    assert tensor(torch.tensor([0, 1]), names=("x", "y", "z")).classes == ("x", "y", "z")
    with pytest.raises(ValueError, match="there are 3 samples, but 2 values of 'a'; give one for"):
        tensor(torch.zeros(2), count=3)
    with pytest.raises(ValueError, match="'a' holds values that are not finite; correct or remove"):
        tensor(torch.tensor([1.0, float("inf")]))
    for values, low, high in (([0, 2], 0, 2), ([-1, 1], -1, 1)):
        line = f"run from {low} to {high}, but there are 2 names; classes must be 0 to 1"
        with pytest.raises(ValueError, match=line):
            tensor(torch.tensor(values), names=("x", "y"))


def test_a_file_is_known_by_its_name_and_size(tmp_path):
    file = tmp_path / "a.tar"
    file.write_bytes(b"12345")
    assert identity._file(str(file)) == b"a.tar 5"
    assert identity._file("https://x.org/y/b.tar") == b"b.tar -1"


def test_a_tensor_is_known_by_some_of_its_numbers(monkeypatch):
    monkeypatch.setattr(identity, "HASHED", 16)
    monkeypatch.setattr(identity, "LEAST_HASHED", 2)
    x = torch.arange(24, dtype=torch.float32).view(3, 8)
    # 96 bytes, of which about 16 are to be read: every sixth number; but 2 of each row at least
    pieces = list(identity._tensor(x))
    assert pieces[0] == b"torch.float32 (3, 8)"
    assert pieces[1:] == [x[:, ::4].contiguous().numpy().tobytes()]
    monkeypatch.setattr(identity, "LEAST_HASHED", 1)
    assert list(identity._tensor(x))[1] == x[:, ::6].contiguous().numpy().tobytes()
    monkeypatch.setattr(identity, "HASHED", 96)
    assert list(identity._tensor(x))[1] == x.numpy().tobytes()
    wide = torch.zeros(2, 2**24 + 1, dtype=torch.int8)  # a row is more than is read at once
    assert len(list(identity._tensor(wide))[1:]) == 2
    empty = torch.zeros(3, 0)
    assert next(identity._tensor(empty)) == b"torch.float32 (3, 0)"
    held: Any = {"b": torch.tensor([1]), "a": ["x"]}
    found = list(identity._held(held))
    assert found[:2] == [b"a", b"['x']"] and found[2] == b"b"


def test_numbers_of_a_table_stay_numbers_unless_they_are_captions(tmp_path):
    for name in ("a", "b"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    text = "file_name,v,w\na.png,1,7\nb.png,2.5,007\n"
    (tmp_path / "metadata.csv").write_text(text)
    found = _as_table(tmp_path, {"v": "vector", "w": "text"}, ())
    assert found["v"][:] == [1.0, 2.5] and found["w"][:] == ["7", "007"]
    assert _as_table(tmp_path, {}, ())["w"][:] == [7, 7]
