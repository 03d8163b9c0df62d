"""`check` names what is wrong with a wrapper, each built from a right network, and passes right
ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import guidestar as gs
from guidestar import Condition, Level, Network
from guidestar.data.mixtures import Mixture

MEANS = torch.tensor(
    [[-0.8, 0.4, 0.1, 0.9], [0.7, -0.5, 0.6, -0.2], [0.0, 0.8, -0.9, 0.3]], dtype=torch.float64
)
DATA = Mixture(
    weights=torch.full((3,), 1 / 3).double(),
    means=MEANS,
    covariances=0.04 * torch.eye(4).double().expand(3, 4, 4),
)
X, LABELS = DATA.sample(gs.Draw(range(64)))
COND, NULL = DATA.condition(LABELS), DATA.null()
VIEWS = {
    "eps": lambda x, d, a, s: (x - a * d) / s,
    "x0": lambda x, d, a, s: d,
    "v": lambda x, d, a, s: a * (x - a * d) / s - s * d,
    "velocity": lambda x, d, a, s: (x - a * d) / s - d,
}
SCHEDULES = {"vp": gs.VP.linear(), "flow": gs.Flow(), "ve": gs.VE()}
UNITS = {"vp": 1.0, "flow": 1000.0, "ve": 1.0}


def network(kind: str, name: str, sign: float = 1.0, turned: bool = False) -> Any:
    """A right network ``net(x, t, label)`` of that output; it knows its level by its own time
    alone.
    """
    schedule, unit = SCHEDULES[name], UNITS[name]

    def net(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        time = float(t[0]) / unit
        time = schedule.t_min + schedule.t_max - time if turned else time
        level = schedule(min(max(time, schedule.t_min, 1e-3), schedule.t_max))
        clean = DATA(x, level, Condition(cond))
        return sign * VIEWS[kind](x, clean, level.alpha, max(level.sigma, 1e-3))

    return net


def wrapped(
    kind: str, name: str, predicts: str | None = None, unit: float | None = None, **more: Any
) -> Network:
    unit = UNITS[name] if unit is None else unit
    return Network(
        network(kind, name, **more),
        predicts=predicts or kind,
        time=lambda t: unit * t,
        dtype=torch.float64,
    )  # type: ignore[arg-type]


def found(
    net: Any, name: str, x: Tensor = X, cond: Any = COND, null: Any = NULL, **more: Any
) -> gs.checking.Report:
    return gs.check(net, x, schedule=SCHEDULES[name], cond=cond, null=null, **more)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", VIEWS)
def test_right_wrappers_pass(kind, name):
    report = found(wrapped(kind, name), name)
    assert report.ok and report.findings == () and str(report).endswith("Nothing looks wrong.")
    assert found(wrapped(kind, name), name, cond=NULL, null=None).ok


def test_a_right_edm_network_passes_and_one_of_another_sigma_data_does_not():
    d = 0.6

    def net(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        rho = float((4 * t[0]).exp())
        total = rho**2 + d**2
        y = x * total**0.5
        return (
            (DATA(y, Level(1.0, rho, rho), Condition(cond)) - d**2 / total * y)
            * total**0.5
            / (rho * d)
        )

    for name in SCHEDULES:
        assert found(Network(net, predicts="edm", sigma_data=d, dtype=torch.float64), name).ok
    wrong = found(Network(net, predicts="edm", sigma_data=0.1, dtype=torch.float64), "ve")
    assert "worse than a multiple of x_t" in wrong.findings[0] and "sigma_data" in wrong.findings[0]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("taken", VIEWS)
def test_one_output_taken_for_another_is_named(kind, taken, name):
    if kind == taken:
        return
    assert (
        found(wrapped(kind, name, taken), name)
        .findings[0]
        .startswith(f"{kind} taken for {taken}: ")
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
def test_a_wrong_sign_is_named(kind, name):
    (said,) = found(wrapped(kind, name, sign=-1.0), name).findings
    assert said.startswith(
        f"the sign of its {kind} is wrong: it looks like −{kind}; negate the output ("
    )


@pytest.mark.parametrize("name", ["vp", "flow"])
@pytest.mark.parametrize("kind", VIEWS)
def test_times_the_wrong_way_round_are_named(kind, name):
    (said,) = found(wrapped(kind, name, turned=True), name).findings
    ends = {"vp": "999 - t", "flow": "1 - t"}[name]
    assert said.startswith(
        f"time reversed: it looks to get times the wrong way round; give the network {ends} ("
    )


def test_a_flow_from_noise_to_data_has_two_faults():
    """t = 1 is data and the velocity x0 − ε: the other convention of flows."""
    (said,) = found(wrapped("velocity", "flow", turned=True, sign=-1.0), "flow").findings
    assert said.startswith("time reversed: ") and "; and the sign of its velocity is wrong" in said


@pytest.mark.parametrize(
    ("name", "unit", "told"),
    [
        ("flow", 1.0, "1000 * t"),
        ("vp", 1e-3, "1000 * t"),
        ("flow", 1e6, "t / 1000"),
        ("vp", 1e3, "t / 1000"),
    ],
)
def test_times_in_another_unit_are_named(name, unit, told):
    (said,) = found(wrapped("eps", name, unit=unit), name).findings
    assert said.startswith(f"its times look to be in another unit; give the network {told} (")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda x: (x + 1) / 2,
            "it expects data in [−1, 1], and these look like [0, 1]; give 2x − 1",
        ),
        (
            lambda x: 127.5 * (x + 1),
            "it expects data in [−1, 1], and these look like 0 … 255; give x/127.5 − 1",
        ),
    ],
)
def test_a_wrong_range_of_data_is_named(change, said):
    for kind, name in (("eps", "vp"), ("velocity", "flow"), ("x0", "ve")):
        assert found(wrapped(kind, name), name, x=change(X)).findings[0].startswith(said)


def test_what_is_wrong_with_conditions_is_named():
    ignoring = lambda x, level, cond: DATA(x, level, Condition())
    assert found(ignoring, "flow").findings == (
        "the condition is ignored: under the null it gives the same; is it passed on to the "
        "network?",
    )
    swapped = found(DATA, "flow", cond=NULL, null=None)
    assert swapped.ok
    three = DATA.condition((LABELS + 1) % 3)
    assert found(DATA, "flow", cond=three).findings[0].startswith("at noise ratio ")
    mild = Mixture(
        weights=DATA.weights,
        means=0.1 * MEANS,
        covariances=0.04 * torch.eye(4).double().expand(3, 4, 4),
    )
    x, labels = mild.sample(gs.Draw(range(64)))
    wrong = found(mild, "vp", x=x, cond=mild.condition((labels + 1) % 3), null=mild.null())
    assert wrong.findings == (
        "the null is better than the condition: are the two swapped, or the conditions those of "
        "other data?",
        "other samples' conditions fit better than their own: are they in the order of the data?",
    )
    assert found(mild, "vp", x=x, cond=mild.condition(labels), null=mild.null()).ok


def test_the_report_has_the_errors_of_their_formulas():
    """Of data N(0, 1) and ``D = 0.5 x_t/α + 0.5`` at ρ = 2: everything is known but the sampling of
    the data.
    """
    schedule, x = (
        gs.VE(t_max=2.0, t_min=0.5),
        torch.randn(128, 500, generator=torch.Generator().manual_seed(0)).double(),
    )
    report = gs.check(lambda x, level, cond: 0.5 * x + 0.5, x, schedule=schedule, levels=2)
    first, last = report.rows
    assert (first.rho, last.rho) == pytest.approx((2.0, 0.5))
    v = float(x.var(0).mean())
    for row in report.rows:
        assert (
            row.mean == pytest.approx(v)
            and row.noisy == pytest.approx(row.rho**2)
            and row.null is None
        )
        assert row.linear == pytest.approx(v * row.rho**2 / (v + row.rho**2))
        assert row.error == pytest.approx(
            0.25 + 0.25 + 0.25 * row.rho**2, rel=0.03
        ) and row.gain == pytest.approx(0.5, abs=0.02)
    assert (
        not report.ok
        and "at noise ratio 2, 0.5 its estimate is worse than a multiple of x_t" in str(report)
    )
    assert (
        str(report).splitlines()[0] == "Mean square error of the clean estimate (128 samples)"
        and len(str(report).splitlines()) == 6
    )


@pytest.mark.slow
def test_a_model_brings_what_is_needed_and_its_wrong_twins_are_named():
    model, classes = gs.load("fashion-mnist"), [0, 1, 5, 7, 8, 9]
    x = model.sample(classes, guidance="cond", seeds=range(6), steps=5).images
    options = {"cond": classes, "levels": 3}
    assert gs.check(model, x, **options).ok
    net = model.denoiser
    twins = {
        "v taken for eps": Network(net.net, predicts="eps", time=net.time),
        "time reversed": Network(net.net, predicts="v", time=lambda t: 999 - t),
    }
    own = {"schedule": model.schedule, "cond": model.encoder.encode(classes), "levels": 3}
    for said, twin in twins.items():
        assert gs.check(twin, x, **own).findings[0].startswith(said)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="needs the schedule"):
        gs.check(DATA, X)
    with pytest.raises(ValueError, match="at least two data"):
        gs.check(DATA, X[:1], schedule=gs.Flow())
    with pytest.raises(ValueError, match="all finite"):
        gs.check(DATA, X / 0, schedule=gs.Flow())
    with pytest.raises(ValueError, match="conditions by name need a Model"):
        gs.check(DATA, X, schedule=gs.Flow(), cond=["a"])
