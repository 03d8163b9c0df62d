"""Multistep solvers where terms of a guidance begin or cease to act, by values written out."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from guidestar import VE, VP, Flow, Guided, log_snr
from guidestar.core.denoiser import Condition
from guidestar.core.levels import Grid, Level
from guidestar.core.prediction import HOLDS, Prediction, Unguided
from guidestar.core.rng import Draw
from guidestar.sampling import (
    DEIS,
    RES,
    SA,
    SOLVERS,
    DPMpp2M,
    DPMpp3M,
    UniPC,
    sample,
    trajectory,
)
from guidestar.sampling.changes import Remembering, change
from guidestar.sampling.exponential import Estimate, History

SCALE, LOW, HIGH = 3.0, 0.35, 4.0
MULTISTEP = {name: kind() for name, kind in SOLVERS.items() if issubclass(kind, Remembering)}
ODE = {
    "dpmpp-2m": DPMpp2M(),
    "dpmpp-3m": DPMpp3M(),
    "res 3": RES(order=3),
    "unipc": UniPC(),
    "unipc 3": UniPC(order=3),
    "deis 2": DEIS(order=2),
    "deis 3": DEIS(),
    "lms": DEIS(order=3, form="rho"),
    "sa ode": SA(order=2, corrector_order=2, tau=0.0),
}


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(x, level, mean, var):
    """The exact clean estimate of data N(mean, var)."""
    a, s = (torch.as_tensor(v, dtype=x.dtype).reshape(-1, 1) for v in (level.alpha, level.sigma))
    return mean + a * var / (a * a * var + s * s) * (x - a * mean)


def denoise(var, push):
    """A network of one number c: ``E[x_0 | x_t]`` of N(0.7, var), less ``push(level)`` at c = 0."""

    def network(x, level, cond):
        c = cond["c"].to(x.dtype).reshape(-1, 1)
        return gaussian(x, level, 0.7, var) - (1 - c) * push(level)

    return network


def guided(
    text=f"cfg({SCALE}, interval=({LOW}, {HIGH}))", var=0.25, push=lambda level: 0.4, **more
):
    return Guided(
        text,
        denoise(var, push),
        cond=Condition({"c": double(1.0)}),
        null=Condition({"c": double(0.0)}),
        **more,
    )


def run(solver, guidance, grid, x, draw=None):
    *_, last = trajectory(guidance, x, grid=grid, solver=solver, draw=draw or Draw([0] * len(x)))
    return last.x


# --- what has changed


def test_what_has_changed_between_two_steps():
    assert change((), ()) == 0.0
    assert change((1.0, 0.0), (1.0, 0.0)) == 0.0 and change((HOLDS,), (HOLDS,)) == 0.0
    assert change((1.0, 0.0), (1.0, 1.0)) == 1.0 and change((1.0,), (0.0,)) == 1.0
    assert change((HOLDS, 1.0), (0.0, 1.0)) == 2.0 and change((1.0, 0.0), (0.0, HOLDS)) == 2.0
    found = change((double(1, 1, HOLDS, 0), 0.0), (1.0, double(0, 1, 0, 0)))
    assert found.tolist() == [0.0, 1.0, 2.0, 1.0]
    assert change((double(1, 0),), (double(1, 0),)) == 0.0  # one number where nothing has changed


def test_what_a_guided_step_says_of_its_terms():
    grid, x = log_snr(VE(), 6, rho_max=40.0, rho_min=0.1, clean=False), double(1.0, 2.0)[:, None]
    for text, inside, outside in (
        (f"cfg(3, interval=({LOW}, {HIGH})) + cfg(2)", (1.0, 1.0), (0.0, 1.0)),
        ("cfg(1) + cfg(2)", (0.0, 1.0), (0.0, 1.0)),
    ):
        guidance = guided(text)
        for index in range(grid.steps):
            level = grid[index]
            plain = guidance(x, grid.step(index)).prediction.unguided
            assert plain.terms == (inside if LOW < level.rho <= HIGH else outside)
            base = gaussian(x, level, 0.7, 0.25)
            torch.testing.assert_close(plain.x0, base, rtol=0, atol=1e-14)
            torch.testing.assert_close(plain.eps, (x - base) / level.sigma, rtol=0, atol=1e-13)
    assert guided("cond")(x, grid.step(0)).prediction.unguided is None
    mixed = guided("cfg([1, 3])")(x, grid.step(0)).prediction.unguided
    assert [t.tolist() for t in mixed.terms] == [[0.0, 1.0]]
    groups = guided("cfg([1, 3])", max_rows=1)(x, grid.step(0)).prediction.unguided
    assert [t.tolist() for t in groups.terms] == [[0.0, 1.0]]
    torch.testing.assert_close(groups.x0, mixed.x0, rtol=0, atol=0)
    held = guided("cfg_zero([1, 3], zero=1)")(x, grid.step(0)).prediction.unguided
    assert [t.tolist() for t in held.terms] == [[0.0, HOLDS]]


# --- formulas


def test_earlier_estimates_where_the_terms_have_changed():
    """Base B' = 1, D' = 5 (push 4) and B'' = 2, D'' = 7 before; now B = 10 and D = 13 (push 3)."""
    one = lambda v: torch.full((2, 1), v, dtype=torch.float64)
    past = History((one(5.0), one(7.0)), (0.0, 1.0), 2, (one(1.0), one(2.0)), (double(0, 1),))
    now = Estimate(one(13.0), one(10.0), (1.0,))  # the terms of sample 0 have changed
    values = lambda h: [e[:, 0].tolist() for e in h.estimates]
    assert values(past.follow(now, "keep")) == [[5.0, 5.0], [7.0, 7.0]]
    assert values(past.follow(now, "base")) == [[4.0, 5.0], [5.0, 7.0]]  # B' + 3, B'' + 3
    assert values(past.follow(now, "restart")) == [[13.0, 5.0], [13.0, 7.0]]
    held = replace(past, terms=(double(HOLDS, 1),))
    assert values(held.follow(now, "base")) == [[13.0, 5.0], [13.0, 7.0]]
    unknown = replace(past, bases=())
    assert values(unknown.follow(now, "base")) == [[13.0, 13.0], [13.0, 13.0]]
    assert past.follow(Estimate(one(13.0)), "base") is past
    # The corrector of the last step goes through B + (D' − B') where they have changed.
    assert past.carry_push(now, past.change(now, "base"))[:, 0].tolist() == [14.0, 13.0]
    assert past.carry_push(now, 0.0) is now.value
    memory = past.memory(now, 2.0, 2, 2)
    assert sorted(memory) == [
        "base0", "base1", "estimate0", "estimate1", "order", "place0", "place1", "terms",
    ]  # fmt: skip
    again = History.read(memory)
    assert values(again) == [[13.0, 13.0], [5.0, 5.0]] and again.terms == (1.0,)
    assert [b[:, 0].tolist() for b in again.bases] == [[10.0, 10.0], [1.0, 1.0]]


LEVELS = [Level(1.0, rho, rho) for rho in (8.0, 3.0, 1.2, 0.5)]


def answers(bases, pushes, terms):
    """Predict bases and pushes given in advance, whatever x is."""

    def predict(x, step, state):
        base = torch.full_like(x, bases[step.index])
        found = Prediction.from_x0(x, step.t, base + pushes[step.index])
        eps = (x - base) / step.t.sigma
        plain = Unguided(x0=base, eps=eps, terms=(terms[step.index],))
        return replace(found, unguided=plain), state

    return predict


BASES, PUSHES, TERMS = (0.3, 0.5, 0.9), (0.0, 2.0, 2.5), (0.0, 1.0, 1.0)


def test_a_step_of_dpmpp_2m_where_a_term_begins_to_act():
    """``x_s = (σ_s/σ_t) x + (1 − σ_s/σ_t)(D + h/(2h')(D − D'))``, with ``D' = B' + P`` there."""
    grid, x = Grid(levels=tuple(LEVELS), schedule=VE()), double(5.0, -3.0)[:, None]
    for at_changes, before in (("base", 0.3 + 2.0), ("restart", 0.5 + 2.0), ("keep", 0.3)):
        y, h = x, [math.log(8 / 3), math.log(3 / 1.2), math.log(1.2 / 0.5)]
        for i, last in enumerate((None, before, 0.5 + 2.0)):
            d, ratio = BASES[i] + PUSHES[i], LEVELS[i + 1].sigma / LEVELS[i].sigma
            bend = 0.0 if last is None else h[i] / (2 * h[i - 1]) * (d - last)
            y = ratio * y + (1 - ratio) * (d + bend)
        solver = DPMpp2M(at_changes=at_changes)
        torch.testing.assert_close(
            run(solver, answers(BASES, PUSHES, TERMS), grid, x), y, rtol=1e-12, atol=1e-12
        )


def test_a_step_of_unipc_where_a_term_begins_to_act():
    """UniPC of order 1 with its corrector: a step of DDIM, whose end ``(1 − e^{−h})/2 (D_c − D')``
    corrects once D_c is known: ``B + P'`` where the terms have changed, D elsewhere.
    """
    grid, x = Grid(levels=tuple(LEVELS), schedule=VE()), double(5.0, -3.0)[:, None]
    new, last = [b + p for b, p in zip(BASES, PUSHES, strict=True)], 0.9 + 2.5
    for at_changes, corrections in (
        ("base", (0.5 + 0.0 - new[0], last - new[1])),
        ("restart", (0.0, last - new[1])),
        ("keep", (new[1] - new[0], last - new[1])),
    ):
        y, carried = x, 0.0
        for i in range(3):
            ratio = LEVELS[i + 1].sigma / LEVELS[i].sigma
            if i:
                before = LEVELS[i].sigma / LEVELS[i - 1].sigma
                carried = ratio * (1 - before) / 2 * corrections[i - 1]
            y = ratio * y + (1 - ratio) * new[i] + carried
        solver = UniPC(order=1, at_changes=at_changes)
        torch.testing.assert_close(
            run(solver, answers(BASES, PUSHES, TERMS), grid, x), y, rtol=1e-12, atol=1e-12
        )


def test_the_step_after_a_held_start_is_of_first_order():
    """Held samples have ``x0 = eps = x/(1 + σ)``, no estimate of the network to go on from."""
    grid, x = Grid(levels=tuple(LEVELS[:3]), schedule=VE()), double(5.0, -3.0)[:, None]
    guidance = guided("cfg_zero(3, zero=1)", var=0.0, push=lambda level: 0.0)
    held = x * (1 + 3.0) / (1 + 8.0)  # the velocity eps − x0 is 0
    expected = 1.2 / 3.0 * held + (1 - 1.2 / 3.0) * 0.7
    torch.testing.assert_close(
        run(DPMpp2M(at_changes="base"), guidance, grid, x), expected, rtol=1e-12, atol=1e-12
    )


# --- laws


@pytest.mark.parametrize(
    ("name", "at_changes"),
    [(n, "restart") for n, s in MULTISTEP.items() if not s.stochastic]
    + [(n, "base") for n, s in MULTISTEP.items() if not s.stochastic and n != "deis"],
)
@pytest.mark.parametrize("schedule", [VP.linear(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_point_masses_at_every_level(name, schedule, at_changes):
    """Data at 0.7, and at 0.3 without a condition: the guided estimate is 0.7, and 1.5 where
    guidance acts. Where estimates are constant, ``x_s = α_s D + σ_s/σ_t (x_t − α_t D)``. Noise
    estimates of the base are not, as another push led to the earlier ones.
    """
    solver = replace(MULTISTEP[name], at_changes=at_changes)
    grid = log_snr(schedule, 9, rho_max=30.0, rho_min=0.05, clean=False)
    x = y = double(3.0, -7.0)[:, None] * grid[0].sigma
    states = trajectory(guided(var=0.0), x, grid=grid, solver=solver, draw=Draw([0, 0]))
    for state in states:
        t, s = state.step.t, state.step.s
        d = 0.7 + (SCALE - 1) * 0.4 * (LOW < t.rho <= HIGH)
        y = s.alpha * d + s.sigma / t.sigma * (y - t.alpha * d)
        torch.testing.assert_close(state.x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("text", ["cond", "cfg(3)", "cfg(3, interval=(0, 1000)) + cfg([1, 2])"])
def test_runs_without_a_change_are_what_they_were_to_the_bit(name, text):
    grid, x = log_snr(VP.linear(), 7), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    found = [
        run(replace(MULTISTEP[name], at_changes=way), guided(text), grid, x, Draw([1, 2]))
        for way in ("keep", "restart", "base")
    ]
    assert found[0].equal(found[1]) and found[0].equal(found[2])


def closed_form(x, grid, var=0.25, push=0.4):
    """The end of a run on a VE grid with a constant push, which acts between two of its levels.

    With ``y = x − m`` and the estimate ``D = m + v/(v + σ²) y + w q`` the ODE ``dx/dσ = (x − D)/σ``
    is ``dy/dσ = σ y/(v + σ²) − w q/σ``. So ``y = √(v + σ²) u`` with ``u' = −w q/(σ √(v + σ²))``,
    whose integral from a to b > a is ``(asinh(√v/b) − asinh(√v/a)) w q/√v``.
    """
    inside = [lv.sigma for lv in grid if LOW < lv.rho <= HIGH]
    high, low = inside[0], next(lv.sigma for lv in grid if lv.rho <= LOW)
    first, last, root = grid[0].sigma, grid[len(grid) - 1].sigma, math.sqrt(var)
    u = (x - 0.7) / math.sqrt(var + first**2)
    u = u + (SCALE - 1) * push / root * (math.asinh(root / low) - math.asinh(root / high))
    return 0.7 + math.sqrt(var + last**2) * u


def errors(solver, push, expected):
    """Return the largest errors on grids of 150, 300 and 600 steps, even in the log-SNR, in which
    guidance begins and ends at the same levels.
    """
    found, x = [], double(40.0, -90.0)[:, None]
    for fine in (1, 2, 4):
        rhos = [60.0 * (LOW / HIGH) ** (i / (60 * fine)) for i in range(150 * fine + 1)]
        # Guidance begins at a level just below HIGH and ends at one just below LOW, the same ones.
        shift = next(r for i, r in enumerate(rhos) if i % fine == 0 and r <= HIGH) / (0.999 * HIGH)
        levels = tuple(Level(1.0, r / shift, r / shift) for r in rhos)
        grid = Grid(levels=levels, schedule=VE())
        found.append(
            float((run(solver, guided(push=push), grid, x) - expected(x, grid)).abs().max())
        )
    return found


def falls(found):
    return [math.log2(a / b) for a, b in itertools.pairwise(found)]


def at_full_order(solver, at_changes):
    more = {} if isinstance(solver, DPMpp2M) else {"lower_order_final": False}
    return replace(solver, at_changes=at_changes, **more)


@pytest.mark.parametrize("name", ODE)
def test_order_where_a_constant_push_begins_and_ends(name):
    """Kept estimates make the error one of first order. Otherwise each change costs one step whose
    error is of second order, as the slope of the trajectory jumps there too.
    """
    kept, *others = (
        errors(at_full_order(ODE[name], way), lambda level: 0.4, closed_form)
        for way in ("keep", "base", "restart")
    )
    assert all(abs(f - 1) < 0.05 for f in falls(kept))
    for found in others:
        assert falls(found)[-1] > 1.8 and found[-1] < 0.02 * kept[-1]


def test_order_of_dpmpp_2m_is_its_own():
    for way in ("base", "restart"):
        found = errors(DPMpp2M(at_changes=way), lambda level: 0.4, closed_form)
        assert all(abs(f - 2) < 0.05 for f in falls(found))


# --- samples whose terms change at different steps


@pytest.mark.parametrize("name", MULTISTEP)
def test_samples_equal_those_alone_where_only_some_change(name):
    """Sample 0 has no guidance, 1 is held first, 2 stands at other levels, so it changes later."""
    scales, seeds = [1.0, 3.0, 3.0], [4, 5, 6]
    grids = [log_snr(VE(), 6, rho_max=high) for high in (60.0, 60.0, 25.0)]
    columns = zip(*grids, strict=True)
    levels = [Level(*(double(*v) for v in zip(*column, strict=True))) for column in columns]
    text = "cfg_zero({}, zero=1, interval=(0.35, 1000)) + cfg({}, interval=(0.35, 4))"
    both = lambda zero, plain, **more: guided(text.format(zero, plain), **more)
    draw = {"solver": MULTISTEP[name], "shape": (2,), "dtype": torch.float64}
    for rows in (None, 2):
        together = sample(
            both([1.0, 3.0, 1.0], scales, max_rows=rows),
            grid=Grid(levels=tuple(levels), schedule=VE()),
            seeds=seeds,
            **draw,
        )
        for k, (zero, plain) in enumerate(zip((1.0, 3.0, 1.0), scales, strict=True)):
            alone = sample(both(zero, plain), grid=grids[k], seeds=seeds[k : k + 1], **draw)
            torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-9, atol=1e-9)


def test_a_setting_that_is_none():
    with pytest.raises(ValueError, match="dpmpp-2m: at_changes must be "):
        DPMpp2M(at_changes="drop")
