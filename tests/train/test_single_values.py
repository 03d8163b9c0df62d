"""Single values of a training: rates, orders, what a network is built of, and what is measured."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.levels import VP
from guidestar.data.source import Column, InMemory
from guidestar.io.files import Damaged
from guidestar.train import examine
from guidestar.train.build import networks as build
from guidestar.train.loop.checkpoints import read_checkpoint
from guidestar.train.loop.trainer import Trainer, _move, order
from guidestar.train.objectives.contrastive import Contrastive
from guidestar.train.objectives.objective import TrainSettings
from guidestar.train.recipe.parts import ClassifierPart, NetworkPart, Training
from guidestar.train.recipe.schema import checked
from helpers.noting import noted

ONE = Training(steps=1)


def part(**more: Any) -> NetworkPart:
    return NetworkPart(train=ONE, **more)


class Line(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))


def squared(net, x0, target, draw):
    return (net.w - x0).square().sum(1)


def trainer(objective: Any = squared, size: int = 5, **settings: Any) -> Trainer:
    data = InMemory(x=torch.arange(3.0 * size).reshape(size, 3), targets={}, columns={})
    return Trainer(Line(), objective, data, TrainSettings(**{"steps": 10, **settings}))


def test_the_rate_rises_and_falls_as_a_cosine():
    t = trainer(rate=0.5, warmup=4, steps=12, batch=2)
    rates = []
    for t.done in range(13):
        rates.append(t.rate())
    rising = [0.125, 0.25, 0.375, 0.5]
    falling = [0.5 * (0.5 + 0.5 * math.cos(math.pi * k / 8)) for k in range(9)]
    assert rates == pytest.approx(rising + falling)
    t = trainer(rate=0.5, warmup=0, steps=1, batch=2)
    assert t.rate() == 0.5
    t.done = 1
    assert t.rate() == pytest.approx(0.0, abs=1e-12)


def test_processes_share_numbers_without_their_graph():
    t: Any = trainer(batch=2)
    shared: list[tuple[bool, list[float]]] = []

    def reduce(found):
        shared.append((found.requires_grad, found.tolist()))
        return found

    t.accelerator.reduce = reduce
    t.due = True
    loss = t.step(SimpleNamespace(requested=True, agreed=False))
    assert shared == [(False, [loss, 1.0, 1.0])] and t.due
    t.due = False
    stop = SimpleNamespace(requested=False, agreed=True)
    t.step(stop)
    assert shared[1][1][1:] == [0.0, 0.0] and not t.due and not stop.agreed


def test_a_batch_may_end_in_the_next_pass():
    perm = [
        torch.randperm(5, generator=torch.Generator().manual_seed(7 * 1_000_003 + p)).tolist()
        for p in range(3)
    ]
    stream = perm[0] + perm[1] + perm[2]
    for position, count in ((0, 5), (3, 4), (5, 2), (4, 1), (4, 10), (10, 5)):
        assert order(position, count, 5, 7).tolist() == stream[position : position + count]


def test_a_step_is_the_mean_of_its_batch_and_the_running_loss_of_its_steps():
    t = trainer(batch=5, warmup=0, rate=1e-9, clip=1e9)
    x = torch.arange(15.0).reshape(5, 3)
    expected = float(x.square().sum(1).mean())
    assert t.step() == pytest.approx(expected, rel=1e-5)
    assert t.loss == pytest.approx(expected, rel=1e-5) and t.done == 1
    gradient = (-2 * x).mean(0).norm()
    assert t.norm == pytest.approx(float(gradient), rel=1e-5)
    losses = iter([3.0, 5.0, 8.0])
    t = trainer(lambda net, x0, target, draw: net.w.sum() * 0 + torch.full((5,), next(losses)),
                batch=5)  # fmt: skip
    t.step()
    t.step()
    assert t.loss == pytest.approx(4.0)
    t.done, t.loss = 400, 4.0
    t.step()
    assert t.loss == pytest.approx(4.0 + 4.0 * 0.01)


def test_the_gradient_is_clipped_to_its_norm():
    t = trainer(batch=5, warmup=0, rate=0.1, clip=1e-3)
    t.step()
    module: Any = t.module
    first = module.w.detach().clone()
    assert first.abs().max() == pytest.approx(0.1, rel=1e-3)  # AdamW's first step is the rate
    with pytest.raises(ValueError, match="a batch of 2 is too small for 1 processes that take 3"):
        trainer(batch=2, accumulate=3)
    assert trainer(batch=3, accumulate=3).step() > 0


def test_targets_are_moved_whatever_holds_them():
    moved = _move({"a": torch.ones(2), "b": {"c": "x"}, "d": 3}, torch.device("meta"))
    assert isinstance(moved, dict) and moved["a"].device.type == "meta"
    assert moved["b"] == {"c": "x"} and moved["d"] == 3


def test_noise_needs_a_schedule_and_levels():
    class At:
        def __call__(self, schedule, draw):
            return schedule.at_rho(torch.full((2,), 0.75, dtype=torch.float64))

    x = torch.ones(2, 1, 3, 5)
    draw = SimpleNamespace(normal_like=lambda tag, x: torch.full_like(x, 2.0))
    both: Any = Contrastive(schedule=VP.linear(), levels=At())
    found, level = both._noised(x, draw)
    torch.testing.assert_close(found, x * (0.8 + 2 * 0.6))
    assert level is not None
    missing: list[Any] = [{"schedule": VP.linear()}, {"levels": At()}, {}]
    for given in missing:
        clean: Any = Contrastive(**given)
        found, level = clean._noised(x, draw)
        assert found is x and level is None


CLASSES = {"label": Column(kind="class", classes=("a", "b", "c"))}


def network(spec, shape, columns: Any = CLASSES, embedded=False, text_width=None, outputs=1) -> Any:
    return build._network(
        spec, shape, columns, embedded=embedded, text_width=text_width, outputs=outputs
    )


def test_what_a_network_is_built_of():
    net = network(part(widths=(8, 16), layers=2, groups=4, head=4), (3, 12, 12), text_width=6)
    config = net.config
    assert (config["sample_size"], config["in_channels"], config["out_channels"]) == (12, 3, 3)
    assert tuple(config["block_out_channels"]) == (8, 16) and config["layers_per_block"] == 2
    assert config["norm_num_groups"] == 4 and config["cross_attention_dim"] == 6
    assert config["attention_head_dim"] == 4
    spec = part(network="sequence", width=8, layers=3, heads=2, patch=2)
    net = network(spec, (6, 5), text_width=7)
    sizes = {"channels": 5, "length": 6, "width": 8, "depth": 3, "heads": 2, "patch": 2}
    assert {k: net.config[k] for k in sizes} == sizes
    assert net.config["cross_attention_dim"] == 7
    vector = network(part(network="sequence", width=8, layers=1, heads=2), (5,))
    assert vector.config["length"] is None and vector.config["channels"] == 5
    for spec, shape, text in [
        (
            part(widths=(8, 16), head=8),
            (3, 13, 13),
            "a unet of 2 widths halves square images 1 times",
        ),
        (
            part(widths=(8, 8, 8), head=8),
            (3, 6, 6),
            "a unet of 3 widths halves square images 2 times",
        ),
        (part(widths=(8,), head=8), (3, 4, 6), r"samples of \[3, 4, 6\] do not allow"),
        (part(widths=(8,), head=8), (3, 4), "do not allow; use other widths"),
        (part(network="sequence"), (3, 4, 4), r"not for samples of \[3, 4, 4\]"),
    ]:
        with pytest.raises(ValueError, match=text):
            network(spec, shape)


def test_settings_that_the_data_determine_and_the_recipe_overrules():
    def filled(name, outputs=1, embedded=False, text_width=None, columns=CLASSES, **config):
        spec = part(network=name, config=config)
        return build._filled(spec, (4, 6, 8), columns, embedded, text_width, outputs)

    plain = {"in_channels": 4, "sample_size": 8}
    assert filled("UNet2DModel") == {**plain, "out_channels": 4}
    assert filled("UNet2DModel", 2, True) == {
        **plain, "out_channels": 8, "class_embed_type": "identity",
    }  # fmt: skip
    found = filled("UNet2DConditionModel", text_width=7)
    assert found == {**plain, "out_channels": 4, "cross_attention_dim": 7}
    found = filled("PixArtTransformer2DModel", 2, text_width=7, num_attention_heads=3)
    assert found == {
        **plain, "out_channels": 8, "use_additional_conditions": False, "caption_channels": 7,
        "cross_attention_dim": 216, "num_attention_heads": 3,
    }  # fmt: skip
    assert filled("PixArtTransformer2DModel")["cross_attention_dim"] == 1152
    two = {**CLASSES, "size": Column(kind="vector", width=2)}
    dit = filled("DiTTransformer2DModel", 2, columns=two)
    assert dit == {**plain, "out_channels": 8, "num_embeds_ada_norm": 3}
    assert filled("DiTTransformer2DModel", columns={})["num_embeds_ada_norm"] == 1
    assert filled("DiTTransformer2DModel", sample_size=2)["sample_size"] == 2


def labelled(size=7):
    x = torch.linspace(-1, 1, size)[:, None].expand(size, 2).contiguous()
    return InMemory(x=x, targets={"label": torch.arange(size) % 3}, columns=CLASSES)


def test_samples_to_measure_on_are_spread_evenly():
    spec = ClassifierPart(widths=(8,), train=ONE)
    x, y = examine.gather_samples(labelled(), spec)
    assert torch.equal(x, labelled().x) and y.tolist() == [0, 1, 2, 0, 1, 2, 0]
    x, y = examine.gather_samples(labelled(), spec, 3)
    assert torch.equal(x, labelled().x[[0, 3, 6]]) and y.tolist() == [0, 0, 0]
    x, y = examine.gather_samples(labelled(), spec, 99)
    assert len(x) == len(y) == 7
    x, y = examine._reported(torch.arange(5), torch.arange(5) * 2)
    assert (x.tolist(), y.tolist()) == ([1, 3], [2, 6])
    x, y = examine._reported(torch.arange(1), torch.arange(1))
    assert (x.tolist(), y.tolist()) == ([0], [0])


def test_accuracy_is_the_share_of_hits():
    class Judge(nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x[:, 0].long(), 3).float()

    x = torch.arange(1201).remainder(3)[:, None]
    y = x[:, 0].clone()
    assert examine.accuracy(Judge(), x, y) == 1.0
    y[:300] = (y[:300] + 1) % 3
    assert examine.accuracy(Judge(), x, y) == pytest.approx(901 / 1201)


@pytest.mark.parametrize(("surprise", "kept"), [(0.01, 0.05), (3.14159, 3.1416), (99.0, 20.0)])
def test_a_regressor_is_calibrated_within_bounds(monkeypatch, surprise, kept):
    asked = []

    def by_level(regressor, samples, schedule, rhos, seed=0):
        asked.append((len(samples[0]), seed, len(rhos)))
        row = SimpleNamespace(unexplained=0.123456, surprise=surprise)
        return {0.5: row}

    monkeypatch.setattr(examine.calibration, "regression_by_level", by_level)
    content = {"name": "r", "data": {"path": "x"}, "model": {"widths": [32], "train": {"steps": 1}},
               "classifier": {"widths": [8], "train": {"steps": 1}}}  # fmt: skip
    given: list[Any] = []
    regressor = SimpleNamespace(calibrate=given.append)
    x = torch.zeros(5, 2)
    found = examine.examine_regressor(regressor, checked(content, "r"), x, x)
    assert given == [((0.5, kept),)]
    assert found == {"regressor": {"0.5": [0.1235, round(surprise, 4)]}}
    assert [(n, seed) for n, seed, _ in asked] == [(2, 0), (3, 1)]
    content["classifier"]["calibrate"] = False
    asked.clear()
    examine.examine_regressor(regressor, checked(content, "r"), x, x)
    assert len(given) == 1 and len(asked) == 1
    schedule, rhos = examine._levels(checked(content, "r"))
    low, high = schedule.rho_range
    assert rhos == [
        r for r in (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 40, 80) if low <= r <= high
    ]


def test_a_checkpoint_is_read_on_the_cpu_and_without_running_code(monkeypatch, tmp_path):
    names = ("settings", "made_from", "where", "module", "averages", "optimiser", "done",
             "seconds", "loss")  # fmt: skip
    whole = dict.fromkeys(names)
    loaded = noted(monkeypatch, torch, "load", whole)
    assert read_checkpoint(tmp_path / "c.pt") == whole  # old ones have no "data"
    assert loaded == [((tmp_path / "c.pt",), {"map_location": "cpu", "weights_only": True})]
    for missing in names:
        noted(monkeypatch, torch, "load", {n: None for n in names if n != missing})
        with pytest.raises(Damaged, match=r"is not a checkpoint of a training .*; remove it"):
            read_checkpoint(tmp_path / "c.pt")
    for name in ("c.2.pt", "c.1.pt"):
        (tmp_path / name).touch()
    noted(monkeypatch, torch, "load", [1])
    with pytest.raises(Damaged, match=r"copy c\.1\.pt over it to go on from there, or remove it"):
        read_checkpoint(tmp_path / "c.pt")
