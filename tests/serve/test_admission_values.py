"""What a request costs before it is taken: each term's passes, gradients and repeats, counted by
hand.
"""

from __future__ import annotations

from typing import Any

import pytest

import guidestar as gs
from guidestar.sampling import TimeTravel
from guidestar.serve.admission import bind_checked, check_size
from guidestar.serve.errors import TooLargeError
from helpers.served import toy_model

OBSERVED = {"loss": gs.Observation("identity", 0.0)}


@pytest.fixture(scope="module")
def model():
    return toy_model()


def cost(model: gs.Model, **asked: Any) -> int:
    """Return the count at which a request begins to be taken, as its refusal says it."""
    request = model.request("cat", **asked)
    with pytest.raises(TooLargeError) as refused:
        bind_checked(model, request, 0)
    count = int(str(refused.value).split()[4])
    bind_checked(model, request, count)
    with pytest.raises(TooLargeError, match=f"about {count} evaluations .* most {count - 1} may"):
        bind_checked(model, request, count - 1)
    return count


@pytest.mark.parametrize(
    ("term", "each"),
    [
        ("dps(1)", 1 + 1),
        ("tfg(1)", 1 + 1 + 4),  # four steps on the clean estimate, one through the network
        ("tfg(1, iterations=7)", 1 + 1 + 7),
        ("tfg(1, iterations=900)", 902),
        ("tfg(1, iterations=7, smoothing=0.5, samples=3)", 1 + 1 + (8 * 3 - 1)),
        ("tfg(1, iterations=7, variance=0)", 1 + 1 + 6),
        ("tfg(1, iterations=7, mean=0)", 1 + 1),
        ("tfg(1, mean=0, variance=0)", 1 + 1),
        ("lgd(1, samples=6)", 1 + 1 + 5),
        ("ugd_backward(1, steps=9)", 1 + 1 + 8),
        ("pigdm(1, iterations=5)", 1 + 1 + 5),
        ("mmps(1, iterations=5)", 1 + 6),
        ("tfg(1) + lgd(1, samples=6)", 1 + 2 + 4 + 5),
    ],
)
def test_what_a_term_repeats_is_counted(model, term, each):
    asked = {"guidance": f"cond + {term}", "losses": OBSERVED, "seeds": (0, 1), "steps": 3}
    assert cost(model, **asked) == each * 2 * 3


def test_what_a_carried_term_repeats_is_counted_where_it_is_evaluated(model):
    guidance = "cond + ugd_backward(1, steps=9, every=2)"
    bound = model.bind(model.request("cat", guidance=guidance, losses=OBSERVED, steps=4))
    plan = bound.plan(model.grid(4, None))
    assert [step.repeats for step in plan.steps] == [8, 0, 8, 0]


def test_the_visits_of_every_step_are_counted(model):
    # Steps 0, 1, 2 end at 5/6, 1/2 and 1/6 of the run: the second alone is taken five times.
    solver = TimeTravel(solver=gs.DDIM(eta=1.0), times=5, where=(1 / 3, 2 / 3))
    assert cost(model, guidance="cfg(2)", solver=solver, steps=3) == 2 * (1 + 5 + 1)


@pytest.mark.parametrize(("steps", "seen"), [(16, True), (17, False), (32, False), (31, False)])
def test_sixteen_evaluations_are_looked_at(model, steps, seen):
    """A step that only a term of its own makes dear: the second of the run."""
    levels = model.grid(steps, None)
    low, high = (levels.step(i).t.rho for i in (2, 1))
    guidance = f"cond + cfg(3, interval=({low!r}, {high!r}))"
    assert cost(model, guidance=guidance, steps=steps) == (2 if seen else 1) * steps


def test_a_request_of_as_many_samples_as_may_be_is_taken(model):
    request = model.request("cat", seeds=(0, 1, 2), steps=1)
    check_size(request, 3, 0)
    check_size(request, None, 0)
    with pytest.raises(TooLargeError, match="for 2 samples, not 3"):
        check_size(request, 2, 0)
