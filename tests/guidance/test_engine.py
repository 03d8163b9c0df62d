"""The engine behind `Guided`, from outside: samples of their own levels, scales and memories, in
any grouping.

Every expected value is written out sample by sample. The samples are chosen so that the groups'
order is no involution (rows [1, 2, 3, 0]): what is put back the wrong way round is then seen.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidestar import Guided, Level, Step, uniform
from helpers.toys import (
    COND,
    NEGATIVE,
    SCHEDULES,
    UNCOND,
    WORDS,
    Judge,
    Spy,
    col,
    condition,
    log_prob_gradient,
    mixed_step,
    net,
    noise,
    toy,
)

RHO_T, RHO_S = [9.0, 0.2, 3.0, 1.3], [5.0, 0.1, 2.0, 0.7]
CONDS = condition(0.1, 0.9, -0.4, 0.5)
NEGATIVES = condition(-0.3, 0.2, 0.7, -0.8)
MAX_ROWS = [None, 1, 2, 3, 4, 5, 8, 100]
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def at(index: int) -> Step:
    """A step of four samples, each at levels of its own."""
    return mixed_step("flow", RHO_T, RHO_S, index)


def clean(x: Tensor, level: Level, c: Tensor | float) -> list[Tensor]:
    """What the network says of each sample alone."""
    c = torch.as_tensor(c, dtype=x.dtype).expand(len(x))
    return [
        toy(x[i : i + 1], level.take(torch.tensor([i])), c[i : i + 1])[0] for i in range(len(x))
    ]


def across(delta: Tensor, c: Tensor) -> Tensor:
    """Return the part of ``delta`` that is orthogonal to ``c``."""
    return delta - (delta * c).sum() / (c * c).sum() * c


def velocity_push(x: Tensor, a: float, s: float, c: Tensor, n: Tensor) -> Tensor:
    """The push of CFG-Zero* in x0: of ``v_c − share·v_n``, where v = (x − αx0)/σ − x0."""
    v_c, v_n = ((x - a * d) / s - d for d in (c, n))
    return -(v_c - (v_c * v_n).sum() / (v_n * v_n).sum() * v_n) * s / (a + s)


@pytest.mark.parametrize("max_rows", MAX_ROWS)
@pytest.mark.parametrize("held", [[0], [1, 3], [0, 3], [2, 3], [0, 1, 2]], ids=str)
def test_memories_pushes_and_samples_are_put_back_in_their_order(held, max_rows):
    """Two steps of momentum beside a term that holds some samples still in the first."""
    zero = [4.0 if i in held else 1.0 for i in range(4)]
    apg, cfg = [3.0, 1.0, 2.5, 2.0], [1.0, 2.0, 3.0, 4.0]
    text = f"cfg_zero({zero}, zero=1) + apg({apg}, momentum=0.5) + cfg({cfg}, channels=1)".replace(
        "channels=1", "negative='dog'"
    )
    guided = Guided(text, {"main": net(Spy(), CONDS, negative=NEGATIVES)}, max_rows=max_rows)
    state, memory, counts = None, [torch.zeros(4, dtype=torch.float64) for _ in range(4)], [0] * 4
    evaluated = [0] * 4
    for index in (0, 1):
        x, step = noise(4, 4, seed=index), at(index)
        found = guided(x, step, state, explain=True)
        out, state, pushes = found.prediction, found.state, found.pushes
        evaluated = [
            a + int(b)
            for a, b in zip(evaluated, torch.as_tensor(found.evaluations).expand(4), strict=True)
        ]
        d, n, dog = (clean(x, step.t, c) for c in (CONDS["c"], NEGATIVES["c"], WORDS["dog"]))
        for i in range(4):
            a, s = float(step.t.alpha[i]), float(step.t.sigma[i])
            push = [torch.zeros(4, dtype=torch.float64) for _ in range(3)]
            if index == 0 and i in held:
                x0, eps = x[i] / (a + s), x[i] / (a + s)
            else:
                counts[i] += 1 + (zero[i] != 1 or apg[i] != 1) + (cfg[i] != 1)
                if zero[i] != 1:
                    push[0] = 3 * velocity_push(x[i], a, s, d[i], n[i])
                if apg[i] != 1:
                    memory[i] = d[i] - n[i] + 0.5 * memory[i]
                    push[1] = (apg[i] - 1) * across(memory[i], d[i])
                push[2] = (cfg[i] - 1) * (d[i] - dog[i])
                x0 = d[i] + sum(push)
                eps = (x[i] - a * x0) / s
            torch.testing.assert_close(out.x0[i], x0, **EXACT)
            torch.testing.assert_close(out.eps[i], eps, rtol=1e-9, atol=1e-9)
            for told, expected in zip(pushes.values(), push, strict=True):
                torch.testing.assert_close(told[i], expected, **EXACT)
        (average,) = (kept["average"] for kept in state if kept)
        torch.testing.assert_close(average, torch.stack(memory), **EXACT)
        assert torch.equal(out.x_t, x)
        assert torch.equal(out.level.alpha.expand(4), step.t.alpha) and torch.equal(
            out.level.sigma, step.t.sigma
        )
        assert evaluated == counts


@pytest.mark.parametrize("max_rows", MAX_ROWS)
def test_a_sleeping_sample_keeps_its_memory_and_wakes_with_it(max_rows):
    """The interval is of noise ratios: which samples are awake changes from step to step."""
    guided = Guided(
        "apg([3, 2, 1, 4], momentum=-0.5, interval=(1, 4))",
        {"main": net(Spy(), CONDS, negative=NEGATIVES)},
        max_rows=max_rows,
    )
    scales = [3.0, 2.0, 1.0, 4.0]
    runs = [[9.0, 2.0, 2.0, 3.0], [3.0, 0.5, 2.0, 1.5], [2.0, 1.5, 1.5, 5.0], [1.5, 3.0, 0.2, 2.0]]
    memory, state = torch.zeros(4, 5, dtype=torch.float64), None
    for index, rho in enumerate(runs):
        x, step = noise(4, 5, seed=index), mixed_step("vp", rho, [r / 2 for r in rho], index)
        out, state = guided(x, step, state)
        d, n = (clean(x, step.t, c) for c in (CONDS["c"], NEGATIVES["c"]))
        for i in range(4):
            push = torch.zeros(5, dtype=torch.float64)
            if 1 < rho[i] <= 4 and scales[i] != 1:
                memory[i] = d[i] - n[i] - 0.5 * memory[i]
                push = (scales[i] - 1) * across(memory[i], d[i])
            torch.testing.assert_close(out.x0[i], d[i] + push, **EXACT)
        torch.testing.assert_close(state[0]["average"], memory, **EXACT)


def test_two_terms_of_one_kind_have_a_memory_each():
    guided = Guided(
        "apg(2, momentum=0.5) + apg([1, 3, 3, 1], momentum=-0.25, negative='cat')",
        {"main": net(Spy(), CONDS, negative=NEGATIVES)},
    )
    first, second, state = torch.zeros(4, 3).double(), torch.zeros(4, 3).double(), None
    for index in range(3):
        x, step = noise(4, 3, seed=index), at(index)
        out, state = guided(x, step, state)
        d, n, cat = (
            torch.stack(clean(x, step.t, c)) for c in (CONDS["c"], NEGATIVES["c"], WORDS["cat"])
        )
        first = d - n + 0.5 * first
        second[1:3] = (d - cat - 0.25 * second)[1:3]
        for i in range(4):
            push = across(first[i], d[i]) + (2 * across(second[i], d[i]) if i in (1, 2) else 0)
            torch.testing.assert_close(out.x0[i], d[i] + push, **EXACT)
    torch.testing.assert_close(state[0]["average"], first, **EXACT)
    torch.testing.assert_close(state[1]["average"], second, **EXACT)


@pytest.mark.parametrize("max_rows", MAX_ROWS)
def test_gradients_are_of_the_samples_that_ask(max_rows):
    """A classifier of its own target for each sample, at its own level, beside a contrast of other
    samples.
    """
    target = torch.tensor([5, 6, 7, 8])
    scale, strength = [1.0, 3.0, 2.0, 1.0], [2.0, 0.0, 0.5, 1.5]
    guided = Guided(
        f"cfg({scale}) + classifier({strength})",
        {"main": net(Spy(), CONDS, negative=NEGATIVES)},
        classifiers={"classifier": Judge()},
        target=target,
        max_rows=max_rows,
    )
    x, step = noise(4, 4), at(3)
    out, _ = guided(x, step)
    d, n = (clean(x, step.t, c) for c in (CONDS["c"], NEGATIVES["c"]))
    for i in range(4):
        mine = step.t.take(torch.tensor([i]))
        gradient = log_prob_gradient(x[i : i + 1], mine, target[i : i + 1])[0]
        expected = (
            d[i]
            + (scale[i] - 1) * (d[i] - n[i])
            + strength[i] * mine.sigma**2 / mine.alpha * gradient
        )
        torch.testing.assert_close(out.x0[i], expected, **EXACT)
    assert not out.x0.requires_grad and not out.eps.requires_grad


@pytest.mark.parametrize("max_rows", MAX_ROWS)
def test_random_conditions_follow_the_seed_wherever_a_sample_sits(max_rows):
    """What CADS draws for a sample does not depend on its place, its neighbours, or the chunks."""
    x, seeds, step = noise(4, 4), [5, 11, 5, 2], uniform(SCHEDULES["flow"], 10).step(2)
    told = condition(0.1, 0.9, 0.1, 0.5)
    one, other = Spy(), Spy()
    text = "cfg([1, 3, 2, 4]) | cads(0.5, tau1=0.1, tau2=0.9)"
    out, _ = Guided(text, {"main": net(one, told)}, seeds=seeds, max_rows=max_rows)(x, step)
    order = torch.tensor([3, 0, 1])
    moved, _ = Guided(
        "cfg([4, 1, 3]) | cads(0.5, tau1=0.1, tau2=0.9)",
        {"main": net(other, told.take(order))},
        seeds=[2, 5, 11],
    )(x[order], step)
    torch.testing.assert_close(moved.x0, out.x0[order], **EXACT)
    conds = [c for call in one.calls for c in call if c != NEGATIVE]
    assert (
        len(conds) == 4 and len(set(conds)) == 3
    )  # samples 0 and 2: one seed, one condition, one noise


def test_a_later_step_and_a_later_visit_draw_anew():
    x, grid = noise(2, 4), uniform(SCHEDULES["flow"], 20)
    seen = set()
    for index, visit in ((1, 0), (1, 1), (11, 0), (1, 11), (2, 0)):
        spy = Spy()
        step = grid.step(1)._replace(index=index, visit=visit)
        Guided(
            "cond | cads(0.5, tau1=0.1, tau2=0.9)",
            {"main": net(spy, condition(0.1, 0.9))},
            seeds=[0, 1],
        )(x, step)
        seen |= {tuple(spy.calls[0])}
    assert len(seen) == 5


@pytest.mark.parametrize("max_rows", MAX_ROWS)
def test_the_passes_that_run_are_those_that_were_planned(max_rows):
    """Rows by pass, as a plan tells them, are the rows that a network is called for."""
    text = "cfg([1, 3, 2, 1]) + AND([0, 1, 0, 2], 'cat') + cfg_zero([1, 1, 4, 1], zero=2)"
    grid = uniform(SCHEDULES["flow"], 6)
    # AND is added to the null pass of all; in step 1 sample 2 is held still.
    rows = {
        1: {UNCOND: 3, COND: 1, NEGATIVE: 1, WORDS["cat"]: 2},
        2: {UNCOND: 4, COND: 2, NEGATIVE: 2, WORDS["cat"]: 2},
    }
    for index, expected in rows.items():
        spy = Spy()
        guided = Guided(text, {"main": net(spy)}, max_rows=max_rows)
        found = guided(noise(4, 4), grid.step(index))
        told = [c for call in spy.calls for c in call]
        assert {c: told.count(c) for c in set(told)} == expected
        plan = guided.plan(grid, batch=4).steps[index]
        assert sorted(plan.passes.values()) == sorted(expected.values())
        counted = torch.as_tensor(found.evaluations).expand(4).tolist()
        assert counted == {1: [1, 4, 0, 2], 2: [1, 4, 3, 2]}[index]


def test_evaluations_are_of_each_sample():
    step = uniform(SCHEDULES["flow"], 6).step(2)
    counted = Guided("cfg([1, 3])", {"main": net(Spy())})(noise(2, 4), step).evaluations
    assert torch.as_tensor(counted).expand(2).tolist() == [1, 2]
    counted = Guided("cfg(3)", {"main": net(Spy())})(noise(3, 4), step).evaluations
    assert torch.as_tensor(counted).expand(3).tolist() == [2, 2, 2]


def test_split_and_linked_pushes_beside_each_other():
    """A linked push moves ε by −α/σ of itself, one that splits leaves it: sample by sample."""
    x, step = noise(4, 4), at(3)
    guided = Guided(
        "uncond + cfgpp([0.5, 0, 1, 0.25]) + AND([0, 2, 1, 0], 'cat')",
        {"main": net(Spy(), CONDS, negative=None)},
    )
    found = guided(x, step, explain=True)
    out, pushes = found.prediction, found.pushes
    d, u, cat = (torch.stack(clean(x, step.t, c)) for c in (CONDS["c"], UNCOND, WORDS["cat"]))
    split, linked = (col(torch.tensor(w), x) for w in ([0.5, 0.0, 1.0, 0.25], [0.0, 2.0, 1.0, 0.0]))
    a, s = col(step.t.alpha, x), col(step.t.sigma, x)
    torch.testing.assert_close(out.x0, u + split * (d - u) + linked * (cat - u), **EXACT)
    torch.testing.assert_close(
        out.eps, (x - a * (u + linked * (cat - u))) / s, rtol=1e-9, atol=1e-9
    )
    told = list(pushes.values())
    torch.testing.assert_close(told[0], split * (d - u), **EXACT)
    torch.testing.assert_close(told[1], linked * (cat - u), **EXACT)
