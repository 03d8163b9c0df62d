"""Reuse: pushes that are carried over, with every carried push written out."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar import Guided, Level, parse
from guidestar.core.levels import Grid
from guidestar.core.rng import Draw
from guidestar.guidance import reuse
from guidestar.sampling import trajectory
from helpers.toys import COND, NEGATIVE, SCHEDULES, Spy, condition, net, noise, toy

RHOS = (30.0, 9.0, 4.0, 1.5, 0.7, 0.3, 0.1)
SCALE = 3.0


def grid_of(schedule, rhos=RHOS):
    return Grid(levels=(*(schedule.at_rho(r) for r in rhos), schedule.clean), schedule=schedule)


def factor(level, space):
    """k in Δ = k Δx0."""
    a, s = level.alpha, level.sigma
    return {"x0": 1.0, "eps": -a / s, "velocity": -(a + s) / s}[space]


def contrast(x, level):
    c, u = (toy(x, level, torch.full((len(x),), v, dtype=torch.float64)) for v in (COND, NEGATIVE))
    return c, c - u


def by_hand(grid, x, evaluated, space="x0", extrapolate=False):
    """DDIM, with the push evaluated at the steps ``evaluated``; yield x after each step."""
    kept = []
    for i in range(grid.steps):
        t, s = grid[i], grid[i + 1]
        here = math.log(t.alpha / t.sigma)
        c, push = contrast(x, t)
        if i in evaluated:
            kept.append((here, factor(t, space) * push))
        else:
            (at, value), share = kept[-1], 0.0
            if extrapolate and len(kept) > 1:
                share = (here - at) / (at - kept[-2][0])
                value = value + share * (value - kept[-2][1])
            push = value / factor(t, space)
        x0 = c + (SCALE - 1) * push
        x = s.alpha * x0 + s.sigma * (x - t.alpha * x0) / t.sigma
        yield x


def run(guidance, grid, x, solver="ddim"):
    spy = Spy()
    guided = Guided(guidance, net(spy, condition(*[COND] * len(x))))
    states = list(trajectory(guided, x, grid=grid, solver=solver, draw=Draw(range(len(x)))))
    return states, guided, spy


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
@pytest.mark.parametrize("space", ["x0", "eps", "velocity"])
@pytest.mark.parametrize("extrapolate", [False, True])
@pytest.mark.parametrize(("every", "evaluated"), [(2, (0, 2, 4, 6)), (3, (0, 3, 6))])
def test_a_carried_push_written_out(name, space, extrapolate, every, evaluated):
    grid = grid_of(SCHEDULES[name])
    x = noise(2, 5) * grid[0].sigma
    term = gs.cfg(SCALE, every=every, carry=space, extrapolate=extrapolate)
    states, guided, spy = run(term, grid, x)
    expected = by_hand(grid, x, evaluated, space, extrapolate)
    for state, y in zip(states, expected, strict=True):
        torch.testing.assert_close(state.x, y, rtol=1e-10, atol=1e-10)
    passes = grid.steps + len(evaluated)
    assert states[-1].evaluations == (passes, passes)
    plan = guided.plan(grid)
    assert plan.nfe == plan.least == passes and spy.rows == 2 * passes


def test_every_second_step_costs_one_and_a_half_passes():
    plan = Guided("cfg(3, every=2)", net(Spy())).plan(gs.uniform(SCHEDULES["vp"], 20))
    assert plan.nfe == 1.5 * 20


@pytest.mark.parametrize("interval", [(0.2, 5.0), (0.05, 2.0)])
def test_the_first_step_within_an_interval_is_evaluated(interval):
    """The count begins where the term begins to act."""
    grid = grid_of(SCHEDULES["vp"])
    inside = [i for i, r in enumerate(RHOS) if interval[0] < r <= interval[1]]
    guided = Guided(f"cfg(3, interval={interval}, every=2)", net(Spy()))
    two = [s.index for s in guided.plan(grid).steps if s.nfe == 2]
    assert two == inside[::2]
    states, *_ = run(gs.cfg(3, interval=interval, every=2), grid, noise(1, 4))
    assert states[-1].evaluations[0] == grid.steps + len(two)


def test_samples_of_a_batch_count_for_themselves():
    """Scales, levels and their first active step may differ: all equals one by one."""
    schedule, x = SCHEDULES["flow"], noise(3, 4)
    grids = [
        grid_of(schedule, rhos)
        for rhos in ((9.0, 4.0, 1.0, 0.3), (4.0, 2.0, 1.0, 0.5), (1.2, 0.9, 0.4, 0.1))
    ]
    levels = [
        Level(*(torch.tensor(v, dtype=torch.float64) for v in zip(*column, strict=True)))
        for column in zip(*grids, strict=True)
    ]
    scales = [2.0, 1.0, 4.0]
    options = {"interval": (0.2, 3.0), "every": 2, "extrapolate": True, "carry": "velocity"}
    together, guided, _ = run(
        gs.cfg(scales, **options), Grid(levels=tuple(levels), schedule=schedule), x, "dpmpp-2m"
    )
    for k, grid in enumerate(grids):
        alone, *_ = run(gs.cfg(scales[k], **options), grid, x[k : k + 1], "dpmpp-2m")
        torch.testing.assert_close(together[-1].x[k : k + 1], alone[-1].x)
        assert together[-1].evaluations[k] == alone[-1].evaluations[0]
    grid = together[0].step.grid
    assert guided.plan(grid).nfe * 3 == sum(together[-1].evaluations)
    few = Guided(gs.cfg(scales, **options), net(Spy(), condition(*[COND] * 3)), max_rows=2)
    *_, last = trajectory(few, x, grid=grid, solver="dpmpp-2m", draw=Draw([0, 1, 2]))
    torch.testing.assert_close(last.x, together[-1].x)
    assert last.evaluations == together[-1].evaluations


@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("extrapolate", [False, True])
def test_the_rule_written_out(threshold, extrapolate):
    """Evaluated again once rate · gap in λ passes the threshold; the first two always."""
    grid, x = grid_of(SCHEDULES["vp"]), noise(1, 5) * 2
    states, guided, _ = run(
        gs.cfg(SCALE, reuse=threshold, carry="velocity", extrapolate=extrapolate), grid, x
    )
    kept, rate, count, y = [], math.inf, 0, x
    for i in range(grid.steps):
        t, s = grid[i], grid[i + 1]
        here = math.log(t.alpha / t.sigma)
        c, push = contrast(y, t)
        estimate = None
        if kept:
            at, estimate = kept[-1]
            if extrapolate and len(kept) > 1:
                before, value = kept[-2]
                estimate = estimate + (here - at) / (at - before) * (estimate - value)
        if not kept or rate * abs(here - kept[-1][0]) > threshold:
            new, count = factor(t, "velocity") * push, count + 1
            if kept:
                rate = float((new - estimate).norm() / new.norm()) / abs(here - kept[-1][0])
            kept.append((here, new))
        else:
            push = estimate / factor(t, "velocity")
        x0 = c + (SCALE - 1) * push
        y = s.alpha * x0 + s.sigma * (y - t.alpha * x0) / t.sigma
        torch.testing.assert_close(states[i].x, y, rtol=1e-9, atol=1e-9)
    assert states[-1].evaluations == (grid.steps + count,)
    plan = guided.plan(grid)
    assert plan.least == grid.steps + 2 <= grid.steps + count <= plan.nfe == 2 * grid.steps
    assert 2 <= count < grid.steps or threshold < 0.1


def test_a_small_threshold_is_plain_guidance_and_samples_decide_alone():
    grid, x = grid_of(SCHEDULES["ve"]), noise(3, 5) * torch.tensor([[1.0], [30.0], [4.0]])
    plain, *_ = run(gs.cfg(SCALE), grid, x)
    exact, *_ = run(gs.cfg(SCALE, reuse=1e-12), grid, x)
    assert torch.equal(plain[-1].x, exact[-1].x)
    together, *_ = run(gs.cfg(SCALE, reuse=0.2), grid, x)
    for k in range(3):
        alone, *_ = run(gs.cfg(SCALE, reuse=0.2), grid, x[k : k + 1])
        torch.testing.assert_close(together[-1].x[k : k + 1], alone[-1].x)
        assert together[-1].evaluations[k] == alone[-1].evaluations[0]


def test_a_term_with_state_rounds_or_gradients_keeps_them():
    """APG's momentum moves at evaluated steps alone; icg and a classifier run as they are."""
    grid, x = grid_of(SCHEDULES["vp"]), noise(2, 2, 3)
    for text in (
        "apg(3, momentum=-0.5, every=2)",
        "cfg(2) + apg(3, every=3, carry='eps')",
        "autoguidance(2, every=2)",
        "cfgpp(0.6, every=2)",
        "cfg(2, every=2) | rescale(0.5)",
    ):
        guided = Guided(
            text, {"main": net(Spy(), condition(1.0, 0.5)), "weak": net(Spy(), condition(1.0, 0.5))}
        )
        *_, last = trajectory(guided, x, grid=grid, solver="ddim", draw=Draw([1, 2]))
        assert last.x.isfinite().all()
        assert last.evaluations == (guided.plan(grid).nfe,) * 2


