"""What trained parts are measured on and what is written of it, by numbers written out."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.rng import Draw
from guidestar.data.source import Column, InMemory
from guidestar.train import examine, preview
from helpers.noting import noted, recipe

PART = {"widths": [8], "train": {"steps": 3}}
LABEL = Column(kind="class", classes=tuple("abcdefghij"))


def pictures(count, side=4):
    x = torch.arange(float(count)).view(-1, 1, 1, 1).expand(count, 1, side, side).clone()
    return InMemory(x=x, targets={"label": torch.arange(count)},
                    columns={"label": LABEL})  # fmt: skip


def test_an_autoencoder_is_measured_in_parts(monkeypatch):
    monkeypatch.setattr(examine, "encoded", lambda vae, x: x[:, :, ::2, ::2] / 10)
    monkeypatch.setattr(examine, "decoded", lambda vae, z: torch.full_like(z, 5.0))
    monkeypatch.setattr(examine, "psnr", lambda made, x: x[:, 0, 0, 0] + made[:, 0, 0, 0])
    similar = lambda made, x: x[:, 0, 0, 0] / 7
    monkeypatch.setattr(examine, "ssim", similar)
    found = examine.examine_autoencoder("vae", pictures(40))
    # made is clipped to 1; the mean of 0 … 39 is 19.5
    assert found == {"psnr": 20.5, "of": 40, "pictures": [1, 4, 4], "latents": [1, 2, 2]}
    larger = examine.examine_autoencoder("vae", pictures(40, 11))
    assert larger["ssim"] == round(19.5 / 7, 4) and larger["latents"] == [1, 6, 6]
    assert "ssim" not in examine.examine_autoencoder("vae", pictures(40, 10))
    monkeypatch.setattr(examine, "MOST_EXAMINED", 33)
    found = examine.examine_autoencoder("vae", pictures(40))
    assert (found["of"], found["psnr"]) == (33, 17.0)


def test_a_clip_sees_how_far_reconstructions_are(monkeypatch):
    monkeypatch.setattr(examine, "encoded", lambda vae, x: x)
    monkeypatch.setattr(examine, "decoded", lambda vae, z: z / 2)
    monkeypatch.setattr(examine, "psnr", lambda made, x: x[:, 0, 0, 0])
    monkeypatch.setattr(examine, "_halved", lambda x: x / 4)
    monkeypatch.setattr(examine, "fit_gaussian", lambda x: (x.flatten().tolist(), len(x)))
    asked: list[Any] = []
    monkeypatch.setattr(
        examine, "gaussian_distance", lambda *given: asked.append(given) or 1.2345678
    )
    clip: Any = SimpleNamespace(embed_image=lambda x: x[:, 0, 0, :1])
    data = InMemory(x=torch.tensor([0.5, -0.5]).view(2, 1, 1, 1).expand(2, 1, 4, 4), targets={},
                    columns={})  # fmt: skip
    found = examine.examine_autoencoder("vae", data, clip)
    assert found["frechet"] == found["half"] == 1.23457
    own = ([0.5, -0.5], 2)
    assert asked == [([0.25, -0.25], 2, *own), ([0.125, -0.125], 2, *own)]
    one = InMemory(x=data.x[:1], targets={}, columns={})
    assert "frechet" not in examine.examine_autoencoder("vae", one, clip)


def test_pictures_are_halved_and_enlarged():
    flat = torch.full((1, 1, 8, 8), 0.25)
    assert torch.allclose(examine._halved(flat), flat, atol=1e-6)
    board = torch.ones(1, 1, 8, 8)
    board[:, :, ::2, 1::2] = board[:, :, 1::2, ::2] = -1.0
    assert float(examine._halved(board).abs().max()) < 0.3  # what is finer is gone
    edge = torch.full((1, 1, 8, 8), -1.0)
    edge[..., 4:] = 1.0
    ends = examine._halved(edge)
    assert (float(ends.min()), float(ends.max())) == (-1.0, 1.0)  # an overshoot is clipped
    assert examine._halved(torch.zeros(1, 1, 8, 6)).shape == (1, 1, 8, 6)


def test_captions_are_those_of_held_out_pictures_once_each(monkeypatch):
    asked = noted(monkeypatch, examine, "captions_of", ["a", "b", "a", "c"])
    x, captions = examine._captioned(pictures(4))
    assert captions == ["a", "b", "c"] and x[:, 0, 0, 0].tolist() == [0.0, 1.0, 3.0]
    assert asked[0][0][1] == [0, 1, 2, 3]
    examine._captioned(pictures(10), most=4)
    assert asked[1][0][1] == [0, 1, 2, 3]


def test_a_clean_clip_is_measured_by_retrieval(monkeypatch):
    monkeypatch.setattr(examine, "_captioned", lambda aside: ("x", ["a", "b", "c"]))
    asked = noted(monkeypatch, examine, "retrieval", {"R@1": 0.123456, "R@5": 1.0})
    clip: Any = SimpleNamespace(
        embed_image=lambda x: ("image", x), embed_captions=lambda c: ("text", c)
    )
    found = examine.examine_clip(clip, recipe(), pictures(3))
    assert found == {"R@1": 0.1235, "R@5": 1.0, "of": 3}
    assert asked == [((("image", "x"), ("text", ["a", "b", "c"])), {})]


def test_a_noise_aware_clip_is_trusted_up_to_a_level(monkeypatch):
    x = torch.rand(20, 1, 2, 2)
    names = [str(k) for k in range(20)]
    monkeypatch.setattr(examine, "_captioned", lambda aside: (x, names))
    asked: list[Any] = []
    shares = iter([0.9, 0.54321, 0.25])

    def retrieve(images, texts):
        assert texts == ("text", names)
        return {"image to text R@5": next(shares), "other": 2.0}

    monkeypatch.setattr(examine, "retrieval", retrieve)
    monkeypatch.setattr(examine, "RHOS", (0.1, 1.0, 10.0))
    trusted = noted(monkeypatch, examine, "trusted_rho", 1.5)

    def embed(image, level):
        asked.append((image, float(level.rho), level))
        return "image"

    clip: Any = SimpleNamespace(embed_image=embed, embed_captions=lambda c: ("text", c))
    found = examine.examine_noisy_clip(clip, recipe(), pictures(3))
    assert found == {"of": 20, "rho_max": 1.5,
                     "image to text R@5": {"0.1": 0.9, "1": 0.5432, "10": 0.25}}  # fmt: skip
    assert clip.rho_max == 1.5
    assert trusted == [(({0.1: 0.9, 1.0: 0.54321, 10.0: 0.25}, 0.25), {})]
    noise = Draw(list(range(20))).normal_like("noise", x)
    for image, _, level in asked:
        assert torch.allclose(image, (level.alpha * x + level.sigma * noise).to(image), atol=1e-6)
    assert [rho for _, rho, _ in asked] == pytest.approx([0.1, 1.0, 10.0], rel=1e-3)
    monkeypatch.setattr(examine, "_captioned", lambda aside: (x[:4], names[:4]))
    shares = iter([0.9, 0.5, 0.2])
    names = names[:4]
    examine.examine_noisy_clip(clip, recipe(), pictures(3))
    assert trusted[1][0][1] == 1.0


def test_which_parts_are_measured(monkeypatch):
    samples = noted(monkeypatch, examine, "gather_samples", ("x", torch.tensor([1])))
    noted(monkeypatch, examine, "examine", {"classes": 1})
    noted(monkeypatch, examine, "examine_regressor", {"numbers": 1})
    right = noted(monkeypatch, examine, "accuracy", 0.5)
    vae = noted(monkeypatch, examine, "examine_autoencoder", {"psnr": 9})
    clean = noted(monkeypatch, examine, "examine_clip", "clean")
    noisy = noted(monkeypatch, examine, "examine_noisy_clip", "noisy")
    noted(monkeypatch, examine, "pictures_of", "pictures")

    class Clip:
        def __init__(self, noise_aware):
            self.noise_aware = noise_aware

    monkeypatch.setattr(examine, "CLIP", Clip)
    known, aside = recipe(classifier=PART, judge=PART), "aside"
    run = lambda aside=aside, **parts: examine.examine_parts(known, parts, "source", aside)  # type: ignore[arg-type]
    assert run(None, classifier="c") == {} and run() == {}
    assert run(classifier="c") == {"classes": 1}
    assert samples[0][0] == (aside, known.classifier, examine.MOST_EXAMINED)
    assert run(judge="j") == {"judge_accuracy": 0.5}
    assert samples[1][0] == ("pictures", known.judge) and right[0][0][0] == "j"
    assert run(autoencoder="v") == {"autoencoder": {"psnr": 9}}
    assert vae[0][0] == ("v", "pictures", None)
    one, two, three = Clip(False), Clip(True), Clip(False)
    found = run(autoencoder="v", clip=one, noisy_clip=two, measuring_clip=three)
    assert found == {"autoencoder": {"psnr": 9}, "noisy_clip": "noisy",
                     "retrieval": {"clip": "clean", "measuring_clip": "clean"}}  # fmt: skip
    assert vae[1][0] == ("v", "pictures", three)
    assert [c[0] for c in clean] == [(one, known, "pictures"), (three, known, "pictures")]
    assert noisy[0][0] == (two, known, aside)
    noted(monkeypatch, examine, "gather_samples", ("x", torch.tensor([1.0])))
    assert run(classifier="c") == {"numbers": 1}


def test_samples_are_gathered_evenly():
    spec: Any = SimpleNamespace(predicts="label")
    column = lambda spec, columns: ("label", columns["label"])
    before = examine.classifier_column
    try:
        examine.classifier_column = column  # type: ignore[assignment]
        x, y = examine.gather_samples(pictures(10), spec, 4)
        assert y.tolist() == [0, 3, 6, 9] and x[:, 0, 0, 0].tolist() == [0.0, 3.0, 6.0, 9.0]
        assert examine.gather_samples(pictures(5), spec)[1].tolist() == [0, 1, 2, 3, 4]
        assert len(examine.gather_samples(pictures(5), spec, 9)[1]) == 5
    finally:
        examine.classifier_column = before


def test_every_other_sample_is_reported_on():
    x, y = torch.arange(5.0), torch.arange(5)
    found = examine._reported(x, y)
    assert (found[0].tolist(), found[1].tolist()) == ([1.0, 3.0], [1, 3])
    assert [t.tolist() for t in examine._reported(x[:1], y[:1])] == [[0.0], [0]]
    assert [t.tolist() for t in examine._reported(x[:2], y[:2])] == [[1.0], [1]]


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_classifier_is_calibrated_and_then_measured(monkeypatch, calibrate):
    rows = iter([{1.0: SimpleNamespace(accuracy=0.3, ece=0.22222)},
                 {1.0: SimpleNamespace(accuracy=0.77777, ece=0.11111)}])  # fmt: skip
    asked: list[Any] = []

    def by_level(classifier, data, schedule, rhos):
        asked.append([t.tolist() for t in data])
        return next(rows)

    monkeypatch.setattr(examine.calibration, "by_level", by_level)
    fits: list[Any] = []
    monkeypatch.setattr(
        examine.calibration, "fit_temperatures",
        lambda c, data, schedule, rhos: fits.append([t.tolist() for t in data]) or {1.0: 2.34567},
    )  # fmt: skip
    trusted = noted(monkeypatch, examine, "trusted_rho", 3.5)
    stated: dict[str, Any] = {}
    tempered: list[Any] = []
    classifier: Any = SimpleNamespace(
        config={"classes": list("abcd")}, calibrate=tempered.append,
        register_to_config=lambda **more: stated.update(more),
    )  # fmt: skip
    known = recipe(classifier={**PART, "calibrate": calibrate})
    x, y = torch.arange(4.0), torch.arange(4)
    found = examine.examine(classifier, known, x, y)
    assert found == {
        "classifier_accuracy": {"1": 0.7778},
        "classifier_ece": {"1": [0.2222, 0.1111]},
        "classifier_rho_max": 3.5,
    }
    assert asked == [[[1.0, 3.0], [1, 3]]] * 2
    assert fits == ([[[0.0, 2.0], [0, 2]]] if calibrate else [])
    assert tempered == ([((1.0, 2.3457),)] if calibrate else [])
    assert trusted == [(({1.0: 0.77777}, 0.25), {})]
    assert classifier.rho_max == 3.5 and stated == {"rho_max": 3.5}


def test_levels_are_those_within_the_schedule():
    schedule, rhos = examine._levels(recipe(schedule={"kind": "vp"}))
    low, high = schedule.rho_range
    assert rhos == [r for r in examine.RHOS if low <= r <= high] and len(rhos) > 5
    assert math.isfinite(low) and examine.RHOS == (
        0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0
    )  # fmt: skip


@pytest.mark.parametrize(("size", "count"), [(3, 3), (9, 4), (None, 4)])
def test_reconstructions_are_of_the_first_pictures(monkeypatch, size, count):
    made = noted(monkeypatch, preview, "_drawing", "hook")
    asked: list[Any] = []
    held: Any = SimpleNamespace(
        size=size, batch=lambda rows, draw: asked.append((rows, list(draw.seeds))) or ("x", {})
    )
    known = recipe(preview={"seeds": 4})
    hook = preview.reconstruction_hook(known, "autoencoder", "o", held, "board")  # type: ignore[arg-type]
    assert hook == "hook" and asked == [(range(count), list(range(count)))]
    rows = noted(monkeypatch, preview, "reconstruction_rows", "rows")
    assert made[0][0][:4] == (known, "autoencoder", "o", "board")
    assert made[0][0][4]("module") == "rows" and rows == [(("module", "x"), {})]


def test_pictures_are_drawn_every_so_many_steps(monkeypatch, tmp_path):
    from contextlib import contextmanager

    sheets = noted(monkeypatch, preview, "sheet", "image")
    saved = noted(monkeypatch, preview, "save_png")
    module: Any = torch.nn.Linear(1, 1)
    applied: list[Any] = []

    @contextmanager
    def average(net):
        applied.append(net)
        yield

    shown: list[Any] = []
    trainer: Any = SimpleNamespace(
        done=8, module=module, ema=SimpleNamespace(applied=average),
        accelerator=SimpleNamespace(is_main_process=True),
    )  # fmt: skip
    board: Any = SimpleNamespace(picture=lambda *given: shown.append(given))
    modes: list[bool] = []
    rows = lambda net: modes.append(net.training) or "rows"
    hook = preview._drawing(recipe(preview={"every": 4}), "model", tmp_path, board, rows)
    for training in (True, False):
        module.train(training)
        hook(trainer)
        assert module.training is training
    assert modes == [False, False] and applied == [module] * 2
    assert sheets[0] == (("rows",), {"title": "r: model after 8 steps"})
    assert saved[0][0] == ("image", tmp_path / "previews" / "model-000008.png")
    assert shown == [("image", 8)] * 2
    trainer.done = 9
    hook(trainer)
    trainer.done, trainer.accelerator.is_main_process = 8, False
    hook(trainer)
    assert len(saved) == 2
