"""Which settings a solver takes: the outermost values, their neighbours, and other kinds."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from guidestar.core.levels import VP, Level
from guidestar.guidance import Guided
from guidestar.guidance.methods.seg import SEG
from guidestar.guidance.operators import Blur, Colour
from guidestar.sampling import DDIM, DDPM, RePaint, Restart, TimeTravel
from guidestar.sampling.deis import DEIS
from guidestar.sampling.er_sde import ERSDE
from guidestar.sampling.grids import uniform
from guidestar.sampling.heun import Heun
from guidestar.sampling.multistep import RES, DPMpp3M, SDEDPMpp3M
from guidestar.sampling.sa import SA
from guidestar.sampling.singlestep import DPMpp2S
from guidestar.sampling.unipc import UniPC
from helpers.toys import Spy, condition

INF, NAN = math.inf, math.nan
NOT_NUMBERS = ["a", None, [1.0], {}, True, 1j]
SMALL = 5e-324
ORDERS = ([1, 4], [0, 5, 1.5, True, "2", None], "order must be (from 1 to 4|a whole)")
FIRST = ([1, 10_000], [0, 10_001, 2.5, True, None], "first_order_steps must be a whole number")
ETA = ([0, 0.5, 1], [-SMALL, 1 + 1e-9, NAN, *NOT_NUMBERS], "eta must be")
FLAG = ([True, False], [0, 1, "a", None], "must be True or False")
SETTINGS = [
    (DDIM, "eta", *ETA),
    (DPMpp2S, "eta", *ETA),
    (
        DDPM,
        "variance",
        ["small", "large", "learned"],
        ["x", None, []],
        "'small' or 'large' or 'learned'",
    ),
    (Heun, "form", ["auto", "edm", "flow"], ["x", None], "form must be 'auto' or 'edm' or 'flow'"),
    (Heun, "churn", [0, 1e9], [-SMALL, INF, NAN, *NOT_NUMBERS], "churn must be"),
    (Heun, "churn_noise", [0.5, 1], NOT_NUMBERS, "churn_noise must be a number"),
    (Heun, "churn_interval", [(0, 1), [0.5, INF]], [(1,), 1, "ab", (1, "a")], "two numbers"),
    (RES, "eta", [0, 10], [-SMALL, 10.01, NAN, *NOT_NUMBERS], "eta must be"),
    (RES, "order", *ORDERS),
    (RES, "first_order_steps", *FIRST),
    (RES, "lower_order_final", *FLAG),
    (DPMpp3M, "eta", [0, 10], [10.01, None], "eta must be"),
    (SDEDPMpp3M, "order", [3], [2, 4, True, None], "order"),
    (DEIS, "order", *ORDERS),
    (DEIS, "first_order_steps", *FIRST),
    (DEIS, "form", ["log-snr", "rho", "uniform"], ["x", None], "'log-snr' or 'rho' or 'uniform'"),
    (ERSDE, "order", [1, 3], [0, 4, 5, True, "2"], "order must be (from 1 to|a whole)"),
    (ERSDE, "first_order_steps", *FIRST),
    (SA, "order", *ORDERS),
    (SA, "corrector_order", [0, 1, 4], [5, -1, True, False, 1.5], "corrector_order must be"),
    (SA, "tau", [0, 3], [-SMALL, 3.01, NAN, *NOT_NUMBERS], "tau must be"),
    (
        SA,
        "interval",
        [(0, SMALL), (0.5, INF)],
        [(0, 0), (-SMALL, 1), (2, 1), (1, NAN), (1,), (1, 2, 3), 1, None],
        "interval must be",
    ),
    (UniPC, "order", *ORDERS),
    (UniPC, "first_order_steps", *FIRST),
    (UniPC, "variant", ["bh1", "bh2"], ["bh3", None], "variant must be 'bh1' or 'bh2'"),
    (UniPC, "corrector", *FLAG),
    (UniPC, "lower_order_final", *FLAG),
    (Restart, "low", [SMALL, 1.99], [0, 2.0, 2.5, -1, NAN, *NOT_NUMBERS], "low"),
    (Restart, "high", [0.11, 1e9], [0.1, INF, NAN, *NOT_NUMBERS], "high"),
    (Restart, "times", [0, 1000], [-1, 1001, 1.5, True, None], "times must be"),
    (Restart, "steps", [1, 1000], [0, 1001, 1.5, True, None], "steps must be"),
    (Restart, "solver", [DDIM(), Heun()], ["ddim", None, Restart(), TimeTravel()], "restart"),
    (TimeTravel, "times", [1, 1000], [0, 1001, 1.5, True, None], "times must be a whole number"),
    (
        TimeTravel,
        "where",
        [(0, 1), [0.25, 0.5]],
        [(0.5, 0.5), (0.5, 0.4), (-SMALL, 1), (0, 1.01), (0,), "ab", None],
        "where must be two",
    ),
    (
        TimeTravel,
        "solver",
        [DDIM(), Heun()],
        ["ddim", None, TimeTravel(), RES()],
        "time travel|solver must be a solver",
    ),
]


@pytest.mark.parametrize(
    ("solver", "key", "good", "bad", "text"),
    SETTINGS,
    ids=[f"{solver.__name__}-{key}" for solver, key, *_ in SETTINGS],
)
def test_settings_up_to_their_bounds(solver, key, good, bad, text):
    for value in good:
        assert getattr(solver(**{key: value}), key) == value
    for value in bad:
        with pytest.raises(ValueError, match=text) as found:
            solver(**{key: value})
        assert "\n" not in str(found.value)


def test_every_number_of_a_solver_is_checked():
    named = {(solver, key) for solver, key, *_ in SETTINGS}
    for solver in {solver for solver, *_ in SETTINGS} - {DPMpp3M, SDEDPMpp3M}:
        numbers = {f.name for f in dataclasses.fields(solver) if "float" in str(f.type)}
        assert numbers - {"gamma", "eta"} <= {key for kind, key in named if kind is solver}


def test_gamma_of_deis_is_of_its_published_form():
    assert DEIS(form="uniform", order=2, gamma=0).gamma == 0
    assert DEIS(form="uniform", order=2, gamma=10).gamma == 10
    for value in (-SMALL, 10.01, NAN, "a", [1], True):
        with pytest.raises(ValueError, match="gamma must be"):
            DEIS(form="uniform", order=2, gamma=value)  # type: ignore[arg-type]
    for form, order in (("rho", 2), ("uniform", 3), ("log-snr", 3)):
        with pytest.raises(ValueError, match="gamma needs form='uniform' and order=2"):
            DEIS(form=form, order=order, gamma=0)  # type: ignore[arg-type]


def test_repaint_is_around_a_solver_without_history():
    known = torch.zeros(1, 2)
    for inner in ("ddim", None, RES()):
        with pytest.raises(ValueError, match="repaint"):
            RePaint(solver=inner, known=known, mask=known)  # type: ignore[arg-type]
    assert RePaint(known=known, mask=known).solver == DDPM()


@pytest.mark.parametrize("value", ["a", None, [], {}, [[1]]])
def test_operators_name_a_setting_of_another_kind(value):
    with pytest.raises(ValueError, match="blur: deviation must be a number, not"):
        Blur(deviation=value)
    if value != [[1]]:
        with pytest.raises(ValueError, match="gray: the matrix must have rows of one length"):
            Colour(matrix=value)
    with pytest.raises(ValueError, match="seg: sigma must be a number"):
        SEG(1.0, sigma=value)


def test_a_plan_has_the_noise_ratio_of_the_grid_in_full():
    level = Level(alpha=0.8, sigma=0.24, t=0.5)
    spy: Any = Spy()
    guided = Guided("cfg(2)", spy, cond=condition(0.4), null=condition(0.0))
    grid = uniform(VP.linear(), 4)
    step = grid.step(0)._replace(t=level)
    assert level.rho == 0.24 / 0.8
    assert guided.plan_step(step, 1).rho == 0.24 / 0.8
