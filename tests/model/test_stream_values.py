"""Batches of many pictures: how they are cut, told, kept and compared, with parts that note."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guidestar.model import streaming
from guidestar.model.streaming import Batches, sample_to_folder


class Guidance:
    """An expression that takes some numbers of samples only."""

    def __init__(self, *takes: int) -> None:
        self.takes = takes

    def check_samples(self, count: int) -> None:
        if self.takes and count not in self.takes:
            raise ValueError(f"not {count}")

    def __str__(self) -> str:
        return "cfg(2)"


def batches(count: int, batch: int, *takes: int, **more: Any) -> Batches:
    request: Any = SimpleNamespace(
        guidance=Guidance(*takes), take=lambda part, losses: ("taken", part, losses)
    )
    numbers = [10 * k for k in range(count)]
    return Batches(
        model=more.pop("model", None), request=request, numbers=numbers, batch=batch, **more
    )


def test_pictures_are_cut_into_batches():
    ends = lambda job: [(s.start, s.stop) for s in job.parts()]
    assert ends(batches(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    assert ends(batches(6, 3)) == [(0, 3), (3, 6)] and ends(batches(2, 3)) == [(0, 2)]
    assert ends(batches(7, 3, 7)) == [(0, 7)]  # a scale for each of seven
    with pytest.raises(ValueError, match="not 7"):
        ends(batches(7, 3, 5))
    job = batches(7, 3, losses=lambda numbers: {"of": numbers})
    assert job.part(slice(3, 6)) == ("taken", slice(3, 6), {"of": [30, 40, 50]})
    assert batches(7, 3).part(slice(0, 1)) == ("taken", slice(0, 1), None)


def test_a_batch_counts_as_its_share_of_the_whole():
    told: list[Any] = []
    shifted = streaming._shifted(lambda step, steps: told.append((step, steps)), 2, 5)
    assert shifted is not None and streaming._shifted(None, 2, 5) is None
    shifted(3, 10)
    assert told == [(23, 50)]


def test_what_differs_is_named():
    differ = streaming._difference
    assert differ({"a": 1, "weights": "x"}, {"a": 1, "weights": "x"}) == ""
    assert differ({"weights": "x"}, {"weights": "y"}) == "weights of the model"
    assert differ({}, {"weights": "y"}) == "settings (weights)"
    assert differ({"b": 1, "weights": "x"}, {"a": 2, "weights": "y"}) == "settings (a, b, weights)"
    kept = streaming._comparable({"a": (1, (2,)), "number": 3, "stride": 4, "b": "x"})
    assert kept == {"a": [1, (2,)], "b": "x"}


@dataclass(frozen=True)
class Words:
    """The settings of a batch."""

    name: str
    lacking: tuple[str, ...] = ()
    weights: str = ""


def test_pictures_that_are_there_are_compared(monkeypatch, tmp_path):
    held: dict[str, Any] = {}
    monkeypatch.setattr(streaming, "_settings_in", lambda file: held[file.name])
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    there = lambda **more: streaming._is_there(Words("a", **more), files)  # type: ignore[arg-type]
    assert not there()
    own = {"name": "a", "lacking": [], "weights": ""}
    files[1].touch()
    held["1.png"] = {**own, "index": 1, "number": 7}
    assert not there()
    files[0].touch()
    held["0.png"] = {**own, "index": 0}
    assert there() is True
    held["0.png"] = {**own, "index": 1}
    with pytest.raises(ValueError, match=r"0\.png was made with other settings \(index\); name"):
        there()
    for name, index in (("0.png", 0), ("1.png", 1)):
        held[name] = {**own, "index": index, "lacking": ["a loss"]}
    assert not there(lacking=("a loss",))


def test_batches_are_made_or_kept(monkeypatch, tmp_path):
    made: list[Any] = []

    @dataclass(frozen=True)
    class Made:
        settings: Words
        evaluations: list[float]

        def save(self, folder: Path, numbers: Any) -> None:
            made.append((folder, numbers, self.settings))

    class Model:
        def settings(self, request: Any) -> Words:
            return Words(f"{request[1].start}")

        def run(self, request: Any, watch: Any) -> Made:
            watch(1, 4)
            return Made(Words("own"), [2.0, 4.0] if request[1].start else [9.0, 9.0])

    asked: list[Any] = []
    monkeypatch.setattr(streaming, "digest_of", lambda model: "w")
    monkeypatch.setattr(
        streaming, "file_name", lambda settings, i, number: f"{settings.name}-{i}-{number}"
    )
    monkeypatch.setattr(
        streaming,
        "_is_there",
        lambda settings, files: asked.append(settings) or settings.name == "2",
    )
    told: list[Any] = []
    job = batches(5, 2, model=Model())
    done = sample_to_folder(job, tmp_path / "new", lambda *given: told.append(given))
    names = ["0-0-0", "0-1-10", "2-0-20", "2-1-30", "4-0-40"]
    assert done.paths == [tmp_path / "new" / name for name in names]
    assert (done.kept, done.guidance) == (2, "cfg(2)")
    assert done.evaluations == pytest.approx((9 + 9 + 2 + 4) / 4)
    assert told == [(1, 12), (9, 12)] and (tmp_path / "new").is_dir()
    assert asked == [Words("0", (), "w"), Words("2", (), "w"), Words("4", (), "w")]
    assert made == [
        (tmp_path / "new", [0, 10], Words("own", (), "w")),
        (tmp_path / "new", [40], Words("own", (), "w")),
    ]
    monkeypatch.setattr(streaming, "_is_there", lambda settings, files: True)
    assert sample_to_folder(job, tmp_path, None).evaluations == 0.0
