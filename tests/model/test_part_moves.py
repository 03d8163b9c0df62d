"""Where the parts of a model go, and other readings of data, by numbers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import guidestar as gs
from guidestar.core.levels import VP
from guidestar.model import cascade, loading, steering
from guidestar.model.folder_reading import read_decode
from guidestar.model.readings import OTHER_RANGES
from helpers.noting import noted


class Part(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)


def test_every_network_of_a_model_is_moved():
    parts: list[Any] = [Part() for _ in range(6)]
    plain: Any = lambda x, level, cond: x
    model = gs.Model(
        name="m",
        denoiser=parts[0],
        schedule=VP.linear(),
        shape=(1,),
        encoder=parts[1],
        judge=parts[2],
        classifiers={"classifier": parts[3]},
        nets={"weak": (parts[4], parts[5]), "other": (plain, None)},
    )
    assert model.to("meta") is model and model.device.type == "meta"
    assert [p.weight.device.type for p in parts] == ["meta"] * 6


def test_other_ranges_of_data():
    found = [change(torch.tensor([0.0, 1.0, 255.0])) for change in OTHER_RANGES.values()]
    wanted = [[-1, 1, 509], [0.5, 1, 128], [-1, 1 / 127.5 - 1, 1], [0, 1 / 255, 1]]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, torch.tensor(other, dtype=torch.float32))


@pytest.mark.parametrize("particles", [0, -1])
def test_a_population_of_nothing_is_refused_by_its_number(particles):
    net = gs.Network(lambda x, t: x, predicts="x0")
    model = gs.Model(name="m", denoiser=net, schedule=VP.linear(), shape=(2,), decode=lambda x: x)
    with pytest.raises(ValueError, match=f"particles .*{particles}"):
        model.steer(lambda x: x.sum(1), particles=particles, steps=1)


GIVEN = {"average": "a", "variant": "v", "size": (8, 8), "dtype": "float16"}


@pytest.mark.parametrize("staged", [False, True])
def test_a_name_is_loaded_with_all_that_is_given(monkeypatch, staged):
    plain = noted(monkeypatch, loading, "load_model")
    cascades = noted(monkeypatch, loading, "load_cascade")
    monkeypatch.setattr(loading, "is_cascade", lambda name: staged)
    loading.load("m", device="meta", trust=True)
    usual = dict.fromkeys(GIVEN)
    if not staged:
        loading.load("m", **GIVEN)  # type: ignore[arg-type]
        assert plain == [
            (("m",), {**usual, "device": "meta", "trust": True}),
            (("m",), {**GIVEN, "device": "cpu", "trust": False}),
        ]
        assert not cascades
        return
    assert cascades == [(("m",), {"device": "meta", "trust": True})] and not plain
    for name, value in GIVEN.items():
        with pytest.raises(ValueError, match="m is a cascade; average=, variant=, size= and dtype"):
            loading.load("m", **{name: value})  # type: ignore[arg-type]


def test_stages_get_their_own_settings(monkeypatch):
    made = SimpleNamespace(images="small")
    base: Any = SimpleNamespace(sample=lambda *a, **k: asked.append((a, k)) or made)
    asked: list[Any] = []
    enlarged = noted(monkeypatch, cascade, "upscale", SimpleNamespace(images="large"))
    monkeypatch.setattr(cascade.Cascade, "_carried", lambda *given: {"carried": given[2]})
    two = object.__new__(cascade.Cascade)
    stages: Any = {"base": base, "up": "model"}
    vars(two).update(name="c", stages=stages, card={}, defaults={})
    own = {"up": cascade.StageSettings(augmentation=0.25, steps=3, seeds=(8, 9))}
    watch: Any = "watch"
    found = two.sample("cat", seeds=[1, 2], stages=own, guidance="cfg(2)", negative="dog",
                       steps=5, solver="ddim", grid="karras", augmentation=0.5, max_rows=4,
                       watch=watch)  # fmt: skip
    common = {"guidance": "cfg(2)", "negative": "dog", "solver": "ddim", "grid": "karras",
              "max_rows": 4, "watch": "watch"}  # fmt: skip
    seeds = [cascade.stage_seed(k, "base") for k in (1, 2)]
    assert asked == [(("cat",), {**common, "steps": 5, "seeds": seeds})]
    more = {"steps": 3, "seeds": [8, 9], "augmentation": 0.25}
    assert enlarged == [(("model", "small", "cat"), {**common, **more})]
    assert found.settings == {"carried": "cat"} and list(found.stages) == ["base", "up"]
    two.sample("cat", seeds=[1, 2], augmentation=0.5)
    assert enlarged[1][1]["augmentation"] == 0.5
    with pytest.raises(ValueError, match="the stage 'up' has 2 seeds for 1 samples"):
        two.sample("cat", stages=own)


def test_particles_of_a_sample_have_its_observation():
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found: Any = steering._repeated(gs.Observation("identity", y), 2)
    assert found.y.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    one = gs.Observation("identity", y[:1])
    assert steering._repeated(one, 2) is one and steering._repeated(len, 2) is len  # type: ignore[arg-type, comparison-overlap]


def test_data_without_any_spread_have_the_gain_0():
    net = gs.Network(lambda x, t: 0 * x, predicts="x0")
    report = gs.check(net, torch.ones(4, 3), schedule=VP.linear(), levels=2)
    assert [row.gain for row in report.rows] == [0.0, 0.0]
    assert [(row.error, row.mean, row.linear) for row in report.rows] == [(1.0, 0.0, 0.0)] * 2


@pytest.mark.parametrize(
    ("about", "wanted"),
    [
        ({}, [-1.0, 0.5, 1.0]),
        ({"shape": [1, 4, 4]}, [-1.0, 0.5, 1.0]),
        ({"shape": [4, 4]}, [-3.0, 0.5, 2.0]),
        ({"shape": [1, 1, 4, 4]}, [-3.0, 0.5, 2.0]),
        ({"shape": [1, 4, 4], "scale": {"mean": [1.0], "std": [2.0]}}, [-5.0, 2.0, 5.0]),
    ],
)
def test_samples_become_data_by_the_card(tmp_path, about, wanted):
    x = torch.tensor([-3.0, 0.5, 2.0])
    assert read_decode(tmp_path, about)(x).tolist() == wanted


@pytest.mark.parametrize(
    ("image", "shape", "made"), [(None, (2, 5), "2, 5"), ((3, 8, 8), (4, 2, 2), "3, 8, 8")]
)
def test_stages_that_do_not_fit_are_named(monkeypatch, image, shape, made):
    low = SimpleNamespace(channels=1, size=4)
    monkeypatch.setattr(cascade, "need_low", lambda model: low)
    stages: Any = {
        "base": SimpleNamespace(image_shape=image, shape=shape),
        "up": SimpleNamespace(image_shape=(1, 8, 8)),
    }
    words = rf"'up' enlarges pictures of \[1, 4, 4\], but 'base' before it makes \[{made}\]; "
    with pytest.raises(ValueError, match=words):
        cascade.Cascade(name="c", stages=stages)
    stages["base"].image_shape = (1, 4, 4)
    assert cascade.Cascade(name="c", stages=stages).base is stages["base"]
