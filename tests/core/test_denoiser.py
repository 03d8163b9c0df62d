"""Networks of every parametrisation give the same denoiser; the dtype boundary; conditions."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from guidestar.core.denoiser import Condition
from guidestar.core.levels import VE, VP, Flow, Level
from guidestar.core.prediction import Prediction
from guidestar.networks.network import Network

EMPTY = Condition()
DATA = 0.6  # standard deviation that the edm networks are told


def exact(x, a, s):
    """D of data N(0.7, 0.25)."""
    return 0.7 + 0.25 * a / (0.25 * a**2 + s**2) * (x - 0.7 * a)


# What a perfect network of each kind returns, from x_t, alpha and sigma.
OUTPUTS = {
    "x0": exact,
    "eps": lambda x, a, s: (x - a * exact(x, a, s)) / s,
    "v": lambda x, a, s: a * (x - a * exact(x, a, s)) / s - s * exact(x, a, s),
    "velocity": lambda x, a, s: (x - a * exact(x, a, s)) / s - exact(x, a, s),
}
LEVELS = {
    "vp": VP.linear()(torch.tensor([0.0, 500.5, 999.0], dtype=torch.float64)),
    "ve": VE()(torch.tensor([0.01, 1.0, 70.0], dtype=torch.float64)),
    "flow": Flow()(torch.tensor([0.01, 0.5, 0.98], dtype=torch.float64)),
    "one level": VP.linear()(321.0),
}
all_levels = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def column(value):
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1)


def network(predicts, level, **options):
    a, s = column(level.alpha), column(level.sigma)
    return Network(lambda x, t: OUTPUTS[predicts](x, a, s), predicts=predicts, **options)


@all_levels
@pytest.mark.parametrize("predicts", OUTPUTS)
def test_every_parametrisation_gives_the_denoiser(predicts, level):
    x = random(3, 2, 4)
    got = network(predicts, level)(x, level, EMPTY)
    torch.testing.assert_close(
        got, exact(x, column(level.alpha), column(level.sigma)), rtol=1e-10, atol=1e-10
    )


@all_levels
def test_edm_gives_the_denoiser(level):
    """The net sees only c_in·x/alpha and ln(rho)/4, and inverts EDM's table 1."""

    def net(scaled, c_noise):
        rho = torch.exp(4 * c_noise).reshape(-1, 1, 1)
        y = scaled * torch.sqrt(rho**2 + DATA**2)
        skip, out = DATA**2 / (rho**2 + DATA**2), rho * DATA / torch.sqrt(rho**2 + DATA**2)
        return (exact(y, 1.0, rho) - skip * y) / out

    x = random(3, 2, 4)
    got = Network(net, predicts="edm", sigma_data=DATA)(x, level, EMPTY)
    torch.testing.assert_close(
        got, exact(x, column(level.alpha), column(level.sigma)), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("predicts", ["x0", "v", "velocity"])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_pure_noise_is_served(predicts, sigma):
    level, x = Level(0.0, sigma, 1.0), random(3, 2, 4)
    torch.testing.assert_close(
        network(predicts, level)(x, level, EMPTY), torch.full_like(x, 0.7), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("predicts", ["eps", "edm"])
@pytest.mark.parametrize(
    "level",
    [Flow()(1.0), Flow()(torch.tensor([0.5, 1.0], dtype=torch.float64))],
    ids=["one", "mixed"],
)
def test_pure_noise_is_refused_by_name(predicts, level):
    with pytest.raises(ValueError, match=f"predicts {predicts}.*alpha = 0"):
        Network(lambda x, t: x, predicts=predicts)(random(2, 2, 4), level, EMPTY)


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_a_learned_variance_is_the_second_half(predicts):
    level, x, share = LEVELS["vp"], random(3, 2, 4), random(3, 2, 4).tanh()
    a, s = column(level.alpha), column(level.sigma)
    net = Network(
        lambda x, t: torch.cat([OUTPUTS[predicts](x, a, s), share], 1),
        predicts=predicts,
        learned_variance=True,
    )
    got = net(x, level, EMPTY)
    assert isinstance(got, Prediction) and torch.equal(got.log_var, share)
    torch.testing.assert_close(got.x0, exact(x, a, s), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.eps, OUTPUTS["eps"](x, a, s), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ((3, 4, 5), {}, "learned_variance=True"),
        ((3, 2, 5), {"learned_variance": True}, "returned"),
        ((3, 3, 5), {}, "returned"),
        ((3, 2, 1), {}, "returned"),
        ((1, 2, 5), {}, "returned"),
    ],
)
def test_outputs_of_another_shape_are_refused(out, options, message):
    with pytest.raises(ValueError, match=message):
        Network(lambda x, t: torch.zeros(out), predicts="x0", **options)(
            torch.zeros(3, 2, 5), Level(0.5, 0.5, 0.5), EMPTY
        )


def test_unknown_and_impossible_kinds_are_refused():
    with pytest.raises(ValueError, match=r"predicts must be one of .*velocity, edm, not 'epsilon'"):
        Network(lambda x, t: x, predicts="epsilon")
    with pytest.raises(ValueError, match="edm"):
        Network(lambda x, t: x, predicts="edm", learned_variance=True)


@pytest.mark.parametrize(
    "wrap",
    [lambda out: SimpleNamespace(sample=out), lambda out: (out, "more")],
    ids=["object", "tuple"],
)
def test_wrapped_outputs_are_unwrapped(wrap):
    x = random(2, 3)
    assert torch.equal(
        Network(lambda x, t: wrap(2 * x), predicts="x0")(x, Level(0.5, 0.5, 0.5), EMPTY), 2 * x
    )


# --- the dtype boundary


class Spy(nn.Module):
    """Remembers what it is called with."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x, t, **cond):
        self.seen = {"x": x, "t": t, **cond}
        return self.weight * x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "t", [998.0, torch.tensor([998.0, 3.0], dtype=torch.float64)], ids=["float", "mixed"]
)
def test_the_network_computes_in_its_own_dtype(dtype, t):
    spy = Spy(dtype)
    got = Network(spy, predicts="v")(
        random(2, 3), Level(0.6, 0.8, t), Condition(y=random(2, 4), labels=torch.tensor([1, 2]))
    )
    assert got.dtype == torch.float64
    assert (
        spy.seen["x"].dtype == spy.seen["y"].dtype == dtype
        and spy.seen["labels"].dtype == torch.int64
    )
    assert spy.seen["t"].dtype in (torch.float32, dtype) and spy.seen["t"].tolist() == (
        [998.0, 998.0] if isinstance(t, float) else [998.0, 3.0]
    )


def test_conversions_stay_in_the_dtype_of_x():
    """A bfloat16 network costs its own rounding and no more: x0 = (x − s·out)/a in float64."""
    x, level = random(2, 3), Level(0.6, 0.8, 4.0)
    got = Network(Spy(torch.bfloat16), predicts="eps")(x, level, EMPTY)
    torch.testing.assert_close(got, (x - 0.8 * x.bfloat16().double()) / 0.6, rtol=1e-14, atol=1e-14)


def test_dtype_can_be_chosen_and_defaults_to_x_without_parameters():
    seen = []
    for dtype in (None, torch.float32):
        Network(lambda x, t: seen.append(x.dtype) or x, predicts="x0", dtype=dtype)(
            random(2, 3), Level(0.5, 0.5, 0.5), EMPTY
        )
    assert seen == [torch.float64, torch.float32]


def test_time_is_mapped():
    spy = Spy(torch.float32)
    net = Network(spy, predicts="velocity", time=lambda t: 1000 * t)
    net(random(2, 3), Flow()(0.25), EMPTY)
    assert spy.seen["t"].tolist() == [250.0, 250.0]
    net(random(2, 3), Flow()(torch.tensor([0.5, 0.75], dtype=torch.float64)), EMPTY)
    assert spy.seen["t"].tolist() == [500.0, 750.0]


def test_edm_is_told_a_quarter_of_log_rho():
    spy = Spy(torch.float64)
    Network(spy, predicts="edm", sigma_data=0.5)(
        torch.ones(2, 3, dtype=torch.float64), Level(0.5, 1.5, 0.0), EMPTY
    )
    assert spy.seen["t"].tolist() == pytest.approx([math.log(3) / 4] * 2)
    assert spy.seen["x"].flatten().tolist() == pytest.approx([2 / math.sqrt(9 + 0.25)] * 6)


# --- conditions


def test_a_condition_is_a_frozen_mapping():
    cond = Condition({"a": torch.zeros(2, 3)}, b=torch.ones(2))
    assert (
        dict(cond).keys() == {"a", "b"} and len(cond) == 2 and cond.batch == 2 and EMPTY.batch == 0
    )
    with pytest.raises(TypeError):
        cond["a"] = torch.ones(2)
    assert cond in {cond} and cond != Condition({"a": cond["a"]}, b=cond["b"])


def test_a_condition_agrees_in_its_batch():
    with pytest.raises(ValueError, match=r"first dimension, not \[2, 3\]"):
        Condition(a=torch.zeros(2), b=torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Condition(label=[1, 2, 3]),
            r"^'label' of a condition must be a tensor \[B, …\], not list; write torch.as_tensor",
        ),
        (
            lambda: Condition({"y": torch.zeros(2).numpy()}),
            r"^'y' of a condition must be a tensor \[B, …\], not ndarray",
        ),
        (lambda: Condition(label=3), r"^'label' of a condition must be a tensor \[B, …\], not int"),
        (
            lambda: Condition(label=torch.tensor(3)),
            r"^'label' of a condition must be .* not a single number; write it as \[number\]$",
        ),
        (
            lambda: Condition(torch.zeros(2)),
            r"^a condition has tensors by name, as in Condition\(label=tensor\), not a Tensor",
        ),
    ],
)
def test_a_condition_is_of_tensors_with_rows(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        make()


def test_take_repeat_and_to():
    cond = Condition(a=torch.arange(6).reshape(3, 2), b=torch.tensor([7, 8, 9]))
    taken = cond.take(torch.tensor([2, 0]))
    assert taken["a"].tolist() == [[4, 5], [0, 1]] and taken["b"].tolist() == [9, 7]
    one = cond.take(torch.tensor([1])).repeat(4)
    assert one["a"].tolist() == [[2, 3]] * 4 and one["b"].tolist() == [8] * 4
    assert cond.repeat(3) is cond and EMPTY.repeat(5) is EMPTY
    assert cond.to("cpu")["b"].tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match="3 samples cannot serve 4"):
        cond.repeat(4)


def test_join():
    parts = [
        Condition(a=torch.tensor([[1.0]]), m=torch.tensor([True])),
        Condition(a=torch.tensor([[2.0], [3.0]]), m=torch.tensor([False, True])),
    ]
    joined = Condition.join(parts)
    assert joined["a"].tolist() == [[1], [2], [3]] and joined["m"].tolist() == [True, False, True]
    assert Condition.join(parts[:1]) is parts[0] and Condition.join([EMPTY, Condition()]).batch == 0


@pytest.mark.parametrize(
    "other",
    [Condition(b=torch.zeros(1, 2)), Condition(a=torch.zeros(1, 3)), EMPTY],
    ids=["name", "shape", "empty"],
)
def test_conditions_that_differ_do_not_join(other):
    with pytest.raises(ValueError, match="same names and shapes"):
        Condition.join([Condition(a=torch.zeros(1, 2)), other])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_that_is_cast_later_computes_in_its_new_dtype(dtype):
    """Whether the wrapper is cast or the network within; a dtype that was given stays."""

    class Linear(torch.nn.Linear):
        def forward(self, x, t):
            seen.append((x.dtype, t.dtype))
            return super().forward(x)

    seen: list[tuple[torch.dtype, torch.dtype]] = []
    times = torch.promote_types(dtype, torch.float32)
    for cast in (lambda net: net.to(dtype), lambda net: net.net.to(dtype)):
        net = Network(Linear(3, 3), predicts="x0")
        cast(net)
        found = net(torch.ones(2, 3), Level(alpha=0.6, sigma=0.8, t=5.0), {})
        assert found.dtype == torch.float32 and net.dtype == dtype and seen[-1] == (dtype, times)
    kept = Network(Linear(3, 3).double(), predicts="x0", dtype=torch.float64)
    assert kept.dtype == torch.float64
    assert Network(lambda x, t: x, predicts="x0").dtype is None
