"""The numbers of `check`, each by its formula: levels, noises, readings, clocks, ranges, bounds."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidestar as gs
from guidestar import VE, VP, Condition, Flow, Level, Network
from guidestar.core.prediction import Prediction
from guidestar.core.rng import Draw
from guidestar.model import checking
from guidestar.model import readings as readings_of
from helpers.served import toy_model

LEVEL = Level(torch.tensor(0.6).double(), torch.tensor(0.8).double(), 0.5)
SIDE = {"x0": 0.3, "eps": -1.1}
X_T = 0.6 * SIDE["x0"] + 0.8 * SIDE["eps"]
OUTPUTS = {
    "eps": -1.1,
    "x0": 0.3,
    "v": 0.6 * -1.1 - 0.8 * 0.3,
    "velocity": -1.1 - 0.3,
}
"""What a right network of each kind gives where x0 is 0.3 and eps is -1.1."""
FOUR = torch.tensor([[1.0, -1.0], [3.0, 0.0], [-2.0, 5.0], [0.5, 0.5]]).double()


def trial(net: Any = None, x: Tensor = FOUR, schedule: Any = None, levels=2, seed=0, cond=None):
    schedule = schedule or VE(t_max=2.0, t_min=0.5)
    return checking._Trial(net, schedule, x, cond or Condition(), levels, seed)


@pytest.mark.parametrize(
    ("schedule", "low", "high"),
    [
        (VE(t_max=2.0, t_min=0.5), 0.5, 2.0),
        (VE(t_max=80.0, t_min=0.5), 0.5, 20.0),
        (VE(t_max=2.0, t_min=0.01), 0.05, 2.0),
    ],
)
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_noise_ratios_lie_evenly_in_log(schedule, low, high, levels):
    found = [float(level.rho) for level in trial(schedule=schedule, levels=levels).levels]
    wanted = {
        1: [high],
        2: [high, low],
        4: [high, high ** (2 / 3) * low ** (1 / 3), high ** (1 / 3) * low ** (2 / 3), low],
    }
    assert found == pytest.approx(wanted[levels], rel=1e-6)


def test_there_are_eight_levels_by_default_and_one_stream_for_each_sample():
    inputs: list[Tensor] = []

    def net(x: Tensor, level: Level, cond: Condition) -> Tensor:
        inputs.append((x - level.alpha * FOUR) / level.sigma)
        return torch.zeros_like(x)

    report = gs.check(net, FOUR, schedule=Flow(), seed=3)
    assert len(report.rows) == 8
    draw = Draw([3 * 128, 3 * 128 + 1, 3 * 128 + 2, 3 * 128 + 3])
    for i in range(8):
        assert torch.allclose(inputs[i], draw.at(i).normal_like("check", FOUR), atol=1e-5)
    inputs.clear()
    gs.check(net, FOUR, schedule=Flow())
    assert torch.allclose(inputs[0], Draw(range(4)).normal_like("check", FOUR), atol=1e-5)


@pytest.mark.parametrize(("given", "used"), [(2, 2), (127, 127), (128, 128), (129, 128)])
def test_of_many_data_the_first_are_used(given, used):
    x = torch.arange(given).double()[:, None] / given
    net = lambda x, level, cond: cond["c"][:, None] + 0 * x
    report = gs.check(net, x, schedule=VE(t_max=2.0), cond=Condition(c=x[:, 0]), levels=1)
    assert report.samples == used and report.rows[0].error == pytest.approx(0.0, abs=1e-20)


def test_shares_and_scores():
    assert checking._share(2.0, 4.0) == 0.5
    assert checking._share(1.0, 0.0) == pytest.approx(1e30)
    assert checking._share(math.inf, 4.0) == checking._share(math.nan, 4.0) == math.inf
    assert checking._score([2.0, 8.0]) == pytest.approx(4.0)
    assert checking._score([1e-9, 1.0]) == pytest.approx(1e-3)
    assert checking._score([math.inf, 1.0]) == pytest.approx(1e6, rel=1e-13)
    assert checking._variance(torch.tensor([[1.0, 0.0], [3.0, 4.0]])) == (2.0 + 8.0) / 2


def test_a_reading_is_believed_up_to_a_bound_of_how_many_numbers_there_are():
    subject = trial()
    assert subject.risen == 1.2 + 3 * math.sqrt(2 / 8)
    assert subject.believed([subject.risen, subject.risen]) == pytest.approx(subject.risen)
    assert subject.believed([1.0, subject.risen + 1e-9]) == math.inf
    v = sum(float((c - c.mean()).square().sum()) / 3 for c in FOUR.unbind(1)) / 2
    assert subject.linear(FOUR) == pytest.approx([v * 4 / (v + 4), v * 0.25 / (v + 0.25)])
    found = subject.shares(FOUR, [FOUR + 1, FOUR - 2])
    assert found == pytest.approx([(v + 4) / (v * 4), 4 * (v + 0.25) / (v * 0.25)])


def test_estimates_read_predictions_and_other_clocks():
    times: list[float] = []

    def net(x: Tensor, level: Level, cond: Condition) -> Any:
        times.append(float(level.t))
        return Prediction(x_t=x, level=level, x0=x + 1, eps=x)

    subject = trial(net)
    noised = [FOUR + 2.0 * subject.noises[0], FOUR + 0.5 * subject.noises[1]]
    for found, wanted in zip(subject.estimates(FOUR, Condition()), noised, strict=True):
        assert torch.allclose(found, wanted + 1)
    subject.estimates(FOUR, Condition(), lambda level: 7.0)
    assert times == pytest.approx([2.0, 0.5, 7.0, 7.0])


def test_what_an_output_means():
    found = readings_of.affine_of(LEVEL)
    assert found.keys() == OUTPUTS.keys()
    for kind, out in OUTPUTS.items():
        p, q = found[kind]
        assert p * X_T + q * out == pytest.approx(0.3)


class Tenfold(nn.Module):
    def forward(self, x, t):
        return x


@pytest.mark.parametrize("known", [None, *OUTPUTS, "edm"])
def test_each_fault_of_the_output_has_its_mend(known):
    net = Network(Tenfold(), predicts=known, sigma_data=0.5) if known else print
    found = dict(readings_of.output_readings(net))  # type: ignore[arg-type]
    taken = (known,) if known in OUTPUTS else () if known else tuple(OUTPUTS)
    others = [(t, m) for t in taken for m in OUTPUTS if m != t]
    words = [f"{m} taken for {t}: its output looks like {m}; write predicts={m!r}"
             for t, m in others]  # fmt: skip
    signs = {}
    for t in taken:
        for m in OUTPUTS:
            more = f", and write predicts={m!r}" if m != t else ""
            signs[f"the sign of its {m} is wrong: it looks like −{m}; negate the output{more}"] = m
    assert list(found) == [*dict.fromkeys(w for w in found)] and set(found) == {*words, *signs}
    for t, m in others:
        # The network gives m; it is read as t, which makes D; p x_t + q D is the clean estimate.
        p, q = readings_of.affine_of(LEVEL)[t]
        wrong = p * X_T + q * OUTPUTS[m]
        mend = found[f"{m} taken for {t}: its output looks like {m}; write predicts={m!r}"](LEVEL)
        assert mend[0] * X_T + mend[1] * wrong == pytest.approx(0.3)
    for text, m in signs.items():
        readings = [mend for what, mend in readings_of.output_readings(net) if what == text]  # type: ignore[arg-type]
        ways = [t for t in taken if (t == m) == (", and write" not in text)]
        assert len(readings) == len(ways)
        for t, mend in zip(ways, readings, strict=True):
            p, q = readings_of.affine_of(LEVEL)[t]
            wrong = p * X_T - q * OUTPUTS[m]
            at = mend(LEVEL)
            assert at[0] * X_T + at[1] * wrong == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("schedule", "ends", "count"),
    [
        (VP.linear(), "999", 1000.0),
        (Flow(), "1", 1000.0),
        (VE(t_max=100.0, t_min=0.5), "100.5", 1000.0),
        (VE(t_max=101.0, t_min=0.5), "101.5", 102.0),
    ],
)
def test_other_times_that_a_network_may_take(schedule, ends, count):
    reverse, short, long, edm = readings_of.other_times(schedule).items()
    assert reverse[0].endswith(f"the wrong way round; give the network {ends} - t")
    unit = "its times look to be in another unit; give the network "
    assert (short[0], long[0]) == (f"{unit}t / {count:g}", f"{unit}{count:g} * t")
    assert edm[0] == f"{unit}log(rho) / 4, as EDM's"
    level = Level(1.0, math.e**2, 0.75)
    assert [clock(level) for _, clock in (reverse, short, long, edm)] == pytest.approx(
        [float(ends) - 0.75, 0.75 / count, 0.75 * count, 0.5]
    )


def test_the_ranges_of_data():
    values = [0.25, 0.5, 255.0, 51.0]
    found = [float(f(torch.tensor(x))) for x, f in zip(values, readings_of.OTHER_RANGES.values(),
                                                       strict=True)]  # fmt: skip
    assert found == pytest.approx([-0.5, 0.75, 1.0, 0.2])
    assert [float(f(torch.tensor(0.0))) for f in readings_of.OTHER_RANGES.values()] == [
        -1,
        0.5,
        -1,
        0,
    ]


class Chosen(checking._Trial):
    """With readings whose scores are given."""

    readings: Any = ()
    ranges: Any = ()

    def _read(self, plain):
        return iter(self.readings)

    def _ranged(self):
        return iter(self.ranges)


def chosen(readings=(), ranges=()):
    made = Chosen(None, VE(t_max=2.0, t_min=0.5), FOUR, Condition(), 2, 0)  # type: ignore[arg-type]
    made.readings, made.ranges = readings, ranges
    return made


def test_the_reading_with_the_least_error_is_named():
    plain = [FOUR + 1, FOUR]  # the error does not rise
    wrapped = lambda shares, *of: chosen(*of)._wrapped(plain, shares)
    assert wrapped([1.0, 1.0], [(0.85, "a")]) == []
    assert wrapped([1.0, 1.0], [(0.84, "a"), (0.5, "b"), (0.6, "c")]) == [
        "b (the error falls to 0.5 of what it is)"
    ]
    assert wrapped([4.0, 1.0], [(0.5, "b")]) == ["b (the error falls to 0.25 of what it is)"]
    assert wrapped([1.0, 1.0], [], [(0.1, "range")]) == []  # nothing is too large
    assert wrapped([9.0, 1.0], [], [(0.1, "range")]) == [
        "range (the error falls to 0.033 of what it is)"
    ]


def test_levels_at_which_the_error_is_too_large_are_listed():
    subject = chosen()
    plain, bound = [FOUR + 1, FOUR], subject.risen
    hint = "is it trained, on these data, with this schedule (and sigma_data)?"
    worse = "its estimate is worse than a multiple of x_t"
    assert subject._wrapped(plain, [bound, bound]) == []
    assert subject._wrapped(plain, [bound + 1e-9, bound]) == [f"at noise ratio 2 {worse}; {hint}"]
    assert subject._wrapped(plain, [1.0, math.nan]) == [f"at noise ratio 0.5 {worse}; {hint}"]
    assert subject._wrapped(plain[::-1], [9.0, 9.0]) == [
        f"at noise ratio 2, 0.5 {worse}; {hint}",
        "its error rises as noise falls, from noise ratio 2 to 0.5: is its time right there?",
    ]
    many = Chosen(None, VE(t_max=16.0, t_min=1.0), FOUR, Condition(), 5, 0)  # type: ignore[arg-type]
    (found,) = many._wrapped([FOUR] * 5, [99.0] * 5)
    assert found == f"at noise ratio 16, 8, 4, 2 {worse}; {hint}"


def test_an_error_may_rise_by_a_fifth():
    zeros = torch.zeros(2, 2).double()
    of_25 = torch.full((2, 2), 5.0).double()
    of_30 = torch.tensor([[10.0, 4.0], [2.0, 0.0]]).double()
    subject = trial(x=zeros, schedule=VE(t_max=8.0, t_min=2.0), levels=3)
    assert subject._not_rising([of_30, of_25, of_30]) == []
    assert subject._not_rising([of_30, of_25, of_30 + 0.01]) == [
        "its error rises as noise falls, from noise ratio 4 to 2: is its time right there?"
    ]
    assert "from noise ratio 8 to 4" in subject._not_rising([zeros, of_25, of_30 + 0.01])[0]


IGNORED = (
    "the condition is ignored: under the null it gives the same; is it passed on to the network?"
)
SWAPPED = (
    "the null is better than the condition: are the two swapped, or the conditions those of "
    "other data?"
)
ORDER = "other samples' conditions fit better than their own: are they in the order of the data?"


def test_what_conditions_do():
    net = lambda x, level, cond: FOUR + cond["c"][:, None]
    of = lambda *c: Condition(c=torch.tensor(c).double())
    same = trial(net, cond=of(1.0, 1.0, 1.0, 1.0))
    bare = [FOUR + 1 + 1e-5] * 2
    assert same._conditioned([FOUR + 1] * 2, bare) == [IGNORED]
    assert same._conditioned([FOUR + 1] * 2, [FOUR + 1 + 1e-3] * 2) == []
    assert same._conditioned([FOUR + 1] * 2, [FOUR + 0.9] * 2) == [SWAPPED]
    assert same._conditioned([FOUR + 1] * 2, [FOUR + 0.995] * 2) == []  # 0.99 of the error
    # Rows 2, 3 have the smaller shifts: with those of the sample half the data on, error is equal.
    own = trial(net, cond=of(3.0, 3.0, 1.0, 1.0))
    assert own._conditioned(own.estimates(FOUR, own.cond), [FOUR + 9] * 2) == []
    shifts = torch.tensor([2.0, 2.0, -2.0, -2.0]).double()[:, None]
    turned = lambda x, level, cond: FOUR + cond["c"][:, None] - shifts
    other = trial(turned, cond=of(-2.0, -2.0, 2.0, 2.0))
    assert other._conditioned(other.estimates(FOUR, other.cond), [FOUR + 9] * 2) == [ORDER]


def test_the_null_has_a_column_of_its_own():
    net = lambda x, level, cond: FOUR + cond["c"][:, None]
    cond, null = Condition(c=torch.ones(1).double()), Condition(c=torch.full((1,), 3.0).double())
    report = gs.check(net, FOUR, schedule=VE(t_max=2.0, t_min=0.5), cond=cond, null=null, levels=2)
    assert [(r.error, r.null) for r in report.rows] == [pytest.approx((1.0, 9.0))] * 2
    assert [r.gain for r in report.rows] == pytest.approx([1.0, 1.0])
    row = str(report).splitlines()[2].split()
    assert row[:3] == ["2.000", "1.0000", "9.0000"] and row[-2:] == ["4.0000", "1.00"]
    bare = gs.check(net, FOUR, schedule=VE(t_max=2.0, t_min=0.5), cond=cond, levels=2)
    assert bare.rows[0].null is None and str(bare).splitlines()[2].split()[2] == "-"


def test_conditions_of_models_and_of_denoisers():
    model: Any = toy_model()
    cond, null = checking._conditions(model, None, None, 3)
    assert null is None and cond.batch == 3
    for name, value in model.encoder.null(3).items():
        assert torch.equal(cond[name], value)
    given = model.encoder.encode(["a"] * 2) if "a" in getattr(model, "classes", ()) else cond
    assert checking._conditions(model, given, None, 3)[0] is given
    bare: Any = replace(model, encoder=None)
    empty, none = checking._conditions(bare, None, None, 3)
    assert not empty and none is None
    own = Condition(c=torch.zeros(1))
    assert checking._conditions(bare, None, own, 3) == (own, None)
    for denoiser in (bare, model.denoiser):
        with pytest.raises(ValueError, match="conditions by name need a Model with an encoder"):
            checking._conditions(denoiser, ["a"], None, 3)


def test_two_data_at_least_and_all_finite():
    net = lambda x, level, cond: x
    assert gs.check(net, FOUR[:2], schedule=Flow(), levels=1).samples == 2
    for bad in (FOUR[:1], torch.tensor([[1.0], [math.nan]])):
        with pytest.raises(ValueError, match=r"at least two data \[N, \*S\], all finite; got \["):
            gs.check(net, bad, schedule=Flow())
