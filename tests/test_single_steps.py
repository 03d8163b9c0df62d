"""Single steps of larger computations, with values by hand: what only slow tests would miss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.levels import VP
from guidestar.diffusers.guide import levels
from guidestar.diffusers.guide.calls import NetCall
from guidestar.diffusers.read import building
from guidestar.evaluate.frechet import _Moments
from guidestar.guidance import Guided
from guidestar.guidance.groups import select
from guidestar.networks.memory import count_tensors
from guidestar.sampling import DDIM, Heun
from guidestar.sampling.grids import uniform
from guidestar.serve import Engine
from guidestar.train import snapshots
from guidestar.train.recipe.schema import checked
from helpers.served import toy_model
from helpers.toys import Spy, condition


def test_moments_of_batches():
    found = _Moments(torch.tensor([1.0, -1.0]))
    found.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).add(torch.tensor([[5.0, 0.0]]))
    mean, covariance = found.gaussian()
    assert mean.tolist() == [3.0, 2.0]
    assert covariance.tolist() == [[4.0, -2.0], [-2.0, 4.0]]
    with pytest.raises(ValueError, match="at least two samples, not 1; draw more"):
        _Moments(torch.zeros(1)).add(torch.zeros(1, 1)).gaussian()


@pytest.mark.parametrize(("rows", "size"), [(None, 4), (1, 1), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_samples_whose_passes_fit_together(rows, size):
    spy: Any = Spy()
    given: Any = {"cond": condition(*[0.4] * 4), "null": condition(*[0.0] * 4)}
    guided = Guided("cfg(2)", spy, max_rows=rows, **given)
    assert guided._together(uniform(VP.linear(), 3).step(0), 4) == size


def test_weights_that_are_not_zero_have_rows():
    assert select(2.0, 3, "t") == (2.0, None) and select(0.0, 3, "t") is None
    whole = torch.tensor([1.0, 2.0, 3.0])
    found = select(whole, 3, "t")
    assert found is not None and found[0] is whole and found[1] is None
    found = select(torch.tensor([0.0, 2.0, 0.0, 4.0]), 4, "t")
    assert found is not None and found[1] is not None
    assert (found[0].tolist(), found[1].tolist()) == ([2, 4], [1, 3])  # type: ignore[union-attr]
    assert select(torch.zeros(2), 2, "t") is None
    with pytest.raises(ValueError, match="t has 3 scales for 2 samples"):
        select(whole, 2, "t")


def test_a_term_that_reads_the_target_needs_one_evaluation_a_step():
    predict: Any = SimpleNamespace(reads_target=("tsg",))
    grid = uniform(VP.linear(), 3)
    assert len(Heun().evaluations(grid.step(2))) == 1
    with pytest.raises(ValueError, match="tsg reads the level that a step leads to"):
        Heun().check(predict, grid)
    DDIM().check(predict, grid)


def test_a_table_whose_last_level_is_pure_noise():
    bars = torch.tensor([0.9, 0.5, 0.6e-7])
    for flag, last in ((True, 0.0), (False, 0.6e-7)):
        config = SimpleNamespace(rescale_betas_zero_snr=flag)
        scheduler: Any = SimpleNamespace(alphas_cumprod=bars, config=config)
        assert levels._table(scheduler).alphas_cumprod[-1] == pytest.approx(last, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ([torch.tensor([1.0]), torch.tensor([2.0])], [[2.0]]),
        ([torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0])], [[2.0, 4.0]]),
        ((torch.tensor([1.0, 3.0]),), [[3.0]]),
    ],
)
def test_lists_follow_the_rows_of_a_call(value, rows):
    call = NetCall(net=None, arguments={"sample": torch.zeros(2, 1)})
    found = call._take("x", value, [1])
    assert [t.tolist() for t in found] == rows and type(found) is type(value)
    pictures = [torch.arange(12.0).reshape(2, 2, 3), torch.zeros(2, 1, 1)]
    found = call._take("x", pictures, [1])
    assert [tuple(t.shape) for t in found] == [(1, 2, 3), (1, 1, 1)]
    odd = [torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]  # rows, as they are not of the call's number
    assert len(call._take("x", odd, [1])) == 1
    assert call._take("x", "word", [1]) == "word"
    assert call._take("x", {"img_ids": 1, "a": torch.tensor([5.0, 6.0])}, [1])["a"].tolist() == [6]


def test_what_networks_take_is_counted_together(monkeypatch):
    for most, fits in ((100, True), (99, False), (None, True)):
        monkeypatch.setattr(building, "available_memory", lambda most=most: most)
        with building.one_budget():
            building._take(60, "f")
            if fits:
                building._take(40, "f")
            else:
                with pytest.raises(ValueError, match="f: its networks would take at least"):
                    building._take(40, "f")
        building._take(99, "f")  # on its own
    net = torch.nn.Linear(2, 3)
    net.register_buffer("n", torch.zeros(4, dtype=torch.int16))
    assert building._bytes(net, torch.float16) == 9 * 2 + 8
    net.weight = torch.nn.Parameter(torch.zeros(3, 3))
    net.register_parameter("again", net.weight)  # type: ignore[arg-type]
    assert building._bytes(net, torch.float64) == (9 + 3) * 8 + 8


def test_tensors_are_counted_once_as_they_are_made():
    seen = []
    with count_tensors(torch.Tensor.numel, lambda size, count: seen.append((size, count))):
        net = torch.nn.Linear(2, 3)
        net.register_parameter("again", net.weight)
        net.register_buffer("none", None)
        net.register_buffer("b", torch.zeros(5))
    torch.nn.Linear(9, 9)
    assert seen == [(6, 1), (9, 2), (14, 3)]


def test_an_engine_is_closed_at_the_end_of_its_block():
    with Engine(toy_model()) as engine:
        assert engine.is_open
    assert not engine.is_open


def test_a_part_that_is_not_trained_to_its_end(monkeypatch, tmp_path):
    recipe = checked({"name": "r", "data": {"path": "p"},
                      "model": {"widths": [32], "train": {"steps": 8}}}, "r.toml")  # fmt: skip
    source: Any = None
    with pytest.raises(ValueError, match="holds no trained 'model' yet; train it first"):
        snapshots.averaged(recipe, "model", tmp_path, source)
    path = snapshots.checkpoint(tmp_path, "model")
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(snapshots, "build_part", lambda *given: SimpleNamespace(module=None))
    monkeypatch.setattr(snapshots, "read_checkpoint", lambda path: {"done": 7})
    with pytest.raises(ValueError, match="'model' is trained for 7 of its 8 steps; let it finish"):
        snapshots.averaged(recipe, "model", tmp_path, source)
