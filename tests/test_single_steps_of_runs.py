"""Single steps of trainings and runs, with values by hand: what only slow tests would miss."""

import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.data.emoji_packages import Drawing
from guidestar.data.source import Column
from guidestar.diffusers.guide.run import _like_answer
from guidestar.guidance import METHODS
from guidestar.guidance.reuse import initial_state, reuses
from guidestar.train import preview
from guidestar.train.build.classifiers import classifier_column
from guidestar.train.loop import fit as fitting
from guidestar.train.recipe.parts import ClassifierPart, Training


@pytest.mark.parametrize(
    ("concept", "article"),
    [("red apple", "a "), ("apple", "an "), ("umbrella", "an "), ("glasses", ""), ("Japan", "")],
)
def test_captions_of_a_drawing(concept, article):
    found = Drawing(concept=concept, tags=(), style="flat").captions
    plain = [f"{concept}, flat style", f"{article}{concept}, flat style", concept]
    assert found == list(dict.fromkeys(plain))
    more = Drawing(concept="red apple", tags=("red", "fruit"), style="flat").captions
    assert more[3] == "red apple, fruit, flat style"


def test_an_answer_is_in_the_form_of_the_networks():
    out = torch.ones(1)
    plain, tuples = (
        SimpleNamespace(arguments=arguments) for arguments in ({}, {"return_dict": False})
    )

    class Output(SimpleNamespace):
        pass

    call: Any = tuples
    assert _like_answer((torch.zeros(1), "rest"), call, out) == (out, "rest")
    assert _like_answer(None, call, out) == (out,)
    made: Any = _like_answer(Output(sample=1), call, out)
    assert type(made) is Output and made.sample is out
    call = plain
    made = _like_answer(None, call, out)
    assert not isinstance(made, tuple) and made.sample is out


def test_what_a_term_keeps_for_reuse():
    cfg: Any = METHODS["cfg"]
    x = torch.ones(2, 3, 4)
    assert not reuses(cfg(2)) and initial_state(cfg(2), x) == cfg(2).start(x)
    first = initial_state(cfg(2, every=2), x)
    assert len(first) == 2
    zeros, never = first.values()
    assert zeros.shape == x.shape and zeros.eq(0).all()
    assert never.dtype == torch.float64 and never.shape == (2,) and never.isnan().all()
    further = initial_state(cfg(2, every=2, extrapolate=True), x)
    assert len(further) == 4 and set(first) < set(further)
    rated = initial_state(cfg(2, reuse=0.1), x)
    (rate,) = (v for k, v in rated.items() if k not in first)
    assert rate.tolist() == [math.inf, math.inf]


def test_the_column_that_a_classifier_predicts():
    columns = {
        "text": Column(kind="text"),
        "label": Column(kind="class", classes=("a",)),
        "size": Column(kind="vector", width=2),
    }
    spec = ClassifierPart(widths=(8,), train=Training(steps=1))
    assert classifier_column(spec, columns) == ("label", columns["label"])
    named = spec.model_copy(update={"column": "size"})
    assert classifier_column(named, columns) == ("size", columns["size"])
    other = spec.model_copy(update={"column": "text"})
    for part, text in (
        (spec, "no classes or vectors to predict"),
        (other, "no class or vector 'text'"),
    ):
        with pytest.raises(ValueError, match=f"the data have {text}; their columns are text"):
            classifier_column(part, {"text": columns["text"]})


class Steps:
    """A trainer of so many steps that notes when it is saved."""

    def __init__(self, steps: int) -> None:
        self.settings = SimpleNamespace(steps=steps, batch=3)
        self.done, self.seconds, self.norm, self.due, self.module = 0, 0.0, 2.0, False, None
        self.saved: list[tuple[int, int]] = []

    def rate(self):
        return 0.5

    def step(self, stop):
        self.done += 1
        return 4.0

    def save(self, path, *, keep):
        self.saved.append((self.done, keep))


@pytest.mark.parametrize(
    ("seconds", "every", "saved"),
    [(1.0, 60.0, [4]), (1.0, 0.5, [2, 4]), (1.0, 1.0, [3, 4]), (0.0, 0.0, [4])],
)
def test_checkpoints_are_written_after_so_long_and_at_the_end(monkeypatch, seconds, every, saved):
    now = [0.0]
    trainer: Any = Steps(4)

    def step(stop):
        now[0] += seconds
        trainer.done += 1
        return 4.0

    trainer.step = step
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(fitting, "time", clock)
    monkeypatch.setattr(fitting, "is_sharded", lambda module: False)
    found = list(fitting._fit(trainer, Path("c"), every, 2, (), None))
    assert [p.step for p in found] == [1, 2, 3, 4]
    last = found[-1]
    assert (last.loss, last.norm, last.rate, last.samples) == (4.0, 2.0, 0.5, 12)
    assert last.seconds == 4 * seconds
    assert trainer.saved == [(step, 2) for step in saved]
    trainer.saved.clear()
    trainer.done = 0
    assert len(list(fitting._fit(trainer, None, 0.0, 2, (), None))) == 4 and not trainer.saved


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("left_after", "agreed", "saved"), [(4, False, True), (2, False, False), (2, True, True)]
)
def test_a_sharded_network_is_saved_where_all_processes_end_together(
    monkeypatch, sharded, left_after, agreed, saved
):
    """Of `train/loop/fit.py`: at its end, or where all agreed to stop; else a part would lie alone,
    so only a whole network is saved.
    """
    trainer: Any = Steps(4)
    stop: Any = SimpleNamespace(agreed=False)
    monkeypatch.setattr(fitting, "is_sharded", lambda module: sharded)
    steps = fitting._fit(trainer, Path("c"), 60.0, 2, (), stop)
    for _ in range(left_after):
        next(steps)
    stop.agreed = agreed
    if left_after == 4:
        assert list(steps) == []
    else:
        steps.close()
    assert trainer.saved == ([(left_after, 2)] if saved or not sharded else [])


def test_a_step_that_failed_is_not_saved(monkeypatch):
    """Of `train/loop/fit.py`: neither the step nor what is called after it."""
    monkeypatch.setattr(fitting, "is_sharded", lambda module: False)

    def fail(trainer):
        if trainer.done == 2:
            raise RuntimeError("x")

    trainer: Any = Steps(4)
    with pytest.raises(RuntimeError, match="x"):
        list(fitting._fit(trainer, Path("c"), 60.0, 2, (fail,), None))
    assert trainer.saved == []
    trainer = Steps(0)
    assert list(fitting._fit(trainer, Path("c"), 60.0, 2, (), None)) == [] and not trainer.saved


def test_errors_of_other_threads_are_printed_once_muted(monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    preview._mute_writers()
    mute = threading.excepthook
    preview._mute_writers()
    assert threading.excepthook is mute
    other: Any = SimpleNamespace(thread=threading.Thread())
    mute(other)
    assert told == [other]
    writer = type("Writer", (), {"__module__": "tensorboard.summary"})()
    quiet: Any = SimpleNamespace(thread=writer)
    mute(quiet)
    assert told == [other]

    def hook(found):
        told.append("own")

    monkeypatch.setattr(threading, "excepthook", hook)  # of the same name, but not ours
    preview._mute_writers()
    assert threading.excepthook is not hook
