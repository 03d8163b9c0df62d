"""Choices of a training, by values by hand: losses of classifiers, locks, and what errors add."""

import json
import math
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.levels import VP
from guidestar.core.rng import Draw
from guidestar.data.source import Column, InMemory
from guidestar.train.build import classifiers
from guidestar.train.loop import fit as fits
from guidestar.train.loop import lock
from guidestar.train.objectives.classification import (
    Classification,
    NoisyClassification,
    NoisyRegression,
)
from guidestar.train.objectives.objective import NotFinite
from helpers.noting import noted, recipe

SCHEDULE = VP.linear()
LEVEL = SCHEDULE.at_rho(torch.tensor([0.5, 2.0], dtype=torch.float64))
X = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def noised(draw):
    a, s = (torch.as_tensor(v).float()[:, None] for v in (LEVEL.alpha, LEVEL.sigma))
    return a * X + s * draw.normal_like("noise", X)


def test_the_loss_of_a_regressor_is_minus_its_log_density():
    draw, seen = Draw([3, 4]), []
    mean, log_var = torch.tensor([[0.5, 1.0], [2.0, -1.0]]), torch.tensor([[0.2, 0.0], [-1.0, 3.0]])

    def net(x, level):
        seen.append((x, level))
        return torch.cat([mean, log_var], 1).double()

    y = torch.tensor([[1.0, 1.5], [0.0, 4.0]])
    objective = NoisyRegression(schedule=SCHEDULE, levels=lambda schedule, draw: LEVEL)
    loss = objective(net, X, y, draw)
    density = torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(y).sum(1)
    torch.testing.assert_close(loss, -density)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(seen[0][0], noised(draw))
    assert seen[0][1] is LEVEL


def test_the_loss_of_a_classifier_is_minus_its_log_probability():
    draw, seen = Draw([3, 4]), []
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])

    def net(x, level=None):
        seen.append((x, level))
        return logits.double()

    y = torch.tensor([1, 1])
    wanted = [-math.log(3 / 4), -math.log(1 / 5)]
    objective = NoisyClassification(schedule=SCHEDULE, levels=lambda schedule, draw: LEVEL)
    assert objective(net, X, y, draw).tolist() == pytest.approx(wanted)
    torch.testing.assert_close(seen[0][0], noised(draw))
    loss = Classification()(net, X, y, draw)
    assert loss.tolist() == pytest.approx(wanted) and loss.dtype == torch.float32
    assert seen[1][0] is X
    pictures = torch.arange(8.0).view(2, 1, 2, 2)
    Classification(shift=1)(net, pictures, y, draw)
    assert float(seen[2][0].min()) == -1.0 and seen[2][0].shape == pictures.shape  # the ground


@pytest.mark.parametrize(
    ("shape", "kind", "channels", "groups"),
    [
        ((3, 8, 6), "Classifier", 3, 4),
        ((8, 5), "SequenceClassifier", 5, 4),
        ((7,), "SequenceClassifier", 7, 1),
    ],
)
@pytest.mark.parametrize("aware", [True, False])
def test_a_classifier_suits_its_samples(monkeypatch, shape, kind, channels, groups, aware):
    counted = []
    monkeypatch.setattr(
        classifiers, "within_memory", lambda make, copies: counted.append(copies) or make()
    )
    part = {"widths": [8, 16], "layers": 3, "groups": 4, "dropout": 0.25,
            "train": {"steps": 3, "power": [0.1]}}  # fmt: skip
    known = recipe(classifier=part, judge=part)
    columns = {"label": Column(kind="class", classes=("a", "b"))}
    source = InMemory(x=torch.zeros(4, *shape), targets={}, columns=columns)
    spec: Any = known.classifier
    built = classifiers.build_classifier(known, spec, source, noise_aware=aware)
    net: Any = built.module
    assert type(net).__name__ == kind and counted == [6]
    config = net.config
    assert (config.channels, config.groups, config.layers) == (channels, groups, 3)
    assert (list(config.widths), config.dropout, config.noise_aware) == ([8, 16], 0.25, aware)
    assert list(config.classes) == ["a", "b"]
    assert type(built.objective) is (NoisyClassification if aware else Classification)
    targets: Any = {"label": torch.tensor([1]), "other": 2}
    assert built.prepare(targets) is targets["label"]


