"""Digests of data and of what a training reads from elsewhere: written out, piece by piece."""

import hashlib
import json

import pytest
import torch

from guidestar.data import identity
from guidestar.data.identity import compare, identify
from guidestar.data.source import Column, InMemory, Subset
from guidestar.train.loop import origins


def digest(*pieces):
    found = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()


X = torch.arange(12, dtype=torch.float32).reshape(3, 4)
LABELS = torch.tensor([1, 0, 1])
SOURCE = InMemory(
    x=X,
    targets={"text": ["a", "b", "c"], "label": LABELS},
    columns={
        "text": Column(kind="text"),
        "label": Column(kind="class", classes=("p", "q")),
        "v": Column(kind="vector", width=3),
    },
)
PIECES = (
    b"torch.float32 (3, 4)",
    X.numpy().tobytes(),
    b"label",
    b"torch.int64 (3,)",
    LABELS.numpy().tobytes(),
    b"text",
    b"['a', 'b', 'c']",
)


def test_the_identity_of_data():
    assert identify(SOURCE) == {
        "columns": {"text": ["text", None], "label": ["class", ["p", "q"]], "v": ["vector", 3]},
        "size": 3,
        "digest": digest(*PIECES),
    }
    part = identify(Subset(source=SOURCE, kept=(2, 0)))
    assert part["size"] == 2 and part["digest"] == digest(b"2,0", *PIECES)


def test_of_large_data_every_so_many_numbers_of_each_row_are_hashed(monkeypatch):
    x = torch.arange(4 * 256, dtype=torch.uint8).reshape(4, 16, 16)
    monkeypatch.setattr(identity, "HASHED", 400)  # 1,024 bytes: every third number of a row
    rows = x.reshape(4, 256)[:, ::3].contiguous()
    found = identify(InMemory(x=x, targets={}, columns={}))["digest"]
    assert found == digest(b"torch.uint8 (4, 16, 16)", rows.numpy().tobytes())
    monkeypatch.setattr(identity, "HASHED", 10)  # but 64 of each row at least: every fourth
    rows = x.reshape(4, 256)[:, ::4].contiguous()
    found = identify(InMemory(x=x, targets={}, columns={}))["digest"]
    assert found == digest(b"torch.uint8 (4, 16, 16)", rows.numpy().tobytes())
    monkeypatch.setattr(identity, "HASHED", 1024)
    found = identify(InMemory(x=x, targets={}, columns={}))["digest"]
    assert found == digest(b"torch.uint8 (4, 16, 16)", x.numpy().tobytes())


def base(**more):
    return {"columns": {"a": ["class", ["p", "q"]]}, "size": 3, "digest": "x", **more}


@pytest.mark.parametrize(
    ("now", "words", "may"),
    [
        (base(), None, None),
        (base(digest="y"), "the samples, or the values of their columns, have changed", True),
        (base(size=4, digest="y"), "there were 3 samples and are 4", True),
        (base(columns={}), "the column 'a' is gone", False),
        (
            base(columns={**base()["columns"], "b": ["text", None]}),
            "the column 'b' is new",
            False,
        ),
        (base(columns={"a": ["vector", 2]}), "the column 'a' was a class and is a vector", False),
        (
            base(columns={"a": ["class", ["q", "p"]]}),
            "the classes of 'a' are in another order",
            False,
        ),
        (base(columns={"a": ["class", ["p"]]}), "the classes of 'a' now lack 'q'", False),
        (
            base(columns={"a": ["class", ["p", "r", "s", "t", "u"]]}),
            "the classes of 'a' now lack 'q' and have 'r', 's', 't'",
            False,
        ),
    ],
)
def test_what_differs_between_two_identities(now, words, may):
    assert compare(base(), now) == (None if words is None else (words, may))


def test_a_vector_of_another_width():
    one, two = (base(columns={"v": ["vector", n]}) for n in (2, 3))
    assert compare(one, two) == ("the column 'v' had 2 numbers and has 3", False)
    assert compare(one, {**one, "digest": "y"})[1] is True


def test_digests_of_what_a_training_reads(tmp_path):
    tensors = {"b": torch.tensor([1.5, 2.0]), "a": torch.tensor([[1]], dtype=torch.int16).mT}
    assert origins.of_tensors(tensors) == digest(
        b"a torch.int16 (1, 1)",
        b"\x01\x00",
        b"b torch.float32 (2,)",
        tensors["b"].numpy().tobytes(),
    )
    for name, content in (("b.json", "{}"), ("a.safetensors", "x"), ("c.txt", "y")):
        (tmp_path / name).write_text(content)
    assert origins.of_files(tmp_path) == digest(b"a.safetensors", b"x", b"b.json", b"{}")

    class Tokenizer:
        model_max_length = 77

        def get_vocab(self):
            return {"b": 1, "a": 0}

        def __call__(self, text):
            return {"input_ids": [len(text), 2]}

    probe = "A red coat, 2 boots & café – naïve; the quick brown fox jumps over a lazy dog!"
    assert origins.of_tokenizer(Tokenizer()) == digest(
        json.dumps([["a", 0], ["b", 1]]).encode(), json.dumps([len(probe), 2]).encode(), b"77"
    )
