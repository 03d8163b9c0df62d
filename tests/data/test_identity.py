"""The identity of data: equal for equal data, and a difference is said in one line."""

from dataclasses import replace

import pytest
import torch

from guidestar.data import identity
from guidestar.data.identity import compare, identify
from guidestar.data.source import Column, InMemory, split

LABEL = Column(kind="class", classes=("cat", "dog"))


def source(**changes):
    x = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    made = InMemory(
        x=x,
        targets={"label": torch.tensor([0, 1, 0, 1, 0, 1]), "text": [*"abcdef"]},
        columns={"label": LABEL, "text": Column(kind="text")},
    )
    return replace(made, **changes)


def test_equal_data_have_one_identity():
    assert identify(source()) == identify(source(x=source().x.clone()))
    assert compare(identify(source()), identify(source())) is None


def test_a_renamed_class_is_not_acceptable():
    renamed = {"label": Column(kind="class", classes=("dog", "zebra")), "text": Column(kind="text")}
    words, acceptable = compare(identify(source()), identify(source(columns=renamed)))
    assert words == "the classes of 'label' now lack 'cat' and have 'zebra'" and not acceptable


def test_the_order_of_classes_counts():
    turned = {"label": Column(kind="class", classes=("dog", "cat")), "text": Column(kind="text")}
    words, acceptable = compare(identify(source()), identify(source(columns=turned)))
    assert words == "the classes of 'label' are in another order" and not acceptable


def test_columns_are_compared_in_turn():
    columns = lambda *found: compare(
        *({"size": 1, "columns": c, "digest": "d"} for c in found)  # type: ignore[arg-type]
    )
    label, other = ["class", ["a", "b"]], ["class", ["a", "c"]]
    two = {"label": label, "pose": ["vector", 3]}
    assert columns(two, {"label": label, "pose": ["vector", 4]}) == (
        "the column 'pose' had 3 numbers and has 4",
        False,
    )
    assert columns(two, {"label": other, "pose": ["vector", 4]}) == (
        "the classes of 'label' now lack 'b' and have 'c'",
        False,
    )
    assert columns(two, {"label": label, "pose": ["class", ["a"]]}) == (
        "the column 'pose' was a vector and is a class",
        False,
    )


@pytest.mark.parametrize("left_out", ["label", "text"])
def test_a_column_that_is_gone_or_new_is_not_acceptable(left_out):
    fewer = source(
        targets={k: v for k, v in source().targets.items() if k != left_out},
        columns={k: v for k, v in source().columns.items() if k != left_out},
    )
    gone = compare(identify(source()), identify(fewer))
    new = compare(identify(fewer), identify(source()))
    assert gone == (f"the column {left_out!r} is gone", False)
    assert new == (f"the column {left_out!r} is new", False)


def test_added_samples_are_acceptable_and_counted():
    added = source(
        x=torch.cat([source().x, source().x[:1]]),
        targets={"label": torch.tensor([0, 1, 0, 1, 0, 1, 1]), "text": [*"abcdefg"]},
    )
    words = compare(identify(source()), identify(added))
    assert words == ("there were 6 samples and are 7", True)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": torch.arange(1, 25, dtype=torch.uint8).reshape(6, 1, 2, 2)},
        {"x": torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2).float()},
        {"targets": {"label": torch.tensor([0, 1, 0, 1, 1, 1]), "text": [*"abcdef"]}},
        {"targets": {"label": torch.tensor([0, 1, 0, 1, 0, 1]), "text": [*"abcdeg"]}},
    ],
)
def test_a_changed_sample_class_or_caption_changes_it(changes):
    words = compare(identify(source()), identify(source(**changes)))
    assert words == ("the samples, or the values of their columns, have changed", True)


def test_of_large_data_numbers_of_every_row_are_hashed(monkeypatch):
    monkeypatch.setattr(identity, "HASHED", 8)
    monkeypatch.setattr(identity, "LEAST_HASHED", 2)  # of the four numbers of a row: 0 and 2
    for row in range(6):
        for number, same in ((0, False), (1, True), (2, False), (3, True)):
            x = source().x.clone()
            x.view(6, 4)[row, number] += 1
            assert (identify(source(x=x)) == identify(source())) is same


def test_of_data_that_are_not_large_every_number_is_hashed():
    x = torch.zeros(6, 1, 16, 16, dtype=torch.uint8)
    for row, number in ((0, 1), (5, 255)):
        changed = x.clone()
        changed.view(6, 256)[row, number] += 1
        assert identify(source(x=changed)) != identify(source(x=x))


def test_another_split_is_another_identity():
    train, test = split(source(), 0.5)
    other, _ = split(source(), 0.5, seed=1)
    assert len({identify(s)["digest"] for s in (train, test, other, source())}) == 4
    assert identify(train)["size"] == 3
