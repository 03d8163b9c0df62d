"""What a term of a user returns is checked at the first step at which it acts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.guidance import Steered
from guidestar.guidance.term import Traits

VP = gs.VP.linear()
STEP = gs.uniform(VP, 4).step(1)


def net(x, level, cond):
    return torch.tanh(x) * (0.5 + cond["c"].reshape(-1, 1))


def guided(guidance, **more):
    one = lambda value: gs.Condition(c=torch.full((1,), value))
    return gs.Guided(guidance, net, cond=one(0.3), null=one(0.0), **more)


def run(guidance, **more):
    return guided(guidance, **more)(torch.linspace(-1, 1, 6).reshape(3, 2), STEP)


@dataclass(frozen=True)
class Free(gs.Contrast):
    """A contrast whose parts are given."""

    name = "free"
    parts: Any = None

    def good(self, step):
        return self.parts.get("good", gs.COND)

    def bad(self, step):
        return gs.NULL

    def shape(self, good, bad, live):
        make = self.parts.get("shape")
        return make(good, bad, live) if make else super().shape(good, bad, live)

    def weight(self, step, rows=None, state=None):
        return self.parts["weight"] if "weight" in self.parts else super().weight(step, rows, state)


def free(**parts):
    return Free(2, parts)


@dataclass(frozen=True, eq=True)
class Listed:
    layers: list[str]
    name = "listed"


WRONG: list[tuple[str, Any, str]] = [
    ("good", "cond", "free: one of its passes is 'cond'; a pass is gs.COND"),
    ("good", gs.Slot.COND, "free: one of its passes is <Slot.COND"),
    ("good", gs.Pass(cond=gs.COND), "free: the condition of a pass must be gs.Slot.COND"),
    ("good", gs.Pass(perturb=Listed(["a"])), r"free: .* \(unhashable type: 'list'\)"),
    ("weight", torch.tensor(2.0), r"free: weight must return a float.* \[3\].* a tensor \(\)"),
    ("weight", None, "free: weight must return a float.* not None"),
    (
        "shape",
        lambda g, b, live: g.x0 - b.x0,
        r"return a pair.*, live.state; not a tensor \(3, 2\)",
    ),
    ("shape", lambda g, b, live: None, "free: push and shape return a pair.* not None"),
    ("shape", lambda g, b, live: (g.x0, 3), "free: push and shape return a pair"),
    (
        "shape",
        lambda g, b, live: ((g.x0 - b.x0).mean(), live.state),
        r"free: the push must be a tensor like the samples, \(3, 2\) .* not a tensor \(\)",
    ),
    ("shape", lambda g, b, live: (g.x0[:1], live.state), r"not a tensor \(1, 2\)"),
    ("shape", lambda g, b, live: (g.x0.double(), live.state), "float32, not .* of torch.float64"),
    ("shape", lambda g, b, live: (g.x0, {"m": g.x0}), r"free: its state 'm' is not in what start"),
    ("shape", lambda g, b, live: (g.x0.sub_(b.x0), live.state), "changes x0 of prediction 1 in pl"),
    ("shape", lambda g, b, live: (b.eps.mul_(2), live.state), "changes eps of prediction 2 in pl"),
    ("shape", lambda g, b, live: (live.x_t.mul_(2), live.state), "free: its push changes x_t in"),
]


@pytest.mark.parametrize(("part", "value", "said"), WRONG)
@pytest.mark.parametrize("beside", ["alone", "dps"])
def test_a_wrong_part_is_refused_by_the_name_of_the_term(part, value, said, beside):
    term = free(**{part: value})
    guidance = term if beside == "alone" else term + gs.dps(0.1)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=said):
        run(guidance, losses={"loss": lambda x0: x0.square().sum(1)})


def test_a_sound_term_passes_and_is_watched_once():
    seen = []

    def shape(good, bad, live):
        seen.append(live.step.index)
        return good.x0 - bad.x0, live.state

    term = replace(free(shape=shape), interval=(0, 100))
    bound = guided(term)
    x = torch.linspace(-1, 1, 6).reshape(3, 2)
    assert bound.sum.unchecked == {0}
    found = bound(x, STEP).prediction.x0
    assert bound.sum.unchecked == set() and seen == [1]
    torch.testing.assert_close(found, torch.tanh(x) * 0.8 + 2 * torch.tanh(x) * 0.3)
    assert gs.Guided("cond", net, cond=gs.Condition(c=torch.ones(1))).sum.unchecked == set()


def test_the_state_is_of_each_sample():
    @dataclass(frozen=True)
    class Kept(gs.Contrast):
        name = "kept"

        def good(self, step):
            return gs.COND

        def bad(self, step):
            return gs.NULL

        def start(self, x_t):
            return {"m": x_t}

        def shape(self, good, bad, live):
            return good.x0 - bad.x0, {"m": good.x0.mean()}

    with pytest.raises(ValueError, match=r"kept: its state 'm' must be a tensor \[3, …\]"):
        run(Kept(2))


def test_later_rounds_are_checked_too():
    @dataclass(frozen=True)
    class Asks(gs.Direction):
        name = "asks"
        ends: bool = False

        @property
        def traits(self):
            return Traits(later=1)

        def passes(self, step):
            return (gs.COND,)

        def push(self, live, *predictions):
            if not self.ends:
                yield ("cond",)
            (more,) = yield (gs.NULL,)
            return more.x0.mean(), live.state

    with pytest.raises(TypeError, match="asks: one of its passes is 'cond'"):
        run(Asks(2))
    with pytest.raises(ValueError, match=r"asks: the push must be a tensor like the samples"):
        run(Asks(2, ends=True))


def test_a_post_returns_a_prediction():
    @dataclass(frozen=True)
    class Halved(gs.Post):
        name = "halved"

        def apply(self, prediction, live, *predictions):
            return prediction.x0 / 2

    with pytest.raises(TypeError, match="halved: apply must return the changed Prediction"):
        run(gs.cfg(2) | Halved())


@dataclass(frozen=True)
class Bright(gs.Direction):
    name = "bright"
    own: Any = None
    how: str = "through"

    @property
    def traits(self):
        return self.own or Traits()

    def passes(self, step):
        return (gs.COND,)

    def push(self, live, prediction):
        if self.how == "through":
            slope = live.gradient(lambda x0: x0.square().sum(1), through=prediction)
        elif self.how == "x_t":
            slope = live.gradient(lambda x: x.square().sum(1), through=None)
        else:
            slope = torch.autograd.grad(prediction.x0.sum(), live.x_t)[0]
        return -slope, live.state


ALL = Traits(gradients=1, differentiates=gs.COND)


@pytest.mark.parametrize(
    ("own", "how", "said"),
    [
        (None, "through", r"bright takes a gradient; .* traits = Traits\(gradients=1\), and diff"),
        (None, "x_t", r"bright takes a gradient; .* traits = Traits\(gradients=1\)"),
        (Traits(gradients=1), "through", r"Traits\(gradients=1, differentiates=…\) with the pass"),
        (None, "plain", r"bright: push runs without autograd .* live.gradient\(loss, through="),
        (ALL, "plain", r"bright: push runs without autograd .* live.gradient\(loss, through="),
    ],
)
def test_a_gradient_says_what_it_needs(own, how, said):
    with pytest.raises((ValueError, RuntimeError), match=said):
        run(Bright(2, own, how))


def test_a_gradient_through_a_pass():
    x = torch.linspace(-1, 1, 6).reshape(3, 2)
    clean = 0.8 * torch.tanh(x)
    slope = 2 * clean * 0.8 * (1 - torch.tanh(x) ** 2)
    torch.testing.assert_close(run(Bright(2, ALL)).prediction.x0, clean - 2 * slope)


def test_what_is_differentiated_has_gradients():
    with pytest.raises(ValueError, match=r"Traits: .*differentiates= .* e\.g\. gradients=1"):
        Traits(differentiates=gs.COND)


@dataclass(frozen=True)
class Own(Steered):
    """A loss with an argument of its own."""

    to: float = 0.0
    name = "own"

    def loss_of(self, live):
        return lambda x0: (x0 - self.to).square().sum(1)

    def push(self, live, *predictions):
        return -live.gradient(self.loss_of(live), *predictions), live.state


def test_a_loss_of_its_own_needs_none_of_the_run():
    from guidestar.guidance import losses_of

    x = torch.linspace(-1, 1, 6).reshape(3, 2)
    clean = 0.8 * torch.tanh(x)
    slope = 2 * (clean - 0.5) * 0.8 * (1 - torch.tanh(x) ** 2)
    torch.testing.assert_close(run(Own(2, to=0.5)).prediction.x0, clean - 2 * slope)
    assert losses_of(gs.cfg(1) + Own(2)) == () and losses_of(gs.cfg(1) + gs.dps(1)) == ("loss",)


def test_a_missing_loss_is_asked_for():
    with pytest.raises(ValueError, match=r"give losses=\{'loss': …\} to the run, or in Python"):
        run("dps(1)")
