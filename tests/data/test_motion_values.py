"""Single values of motions: how they are cut, what their names say, how they are standardised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.rng import Draw
from guidestar.data import motions
from guidestar.data.motions import Motions, MotionSettings, standardiser
from guidestar.data.source import Column
from guidestar.data.tensors import Standardiser
from guidestar.io.files import Damaged


def held(frames: int, **more: Any) -> Motions:
    """Three motions of 5, 2 and 3 frames, whose numbers count the frames."""
    return Motions(
        numbers=torch.arange(10.0)[:, None] * 2 + 1, counts=(5, 2, 3),
        targets={"t": ["a", "b", "c"]}, columns={"t": Column(kind="text")}, body=None,
        scale=Standardiser(mean=torch.ones(1), std=torch.full((1,), 2.0)), frames=frames, **more,
    )  # fmt: skip


def test_the_middle_of_a_motion_is_taken_and_a_short_one_padded():
    found = held(3)
    assert found.shape == (3, 1) and found.size == 3
    x, targets = found.batch([0, 1, 2], Draw([0, 1, 2]))
    assert x[..., 0].tolist() == [[1, 2, 3], [5, 6, 0], [7, 8, 9]]
    assert targets["length"].tolist() == [3, 2, 3]  # type: ignore[union-attr]
    assert targets["t"] == ["a", "b", "c"]
    x, targets = found.batch([2, 0], Draw([0, 1]))
    assert x[..., 0].tolist() == [[7, 8, 9], [1, 2, 3]]
    assert targets["length"].tolist() == [3, 3] and targets["t"] == ["c", "a"]
    x, targets = held(4).batch([0, 2], Draw([0, 1]))  # one frame to spare: the later half
    assert x[..., 0].tolist() == [[1, 2, 3, 4], [7, 8, 9, 0]]
    assert targets["length"].tolist() == [4, 3]  # type: ignore[union-attr]
    x, targets = held(6).batch([2], Draw([0]))
    assert x[..., 0].tolist() == [[7, 8, 9, 0, 0, 0]] and targets["length"].tolist() == [3]
    assert found.captions("t", [2, 0]) == [("c",), ("a",)]


def test_a_random_part_begins_where_its_number_says():
    found, seeds = held(3, crop="random"), list(range(20))
    x, _ = found.batch([0] * 20, Draw(seeds))
    starts = [int(u * 3) for u in Draw(seeds).uniform("crop").tolist()]
    assert x[:, 0, 0].tolist() == starts and set(starts) == {0, 1, 2}
    short, _ = found.batch([1] * 20, Draw(seeds))
    assert short[..., 0].tolist() == [[5, 6, 0]] * 20


def test_numbers_share_the_deviation_of_their_part():
    parts = {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 4)}
    body: Any = SimpleNamespace(format=SimpleNamespace(parts=parts))
    numbers = torch.tensor([[0.0, 2.0, 5.0, 1.0], [2.0, 6.0, 5.0, 7.0]])
    found = standardiser(numbers, body)
    assert found.mean.tolist() == [1, 4, 5, 4]
    half = ((1 + 4) / 2) ** 0.5  # of the variances 1 and 4
    assert found.std.tolist() == pytest.approx([half, half, 1, 3])  # one that never changes has 1
    assert found.mean.dtype == found.std.dtype == torch.float32


def test_words_of_names():
    fits = motions._pattern("{a}_{}+{b}.x").fullmatch
    found = fits("p_q_r+s.x")
    assert found is not None and found.groupdict() == {"a": "p", "b": "s"}
    assert fits("p_q+s_x") is None and fits("p_+s.x") is None and fits("_q+s.x") is None
    for names, text in (
        ("{a}{a}", "'a' is not one"), ("{1}", "'1' is not one"), ("{b}{a}{2c}", "'2c' is not one"),
        ("x", "there is none"), ("{}", "there is none"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"needs words in braces, each once, .*; {text}$"):
            motions._pattern(names)
    files = [Path("d/run_1.bvh"), Path("d/walk_2.bvh"), Path("d/up.bvh")]
    assert motions._words(files, None) == {}
    assert motions._words(files[:2], "{a}_{b}") == {"a": ["run", "walk"], "b": ["1", "2"]}
    with pytest.raises(ValueError, match=r"fits 2 of 3 files, but not 'up\.bvh'; rename it"):
        motions._words(files, "{a}_{}")
    with pytest.raises(ValueError, match=r"fits no file, e\.g\. not 'run_1\.bvh'; write"):
        motions._words(files, "{a}-{}")


def test_captions_of_words():
    words = {"a": ["run-fast", "walk"], "b": ["x", "y-z"]}
    assert motions._captions(None, words) == {}
    assert motions._captions("{b}: a {a}, {b}", words) == {
        "text": ["x: a run fast, x", "y z: a walk, y z"]
    }
    assert motions._captions("{a}", words) == {"text": ["run fast", "walk"]}
    for caption, known, text in (
        ("{a} {c}", words, "there is a, b"), ("plain", words, "there is a, b"),
        ("{a}", {}, "there is none, as data.motion.names is missing"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"words of the files' names in braces; {text}$"):
            motions._captions(caption, known)


class Reader:
    """Bodies and files that note what is asked of them."""

    def __init__(self, monkeypatch: Any, bad: str = "") -> None:
        self.made: list[Any] = []
        monkeypatch.setattr(motions, "read_bvh", lambda file: self._read(file, bad))
        monkeypatch.setattr(motions, "Body", SimpleNamespace(of=self._of))

    def _read(self, file: Path, bad: str) -> str:
        if file.stem in bad:
            raise Damaged(f"{file.name} is bad")
        return file.stem

    def _of(self, motion: str, **more: Any) -> Any:
        self.made.append((motion, more))
        return self

    def encode(self, motion: str) -> Any:
        if motion == "odd":
            raise ValueError("another skeleton")
        return f"numbers of {motion}"


FILES = [Path(f"d/{name}.bvh") for name in "abcd"]


def test_files_are_encoded_by_the_body_of_the_first(monkeypatch):
    reader, said = Reader(monkeypatch, bad="ac"), []
    settings = MotionSettings(rate=7.0, up="Z", root="hip")
    numbers, kept, body = motions._encode_all(FILES, settings, 2, said.append, None)
    assert (numbers, kept) == (["numbers of b", "numbers of d"], [1, 3]) and body is reader
    assert reader.made == [("b", {"rate": 7.0, "up": "Z", "root": "hip"})]
    assert said == ["skipped a.bvh is bad", "skipped c.bvh is bad"]
    like: Any = SimpleNamespace(body=reader)
    assert motions._encode_all(FILES, settings, 2, None, like)[1:] == ([1, 3], reader)
    assert len(reader.made) == 1
    with pytest.raises(Damaged, match=r"^c\.bvh is bad; 1 were skipped before \(data\.max_bad\)$"):
        motions._encode_all(FILES, settings, 1, None, None)
    with pytest.raises(Damaged, match=r"^a\.bvh is bad$"):
        motions._encode_all(FILES, settings, 0, None, None)
    with pytest.raises(Damaged, match=r"^d: none of its 2 files can be read$"):
        motions._encode_all([FILES[0], FILES[2]], settings, 5, None, like)
    with pytest.raises(Damaged, match=r"^d: none of its 1 files can be read$"):
        motions._encode_all(FILES[:1], settings, 1, None, None)
    with pytest.raises(ValueError, match=r"^d/odd\.bvh: another skeleton$"):
        motions._encode_all([Path("d/odd.bvh")], settings, 0, None, None)
