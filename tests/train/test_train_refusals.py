"""What a training refuses, and by which words."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import guidestar as gs
from guidestar.cli import measuring, sampling, training
from guidestar.data.source import Column, InMemory
from guidestar.model import loading
from guidestar.model.cascade import Cascade
from guidestar.train import export
from guidestar.train import run as runs
from guidestar.train.build import autoencoders, clips, limits, trial
from guidestar.train.build import networks as build
from guidestar.train.loop import checkpoints, lock, signals
from guidestar.train.students.recipe import read_distillation
from helpers.noting import noted, recipe


def source(*shape: int, columns: Any = None):
    return InMemory(x=torch.zeros(2, *shape), targets={}, columns=columns or {})


def test_pictures_that_a_part_cannot_learn():
    spec: Any = SimpleNamespace(patch=4, network="AutoencoderKL")
    with pytest.raises(ValueError, match=r"learns from pictures, not from samples of \[5, 3\]"):
        autoencoders.fresh_autoencoder(spec, (5, 3))
    for shape in ((1, 8, 8), (3, 8, 12), (3, 6, 6), (8, 8)):
        with pytest.raises(
            ValueError, match="CLIP is trained on square pictures of 3 channels, cut"
        ):
            clips.fresh_clip(spec, "clip", source(*shape), None)


def test_texts_of_a_model(monkeypatch):
    text = Column(kind="text")
    data = source(1, 8, 8, columns={"a": text, "b": text})
    with pytest.raises(
        ValueError, match="the condition 'a' is text: name the CLIP that encodes it"
    ):
        build.build_part(recipe(conditions={"a": {}}), "model", data)
    widths = iter([8, 16])
    monkeypatch.setattr(build, "build_text", lambda *given: SimpleNamespace(width=next(widths)))
    two = recipe(conditions={"a": {"encoder": "x"}, "b": {"encoder": "y"}})
    with pytest.raises(ValueError, match=r"must be of one width, not \[8, 16\]"):
        build.build_part(two, "model", data)
    built: Any = SimpleNamespace(module=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="a denoising part must be a ConditionalModel, not Linear"):
        trial._conditional(built)


def test_networks_of_very_many_tensors(monkeypatch):
    monkeypatch.setattr(limits, "MOST_TENSORS", 5)
    with (
        pytest.raises(limits.TooLarge, match="has more than 5 tensors; give it fewer layers"),
        limits.count_memory(1, most=10**9),
    ):
        [nn.Linear(1, 1) for _ in range(3)]
    with limits.count_memory(1, most=10**9):
        [nn.Linear(1, 1, bias=False) for _ in range(5)]
    with limits.count_memory(0):
        [nn.Linear(1, 1) for _ in range(9)]


def test_other_data_than_a_checkpoint_was_made_from(monkeypatch, tmp_path):
    found: dict[str, Any] = {"answer": None}
    monkeypatch.setattr(checkpoints, "compare", lambda before, now: found["answer"])
    of = lambda accept, before="b", now="n": checkpoints._check_data(
        tmp_path, before, now, accept=accept  # type: ignore[arg-type]
    )  # fmt: skip
    of(False)
    found["answer"] = ("other classes", False)
    for accept in (False, True):
        with pytest.raises(
            ValueError, match=r"other data \(other classes\); give another --out, or "
        ):
            of(accept)
    found["answer"] = ("more samples", True)
    with pytest.raises(
        ValueError, match=r"\(more samples\); give the data it was started with, an"
    ):
        of(False)
    with pytest.warns(UserWarning, match=r"other data \(more samples\), which was accepted"):
        of(True)
    for before, now in ((None, "n"), ("b", None)):
        with pytest.raises(
            ValueError, match=r"\(of unknown identity\); give the data it was start"
        ):
            of(False, before, now)
        with pytest.warns(UserWarning, match="of unknown identity"):
            of(True, before, now)


def test_a_lock_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "_take", refuse)
    with (
        pytest.raises(OSError, match=r"cannot write .*\.lock: No space left on device"),
        lock.locked(tmp_path),
    ):
        raise AssertionError


def test_a_second_ctrl_c_interrupts_and_other_signals_do_not():
    former = {n: signal.getsignal(n) for n in signals._SIGNALS}
    stop = signals.Stop()
    assert not stop.requested and not stop.agreed
    with signals.stop_on_signals(stop) as found:
        assert found is stop
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {n: signal.getsignal(n) for n in signals._SIGNALS} == former


def test_parts_that_need_others(monkeypatch, tmp_path):
    noted(monkeypatch, runs, "build_part", "built")
    noted(monkeypatch, runs, "source_of", "seen")
    monkeypatch.setattr(runs, "is_unencoded", lambda source: True)
    line = "holds no trained autoencoder yet, whose latents 'model' learns from; train it first"
    with pytest.raises(ValueError, match=line):
        next(runs.train_part(recipe(), "model", source(1, 4, 4), tmp_path))


def test_recipes_of_students_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"r\.toml cannot be read: No such file or directory"):
        read_distillation(tmp_path / "r.toml")
    for content in (b"[", b"\xff", b"a = " + b"[" * 5000):
        (tmp_path / "r.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"r\.toml is not TOML: ") as found:
            read_distillation(tmp_path / "r.toml")
        assert "\n" not in str(found.value)


# Commands


def test_a_recipe_is_not_written_over(tmp_path):
    out = tmp_path / "r.toml"
    out.touch()
    with pytest.raises(ValueError, match=r"r\.toml exists; give another --out, or remove it"):
        training.recipe(tmp_path, out)


def test_a_model_that_cannot_be_written_is_trained(monkeypatch, tmp_path):
    def fail(*given, **more):
        raise OSError("disk full")

    monkeypatch.setattr(export, "assemble", fail)
    line = "disk full; all parts are trained, their checkpoints in .*parts are intact, and the same"
    with pytest.raises(OSError, match=line):
        training._assemble(recipe(), tmp_path, "c")


def test_commands_for_one_model_alone(monkeypatch, tmp_path):
    made: Any = object.__new__(Cascade)
    object.__setattr__(made, "name", "c")
    monkeypatch.setattr(Cascade, "takes_prompts", True)
    monkeypatch.setattr(loading, "load", lambda *given, **more: made)
    with pytest.raises(
        ValueError, match="m is a cascade of prompts, which are measured by stage; "
    ):
        measuring.evaluate("m", ["cond"])
    with pytest.raises(ValueError, match="'c' is a cascade; --observe is for one "):
        sampling.sample("m", observe=tmp_path, out=tmp_path)
    from guidestar.io import distributed

    model: Any = SimpleNamespace(name="m", expression=lambda *given, **more: gs.parse("cond"))
    monkeypatch.setattr(loading, "load", lambda *given, **more: model)
    monkeypatch.setattr(distributed, "own_indices", lambda count: [])
    with pytest.raises(ValueError, match="there are more processes than samples; launch fewer"):
        sampling.sample("m", out=tmp_path)
