"""States of modules whose weights are sharded, in one process that has the only shard."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from guidestar.train import preview
from guidestar.train.loop import sharded
from guidestar.train.loop.ema import EMA, Standard
from helpers.noting import recipe


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield distributed.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def spread(values, mesh):
    return distribute_tensor(values, mesh, [Shard(0)])


def module(mesh=None):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    if mesh is not None:
        for name in ("weight", "bias"):
            setattr(net, name, nn.Parameter(spread(getattr(net, name).detach(), mesh)))
    return net


def copied(net):
    """The state of a module; of the only shard it is no copy by itself."""
    return {name: values.clone() for name, values in sharded.module_state(net).items()}


def test_what_is_sharded_is_gathered_and_put_back(mesh):
    whole, parts = module(), module(mesh)
    assert not sharded.is_sharded(whole) and sharded.is_sharded(parts)
    assert sharded.full_tensor(whole.weight) is whole.weight
    assert isinstance(parts.weight.data, DTensor)
    assert not isinstance(sharded.full_tensor(parts.weight), DTensor)
    state = copied(parts)
    for name, values in whole.state_dict().items():
        assert torch.equal(state[name], values) and not isinstance(state[name], DTensor)
        assert not state[name].requires_grad
    other = {name: values + 1 for name, values in state.items()}
    for net in (whole, parts):
        sharded.load_module(net, other)
        assert torch.equal(sharded.full_tensor(net.weight.detach()), state["weight"] + 1)
        assert torch.equal(sharded.full_tensor(net.bias.detach()), state["bias"] + 1)
    assert isinstance(parts.weight.data, DTensor)
    for bad in ({"weight": other["weight"]}, {**other, "bias": torch.zeros(3)}, {**other, "x": 1}):
        with pytest.raises((RuntimeError, AttributeError)):
            sharded.load_module(parts, bad)
    with pytest.raises(RuntimeError, match="the weights are of another network"):
        sharded.load_module(parts, {**other, "bias": torch.zeros(3)})


def stepped(net):
    optimiser = torch.optim.AdamW(net.parameters(), 0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step()
    return optimiser


def test_an_optimisers_state_is_that_of_whole_weights(mesh):
    whole, parts = module(), module(mesh)
    expected = stepped(whole).state_dict()
    optimiser = stepped(parts)
    state = sharded.optimiser_state(optimiser)
    assert state.keys() == expected.keys()
    for i, known in expected["state"].items():
        for key, values in known.items():
            found = state["state"][i][key]
            assert not isinstance(found, DTensor) and torch.equal(found, values)
    doubled = {**state, "state": {
        i: {k: v * 2 for k, v in s.items()} for i, s in state["state"].items()
    }}  # fmt: skip
    fresh = torch.optim.AdamW(parts.parameters(), 0.1)
    sharded.load_optimiser(fresh, doubled)
    again = fresh.state_dict()["state"]
    for i, known in expected["state"].items():
        assert isinstance(again[i]["exp_avg"], DTensor) and again[i]["step"] == 2 * known["step"]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(again[i][key].full_tensor(), 2 * known[key])


def test_values_are_spread_as_their_parameter_is(mesh):
    parameter = nn.Parameter(spread(torch.zeros(2, 3), mesh))
    values = torch.arange(6.0).view(2, 3)
    found = sharded._like(values, parameter)
    assert isinstance(found, DTensor) and torch.equal(found.full_tensor(), values)
    assert not found.requires_grad and found.placements == parameter.placements
    for other in (3, torch.ones(()), torch.ones(3)):
        assert sharded._like(other, parameter) is other
    plain = torch.zeros(2, 3)
    sharded.put(plain, values)
    assert torch.equal(plain, values)


def test_an_average_of_shards_is_kept_and_read_whole(mesh):
    """Of the first weights w₀ and those of one step, w₀ + 1: share 1 − 2/11."""
    net = module(mesh)
    average = EMA(net, Standard(decay=0.999))
    before = copied(net)
    sharded.load_module(net, {n: t + 1 for n, t in before.items()})
    average.update(net)
    state = average.state_dict()
    assert state["updates"] == 1
    for name, values in state["weights"].items():
        assert not isinstance(values, DTensor)
        assert torch.allclose(values, before[name] + 9 / 11)
    other = EMA(net, Standard(decay=0.999))
    other.load_state_dict(state)
    assert other.updates == 1
    for name, values in other.weights().items():
        assert isinstance(values, DTensor)
        assert torch.allclose(values.full_tensor(), state["weights"][name])
    with other.applied(net):
        inside = sharded.module_state(net)
        assert torch.allclose(inside["weight"], before["weight"] + 9 / 11)
    assert torch.equal(sharded.module_state(net)["weight"], before["weight"] + 1)


def test_no_previews_are_drawn_of_shards(mesh, tmp_path):
    """Of which a process alone has no more than its own."""
    trainer: Any = SimpleNamespace(
        done=4, module=module(mesh), accelerator=SimpleNamespace(is_main_process=True)
    )
    never: Any = None
    hook = preview._drawing(recipe(preview={"every": 2}), "model", tmp_path, never, never)
    with pytest.warns(UserWarning, match="no previews are drawn of 'model': its weights are shar"):
        hook(trainer)
    trainer.done = 3
    hook(trainer)
    assert not list(tmp_path.iterdir())