def test_pushes_are_those_that_were_added():
    grid, x = grid_of(SCHEDULES["vp"]), noise(1, 5)
    guided = Guided("cfg(3, every=2, carry='x0')", net(Spy()))
    draw = Draw([0])
    states = list(trajectory(guided, x, grid=grid, solver="ddim", draw=draw, explain=True))
    first, second = (s.pushes[next(iter(s.pushes))] for s in states[:2])
    assert torch.equal(first, second) and first.abs().max() > 0


@pytest.mark.parametrize("solver", ["heun", "dpmpp-2s"])
def test_both_evaluations_of_a_step_do_the_same(solver):
    """Second evaluations stand at the level of the step: evaluated where it is, carried else."""
    grid, x = grid_of(SCHEDULES["vp"]), noise(1, 5)
    states, guided, _ = run(gs.cfg(SCALE, every=2), grid, x, solver)
    plan = guided.plan(grid, evaluations=gs.get_solver(solver).evaluations)
    assert states[-1].evaluations[0] == plan.nfe
    assert [s.nfe for s in plan.steps[:4]] == [2, 2, 1, 1]


def test_text_and_settings():
    for text in (
        "cfg(3, every=2)",
        "cfg(3, reuse=0.02, carry='eps')",
        "pag(2, every=3, extrapolate=True)",
    ):
        assert str(parse(text)) == text
    model = gs.load("fashion-mnist")
    samples = model.sample("bag", guidance="cfg(3, every=2)", steps=4, seeds=[0, 1])
    assert samples.nfe == 6 and samples.settings.guidance == "cfg(3, every=2)"
    assert torch.equal(model.again(vars(samples.settings)).x, samples.x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cfg(3, every=0)", "cfg: every must be a whole number from 1 to 1,000, not 0"),
        ("cfg(3, every=1.5)", "cfg: every must be a whole number"),
        ("cfg(3, reuse=0)", "cfg: reuse must be a positive relative change"),
        ("cfg(3, reuse='a')", "cfg: reuse must be a number or None"),
        ("cfg(3, every=2, reuse=0.1)", "cfg: give every or reuse, not both"),
        ("cfg(3, carry='v')", "cfg: carry must be 'x0' or 'eps' or 'velocity', not 'v'"),
        ("cfg(3, extrapolate=1)", "cfg: extrapolate must be True or False"),
        ("adaptive(3, every=2)", "adaptive decides itself when it is evaluated"),
        ("cfg_zero(3, every=2)", "cfg_zero decides itself"),
        ("dps(1, every=2)", "dps depends on the level that a step leads to"),
    ],
)
def test_what_has_no_meaning_is_refused(text: str, message: str) -> Any:
    with pytest.raises(ValueError, match=message):
        parse(text)


