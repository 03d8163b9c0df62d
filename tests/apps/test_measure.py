"""Measuring the shipped model against real images, and the card that the figures are written to."""

import struct

import pytest
import torch

import guidestar as gs
from guidestar.apps.measure import REAL, measure
from guidestar.data import fashion_mnist
from guidestar.model.card import card_text

needs_data = pytest.mark.skipif(
    not fashion_mnist.INSTALLED.is_dir(), reason="dataset-fashion-mnist is not installed"
)


def write_some(folder, count):
    """Write the first ``count`` pictures of each class of both splits, as the data lie."""
    folder.mkdir()
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = fashion_mnist.load_split(split)
        rows = torch.cat([(labels == k).nonzero()[:count, 0] for k in range(10)])
        pixels = (images[rows, 0] * 127.5 + 127.5).round().to(torch.uint8)
        for name, values in (("images-idx3", pixels), ("labels-idx1", labels[rows].byte())):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / f"{stem}-{name}-ubyte").write_bytes(head + values.numpy().tobytes())
    return folder


@pytest.mark.slow
@needs_data
def test_rows_say_what_was_measured(tmp_path):
    model, data = gs.load("fashion-mnist"), write_some(tmp_path / "data", 50)
    real, row = measure(model, ["cfg(3)"], seeds=range(20), steps=4, batch=7, data=data)
    assert real["guidance"] == REAL and real["accuracy"] > 0.9
    images = model.sample(
        [model.classes[i % 10] for i in range(20)], guidance="cfg(3)", seeds=range(20), steps=4
    ).images
    seen = model.judge(images).argmax(1)
    assert row["accuracy"] == pytest.approx(
        float((seen == torch.arange(20) % 10).double().mean()), abs=0.051
    )
    assert row["nfe"] == 8 and row["frechet"] > real["frechet"] and row["seconds"] > 0
    assert sum(row["shares"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
@needs_data
def test_judge_is_as_good_as_its_card_says():
    model = gs.load("fashion-mnist")
    images, labels = fashion_mnist.load_split("test")
    right = (model.judge(images[:1000]).argmax(1) == labels[:1000]).double().mean()
    assert float(right) == pytest.approx(model.card["judge_accuracy"], abs=0.02)


def test_a_model_without_judge_is_refused():
    model = gs.load("fashion-mnist")
    model.judge = None
    with pytest.raises(ValueError, match="no judge"):
        next(measure(model, ["cfg(1)"], seeds=[0]))


def test_card_tells_what_is_known():
    row = {
        "guidance": "cfg(3)",
        "accuracy": 0.951,
        "frechet": 3.14159,
        "diversity": 0.75,
        "shares": [0.05, 0.2],
        "nfe": 40.0,
    }
    about = {
        "summary": "A model",
        "defaults": {"steps": 20},
        "seconds": {"model": 7},
        "parameters": {"model": 1234567},
        "recipe": {"model": {"train": {"steps": 9}}},
        "command": "guidestar train x.toml",
        "machine": "2 threads",
        "classifier_accuracy": {"1": 0.5},
        "classifier_ece": {"1": [0.25, 0.0625]},
        "loss": {"model": 0.125},
        "regressor": {"2": [0.5, 1.75]},
        "classifier_rho_max": 8.0,
        "judge_accuracy": 0.9312,
        "figures": [
            {
                "title": "Scales",
                "text": "Seeds 0–999.",
                "command": "guidestar evaluate",
                "rows": [row],
            }
        ],
    }
    text = card_text("x", about)
    for words in (
        "# x",
        "1,234,567",
        "| 9 | 7 | 0.125 |",
        "| 1 | 50.0% | 0.250 | 0.062 |",
        "| 2 | 0.500 | 1.75 |",
        "above σ/α = 8",
        "93.12%",
        "| `cfg(3)` | 95.1% | 3.14 | 0.75 | 5.0%–20.0% | 40 |",
    ):
        assert words in text
    assert "Training" not in card_text("x", {"summary": "A model"})
