"""What a part is trained with where others go before it, value by value (`train/run.py`)."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.data.source import InMemory
from guidestar.train import run as runs
from guidestar.train.objectives.decoding import Decoding
from helpers.noting import noted, recipe


@dataclass(frozen=True, kw_only=True)
class Built:
    module: Any
    objective: Any
    prepare: Any = None


@pytest.fixture
def ready(monkeypatch):
    """All that training a part calls, noted by name."""
    clip = nn.Linear(1, 1)
    found: dict[str, Any] = {"clip": clip, "fits": []}
    answers = {
        "Trainer": SimpleNamespace(done=0), "averaged": clip, "describe_origin": {"a": 1},
        "read_origins": {"b": 2}, "of_tensors": "digest", "uses_clip": False,
        "take_from_clip": None, "is_unencoded": False, "vae_folder": "vae", "_previews": [],
        "Board": SimpleNamespace(close=lambda: None, add=print), "source_of": "own",
        "save_snapshot": None, "train_settings": "settings", "snapshot_steps": [2, 8],
        "build_part": Built(module="module", objective="objective"),
    }  # fmt: skip
    for name, answer in answers.items():
        found[name] = noted(monkeypatch, runs, name, answer)

    def fit(trainer, path, **more):
        found["fits"].append((trainer, path, more))
        yield from ()

    monkeypatch.setattr(runs, "fit", fit)
    return found


SOURCE: Any = InMemory(x=torch.zeros(4, 2), targets={}, columns={})


def test_a_decoder_learns_with_the_trained_clip(ready, monkeypatch, tmp_path):
    built = Built(module="module", objective=Decoding(features=0.5, noise=0.25))
    noted(monkeypatch, runs, "build_part", built)
    list(runs.train_part(recipe(), "decoder", tmp_path, SOURCE))
    (module, objective, data, settings, origin), _ = ready["Trainer"][0]
    assert (module, data, settings) == ("module", "own", "settings") and objective.clip is ready[
        "clip"
    ]
    assert (objective.features, objective.noise) == (0.5, 0.25)
    assert origin == {"a": 1, "b": 2, "clip (its weights)": "digest"}
    assert ready["averaged"] == [((recipe(), "clip", tmp_path, SOURCE), {})]
    (tensors,), _ = ready["of_tensors"][0]
    assert set(tensors) == {"weight", "bias"}
    plain = Built(module="module", objective=Decoding(features=0.0))
    noted(monkeypatch, runs, "build_part", plain)
    list(runs.train_part(recipe(), "decoder", tmp_path, SOURCE))
    assert ready["Trainer"][1][0][1] is plain.objective and len(ready["averaged"]) == 1
    assert ready["Trainer"][1][0][4] == {"a": 1, "b": 2}


def test_a_part_starts_from_the_clip_that_it_uses(ready, monkeypatch, tmp_path):
    known = recipe()
    list(runs.train_part(known, "model", tmp_path, SOURCE))
    assert ready["take_from_clip"] == [] == ready["averaged"]
    noted(monkeypatch, runs, "uses_clip", True)
    list(runs.train_part(known, "model", tmp_path, SOURCE))
    assert ready["take_from_clip"] == [(("module", ready["clip"]), {})]
    assert ready["averaged"] == [((known, "clip", tmp_path, SOURCE), {})]


@pytest.mark.parametrize(
    ("part", "vae"),
    [("model", "vae"), ("decoder", "vae"), ("clip", None), ("judge", None)],
)
def test_latents_are_those_of_the_autoencoder(ready, tmp_path, part, vae):
    list(runs.train_part(recipe(), part, tmp_path, SOURCE))
    assert ready["read_origins"] == [((recipe(), part, "module", vae), {})]
    assert ready["fits"][0][1] == tmp_path / "parts" / f"{part}.pt"


def test_latents_need_a_trained_autoencoder(ready, monkeypatch, tmp_path):
    line = "holds no trained autoencoder yet, whose latents '{}' learns from; train it first"
    noted(monkeypatch, runs, "vae_folder", None)
    list(runs.train_part(recipe(), "model", tmp_path, SOURCE))
    with pytest.raises(ValueError, match=line.format("decoder")):
        list(runs.train_part(recipe(), "decoder", tmp_path, SOURCE))
    noted(monkeypatch, runs, "is_unencoded", True)
    with pytest.raises(ValueError, match=line.format("model")):
        list(runs.train_part(recipe(), "model", tmp_path, SOURCE))


@pytest.mark.parametrize(
    ("done", "main", "kept"),
    [(2, True, True), (3, True, False), (2, False, False), (8, True, True)],
)
def test_early_weights_are_kept_by_the_main_process(ready, tmp_path, done, main, kept):
    list(runs.train_part(recipe(), "model", tmp_path, SOURCE))
    (hook,) = ready["fits"][0][2]["after"]
    trainer = SimpleNamespace(
        done=done, accelerator=SimpleNamespace(is_main_process=main),
        ema=SimpleNamespace(weights=lambda: "weights"),
    )  # fmt: skip
    hook(trainer)
    file = runs.snapshot_file(tmp_path, "model", done)
    assert ready["save_snapshot"] == ([(("weights", file), {})] if kept else [])


def test_the_progress_of_a_part_is_logged(ready, monkeypatch, tmp_path):
    added: list[Any] = []
    ended: list[Any] = []
    board = SimpleNamespace(add=added.append, close=lambda: ended.append("board"))
    made = noted(monkeypatch, runs, "Board", board)

    def fit(trainer, path, **more):
        try:
            yield "one"
            yield "two"
        finally:
            ended.append("fit")

    monkeypatch.setattr(runs, "fit", fit)
    steps = runs.train_part(recipe(), "model", tmp_path, SOURCE)
    assert next(steps) == "one" and added == ["one"]
    steps.close()
    assert ended == ["fit", "board"]
    assert made[0][0][0] == tmp_path / "tensorboard" / "model"