# One step of the rule, by hand


KEPT = {"reuse.push", "reuse.at"}
LEVEL = gs.VP.linear().at_rho(2.0)  # λ = −ln 2
LATER = gs.VP.linear().at_rho(0.5)  # λ = ln 2


def live(state, count=2, level=LEVEL) -> Any:
    return SimpleNamespace(x_t=torch.zeros(count, 3), step=SimpleNamespace(t=level), state=state)


@pytest.mark.parametrize(
    ("more", "keys"),
    [
        ({"every": 2}, KEPT),
        ({"every": 2, "extrapolate": True}, KEPT | {"reuse.before", "reuse.before_at"}),
        ({"reuse": 0.1}, KEPT | {"reuse.rate"}),
        ({"reuse": 0.1, "extrapolate": True},
         KEPT | {"reuse.before", "reuse.before_at", "reuse.rate"}),
    ],
    ids=lambda v: str(sorted(v)),
)  # fmt: skip
def test_a_term_keeps_the_same_things_from_the_first_step_on(more, keys):
    term = gs.cfg(SCALE, carry="x0", **more)
    before = reuse.initial_state(term, torch.zeros(2, 3))
    assert before.keys() == keys
    push = torch.ones(2, 3)
    found, after = reuse._Fresh(term)._keep(live(before), push, {"own": push})
    assert found is push and after.keys() == keys | {"own"}
    assert torch.equal(after["reuse.push"], push)
    assert after["reuse.at"].tolist() == pytest.approx([-math.log(2)] * 2)
    _, last = reuse._Fresh(term)._keep(live(after, level=LATER), 3 * push, {})
    if "reuse.before" in keys:
        assert torch.equal(last["reuse.before"], push)
        assert last["reuse.before_at"].tolist() == pytest.approx([-math.log(2)] * 2)
    if "reuse.rate" in keys:  # |3 − 1| / 3 over 2 ln 2
        assert after["reuse.rate"].isinf().all()
        assert last["reuse.rate"].tolist() == pytest.approx([2 / 3 / (2 * math.log(2))] * 2)


