"""What a model keeps and hands on: its scheduler, its steps' own defaults, losses of particles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.model import folder_writing, walking
from guidestar.model import model as models
from guidestar.model.manifest import _by_steps, _falls
from guidestar.model.steering import _repeated
from helpers.served import toy_model


def test_the_scheduler_is_the_cards_or_of_its_betas(monkeypatch):
    monkeypatch.setattr(folder_writing, "scheduler_settings", lambda model, given: given)

    def of(predicts: str = "eps", **card: Any) -> Any:
        denoiser = SimpleNamespace(predicts=predicts)
        model: Any = SimpleNamespace(name="m", card=card, denoiser=denoiser)
        return folder_writing._scheduler(model)

    assert of(scheduler={"a": 1}) == of(scheduler={"a": 1}, schedule={"b": 2}) == {"a": 1}
    for predicts, kind in (("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")):
        assert of(predicts, schedule={"beta_start": 0.1}) == {
            "_class_name": "DDPMScheduler", "beta_start": 0.1, "prediction_type": kind,
            "clip_sample": False,
        }  # fmt: skip
    with pytest.raises(ValueError, match="the model 'm' was not trained by guidestar"):
        of()


def test_defaults_by_steps_are_guidance_and_solver():
    assert _by_steps({}) and _by_steps({"4": {}, "8": {"guidance": "x", "solver": "y"}})
    assert not _by_steps([]) and not _by_steps({"4": 3})
    assert not _by_steps({"4": {"guidance": "x"}, "8": {"odd": 1}})
    assert not _by_steps({"4": {"guidance": "x", "odd": 1}})
    assert _falls([2.0, 1, 0], 2) and _falls([3, 0.0], 1)
    for rhos, steps in (
        ([2, 1, 0], 1), ([2, 1, 0], 3), ([0], 0), ([1, 1, 0], 2), ([2, 1], 1), ((1, 0), 1),
        ([True, 0], 1), (["1", 0], 1), ([float("inf"), 0], 1), ([1, 2, 0], 2),
    ):  # fmt: skip
        assert not _falls(rhos, steps)


def test_every_particle_has_the_observation_of_its_sample():
    y = torch.tensor([[1.0], [2.0]])
    found = _repeated(gs.Observation("identity", y, noise=0.5), 3)
    assert isinstance(found, gs.Observation) and isinstance(found.y, torch.Tensor)
    assert found.y.flatten().tolist() == [1, 1, 1, 2, 2, 2] and found.noise == 0.5
    for same in (
        gs.Observation("identity", y[:1]), gs.Observation("identity", 0.0),
        lambda x0: x0.sum(1),
    ):  # fmt: skip
        assert _repeated(same, 3) is same


def test_a_plan_is_of_the_defaults_of_its_steps(monkeypatch):
    asked: list[Any] = []

    def defaults(model: Any, steps: Any = None, grid: Any = None) -> Any:
        asked.append((steps, grid))
        return model.defaults

    monkeypatch.setattr(models, "defaults_of", defaults)
    assert toy_model().plan(steps=7, grid="karras").nfe == 14
    assert asked and set(asked) == {(7, "karras")}


def test_a_divergence_is_looked_for_at_the_last_step(monkeypatch):
    warned: list[Any] = []
    grid = SimpleNamespace(steps=3)
    states = [
        SimpleNamespace(x=f"x{k}", step=SimpleNamespace(index=k, grid=grid, s=f"s{k}"))
        for k in range(3)
    ]
    asked: list[Any] = []

    def trajectory(*given: Any, **more: Any) -> Any:
        asked.append((given, more))
        return iter(states)

    monkeypatch.setattr(walking, "trajectory", trajectory)
    monkeypatch.setattr(walking, "starting_samples", lambda model, request: "noise")
    model: Any = SimpleNamespace(
        bind=lambda request, check: ("bound", check),
        warn_of_divergence=lambda x, level: warned.append((x, level)),
    )
    request: Any = SimpleNamespace(levels="levels", solver="solver", seeds=(4, 5))
    assert list(walking.walk_states(model, request, explain=True)) == states
    assert warned == [("x2", "s2")]
    ((given, more),) = asked
    assert given == (("bound", False), "noise") and list(more.pop("draw").seeds) == [4, 5]
    assert more == {"grid": "levels", "solver": "solver", "explain": True}
