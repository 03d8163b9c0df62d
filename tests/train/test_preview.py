"""Pictures of samples while a network trains: whose they are, when, and what is kept as it was."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from guidestar.data.source import Column, InMemory
from guidestar.train import preview
from guidestar.train.preview import names_for, preview_hook, write_conditions

SOURCE = InMemory(
    x=torch.zeros(3, 1, 4, 4),
    targets={
        "label": torch.tensor([1, 0, 1]),
        "v": torch.tensor([[0.5, -2.0], [3.0, 4.0], [1e-3, 7.0]]),
        "text": ["a; b", "c", "d"],
    },
    columns={
        "label": Column(kind="class", classes=("p", "q")),
        "v": Column(kind="vector", width=2),
        "text": Column(kind="text"),
    },
)


def encoder(*names):
    return SimpleNamespace(parts=dict.fromkeys(names))


def recipe(prompts=(), every=2):
    table = SimpleNamespace(
        prompts=prompts, every=every, guidance=("cfg(1)", "cfg(2)"), seeds=2, steps=3
    )
    export = SimpleNamespace(solver="ddim", grid="uniform", guidance="cfg(9)")
    return SimpleNamespace(name="r", preview=table, export=export, upscale=None)


def model(classes=(), text=False):
    return SimpleNamespace(classes=classes, takes_prompts=text)


def test_samples_are_of_the_classes_or_the_prompts_in_turn():
    module = SimpleNamespace(encoder=encoder("v"))
    named = lambda m, prompts=(): names_for(recipe(prompts), m, module, SOURCE, 5)
    assert named(model(("p", "q"))) == ["p", "q", "p", "q", "p"]
    assert named(model(text=True), ("x", "y", "z")) == ["x", "y", "z", "x", "y"]
    # What is not told by text has no use for prompts, nor a text model without them.
    by_data = ["0.5,-2", "0.5,-2", "3,4", "3,4", "0.001,7"]
    assert named(model(), ("x", "y")) == by_data == named(model())
    assert named(model(("p", "q"), text=True), ("x",)) == ["p", "q", "p", "q", "p"]
    module.encoder = encoder("text")
    assert named(model(text=True)) == ["a; b", "a; b", "c", "c", "d"]


def test_what_is_known_is_spelled_as_a_person_would():
    assert write_conditions(encoder(), SOURCE, 2) is None
    assert write_conditions(encoder("label"), SOURCE, 3) == ["1", "0", "1"]
    assert write_conditions(encoder("v"), SOURCE, 2) == ["0.5,-2", "3,4"]
    assert write_conditions(encoder("label", "text"), SOURCE, 3) == [
        "label=1; text=a, b",
        "label=0; text=c",
        "label=1; text=d",
    ]


class Stream(InMemory):
    """Of no known size: its rows rise."""

    @property
    def size(self):
        return None

    def batch(self, rows, draw):
        seen.append((list(rows), list(draw.seeds)))
        return super().batch([r % 3 for r in rows], draw)


seen: list = []


def test_a_streams_first_samples_are_spelled():
    source = Stream(x=SOURCE.x, targets=SOURCE.targets, columns=SOURCE.columns)
    assert write_conditions(encoder("text"), source, 5) == ["a; b", "c", "d", "a; b", "c"]
    assert seen == [([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])]


class Trainer:
    """Where a training stands, and which weights stand in the place of its own."""

    def __init__(self, done, main=True):
        self.done, self.module, self.applied_to = done, nn.Linear(1, 1), []
        self.accelerator = SimpleNamespace(is_main_process=main)
        self.ema, self.inside = self, False

    def applied(self, module):
        self.applied_to.append(module)
        return self

    def __enter__(self):
        self.inside = True

    def __exit__(self, *_):
        self.inside = False


@pytest.mark.parametrize(
    ("done", "main", "drawn"),
    [(2, True, True), (4, True, True), (3, True, False), (2, False, False)],
)
@pytest.mark.parametrize("training", [True, False])
def test_pictures_are_drawn_every_so_many_steps(tmp_path, monkeypatch, done, main, drawn, training):
    trainer, asked, shown = Trainer(done, main), [], []

    class Live:
        classes, takes_prompts = ("p", "q", "r"), False

        def sample(self, names, **more):
            asked.append((names, more))
            assert trainer.inside and not trainer.module.training
            return SimpleNamespace(images=torch.full((2, 1, 4, 4), float(len(asked)) - 1))

    monkeypatch.setattr(preview, "live_model", lambda *given: Live())
    monkeypatch.setattr(preview, "decoder_of", lambda *given: None)
    trainer.module.train(training)
    board = SimpleNamespace(picture=lambda image, step: shown.append((image, step)))
    preview_hook(recipe(), "model", tmp_path, SOURCE, board)(trainer)
    assert trainer.module.training == training and not trainer.inside
    if not drawn:
        assert not asked and not shown and not list(tmp_path.iterdir())
        return
    same = {"seeds": range(2), "steps": 3, "solver": "ddim", "grid": "uniform"}
    assert asked == [(["p", "q"], {"guidance": f"cfg({n})", **same}) for n in (1, 2)]
    assert trainer.applied_to == [trainer.module]
    (file,) = (tmp_path / "previews").iterdir()
    assert file.name == f"model-{done:06d}.png" and shown[0][1] == done
    picture = np.asarray(Image.open(file))
    assert (picture == np.asarray(shown[0][0])).all()
    # Two rows of two pictures: of 0 (grey), and of 1 (white), with their labels at the left.
    grey = (picture == 128).all(-1)
    assert grey.sum() == 2 * (2 * 4) ** 2
    assert len(np.nonzero(grey.any(0))[0]) == 16 and np.nonzero(grey.any(0))[0].min() > 20


def test_the_smaller_pictures_come_first(monkeypatch):
    asked, given = [], []

    class Live:
        classes, takes_prompts = ("p", "q"), False

        def sample(self, names, **more):
            asked.append((names, more["guidance"]))
            return SimpleNamespace(images=torch.zeros(2, 1, 4, 4))

    live = Live()
    monkeypatch.setattr(preview, "live_model", lambda *given: live)
    monkeypatch.setattr(
        preview, "with_pictures", lambda *parts, **more: given.append((parts, more)) or live
    )
    spec = recipe()
    spec.upscale, spec.preview.seeds = SimpleNamespace(size=2), 5
    x = torch.arange(48.0).view(3, 1, 4, 4) / 48
    source = InMemory(x=x, targets=SOURCE.targets, columns=SOURCE.columns)
    module = SimpleNamespace(encoder=encoder("label"))
    rows = list(preview._rows(spec, module, source, None))  # type: ignore[arg-type]
    assert [r.label for r in rows] == ["smaller", "cfg(1)", "cfg(2)"]
    (of, small), more = given[0]
    shown = x[[0, 0, 1, 1, 2]]  # five pictures of three, in order
    means = shown.view(5, 1, 2, 2, 2, 2).mean((3, 5))
    assert of is live and more == {"seeds": range(5)}
    torch.testing.assert_close(small, means)
    assert len(rows[0].images) == 5 and rows[0].images[0].size == (4, 4)
    names = ["1", "1", "0", "0", "1"]
    assert asked == [(names, "cfg(1)"), (names, "cfg(2)")]


def test_an_unconditional_model_has_one_row(tmp_path, monkeypatch):
    asked = []

    class Live:
        classes, takes_prompts = (), False

        def sample(self, names, **more):
            asked.append((names, more["guidance"]))
            return SimpleNamespace(images=torch.zeros(2, 1, 4, 4))

    monkeypatch.setattr(preview, "live_model", lambda *given: Live())
    monkeypatch.setattr(preview, "decoder_of", lambda *given: None)
    trainer = Trainer(2)
    object.__setattr__(trainer.module, "encoder", encoder())
    board = SimpleNamespace(picture=lambda *given: None)
    preview_hook(recipe(), "weak", tmp_path, SOURCE, board)(trainer)
    assert asked == [(None, "uncond")] and (tmp_path / "previews" / "weak-000002.png").is_file()
