"""How batches are written again, and their progress counted, by values by hand
(`model/streaming.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guidestar.model import streaming


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, [0, 1, 2]),
        ({"number": 7}, [7, 8, 9]),
        ({"number": 7, "index": 2}, [5, 6, 7]),
        ({"number": 7, "index": 2, "stride": 3}, [1, 4, 7]),
        ({"stride": 2}, [0, 2, 4]),
        ({"index": 1, "number": "4"}, [3, 4, 5]),
    ],
)
def test_a_batch_is_written_again_under_the_same_names(monkeypatch, settings, numbers):
    saved: list[Any] = []

    @dataclass(frozen=True)
    class Carrying:
        weights: str = ""

    @dataclass(frozen=True)
    class Made:
        settings: Carrying
        x: tuple[int, ...] = (0, 1, 2)

        def save(self, *given):
            saved.append((self.settings.weights, *given))

    monkeypatch.setattr(streaming, "digest_of", lambda found: "ab" if found is model else "")
    samples = Made(Carrying())
    asked: list[Any] = []
    model: Any = SimpleNamespace(again=lambda *given: asked.append(given) or samples)
    watch: Any = "watch"
    made: Any = streaming.again_to_folder(model, settings, Path("f"), watch)
    assert made == Made(Carrying("ab"))
    assert asked == [(settings, "watch")] and saved == [("ab", Path("f"), numbers)]


def test_the_progress_of_a_batch_is_a_share_of_the_whole():
    noted: list[Any] = []
    watch: Any = streaming._shifted(lambda *given: noted.append(given), 2, 3)
    watch(1, 10)
    watch(10, 10)
    assert noted == [(21, 30), (30, 30)] and streaming._shifted(None, 2, 3) is None


def test_settings_are_compared_as_json_has_them():
    given = {"number": 3, "stride": 2, "seeds": (1, 2), "guidance": "cfg(2)", "index": 4}
    assert streaming._comparable(given) == {"seeds": [1, 2], "guidance": "cfg(2)", "index": 4}
    for name in streaming.NOT_COMPARED:
        assert name not in streaming._comparable({name: 1})


def test_what_holds_no_settings_holds_none(tmp_path):
    file = tmp_path / "a.png"
    file.write_text("no picture")
    assert streaming._settings_in(file) == {}
