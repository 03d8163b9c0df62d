"""Views of a prediction and differences between them, written out."""

import inspect

import pytest
import torch

from guidestar.core.levels import VE, VP, Flow, Level
from guidestar.core.prediction import SPACES, Prediction, slope

LEVELS = {
    "vp": VP.linear()(torch.tensor([10.0, 400.0, 990.0], dtype=torch.float64)),
    "ve": VE()(torch.tensor([0.01, 1.0, 70.0], dtype=torch.float64)),
    "flow": Flow()(torch.tensor([0.01, 0.5, 0.98], dtype=torch.float64)),
    "one level": Level(0.8, 0.9, 3.0),
}
EXPECTED = {
    "x0": lambda x, D, a, s: D,
    "eps": lambda x, D, a, s: (x - a * D) / s,
    "score": lambda x, D, a, s: -(x - a * D) / s**2,
    "velocity": lambda x, D, a, s: (x - a * D) / s - D,
    "v": lambda x, D, a, s: a * (x - a * D) / s - s * D,
}
SLOPES = {
    "x0": lambda a, s: 1.0,
    "eps": lambda a, s: -a / s,
    "score": lambda a, s: a / s**2,
    "velocity": lambda a, s: -(a + s) / s,
    "v": lambda a, s: -(a**2 + s**2) / s,
}

all_levels = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
all_spaces = pytest.mark.parametrize("space", SPACES)


def column(value):
    return value.reshape(-1, 1, 1) if isinstance(value, torch.Tensor) else value


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(level):
    """Return (prediction, x_t, D, alpha, sigma) for three samples [3, 2, 5]."""
    x, D = random(3, 2, 5, seed=1), random(3, 2, 5, seed=2)
    return Prediction.from_x0(x, level, D), x, D, column(level.alpha), column(level.sigma)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_every_space_is_tested():
    assert set(SPACES) == set(EXPECTED) == set(SLOPES)


@all_levels
@all_spaces
def test_views(level, space):
    prediction, x, D, a, s = made(level)
    same(prediction.view(space), EXPECTED[space](x, D, a, s))


@all_levels
@all_spaces
def test_slopes(level, space):
    expected = SLOPES[space](level.alpha, level.sigma)
    torch.testing.assert_close(
        torch.as_tensor(slope(level, space)),
        torch.as_tensor(expected)
        .expand_as(torch.as_tensor(level.alpha))
        .to(torch.as_tensor(level.alpha)),
    )


@all_levels
@all_spaces
def test_a_linked_shift_moves_every_view_along_its_slope(level, space):
    prediction, x, D, a, s = made(level)
    delta = random(3, 2, 5, seed=3)
    moved = prediction.shifted(delta)
    same(moved.view(space), EXPECTED[space](x, D + delta, a, s))
    same(moved.view(space) - prediction.view(space), SLOPES[space](a, s) * delta)


@all_levels
def test_linked_and_split_shifts(level):
    prediction, x, D, a, s = made(level)
    delta = random(3, 2, 5, seed=3)
    linked, split = prediction.shifted(delta), prediction.shifted(delta, linked=False)
    same(a * linked.x0 + s * linked.eps, x)
    same(split.x0, D + delta)
    same(split.eps, (x - a * D) / s)
    same(prediction.with_x0(delta).x0, delta)
    same(prediction.with_x0(delta).eps, (x - a * delta) / s)


@all_levels
@all_spaces
def test_to_x0_inverts_the_slope(level, space):
    prediction, _, _, a, s = made(level)
    delta = random(3, 2, 5, seed=4)
    same(prediction.to_x0(SLOPES[space](a, s) * delta, space), delta)


