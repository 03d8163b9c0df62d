"""What a model keeps and hands on: its scheduler, its steps' own defaults, losses of particles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.model import binding, cascade, checking, folder_writing, upscaling, walking
from guidestar.model import model as models
from guidestar.model.locating import find_folder, split_variant
from guidestar.model.manifest import NAME, _by_steps, _falls
from guidestar.model.steering import _repeated
from helpers.served import Words, toy_model


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


def test_a_name_with_a_variant_is_split(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / NAME).write_text("{}")
    name = f"{tmp_path}/m"
    assert split_variant(f"{name}:small", None) == (name, "small")
    assert split_variant(f"{name}:small", "large") == (f"{name}:small", "large")
    assert split_variant(name, None) == (name, None)
    assert split_variant(f"{name}x:small", None) == (f"{name}x:small", None)
    (tmp_path / "m:small").mkdir()
    assert split_variant(f"{name}:small", None) == (f"{name}:small", None)
    assert split_variant("fashion-mnist:x", None) == ("fashion-mnist", "x")


def test_folders_of_models(tmp_path):
    assert find_folder(tmp_path) == tmp_path
    (tmp_path / "w.bin").touch()
    with pytest.raises(ValueError, match=r"w\.bin is a file, and a model is a folder"):
        find_folder(tmp_path / "w.bin")
    with pytest.raises(ValueError, match=rf"unknown model .*there is {tmp_path}, but no 'none'"):
        find_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="did you mean 'fashion-mnist'"):
        find_folder("fashion-mnis")


def test_pictures_are_enlarged_at_the_usual_augmentation(monkeypatch):
    asked: list[Any] = []
    low = SimpleNamespace(channels=1, size=2, largest=0.3)
    monkeypatch.setattr(upscaling, "need_low", lambda model: low)
    monkeypatch.setattr(upscaling, "augmented", lambda *given: asked.append(given) or "rows")
    monkeypatch.setattr(upscaling, "Pictured", lambda *given: given)
    monkeypatch.setattr(upscaling, "replace", lambda model, encoder: encoder)
    model: Any = SimpleNamespace(name="m", encoder="encoder")
    pictures = torch.arange(8.0, dtype=torch.float64).reshape(2, 1, 2, 2).requires_grad_()
    made: Any = upscaling.with_pictures(model, pictures, seeds=[4, 5])
    assert made == ("encoder", "rows")
    ((rows, levels, draw),) = asked
    assert rows.dtype == torch.float32 and not rows.requires_grad
    assert levels.dtype == torch.float64 and levels.tolist() == [0.1, 0.1]
    assert list(draw.seeds) == [4, 5]
    for augmentation in (0.0, 0.3):
        upscaling.with_pictures(model, pictures, seeds=[4, 5], augmentation=augmentation)
        assert asked[-1][1].tolist() == [augmentation] * 2
    low.largest = 0.05
    upscaling.with_pictures(model, pictures, seeds=[4, 5])
    assert asked[-1][1].tolist() == [0.05] * 2
    for wrong in (-0.01, 0.06, float("nan")):
        with pytest.raises(ValueError, match=r"must be from 0 to 0\.05"):
            upscaling.with_pictures(model, pictures, seeds=[4, 5], augmentation=wrong)
    with pytest.raises(ValueError, match="2 pictures were given for 1 seeds; give one each"):
        upscaling.with_pictures(model, pictures, seeds=[4])
    for shape in ((2, 1, 2, 3), (2, 2, 2, 2), (1, 2, 2)):
        with pytest.raises(ValueError, match="'m' enlarges pictures of 1 x 2 x 2"):
            upscaling.with_pictures(model, torch.zeros(shape), seeds=[4, 5])


def test_a_scale_of_whole_numbers_is_one_of_floats():
    found = binding.add_scale(gs.Condition(c=torch.zeros(2)), [4], torch.device("cpu"))
    assert found[binding.SCALE].dtype == torch.float32 and found[binding.SCALE].tolist() == [4, 4]


def test_names_become_the_conditions_that_are_checked():
    model, null = toy_model(), gs.Condition(c=torch.zeros(1))
    found, bare = checking._conditions(model, "dog", null, 3)
    wanted = Words().encode(["dog"] * 3)
    assert torch.equal(found["c"], wanted["c"]) and bare is null
    assert checking._conditions(model, found, null, 3) == (found, null)
    none, bare = checking._conditions(model, None, null, 3)
    assert none is null and bare is None
    own, made = checking._conditions(model, found, None, 3)
    assert own is found and made is not None and made.batch == 3 and not made["c"].any()
    net: Any = object()
    empty, bare = checking._conditions(net, None, None, 3)
    assert not empty and bare is None and checking._conditions(net, None, null, 3)[0] is null
    with pytest.raises(ValueError, match="conditions by name need a Model with an encoder"):
        checking._conditions(net, "dog", None, 3)


def test_the_name_of_a_solver_brings_its_grid():
    request = toy_model().request("cat", solver="DPM++ 2M Karras", steps=4)
    assert request.grid == "karras"
    request = toy_model().request("cat", solver="DPM++ 2M Karras", grid="uniform", steps=4)
    assert request.grid == "uniform"
    assert toy_model().request("cat", steps=4).grid == "log_snr"


def test_a_cascade_keeps_its_card_and_refuses_other_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(cascade, "load_model", lambda folder, *, trust, device: toy_model())
    cascade.write_cascade_index(tmp_path, ["base"], {"summary": "two stages"})
    made = cascade.load_cascade(tmp_path)
    assert made.card == {
        "summary": "two stages", "format": cascade.CASCADE_FORMAT, "stages": ["base"]
    }  # fmt: skip
    assert made.name == str(tmp_path) and list(made.stages) == ["base"]
    keys = ["guidance", "steps", "solver", "grid", "augmentation", "seeds", "negative"]
    whole: dict[str, Any] = {
        "cond": None, "seeds": [0],
        "stages": {"base": dict.fromkeys(keys)},
    }  # fmt: skip
    for wrong in (
        {}, {**whole, "stages": ["base"]}, {**whole, "stages": {"base": 3}},
        {"cond": None, "stages": whole["stages"]}, {"seeds": [0], "stages": whole["stages"]},
        {**whole, "stages": {"base": {"guidance": None}}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the picture is not of a cascade"):
            made.again(wrong)
    lacking = {**whole["stages"]["base"], "lacking": ["a loss", "x"]}
    with pytest.raises(ValueError, match="this run depended on a loss, which the picture does"):
        made.again({**whole, "stages": {"base": lacking}})
