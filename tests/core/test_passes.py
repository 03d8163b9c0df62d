"""Passes: asked once, grouped, batched, chunked and skipped row by row, and always the naive
answer.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import pytest
import torch

from guidestar import Guided, Level, Net, Pass, Prediction, Slot, cfg, parse, sample, steer, uniform
from guidestar.core.denoiser import Condition
from guidestar.core.evaluation import evaluate
from guidestar.core.passes import COND as C
from guidestar.core.passes import NEGATIVE as N
from guidestar.core.passes import NULL as U
from guidestar.core.passes import NoisyPoint, Part, by_name
from guidestar.core.perturbation import Rows
from guidestar.core.rounds import Group, Round, union
from guidestar.guidance import Contrast, Direction, classifier
from guidestar.guidance.term import Traits
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
    encode,
    evaluated,
    log_prob_gradient,
    mixed_step,
    net,
    noise,
    steps,
    toy,
)

B = 3
STEP = steps("flow")[0]


def ask(
    passes, spy, x=None, *, step=STEP, max_rows=None, through=frozenset(), nets=None, check=False
):
    x = noise(B, 4) if x is None else x
    return evaluated(
        passes, x, step, nets or {"main": net(spy)}, through, max_rows=max_rows, check=check
    )


def test_all_passes_of_a_network_are_one_call():
    spy, x = Spy(), noise(B, 4)
    answers = ask({C: None, U: None, Pass(cond="cat"): None}, spy, x)
    assert spy.calls == [[COND] * 3 + [UNCOND] * 3 + [WORDS["cat"]] * 3]
    for p, c in ((C, COND), (U, UNCOND), (Pass(cond="cat"), WORDS["cat"])):
        torch.testing.assert_close(answers[p].prediction.x0, toy(x, STEP.t, c))
        torch.testing.assert_close(
            answers[p].prediction.eps, (x - STEP.t.alpha * toy(x, STEP.t, c)) / STEP.t.sigma
        )


@pytest.mark.parametrize(("max_rows", "calls"), [(None, [27, 27, 26]), (80, [80]), (50, [50, 30])])
def test_calls_on_a_cpu_are_of_at_most_32_rows_of_one_size(max_rows, calls):
    spy, x = Spy(), noise(40, 4)
    spy.cpu_rows = 32  # as of a `Network`
    answers = ask({C: None, U: None}, spy, x, max_rows=max_rows)
    assert [len(c) for c in spy.calls] == calls
    for p, c in ((C, COND), (U, UNCOND)):
        torch.testing.assert_close(answers[p].prediction.x0, toy(x, STEP.t, c))


def test_equal_passes_are_one_pass():
    assert Pass(cond="cat") == Pass(cond="cat") and len({C, Pass(), Pass(cond=Slot.COND)}) == 1
    spy = Spy()
    Guided("cfg(3) + apg(2) + AND(2) | rescale(0.7)", {"main": net(spy, negative=None)})(
        noise(B, 4), STEP
    )
    assert spy.calls == [[UNCOND] * 3 + [COND] * 3]


def test_each_network_is_called_once():
    spy, weak = Spy(), Spy()
    ask({C: None, U: None, Pass(net="weak"): None}, spy, nets={"main": net(spy), "weak": net(weak)})
    assert [len(c) for c in spy.calls] == [6] and [len(c) for c in weak.calls] == [3]


def test_negative_is_the_null_unless_one_is_given():
    spy = Spy()
    Guided("neg + cfg(3)", {"main": net(spy, negative=None)})(noise(B, 4), STEP)
    assert spy.calls == [[UNCOND] * 3 + [COND] * 3]
    spy = Spy()
    Guided("uncond + cfg(3)", {"main": net(spy)})(noise(B, 4), STEP)
    assert spy.calls == [[UNCOND] * 3 + [COND] * 3 + [NEGATIVE] * 3]


def test_rows_of_weight_zero_do_not_ride():
    spy = Spy()
    guided = Guided("cfg([1, 4, 2])", {"main": net(spy)})
    x = noise(B, 4)
    out, _ = guided(x, STEP)
    assert spy.calls == [[COND] * 3 + [NEGATIVE] * 2]
    torch.testing.assert_close(spy.inputs[0][3:], x[1:])
    c, n = toy(x, STEP.t, COND), toy(x, STEP.t, NEGATIVE)
    torch.testing.assert_close(out.x0, c + col(torch.tensor([0.0, 3, 1]), x) * (c - n))
    assert torch.equal(out.x0[0], Guided("cond", {"main": net(Spy())})(x, STEP)[0].x0[0])


def test_rows_of_several_terms_are_joined():
    spy = Spy()
    Guided("cfg([1, 4, 1]) + cfg([1, 1, 2], channels=1)", {"main": net(spy)})(noise(B, 4), STEP)
    assert spy.calls == [[COND] * 3 + [NEGATIVE] * 2]
    assert union([torch.tensor([0, 2]), torch.tensor([1, 2])], 4).tolist() == [0, 1, 2]
    assert (
        union([torch.tensor([0]), torch.tensor([1])], 2) is None
        and union([torch.tensor([0]), None], 2) is None
    )


def test_conditions_follow_their_rows():
    spy, x = Spy(), noise(B, 4)
    own = condition(0.1, 0.2, 0.3)
    Guided(cfg([1, 3, 3]), {"main": net(spy, own, negative=condition(0.7, 0.8, 0.9))}, max_rows=2)(
        x, STEP
    )
    assert sorted(value for call in spy.calls for value in call) == [0.1, 0.2, 0.3, 0.8, 0.9]
    spy, x, four = Spy(), noise(4, 4), condition(0.1, 0.2, 0.3, 0.4)
    run = {"classifiers": {"classifier": Judge()}, "target": torch.tensor([5, 6, 7, 8])}
    out, _ = Guided(
        cfg([1, 3, 1, 2]) + classifier([0, 0, 0, 2]),
        {"main": net(spy, four, negative=condition(0.6, 0.7, 0.8, 0.9))},
        max_rows=4,
        **run,
    )(x, STEP)
    assert spy.calls == [[0.1, 0.2, 0.7], [0.3, 0.4, 0.9]]
    c, n = (
        toy(x, STEP.t, four["c"]),
        toy(x, STEP.t, torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64)),
    )
    expected = c + col(torch.tensor([0, 2, 0, 1]), x) * (c - n)
    expected[3] += (
        2 * STEP.t.sigma**2 / STEP.t.alpha * log_prob_gradient(x, STEP.t, run["target"])[3]
    )
    torch.testing.assert_close(out.x0, expected)


def test_a_post_asks_for_every_row():
    spy, x = Spy(), noise(B, 4)
    out, _ = Guided("uncond + cfg([1, 3, 1]) | rescale(1, space='x0')", {"main": net(spy)})(x, STEP)
    assert spy.calls == [[UNCOND] * 3 + [COND] * 3 + [NEGATIVE]]
    torch.testing.assert_close(out.x0.std(1), toy(x, STEP.t, COND).std(1))


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 5, 7, 100])
def test_chunks_are_small_enough_and_exact(max_rows):
    text = "cfg(3) + apg([2, 1, 3, 1, 2], negative='dog') | rescale(0.5)"
    x, step = noise(5, 4), mixed_step("flow", [9.0, 3.0, 1.0, 0.5, 0.1], [5.0, 1.0, 0.5, 0.1, 0.05])
    spy = Spy()
    whole, chunked = (
        Guided(text, {"main": net(d)}, max_rows=m) for d, m in ((Spy(), None), (spy, max_rows))
    )
    state = other = None
    for _ in range(2):
        one, two = whole(x, step, state, explain=True), chunked(x, step, other, explain=True)
        (out, state), (part, other), pushes, shares = one, two, one.pushes, two.pushes
        kept = [(a[k], b[k]) for a, b in zip(state, other, strict=True) for k in a]
        for a, b in (
            (out.x0, part.x0),
            (out.eps, part.eps),
            *kept,
            *((pushes[k], shares[k]) for k in pushes),
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert (
            [a.keys() for a in state] == [b.keys() for b in other]
            and kept
            and pushes.keys() == shares.keys()
        )
    assert max(map(len, spy.calls)) <= max_rows
    assert spy.rows == 2 * (5 + 5 + 3)


def test_a_perturbed_pass_that_is_differentiated_is_not_checkpointed():
    """Its blocks would be computed again after the perturbation is gone."""

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.moved = torch.nn.ModuleList([torch.nn.Identity()]), None

        def forward(self, x, level, cond):
            moved = torch.zeros(len(x), 1)
            if self.moved is not None:
                moved[self.moved] = 1.0
            return self.blocks[0](x) + moved

    @dataclass(frozen=True)
    class Moved:
        @contextmanager
        def __call__(self, denoiser, rows=None, inputs=None):
            denoiser.moved = rows.slice if rows else slice(None)
            yield
            denoiser.moved = None

    moved, x = Pass(perturb=Moved()), noise(B, 4)
    nets = {"main": Net(denoiser=Deep(), cond=condition(COND))}
    with pytest.raises(
        ValueError,
        match=r"the pass 'cond perturbed' changes the network while it runs.*leave checkpoint out",
    ):
        evaluated({moved: None}, x, STEP, nets, frozenset({moved}), checkpoint=True)
    for through, checkpoint in (
        (frozenset({moved}), False),
        (frozenset({C}), True),
        (frozenset(), True),
    ):
        answers = evaluated({moved: None, C: None}, x, STEP, nets, through, checkpoint=checkpoint)
        assert torch.equal(answers[moved].prediction.x0, x + 1) and torch.equal(
            answers[C].prediction.x0, x
        )


def test_a_chunk_in_which_a_term_sleeps_keeps_its_memory():
    guided = Guided("apg([1, 1, 3, 3])", {"main": net(Spy())}, max_rows=2)
    found = guided(noise(4, 4), STEP, explain=True)
    (average,), (push,) = found.state[0].values(), found.pushes.values()
    assert average.shape == push.shape == (4, 4)
    assert not average[:2].any() and average[2:].all() and not push[:2].any() and push[2:].all()


@pytest.mark.parametrize("max_rows", [None, 1, 2, 4])
def test_dedup_batch_and_chunks_equal_the_naive_sum(max_rows):
    x, step = noise(B, 2, 3), steps("mixed")[0]
    out, _ = Guided(
        "uncond + cfg([3, 1, 2]) + AND(2, 'cat') + NOT([0, 0.5, 0], 'dog')",
        {"main": net(Spy())},
        max_rows=max_rows,
    )(x, step)
    c, u, n, cat, dog = (
        toy(x, step.t, v) for v in (COND, UNCOND, NEGATIVE, WORDS["cat"], WORDS["dog"])
    )
    expected = (
        u
        + col(torch.tensor([2.0, 0, 1]), x) * (c - n)
        + 2 * (cat - u)
        + col(torch.tensor([0, 0.5, 0]), x) * (u - dog)
    )
    torch.testing.assert_close(out.x0, expected, rtol=1e-12, atol=1e-12)
    a, s = col(step.t.alpha, x), col(step.t.sigma, x)
    torch.testing.assert_close(out.eps, (x - a * expected) / s, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("max_rows", [None, 1])
def test_clean_rows_need_no_call(max_rows):
    spy, x = Spy(), noise(B, 4)
    level = Level(
        torch.tensor([0.5, 1.0, 0.8]).double(),
        torch.tensor([0.5, 0.0, 0.2]).double(),
        torch.tensor([0.5, 0.0, 0.2]).double(),
    )
    prediction = ask({C: None}, spy, x, step=STEP._replace(t=level), max_rows=max_rows)[
        C
    ].prediction
    assert spy.rows == 2
    expected = toy(x, level, COND)
    expected[1] = x[1]
    torch.testing.assert_close(prediction.x0, expected)
    assert not prediction.eps[1].any() and prediction.eps[0].any()
    spy = Spy()
    prediction = ask({C: None, U: None}, spy, 2 * x, step=STEP._replace(t=Level(2.0, 0.0, 0.0)))[
        U
    ].prediction
    torch.testing.assert_close(prediction.x0, x)
    assert not spy.calls


def test_learned_variance_keeps_its_rows_beside_clean_ones():
    def learned(x, level, c):
        return Prediction(x_t=x, level=level, x0=toy(x, level, c), eps=x, log_var=2 * x)

    x = noise(B, 4)
    level = Level(
        torch.tensor([0.5, 1.0, 0.8]).double(),
        torch.tensor([0.5, 0.0, 0.2]).double(),
        torch.zeros(3).double(),
    )
    for max_rows in (None, 1):
        prediction = ask(
            {C: None}, Spy(learned), x, step=STEP._replace(t=level), max_rows=max_rows
        )[C].prediction
        torch.testing.assert_close(
            prediction.log_var, 2 * x * torch.tensor([[1.0], [0], [1]]).double()
        )


def test_points_have_their_own_x_and_level():
    spy, x, y = Spy(), noise(B, 4), noise(2, 4, seed=1)
    level = Level(
        torch.tensor([0.1, 0.9]).double(),
        torch.tensor([0.9, 0.1]).double(),
        torch.tensor([0.9, 0.1]).double(),
    )
    there = Pass(cond=Slot.NULL, point=NoisyPoint(x=y, level=level))
    answers = ask({C: None, there: torch.tensor([0, 2])}, spy, x)
    assert [len(c) for c in spy.calls] == [5]
    torch.testing.assert_close(answers[C].prediction.x0, toy(x, STEP.t, COND))
    torch.testing.assert_close(answers[there].prediction.x0, toy(y, level, UNCOND))
    torch.testing.assert_close(answers[there].at(torch.tensor([2])).x0, toy(y, level, UNCOND)[1:])


@dataclass(frozen=True)
class Look(Direction):
    """Asks the null pass, then the null pass at αu, then a prompt: ``prompt + elsewhere − u``."""

    name = "look"
    traits = Traits(later=2)

    def passes(self, step):
        return (U,)

    def push(self, live, u):
        there = Pass(
            cond=Slot.NULL,
            point=NoisyPoint(x=col(live.step.t.alpha, u.x0) * u.x0, level=live.step.t),
        )
        (second,) = yield (there,)
        (third,) = yield (Pass(cond="cat"),)
        return third.x0 + second.x0 - u.x0, live.state


def look(x, level):
    u = toy(x, level, UNCOND)
    return toy(x, level, WORDS["cat"]) + toy(col(level.alpha, x) * u, level, UNCOND) - u


def test_rounds_run_in_lockstep():
    for max_rows in (None, 1, 2):
        for step in (STEP, steps("mixed")[0]):
            spy, x = Spy(), noise(B, 4)
            out, _ = Guided(
                Look(2) + Look([0, 1, 3]) + cfg(2), {"main": net(spy)}, max_rows=max_rows
            )(x, step)
            c = toy(x, step.t, COND)
            expected = (
                c
                + c
                - toy(x, step.t, NEGATIVE)
                + col(torch.tensor([2.0, 3, 5]), x) * look(x, step.t)
            )
            torch.testing.assert_close(out.x0, expected, rtol=1e-11, atol=1e-11)
            if max_rows is None:
                assert [len(c) for c in spy.calls] == [9, 5, 3]
            assert max(map(len, spy.calls)) <= (max_rows or 9)


def test_later_rounds_are_planned():
    plan = Guided(Look([0, 1, 3]), {"main": net(Spy())}).plan(
        uniform(SCHEDULES["flow"], 2), batch=3
    )
    assert sum(plan.steps[0].passes.values()) == 3 + 2 + 2 + 2
    twice = Guided("sag(1, masked=False) + sag(1, masked=False)", {"main": net(Spy())}).plan(
        uniform(SCHEDULES["flow"], 2)
    )
    assert (
        list(map(str, twice.steps[0].passes))
        == [
            "cond",
            "uncond",
            "round 2 of sag(1, masked=False)",
            "round 2 of sag(1, masked=False) again",
        ]
        and twice.steps[0].nfe == 4
    )


class Shift:
    """A perturbation that adds to the answers of its rows, and remembers whether it is on."""

    def __init__(self, by: float) -> None:
        self.by, self.on, self.entered = by, False, 0

    @contextmanager
    def __call__(self, denoiser, rows=None, inputs=None):
        self.on, before, self.entered = True, denoiser.answer, self.entered + 1

        def answer(x, level, c):
            out, here = (
                before(x, level, c),
                slice(None) if rows is None else slice(rows.start, rows.stop),
            )
            assert rows is None or len(x) == rows.of
            out[here] += self.by
            return out

        denoiser.answer = answer
        try:
            yield
        finally:
            self.on, denoiser.answer = False, before


@dataclass(frozen=True)
class Perturbed(Contrast):
    """``c − c_perturbed``, and a pass with a changed condition."""

    by: Shift = Shift(0.5)
    name = "perturbed"

    def good(self, step):
        return C

    def bad(self, step):
        return Pass(perturb=self.by)


def test_a_perturbed_pass_shares_the_call_of_the_others_and_leaves_no_trace():
    spy, x = Spy(), noise(B, 4)
    out, _ = Guided(Perturbed(2) + Perturbed([1, 0, 0]) + cfg(3), {"main": net(spy)})(x, STEP)
    assert [len(c) for c in spy.calls] == [9] and not Perturbed.by.on
    c = toy(x, STEP.t, COND)
    torch.testing.assert_close(
        out.x0, c - 0.5 * col(torch.tensor([3.0, 2, 2]), x) + 2 * (c - toy(x, STEP.t, NEGATIVE))
    )


@pytest.mark.parametrize("max_rows", [None, 1, 2, 4, 5])
def test_each_perturbation_has_its_rows(max_rows):
    """Also in calls that are cut anywhere, for rows of some samples, and where some have no
    noise.
    """
    first, second, x = Shift(0.5), Shift(-2.0), noise(B, 4)
    passes = {
        Pass(perturb=first): None,
        C: torch.tensor([1]),
        Pass(perturb=second): torch.tensor([0, 2]),
        Pass(cond=Slot.NULL, perturb=first): torch.tensor([2]),
    }
    spy = Spy()
    answers = ask(passes, spy, x, max_rows=max_rows)
    assert [len(c) for c in spy.calls] == {
        None: [7],
        1: [1] * 7,
        2: [2, 2, 2, 1],
        4: [4, 3],
        5: [5, 2],
    }[max_rows]
    shifts = {
        Pass(perturb=first): 0.5,
        C: 0.0,
        Pass(perturb=second): -2.0,
        Pass(cond=Slot.NULL, perturb=first): 0.5,
    }
    for p, rows in passes.items():
        expected = toy(x, STEP.t, COND if p.cond is Slot.COND else UNCOND) + shifts[p]
        torch.testing.assert_close(
            answers[p].prediction.x0,
            expected if rows is None else expected[rows],
            rtol=1e-12,
            atol=1e-12,
        )
    assert not first.on and not second.on
    if max_rows is None:  # each pass is perturbed once, in its own rows
        assert (first.entered, second.entered) == (2, 1)


def test_conditions_of_one_run_that_do_not_fit_together_are_refused():
    """They are not evaluated in calls of their own, as those of several runs are."""
    spy = Spy()
    wide, plain = Condition(c=torch.zeros(1, 7)), Condition(c=torch.zeros(1, 5))
    nets = {"main": Net(denoiser=spy, cond=wide, null=plain)}
    with pytest.raises(ValueError, match="same names and shapes"):
        Guided("cfg(3)", nets)(noise(1, 4), STEP)
    assert not spy.calls


def test_a_batch_in_which_one_sample_has_no_noise():
    x, levels = noise(B, 4), [(0.5, 0.5), (1.0, 0.0), (0.3, 0.7)]
    alpha, sigma = torch.tensor(levels, dtype=torch.float64).T
    spy = Spy()
    answer = ask({C: None}, spy, x, step=STEP._replace(t=Level(alpha, sigma, sigma)))[C].prediction
    assert [len(c) for c in spy.calls] == [2]
    for k in (0, 2):
        x0 = toy(x[k : k + 1], Level(*levels[k], levels[k][1]), COND)[0]
        torch.testing.assert_close(answer.x0[k], x0)
        torch.testing.assert_close(answer.eps[k], (x[k] - levels[k][0] * x0) / levels[k][1])
    torch.testing.assert_close(answer.x0[1], x[1])


def test_the_rows_of_a_perturbation_between_others():
    first, second, x, spy = Shift(0.5), Shift(-2.0), noise(B, 4), Spy()
    rows = {
        C: torch.tensor([0, 1]),
        Pass(perturb=first): torch.tensor([1]),
        Pass(perturb=second): torch.tensor([0, 2]),
    }
    answers = ask(rows, spy, x)
    plain = toy(x, STEP.t, COND)
    for p, moved in ((C, 0.0), (Pass(perturb=first), 0.5), (Pass(perturb=second), -2.0)):
        torch.testing.assert_close(answers[p].prediction.x0, plain[rows[p]] + moved)
    assert isinstance(spy.levels[0].sigma, float)  # one level of all rows, and no tensor of them


def test_a_perturbation_ends_with_an_exception():
    def broken(x, level, c):
        raise KeyError("broken")

    shift, spy = Shift(1.0), Spy(broken)
    with pytest.raises(KeyError, match="broken"):
        ask({Pass(perturb=shift): None}, spy)
    assert not shift.on and spy.answer is broken


def test_an_edited_condition_serves_its_rows():
    def double(inputs):
        return replace(inputs, cond=condition(*(2 * inputs.cond["c"]).tolist()))

    spy = Spy()
    ask(
        {C: None, Pass(edit=double): torch.tensor([0, 2])},
        spy,
        nets={"main": net(spy, condition(0.1, 0.2, 0.3))},
    )
    assert spy.calls == [[0.1, 0.2, 0.3, 0.2, 0.6]]


def test_a_differentiated_pass_is_shared_with_the_plain_one():
    spy, x, y = Spy(), noise(B, 4), torch.tensor([4, 0, 2])
    guided = Guided(
        cfg(3) + classifier([2, 0, 1], through="cond"),
        {"main": net(spy)},
        classifiers={"classifier": Judge()},
        target=y,
    )
    out, _ = guided(x, STEP)
    assert sorted(map(len, spy.calls)) == [3, 3]
    assert not (out.x0.requires_grad or out.eps.requires_grad or out.x_t.requires_grad)
    leaf = x.clone().requires_grad_()
    clean = toy(leaf, STEP.t, COND)
    chain = torch.autograd.grad(
        clean, leaf, log_prob_gradient(clean.detach(), STEP.grid.schedule.clean, y)
    )[0]
    scale = col(torch.tensor([2.0, 0, 1]), x) * STEP.t.sigma**2 / STEP.t.alpha
    torch.testing.assert_close(
        out.x0, clean.detach() + 2 * (clean.detach() - toy(x, STEP.t, NEGATIVE)) + scale * chain
    )
    for max_rows in (1, 2, 4):
        part, _ = Guided(
            guided.guidance,
            guided.nets,
            classifiers={"classifier": Judge()},
            target=y,
            max_rows=max_rows,
        )(x, STEP)
        torch.testing.assert_close(part.x0, out.x0, rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Split(Direction):
    """Moves x0 alone, by a gradient through the conditional pass."""

    name = "split"
    traits = Traits(linked=False, differentiates=C, gradients=1)

    def passes(self, step):
        return (C,)

    def push(self, live, c):
        return live.gradient(lambda x0: x0.flatten(1).sum(1), c), live.state


def test_a_split_gradient_leaves_no_graph_behind():
    def learned(x, level, c):
        return replace(Prediction.from_x0(x, level, toy(x, level, c)), log_var=3 * x)

    out, _ = Guided(Split(1), {"main": net(Spy(learned))})(noise(B, 4), STEP)
    assert not any(t.requires_grad for t in (out.x0, out.eps, out.x_t, out.log_var))
    x = noise(B, 4)
    torch.testing.assert_close(out.eps, (x - STEP.t.alpha * toy(x, STEP.t, COND)) / STEP.t.sigma)


def test_prompts_are_encoded_once():
    asked = []

    def count(names):
        asked.extend(names)
        return encode(names)

    guided = Guided(
        "AND(2, 'cat') + NOT(1, 'dog') + NOT([1, 0], 'cat')",
        {"main": net(Spy(), encode=count)},
        max_rows=2,
    )
    for _ in range(2):
        guided(noise(2, 4), STEP)
    assert asked == ["cat", "dog"]


def test_a_prompt_encoded_without_gradients_serves_a_run_with_them():
    nets = {"main": net(Spy())}
    x, step = noise(1, 4), STEP
    with torch.inference_mode():
        Guided("AND(2, 'cat')", nets)(x, step)
    assert not nets["main"].condition("cat", 1)["c"].is_inference()
    run = Guided(
        "AND(2, 'cat') + classifier(1, through='uncond')",
        nets,
        classifiers={"classifier": Judge()},
        target=torch.tensor([1]),
    )
    assert run(x, step)[0].x0.isfinite().all()
    with torch.inference_mode():
        made_there = noise(1, 4)
        with pytest.raises(RuntimeError, match="inference_mode"):
            run(x, step)
    torch.testing.assert_close(run(made_there, step)[0].x0, run(x, step)[0].x0)


def test_a_pass_asked_of_a_run_that_lacks_it_is_refused_by_name():
    x = noise(1, 4)
    bare = Net(denoiser=Spy(), cond=condition(1.0))
    for passes, nets, said in (
        (
            {Pass(net="weak"): None},
            {"main": bare, "big": bare},
            r"no network 'weak'; this model has big, main",
        ),
        ({Pass(cond="cat"): None}, {"main": bare}, "'cat' needs an encoder"),
        ({U: None}, {"main": bare}, "no null condition; give null="),
        ({N: None}, {"main": bare}, "no null condition; give null="),
        ({C: None}, {"main": Net(denoiser=Spy())}, "no condition was given"),
        (
            {C: None},
            {"main": Net(denoiser=Spy(), cond=condition(1.0, 2.0))},
            "2 samples cannot serve 1",
        ),
        (
            {C: None, Pass(cond=condition(2.0, 3.0)): None},
            {"main": bare},
            "2 samples cannot serve 1",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            ask(passes, None, x, nets=nets)
    with pytest.raises(ValueError, match=r"named 'main'.*weak"):
        Guided("cond", {"weak": bare})
    with pytest.raises(ValueError, match=r"cond, null belongs in each Net"):
        Guided("cond", {"main": bare}, cond=condition(1.0), null=condition(0.0))
    with pytest.raises(ValueError, match="max_rows must be at least 1, not 0"):
        Guided("cond", {"main": bare}, max_rows=0)
    with pytest.raises(ValueError, match="cfg has 2 scales for 3 samples"):
        Guided("cfg([1, 2])", {"main": net(Spy())})(noise(3, 4), STEP)
    assert by_name(toy)["main"].denoiser is toy


def test_conditions_and_networks_of_another_kind_are_refused_when_given():
    t = torch.tensor([1.0])
    for name in ("cond", "null", "negative"):
        for wrong, kind in (({"c": t}, "dict"), ([1.0], "list"), (t, "Tensor")):
            with pytest.raises(
                TypeError,
                match=rf"^{name} must be a Condition, not {kind}; write Condition\(NAME=tensor\)",
            ):
                Guided("cond", Spy(), **{name: wrong})
    for wrong in ({"main": 5}, {"main": Spy(), "weak": 5}, 5):
        with pytest.raises(
            TypeError,
            match=r"^a denoiser must be callable as denoiser\(x_t, level, cond\), not 5; give a "
            r"function or a Network$",
        ):
            Guided("uncond", wrong)


def test_a_denoiser_by_name_and_a_net_alone_are_taken():
    spy, x = Spy(), noise(2, 4)
    torch.testing.assert_close(Guided("uncond", {"main": spy})(x, STEP)[0].x0, toy(x, STEP.t, 0.0))
    torch.testing.assert_close(
        Guided("cond", net(spy, condition(2.0)))(x, STEP)[0].x0, toy(x, STEP.t, 2.0)
    )
    with pytest.raises(ValueError, match="cond belongs in each Net"):
        Guided("cond", Net(denoiser=spy), cond=condition(1.0))


def test_a_further_network_without_a_condition_is_named():
    guided = Guided("autoguidance(2)", {"main": net(Spy()), "weak": Spy()})
    with pytest.raises(
        ValueError,
        match=r"^the network 'weak': no condition was given, .* \(each Net has its own: "
        r"Net\(denoiser=…, cond=…\)\)$",
    ):
        guided(noise(2, 4), STEP)


def test_samples_that_are_none_or_have_no_dimension_are_refused():
    for x, said in (
        (noise(0, 4), r"no samples to guide \(a batch of 0\)"),
        (noise(3), r"^samples are \[B, \*S\] .* not \[3\]; write single numbers as \[B, 1\]$"),
        (torch.tensor(1.0), r"not \[\]"),
    ):
        with pytest.raises(ValueError, match=said):
            Guided("cfg(2)", {"main": net(Spy())})(x, STEP)
    with pytest.raises(ValueError, match="no samples to guide"):
        Guided("cfg(2)", {"main": net(Spy())}).plan(STEP.grid, batch=0)
    run = {"grid": STEP.grid, "shape": (4,)}
    for seeds, said in (
        ([], "at least one seed is needed"),
        (0, "seeds must be a list of integers"),
    ):
        with pytest.raises(ValueError, match=said):
            sample(Guided("uncond", Spy()), seeds=seeds, **run)
        with pytest.raises(ValueError, match=said):
            steer(Guided("uncond", Spy()), seeds=seeds, particles=2, reward=torch.sum, **run)
        with pytest.raises(ValueError, match=said):
            Guided("uncond", Spy(), seeds=seeds)


def test_an_unconditional_network_is_asked_without_condition():
    spy, x = Spy(), noise(2, 4)
    out, _ = Guided("uncond | clip_x0(10)", spy)(x, STEP)
    torch.testing.assert_close(out.x0, toy(x, STEP.t, 0.0))
    assert (
        Guided(
            "classifier(1)", spy, classifiers={"classifier": Judge()}, target=torch.tensor([1])
        ).base
        == U
    )


def test_values_that_are_not_finite_are_refused_by_network_pass_and_step():
    def broken(x, level, c):
        return toy(x, level, c) / (c != NEGATIVE)[:, None]

    guided = Guided("cfg(3)", {"main": net(Spy(broken))}, check=True)
    with pytest.raises(
        FloatingPointError, match=r"network 'main'.*not finite in its pass 'neg' at step 4"
    ):
        guided(noise(B, 4), STEP)
    weak = {"main": net(Spy()), "weak": net(Spy(broken))}
    with pytest.raises(FloatingPointError, match=r"network 'weak'.*pass 'neg weak' at step 0"):
        ask(
            {Pass(cond=Slot.NEGATIVE, net="weak"): None},
            None,
            step=uniform(SCHEDULES["flow"], 2).step(0),
            nets=weak,
            check=True,
        )
    assert (
        not Guided("cfg(3)", {"main": net(Spy(broken))})(noise(B, 4), STEP)[0].x0.isfinite().any()
    )


def test_passes_print_what_they_are():
    names = [
        C,
        U,
        N,
        Pass(cond="cat"),
        Pass(cond=condition(1.0)),
        Pass(
            net="weak", perturb=Shift(1.0), edit=encode, point=NoisyPoint(x=noise(1), level=STEP.t)
        ),
    ]
    assert list(map(str, names)) == [
        "cond",
        "uncond",
        "neg",
        "'cat'",
        "condition",
        "cond weak perturbed elsewhere edited",
    ]


def test_a_plan_tells_perturbations_apart():
    plan = Guided("pag(1) + seg(1) + nag(5)", {"main": net(Spy())}).plan(
        uniform(SCHEDULES["flow"], 2)
    )
    assert list(map(str, plan.steps[0].passes)) == ["cond", "cond pag", "cond seg", "cond nag"]


def test_a_plan_is_of_as_many_samples_as_its_lists_are_for():
    grid, nets = uniform(SCHEDULES["flow"], 3), {"main": net(Spy())}
    assert Guided("cfg([1, 2, 4])", nets).plan(grid).nfe == pytest.approx(3 * 5 / 3)
    assert Guided("pix2pix(1, [1, 2, 4], keep='c')", nets).plan(grid).nfe == pytest.approx(
        3 * (1 + 2 * 2 / 3)
    )
    assert Guided("cfg(2)", nets, seeds=[1, 2]).plan(grid).steps[0].batch == 2
    assert (
        Guided("cfg(2)", {"main": net(Spy(), condition(1.0, 2, 3))}).plan(grid).steps[0].batch == 3
    )
    assert Guided("cfg(2)", nets).plan(grid, batch=7).steps[0].batch == 7


@pytest.mark.parametrize("max_rows", [None, 2])
def test_a_plan_and_a_run_refuse_lists_for_another_number_of_samples(max_rows):
    grid, x = uniform(SCHEDULES["flow"], 3), noise(8, 4)
    for guidance, seeds, cond, said in (
        (
            "cfg([1, 1, 3, 3])",
            None,
            condition(1.0),
            "cfg has 4 scales for 8 samples; give one number, or one for each sample",
        ),
        ("cfg_zero(2) + cfg([1, 1, 3, 3])", None, condition(1.0), "cfg has 4 scales for 8 samples"),
        (
            "cfg(2) + pix2pix(1, [1, 2, 4], keep='c')",
            None,
            condition(1.0),
            "pix2pix has 3 scales for 8 samples",
        ),
        ("cfg(2)", [1, 2], condition(1.0), "2 seeds were given for 8 samples"),
        ("cfg(2)", None, condition(1.0, 2.0), "a condition of 2 samples cannot serve 8 samples"),
    ):
        guided = Guided(guidance, {"main": net(Spy(), cond)}, seeds=seeds, max_rows=max_rows)
        for go in (
            lambda guided=guided: guided.plan(grid, batch=8),
            lambda guided=guided: guided(x, grid.step(1)),
        ):
            with pytest.raises(ValueError, match=said):
                go()
    with pytest.raises(ValueError, match="a condition of 2 samples cannot serve 4 samples"):
        Guided("cfg([1, 1, 3, 3])", {"main": net(Spy(), condition(1.0, 2.0))}).plan(grid)


def test_a_plan_prints_as_a_table():
    text = str(
        Guided(parse("cfg([1, 3], interval=(0.3, 3))"), {"main": net(Spy(), negative=None)}).plan(
            uniform(SCHEDULES["flow"], 3), batch=2
        )
    )
    assert text.splitlines()[0].split() == ["step", "rho", "NFE", "passes"]
    assert text.splitlines()[2].split(maxsplit=3) == ["1", "2", "1.5", "cond, uncond (1 of 2)"]
    assert text.splitlines()[-1] == "total NFE 4 a sample, gradients 0"


def test_a_perturbation_alone_in_its_call_has_all_rows():
    seen = []

    class Noting:
        name = "noting"

        def __call__(self, denoiser, rows=None, inputs=None):
            seen.append(rows)
            return nullcontext()

    asked, step = {C: None, Pass(perturb=Noting()): None}, uniform(SCHEDULES["vp"], 4).step(1)
    group = Group(x_t=torch.zeros(3, 2), step=step, batch=3)
    nets = {"main": Net(denoiser=Spy(), cond=condition(1.0), null=condition(0.0))}
    evaluate(Round(group=group, passes=asked, nets=nets))
    assert seen == [Rows(3, 6, 6)]
    evaluate(Round(group=group, passes=dict(list(asked.items())[1:]), nets=nets))
    assert seen[1:] == [None]


def test_a_part_keeps_all_dimensions_of_the_others():
    """Two prompts of three tokens beside a picture; one null of each for all samples."""
    text, image = noise(2, 3, 5), noise(2, 3, 4, 4)
    nulls = noise(1, 3, 5), noise(1, 3, 4, 4)
    found = Net(
        denoiser=Spy(),
        cond=Condition(text=text, image=image),
        null=Condition(text=nulls[0], image=nulls[1]),
    ).condition(Part("image"), 2)
    assert list(found) == ["text", "image"] and torch.equal(found["image"], image)
    assert torch.equal(found["text"], torch.stack([nulls[0][0], nulls[0][0]]))