def test_at_data_nothing_is_infinite():
    prediction, _, D, *_ = made(Level(1.0, 0.0, 0.0))
    for space, expected in {
        "x0": D,
        "eps": 0 * D,
        "score": 0 * D,
        "velocity": -D,
        "v": 0 * D,
    }.items():
        same(prediction.view(space), expected)
        assert slope(prediction.level, space) == (1.0 if space == "x0" else 0.0)
    same(prediction.to_x0(D, "eps"), 0 * D)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_at_pure_noise(sigma):
    prediction, x, D, *_ = made(Level(0.0, sigma, 1.0))
    expected = {
        "x0": D,
        "eps": x / sigma,
        "score": -x / sigma**2,
        "velocity": x / sigma - D,
        "v": -sigma * D,
    }
    slopes = {"x0": 1.0, "eps": 0.0, "score": 0.0, "velocity": -1.0, "v": -sigma}
    for space in SPACES:
        same(prediction.view(space), expected[space])
        assert slope(prediction.level, space) == slopes[space]
    same(prediction.to_x0(D, "score"), 0 * D)
    same(prediction.to_x0(D, "velocity"), -D)


def test_both_ends_in_one_batch():
    level = Flow()(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    prediction, x, D, *_ = made(level)
    same(prediction.eps, torch.stack([0 * x[0], (x[1] - 0.5 * D[1]) / 0.5, x[2]]))
    same(prediction.shifted(D).eps, torch.stack([0 * x[0], (x[1] - 1.0 * D[1]) / 0.5, x[2]]))


def test_unknown_space_is_named():
    with pytest.raises(ValueError, match="unknown space 'epsilon'"):
        inspect.unwrap(Prediction.view)(
            made(LEVELS["vp"])[0], "epsilon"
        )  # beartype would refuse it first


@pytest.mark.parametrize("log_var", [None, random(3, 2, 5, seed=9)])
def test_take_and_join(log_var):
    whole = Prediction(**{**vars(made(LEVELS["flow"])[0]), "log_var": log_var})
    parts = [whole.take(torch.tensor([0])), whole.take(torch.tensor([1, 2]))]
    assert parts[1].level.sigma.tolist() == LEVELS["flow"].sigma[1:].tolist()
    joined = Prediction.join(parts, whole.x_t, whole.level)
    for name in ("x_t", "x0", "eps", "log_var"):
        value = getattr(whole, name)
        if value is None:
            assert getattr(joined, name) is None and getattr(parts[1], name) is None
        else:
            assert torch.equal(getattr(joined, name), value)
            assert torch.equal(getattr(parts[1], name), value[1:])


def test_parts_with_and_without_a_variance_do_not_join():
    whole = made(LEVELS["flow"])[0]
    one, rest = whole.take(torch.tensor([0])), whole.take(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="variance"):
        Prediction.join(
            [one, Prediction(**{**vars(rest), "log_var": rest.x0})], whole.x_t, whole.level
        )
    clean = Prediction(
        **{**vars(one), "level": Level(1.0, 0.0, 0.0)}
    )  # no network is asked about clean rows
    joined = Prediction.join(
        [clean, Prediction(**{**vars(rest), "log_var": rest.x0})], whole.x_t, whole.level
    )
    assert torch.equal(joined.log_var, torch.cat([torch.zeros_like(one.x0), rest.x0]))


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (4,), (2, 3, 4), (3, 5)])
def test_an_estimate_of_another_shape_is_refused(shape):
    """Torch would broadcast most of these, and x0 and eps would differ in shape."""
    with pytest.raises(ValueError, match=r"x0 must have the shape of x_t, \(3, 4\), not \("):
        Prediction.from_x0(torch.zeros(3, 4), Level(0.5, 0.5, 0.5), torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dtype_is_kept_at_mixed_levels(dtype):
    x = torch.ones(3, 2, dtype=dtype)
    prediction = Prediction.from_x0(x, LEVELS["flow"], x)
    assert (
        {prediction.view(space).dtype for space in SPACES}
        == {prediction.shifted(x).eps.dtype, prediction.to_x0(x, "v").dtype}
        == {dtype}
    )