def test_a_regressor_is_in_the_units_of_its_numbers(monkeypatch):
    noted(monkeypatch, classifiers, "statistics_of", ([1.0, 2.0], [3.0, 4.0]))
    known = recipe(classifier={"widths": [8], "train": {"steps": 3}})
    columns = {"pose": Column(kind="vector", width=2)}
    source = InMemory(x=torch.zeros(4, 1, 4, 4), targets={}, columns=columns)
    spec: Any = known.classifier
    built = classifiers.build_classifier(known, spec, source, noise_aware=True)
    net: Any = built.module
    assert (net.config.outputs, net.config.centre, net.config.spread) == (2, [1.0, 2.0], [3.0, 4.0])
    assert isinstance(built.objective, NoisyRegression)
    with pytest.raises(ValueError, match=r"a judge predicts classes, and 'pose' is a vector; set"):
        classifiers.build_classifier(known, spec, source, noise_aware=False)


def test_a_lock_holds_what_was_written_last_alone(tmp_path):
    file = tmp_path / "deep" / ".lock"
    file.parent.mkdir()
    file.write_text(json.dumps({"pid": 1, "host": lock.socket.gethostname(), "x": "y" * 999}))
    handle = lock._take(file)
    try:
        found = json.loads(file.read_text())
        assert found["pid"] == os.getpid() and set(found) == {"pid", "host", "since"}
    finally:
        os.close(handle)


@pytest.mark.parametrize("error", [NotFinite, OSError])
def test_an_error_says_whether_there_is_a_checkpoint(tmp_path, error):
    kept = tmp_path / "c.pt"
    for checkpoint, there in ((None, False), (kept, False), (kept, True)):
        if there:
            kept.write_text("")
        words = f"the last good checkpoint is intact, {kept}" if there else "no checkpoint had been"
        with (
            pytest.raises(error, match=f"it broke; {words}") as caught,
            fits._name_checkpoint(checkpoint),
        ):
            raise error("it broke")
        assert type(caught.value) is error
    with pytest.raises(KeyError), fits._name_checkpoint(None):
        raise KeyError


def test_where_a_training_stands_is_reported(monkeypatch, tmp_path):
    """Steps, losses and seconds as the trainer has them; the rate is that of the step."""
    clock = [0.0]
    monkeypatch.setattr(fits.time, "monotonic", lambda: clock[0])

    class Trainer:
        done, seconds, norm, due = 5, 2.0, 0.25, False
        settings = SimpleNamespace(steps=7, batch=3)
        module = nn.Linear(1, 1)

        def rate(self):
            return self.done / 10

        def step(self, stop):
            clock[0] += 4.0
            self.done += 1
            return 1.5

    trainer: Any = Trainer()
    called: list[int] = []
    found = list(fits.fit(trainer, after=[lambda t: called.append(t.done)]))
    assert [(p.step, p.loss, p.norm, p.rate, p.seconds, p.samples) for p in found] == [
        (6, 1.5, 0.25, 0.5, 6.0, 18), (7, 1.5, 0.25, 0.6, 10.0, 21)
    ]  # fmt: skip
    assert called == [6, 7] and trainer.module.training


def test_a_super_resolution_stage_sees_pictures_made_smaller():
    """The network, the data, and the condition beside its own."""
    from guidestar.networks.low_resolution import LOW
    from guidestar.train.objectives import super_resolution

    asked: list[Any] = []
    inner: Any = lambda *given: asked.append(given) or torch.ones(2)
    objective = super_resolution.SuperResolution(conditional=inner, size=2, largest=0.5)
    x = torch.arange(32.0).view(2, 1, 4, 4) / 32
    draw = Draw([1, 2])
    assert objective("net", x, {"label": "rows"}, draw).tolist() == [1.0, 1.0]
    ((net, data, target, random),) = asked
    assert net == "net" and data is x and random is draw
    assert list(target) == ["label", LOW] and target["label"] == "rows"


def test_an_interrupt_is_deferred_where_it_can_be(monkeypatch):
    """In the main thread, of a handler in Python; then once at the end, and a second at once."""
    import signal
    import threading

    from guidestar.train.loop.signals import defer_interrupt

    heard: list[Any] = []
    own = lambda number, frame: heard.append(number)
    before = signal.signal(signal.SIGINT, own)
    try:
        with defer_interrupt():
            signal.raise_signal(signal.SIGINT)
            assert heard == []
            assert signal.getsignal(signal.SIGINT) is not own
        assert heard == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is own
        with defer_interrupt():
            pass
        assert len(heard) == 1
        with defer_interrupt():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert len(heard) == 2
        assert len(heard) == 2

        def elsewhere():
            with defer_interrupt():
                heard.append("inside")

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert heard[-1] == "inside" and signal.getsignal(signal.SIGINT) is own
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with defer_interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
