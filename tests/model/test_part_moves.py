"""Where the parts of a model go, and other readings of data, by numbers."""

from typing import Any

import pytest
import torch
from torch import nn

import guidestar as gs
from guidestar.core.levels import VP
from guidestar.model.readings import OTHER_RANGES


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
