"""Long samples by overlapping windows, against the sum written out."""

from __future__ import annotations

import pytest
import torch

import guidestar as gs
from guidestar.networks.windows import Windowed

VP = gs.VP.linear()


def level_of(batch):
    return gs.Level(
        torch.linspace(0.5, 0.9, batch, dtype=torch.float64),
        torch.linspace(0.8, 0.3, batch, dtype=torch.float64),
        torch.linspace(0.1, 0.2, batch, dtype=torch.float64),
    )


def ramp(size, overlap):
    """Weights of a window, by counting."""
    return [min(i + 1, size - i, overlap + 1) / (overlap + 1) for i in range(size)]


@pytest.mark.parametrize(
    ("length", "size", "overlap", "starts"),
    [
        (9, 4, 2, [0, 2, 4, 5]),
        (8, 4, 2, [0, 2, 4]),
        (10, 4, 1, [0, 3, 6]),
        (8, 4, 0, [0, 4]),
        (4, 4, 3, [0]),
        (5, 4, 0, [0, 1]),
    ],
)
@pytest.mark.parametrize("dim", [0, -1])
def test_estimates_are_blended_by_the_formula(length, size, overlap, starts, dim):
    """Each estimate has its own level, condition and mean, so nothing is interchangeable."""
    torch.manual_seed(length + overlap)
    x = torch.randn(3, length, length, dtype=torch.float64)
    level, label = level_of(3), torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    calls = []

    def inner(x_t, level, cond):
        calls.append(len(x_t))
        own = level.alpha * cond["label"] + level.sigma + level.t
        return x_t.mean((1, 2), keepdim=True) * x_t + own[:, None, None]

    inner.cpu_rows = 2
    windowed = Windowed(inner, size=size, overlap=overlap, dim=dim)
    assert windowed.starts(length) == starts and windowed.cpu_rows == 2
    found = windowed(x, level, gs.Condition(label=label))
    for b in range(3):
        rows = x[b] if dim == 0 else x[b].T
        total, made = [0.0] * length, torch.zeros(length, length, dtype=torch.float64)
        for start in starts:
            window = rows[start : start + size]
            own = level.alpha[b] * label[b] + level.sigma[b] + level.t[b]
            estimate = window.mean() * window + own
            for i, w in enumerate(ramp(size, overlap)):
                made[start + i] += w * estimate[i]
                total[start + i] += w
        wanted = made / torch.tensor(total, dtype=torch.float64)[:, None]
        torch.testing.assert_close(found[b] if dim == 0 else found[b].T, wanted)
    assert max(calls) <= 2 and sum(calls) == 3 * len(starts)


def test_what_does_not_look_around_is_as_without_windows():
    """A denoiser of each number by itself gives the same run, to rounding."""
    net = gs.Network(lambda x, t, label: x * 0.3 + label[:, None, None], predicts="eps")
    cond, null = (gs.Condition(label=torch.tensor([v], dtype=torch.float64)) for v in (1.0, 0.0))
    runs = []
    for denoiser in (net, Windowed(net, size=5, overlap=2, dim=0)):
        guided = gs.Guided("cfg(3)", denoiser, cond=cond, null=null)
        grid = gs.karras(VP, 4)
        x = gs.sample(guided, grid=grid, seeds=[0, 1], shape=(13, 2), dtype=torch.float64)
        runs.append(x)
    torch.testing.assert_close(*runs, atol=1e-12, rtol=1e-12)


def test_gradients_pass_and_a_condition_of_one_serves_all():
    windowed = Windowed(lambda x, level, cond: x**2 * cond["a"][:, None], size=2, overlap=1)
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64, requires_grad=True)
    cond = gs.Condition(a=torch.tensor([0.5], dtype=torch.float64))
    windowed(x, gs.Level(1.0, 1.0, 0.5), cond).sum().backward()
    torch.testing.assert_close(x.grad, x.detach())
    bare = Windowed(lambda x, level, cond: x + len(cond), size=2, overlap=0)
    assert torch.equal(bare(x, gs.Level(1.0, 1.0, 0.5), gs.Condition()), x)


def test_windows_of_one_place_are_the_places_by_themselves():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    found = Windowed(lambda x, level, cond: x * x, size=1, overlap=0)
    assert found(x, gs.Level(1.0, 1.0, 0.5), gs.Condition()).tolist() == [[1.0, 4.0, 9.0]]


def test_a_learned_variance_is_left_out():
    inner = lambda x, level, cond: gs.Prediction.from_x0(x, level, 2 * x)
    x = torch.randn(2, 6)
    found = Windowed(inner, size=4, overlap=1)(x, gs.Level(0.6, 0.8, 0.5), gs.Condition())
    torch.testing.assert_close(found, 2 * x)


def test_what_cannot_be_is_one_line():
    inner = lambda x, level, cond: x
    for size, overlap in ((4, 4), (4, -1)):
        with pytest.raises(
            ValueError, match=f"windows of 4 should overlap by 0 to 3, not {overlap}"
        ):
            Windowed(inner, size=size, overlap=overlap)
    with pytest.raises(ValueError, match="the size of a window must be at least 1, not 0"):
        Windowed(inner, size=0, overlap=0)
    with pytest.raises(ValueError, match="samples of 3 along dimension -1 are shorter"):
        Windowed(inner, size=4, overlap=0)(
            torch.zeros(1, 3), gs.Level(1.0, 1.0, 0.5), gs.Condition()
        )


def test_perturbed_passes_are_refused_by_name():
    model = gs.load("fashion-mnist")
    wide = Windowed(model.denoiser, size=28, overlap=14)
    cond = model.encoder.encode(["bag"])
    guided = gs.Guided("cond + pag(2)", wide, cond=cond, null=model.encoder.null(1))
    with pytest.raises(ValueError) as found:
        gs.sample(guided, grid=gs.karras(model.schedule, 2), seeds=[0], shape=(1, 28, 42))
    assert "the layers of Windowed are not known, so none can be perturbed" in str(found.value)
