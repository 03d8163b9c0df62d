"""Averages of weights follow their formulas, and come and go without a trace."""

import math

import pytest
import torch
from torch import nn

from guidestar.train.loop.ema import EMA, Power, Standard


def run(profile, values):
    module = nn.BatchNorm1d(1).double()
    with torch.no_grad():
        module.weight.fill_(values[0])
    ema = EMA(module, profile)
    for value in values[1:]:
        with torch.no_grad():
            module.weight.fill_(value)
        module.running_mean.fill_(10 * value)
        ema.update(module)
    return ema, module


VALUES = [3.0, -1.0, 2.0, 5.0, 7.0, 1.0, 1.0, 4.0, 9.0]


def test_the_standard_average_follows_its_recursion():
    wanted = VALUES[0]
    for n, w in enumerate(VALUES[1:], 1):
        d = min(0.6, (1 + n) / (10 + n))
        wanted = d * wanted + (1 - d) * w
    ema, _ = run(Standard(decay=0.6), VALUES)
    assert float(ema.weights()["weight"]) == pytest.approx(wanted, rel=1e-12)
    assert float(ema.weights()["running_mean"]) == 10 * VALUES[-1]  # statistics are copied
    assert int(ema.weights()["num_batches_tracked"]) == 0


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94])
def test_the_power_average_weighs_step_t_by_the_difference_of_powers(gamma):
    # β_n = (1 − 1/n)^{γ+1} telescopes: after N steps, step t counts (t^{γ+1} − (t−1)^{γ+1}) /
    # N^{γ+1}, which is ∝ t^γ for small steps.
    count = len(VALUES) - 1
    weights = [
        (t ** (gamma + 1) - (t - 1) ** (gamma + 1)) / count ** (gamma + 1)
        for t in range(1, count + 1)
    ]
    assert sum(weights) == pytest.approx(1)
    wanted = sum(
        w * v for w, v in zip(weights, VALUES[1:], strict=True)
    )  # where it started counts for nothing
    ema, _ = run(Power(gamma=gamma), VALUES)
    assert float(ema.weights()["weight"]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_width_of_a_power_average_is_that_of_its_paper(width, gamma):
    profile = Power.of_width(width)
    assert profile.gamma == pytest.approx(gamma, abs=0.005)
    assert profile.name == f"power-{width:g}"
    # The relative standard deviation of the density ∝ t^γ on [0, 1], by the midpoint rule.
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = t**profile.gamma / (t**profile.gamma).sum()
    mean = (density * t).sum()
    assert float(((density * (t - mean) ** 2).sum()).sqrt()) == pytest.approx(width, rel=1e-4)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, math.inf])
def test_a_width_that_no_power_has_is_refused(width):
    with pytest.raises(ValueError, match=r"in \(0, 0.288\]"):
        Power.of_width(width)


def test_an_average_is_applied_and_taken_back_to_the_bit():
    ema, module = run(Standard(decay=0.6), VALUES)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    with pytest.raises(RuntimeError, match="trouble"), ema.applied(module):
        assert all(torch.equal(v, ema.weights()[k]) for k, v in module.state_dict().items())
        raise RuntimeError("trouble")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    module.weight.grad = torch.ones_like(module.weight)
    optimiser.step()  # the optimiser still holds the module's own parameters
    assert float(module.weight.detach()) == float(before["weight"]) - 0.1


def test_state_goes_out_and_in():
    ema, module = run(Power(gamma=2.0), VALUES)
    other = EMA(nn.BatchNorm1d(1).double(), Power(gamma=2.0))
    other.load_state_dict(ema.state_dict())
    ema.update(module)
    other.update(module)
    assert (
        all(torch.equal(v, other.weights()[k]) for k, v in ema.weights().items())
        and other.updates == ema.updates
    )
    with pytest.raises(KeyError):
        EMA(nn.Linear(1, 1), Standard()).load_state_dict(ema.state_dict())


def test_averages_do_not_ask_for_gradients_nor_share_memory():
    module = nn.Linear(2, 2)
    ema = EMA(module, Standard())
    before = ema.weights()["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert (
        torch.equal(ema.weights()["weight"], before) and not ema.weights()["weight"].requires_grad
    )
