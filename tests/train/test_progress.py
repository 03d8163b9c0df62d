"""What is said while a training runs: by hand, with a clock of our own."""

import io
import sys

import pytest

from guidestar.train import progress as module
from guidestar.train.objectives.objective import Progress
from guidestar.train.progress import Figures, Smoothed, duration, progress_report


def step(number, loss=1.0, seconds=None, samples=None):
    given = {"seconds": 2.0 * number if seconds is None else seconds}
    given["samples"] = 64 * number if samples is None else samples
    return Progress(step=number, loss=loss, norm=1.0, rate=0.1, **given)


def test_a_running_mean_is_without_bias():
    """Weights keep^k, of the last values most: (1·0.5 + 4)/(1.5), and so on."""
    mean = Smoothed(keep=0.5)
    assert [mean.add(v) for v in (1.0, 4.0, 10.0)] == pytest.approx(
        [1.0, (0.5 * 1 + 4) / 1.5, (0.25 * 1 + 0.5 * 4 + 10) / 1.75]
    )
    by_default = Smoothed()
    by_default.add(0.0)
    assert by_default.add(1.0) == pytest.approx(1 / 1.98)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.5, "1:00"),
        (600, "10:00"),
        (3599, "59:59"),
        (3661, "1:01:01"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_speed_and_time_left_go_by_the_last_steps():
    figures = Figures(10)
    assert figures.add(step(3, 2.0)) == {"loss": "2.0000", "speed": "–", "left": "–"}
    found = figures.add(step(4, 4.0, seconds=8.0))  # 64 samples in 2 s; 6 steps are left
    loss = (0.98 * 2 + 4) / 1.98
    assert found == {"loss": f"{loss:.4f}", "speed": "32", "left": "0:12"}
    found = figures.add(step(5, seconds=12.0))  # this one took 4 s
    each = (0.98 * 2 + 4) / 1.98
    assert found["speed"] == f"{64 / each:.0f}" and found["left"] == duration(5 * each)
    same = figures.add(step(6, seconds=12.0))
    assert same["speed"] == same["left"] == "–"  # no time has passed


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_the_first_and_last_step_and_now_and_then(clock, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    said = []
    with progress_report(interval=5.0) as report:
        for number in range(1, 9):
            report("model", step(number), 8)
            clock[0] += 2
            said.append(len(out.getvalue().splitlines()))
        report("judge", step(1), 3)
        report("judge", step(2), 3)
    # Said at 100, then not before 105: at 106, 112 and 114, where it ends.
    assert said == [1, 1, 1, 2, 2, 2, 3, 4]
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "model 1/8",
        "model 4/8",
        "model 7/8",
        "model 8/8",
        "judge 1/3",
    ]
    assert lines[0] == "model 1/8  loss 1.0000  – samples/s  – left"
    assert lines[1] == "model 4/8  loss 1.0000  32 samples/s  0:08 left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_for_each_part(monkeypatch):
    pytest.importorskip("rich")
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress_report() as report:
        for number in range(1, 4):
            report("model", step(number), 3)
        report("judge", step(1), 7)
    text = out.getvalue()
    assert "model" in text and "3/3" in text and "judge" in text and "1/7" in text
    assert "32 samples/s" in text and "loss 1.0000" in text


def test_no_bars_where_rich_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert module._rich_bars() is None
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert module._rich_bars() is None