def test_a_push_of_several_rounds_is_kept_at_its_end():
    class Later:
        every, reuse, extrapolate, carry = 2, None, False, "x0"

        def slope(self, group):
            return "slope"

        def push(self, live, *predictions):
            answers = yield "passes"
            return answers * predictions[0], {"own": predictions[0]}

    term: Any = Later()
    fresh = reuse._Fresh(term)
    assert fresh.slope("group") == "slope"  # type: ignore[arg-type]
    state = {"reuse.push": torch.zeros(2, 3), "reuse.at": torch.zeros(2)}
    one: Any = torch.ones(2, 3)
    rounds: Any = fresh.push(live(state), one)
    assert next(rounds) == "passes"
    with pytest.raises(StopIteration) as ended:
        rounds.send(5.0)
    push, kept = ended.value.value
    assert torch.equal(push, 5 * one) and torch.equal(kept["reuse.push"], 5 * one)
    assert kept.keys() == KEPT | {"own"}


@pytest.mark.parametrize("carry", ["x0", "eps", "velocity"])
def test_a_carried_push_is_that_of_its_space(carry):
    term = gs.cfg(SCALE, every=2, carry=carry)
    kept = {"reuse.push": torch.ones(2, 3), "reuse.at": torch.zeros(2)}
    carried = reuse._Carried(term)
    push, state = carried.push(live(kept))  # type: ignore[misc]
    assert torch.allclose(push, torch.ones(2, 3) / factor(LEVEL, carry)) and state == {}
    assert carried.slope("group") is None  # type: ignore[arg-type]


