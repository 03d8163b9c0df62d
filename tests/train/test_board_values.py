"""Curves of a training, and what its previews are drawn with, value by value
(`train/preview.py`).
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from guidestar.data.source import InMemory
from guidestar.train import preview
from guidestar.train.preview import Board
from helpers.noting import noted, recipe


class Writer:
    def __init__(self, folder, purge_step):
        self.made, self.scalars, self.images, self.closed = (folder, purge_step), [], [], 0

    def add_scalar(self, *given):
        self.scalars.append(given)

    def add_image(self, name, picture, step, dataformats):
        self.images.append((name, picture.shape, step, dataformats))

    def close(self):
        self.closed += 1


@pytest.fixture
def written(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer)
    )
    monkeypatch.setattr(preview, "_mute_writers", lambda: None)


def board(main=True, done=7) -> Any:
    trainer: Any = SimpleNamespace(done=done, accelerator=SimpleNamespace(is_main_process=main))
    return Board(Path("log"), trainer)


def progress(step, samples, seconds) -> Any:
    return SimpleNamespace(
        step=step, loss=0.5, norm=2.0, rate=0.1, samples=samples, seconds=seconds
    )


def test_curves_are_of_each_step(written):
    made = board()
    for step, samples, seconds in ((8, 100, 4.0), (9, 150, 6.0), (10, 160, 6.0), (11, 190, 7.0)):
        made.add(progress(step, samples, seconds))
    assert made.writer.made == ("log", 7)
    rows = made.writer.scalars
    for step in (8, 9, 10, 11):
        assert [r for r in rows if r[2] == step and "second" not in r[0]] == [
            ("loss", 0.5, step), ("gradient norm", 2.0, step), ("learning rate", 0.1, step)
        ]  # fmt: skip
    # Of the first step it is not known since when; within no time nothing is a speed.
    assert [r for r in rows if "second" in r[0]] == [
        ("samples per second", 25.0, 9), ("samples per second", 30.0, 11)
    ]  # fmt: skip
    made.picture(Image.new("RGB", (6, 4)), 11)
    assert made.writer.images == [("samples", (4, 6, 3), 11, "HWC")]
    made.close()
    assert made.writer.closed == 1


def test_only_the_main_process_writes_curves(written):
    made = board(main=False)
    made.add(progress(1, 1, 1.0))
    made.picture(Image.new("RGB", (6, 4)), 1)
    made.close()
    assert made.writer is None and made.before == (0, 0.0)


def test_a_training_goes_on_without_curves(written, monkeypatch):
    made = board()

    def full(*given):
        raise OSError(28, "No space left on device")

    made.add(progress(1, 1, 1.0))
    made.writer.add_scalar = full
    with pytest.warns(UserWarning, match="the training goes on without its curves"):
        made.add(progress(2, 2, 2.0))
    assert made.writer is None and made.failed
    made.add(progress(3, 3, 3.0))
    assert made.writer is None
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    other = board()
    other.add(progress(1, 1, 1.0))
    assert other.writer is None and not other.failed


def test_samples_become_data_by_the_decoder_that_there_is(monkeypatch, tmp_path):
    x = torch.tensor([[1.0], [3.0]])
    plain = InMemory(x=x, targets={}, columns={})
    folders = noted(monkeypatch, preview, "vae_folder", "folder")
    noted(monkeypatch, preview, "read_decoder", "decoder")
    known = recipe()
    assert preview.decoder_of(known, plain, tmp_path) == "decoder"
    assert folders == [((known, tmp_path), {})]
    noted(monkeypatch, preview, "vae_folder", None)
    scale = SimpleNamespace(undo=lambda x: 10 * x)
    scales = noted(monkeypatch, preview, "standardiser_of", scale)
    assert preview.decoder_of(known, plain, None) is scale.undo and scales == [((plain,), {})]
    noted(monkeypatch, preview, "standardiser_of", None)
    found = preview.decoder_of(known, plain, None)
    assert found(x) is x
    own: Any = SimpleNamespace(autoencoder="spec")
    fresh = noted(monkeypatch, preview, "fresh_autoencoder", nn.Dropout())
    noted(monkeypatch, preview, "pictures_of", SimpleNamespace(shape=(3, 8, 8)))
    noted(monkeypatch, preview, "Decoder", "fresh decoder")
    assert preview.decoder_of(own, plain, None) == "fresh decoder"
    assert fresh == [(("spec", (3, 8, 8)), {})]


def test_a_network_in_training_is_a_model(monkeypatch):
    made = noted(monkeypatch, preview, "Model", "model")
    processes = noted(monkeypatch, preview, "process", SimpleNamespace(schedule="schedule"))
    module: Any = SimpleNamespace(denoiser="net", encoder=SimpleNamespace(alone=lambda: "alone"))
    known = recipe()
    decode: Any = print
    assert preview.live_model(known, module, (3, 4, 4), decode) == "model"
    assert processes == [((known,), {})]
    assert made == [((), {"name": "r", "denoiser": "net", "schedule": "schedule",
                          "shape": (3, 4, 4), "encoder": "alone", "decode": print})]  # fmt: skip


def test_reconstructions_are_below_their_pictures(monkeypatch):
    asked = noted(monkeypatch, preview, "reconstructed", torch.ones(2, 1, 2, 2))
    x = -torch.ones(2, 1, 2, 2)
    above, below = preview.reconstruction_rows("vae", x)
    assert asked == [(("vae", x), {})]
    assert (above.label, below.label) == ("pictures", "reconstructed")
    value = lambda image: image.convert("L").getpixel((0, 0))
    assert [value(i) for i in above.images] == [0, 0]
    assert [value(i) for i in below.images] == [255, 255]


def test_a_disk_that_is_full_ends_the_curves_alone_and_is_named_once(written, recwarn):
    made = board()
    made.add(progress(8, 100, 4.0))

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    made.writer.add_scalar = full
    for step in (9, 10):
        made.add(progress(step, 100, 4.0))
    made.picture(Image.new("RGB", (2, 2)), 11)
    made.close()
    assert made.writer is None
    (warned,) = recwarn
    assert "log" in str(warned.message) and str(warned.message).endswith(
        "; the training goes on without its curves"
    )