def test_which_samples_are_due():
    """At each third step at which the term acts, by sample; at once where nothing is kept."""
    grid = grid_of(gs.VP.linear())
    term: Any = SimpleNamespace(
        every=3, reuse=None, weight=lambda step, rows: torch.tensor([1.0, float(step.index > 1)])
    )
    due = lambda index, state: reuse._due(term, grid.step(index), None, 2, state, False).tolist()
    kept = {"reuse.at": torch.tensor([1.0, 1.0])}
    assert [due(k, kept) for k in range(6)] == [
        [True, True], [False, True], [False, True], [True, False], [False, False], [False, True]
    ]  # fmt: skip
    never = {"reuse.at": torch.tensor([1.0, math.nan])}
    assert due(4, never) == [False, True] and due(4, None) == [False, False]


def test_how_far_a_push_is_carried_by_its_rate():
    """Due where rate · |Δλ| is above the threshold, with Δλ = λ + 1 here."""
    term: Any = SimpleNamespace(every=1, reuse=0.5, weight=lambda step, rows: 1.0)
    step: Any = SimpleNamespace(t=LATER, index=3, grid=grid_of(gs.VP.linear()))
    gap = math.log(2) + 1
    step.grid = SimpleNamespace(step=lambda index: None)
    rates = torch.tensor([0.499 / gap, 0.501 / gap, math.nan, math.inf, 0.0])
    state = {"reuse.at": torch.full((5,), -1.0), "reuse.rate": rates}
    assert reuse._due(term, step, None, 5, state, False).tolist() == [
        False, True, True, True, False
    ]  # fmt: skip
    # A plan: in the fewest evaluations the first two, which tell the rate; else all.
    assert reuse._due(term, step, None, 2, None, True).tolist() == [False, False]
    assert reuse._due(term, step, None, 2, None, False).tolist() == [True, True]
    step.index = 1
    assert reuse._due(term, step, None, 2, None, True).tolist() == [True, True]


def test_samples_are_split_into_those_due_and_the_others(monkeypatch):
    term, traits = gs.cfg(SCALE, every=2), gs.cfg(SCALE).traits
    step: Any = "step"
    due = torch.tensor([True, False, True, False])
    monkeypatch.setattr(reuse, "_due", lambda *given, **more: due)
    monkeypatch.setattr(type(term), "passes", lambda self, step: ("c", "u"))
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    fresh, carried = reuse.split_term(term, traits, step, None, (weight, None), 4, {})
    assert isinstance(fresh.pusher, reuse._Fresh) and isinstance(carried.pusher, reuse._Carried)
    assert (fresh.rows.tolist(), carried.rows.tolist()) == ([0, 2], [1, 3])  # type: ignore[union-attr]
    assert (fresh.weight.tolist(), carried.weight.tolist()) == ([1.0, 3.0], [2.0, 4.0])  # type: ignore[union-attr]
    assert fresh.passes == ("c", "u") and carried.passes == () and fresh.traits is traits
    # Some rows of the group alone, whose weights are given.
    local = torch.tensor([1, 2, 3])
    fresh, carried = reuse.split_term(term, traits, step, None, (weight[1:], local), 4, {})
    assert (fresh.rows.tolist(), carried.rows.tolist()) == ([2], [1, 3])  # type: ignore[union-attr]
    assert (fresh.weight.tolist(), carried.weight.tolist()) == ([3.0], [2.0, 4.0])  # type: ignore[union-attr]
    due = torch.ones(4, dtype=torch.bool)
    (all_of_them,) = reuse.split_term(term, traits, step, None, (2.0, local), 4, {})
    assert all_of_them.rows is local and all_of_them.weight == 2.0
    (none,) = reuse.split_term(gs.cfg(SCALE), traits, step, None, (2.0, None), 4, {})
    assert none.rows is None and none.passes == ("c", "u") and none.traits is traits
