"""Choices of single terms, by values by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.core.levels import VP


@pytest.mark.parametrize(("asked", "size"), [(True, 1.0), (False, 5.0)])
def test_a_discriminator_takes_the_slope_that_was_asked_for(asked, size):
    """Its push is σ²/α times the gradient: what was taken with the passes, or its own."""
    level = VP.linear().at_rho(2.0)
    told: list[Any] = []

    def slope(what, function, target):
        told.append((what, function(torch.tensor([[1.0, 2.0]])), target))
        return torch.full((1, 2), 5.0)

    given = SimpleNamespace(gradient=torch.ones(1, 2)) if asked else None
    live: Any = SimpleNamespace(
        step=SimpleNamespace(t=level), state="state", requested_slope=given, slope=slope
    )
    term = gs.discriminator(3, log_odds=lambda x, t: x.sum(1) * float(t.rho))
    push, state = term.push(live)
    scale = float(level.sigma) ** 2 / float(level.alpha)
    torch.testing.assert_close(push, torch.full((1, 2), size * scale))
    assert state == "state"
    if not asked:
        assert [(w, t) for w, _, t in told] == [("discriminator: log_odds", None)]
        assert told[0][1].tolist() == pytest.approx([6.0])


def test_lists_of_perp_neg_are_kept_as_tuples():
    term: Any = gs.perp_neg(2, negative=["a", "b"], weights=[-1.0, -2.0])
    assert (term.negative, term.weights) == (("a", "b"), (-1.0, -2.0))
    single: Any = gs.perp_neg(2, negative="a", weights=-2.0)
    assert (single.negative, single.weights) == ("a", -2.0)


def test_forms_of_pigdm():
    """J^T A^T (…): (σ²/α)·J in the linked form, α_t n_s r²/α_s of it in the published one."""
    schedule = VP.linear()
    t, s = schedule.at_rho(2.0), schedule.at_rho(1.0)
    live: Any = SimpleNamespace(step=SimpleNamespace(t=t, s=s), state="state")
    share = torch.tensor([[1.0, -2.0]])
    found = {}
    for form in ("linked", "published"):
        term: Any = gs.pigdm(1, form=form)
        kind = type(
            "Told",
            (type(term),),
            {
                "share": lambda self, live, d, system, iterations: share,
                "covariance": lambda self, live, d, v: 7 * v,
                "transposed_jacobian": lambda self, live, d, v: 11 * v,
            },
        )
        own = object.__new__(kind)
        vars(own).update(vars(term))
        found[form], state = kind.push(own, live, "estimate")
        assert state == "state"
    torch.testing.assert_close(found["linked"], 7 * share)
    variance = 4 / 5  # ρ²/(1 + ρ²)
    norm = (float(s.alpha) ** 2 + float(s.sigma) ** 2) ** 0.5
    size = float(t.alpha) * norm * variance / float(s.alpha)
    torch.testing.assert_close(found["published"], 11 * size * share)


def test_the_mask_of_sag_is_of_the_nearest_places():
    """Places that receive more than the threshold; none where no network was asked."""
    term: Any = gs.sag(1, threshold=1.0)
    like = torch.zeros(2, 3, 4, 2)
    none = term._mask(SimpleNamespace(observed=None), like)
    assert none.dtype == torch.bool and none.shape == like.shape and not none.any()
    received = torch.tensor([[[1.0, 1.5], [2.0, 0.5]], [[1.1, 0.0], [0.0, 3.0]]])
    mask = term._mask(SimpleNamespace(observed=received), like)
    assert mask.shape == (2, 1, 4, 2)
    assert mask[0, 0].tolist() == [[False, True]] * 2 + [[True, False]] * 2
    assert mask[1, 0].tolist() == [[True, False]] * 2 + [[False, True]] * 2
    for wrong in (torch.zeros(2, 4), torch.zeros(2, 4, 2), torch.zeros(2, 3, 1, 4, 2)):
        with pytest.raises(ValueError, match="sag blurs a picture's grid, but the samples here"):
            term._mask(SimpleNamespace(observed=received), wrong)


def test_numbers_that_a_blur_takes():
    for good in ({"radius": 0}, {"radius": 1}, {"deviation": 1e-3}, {"deviation": 1000 / 3}):
        gs.Blur(**good)
    for bad in ({"radius": -1}, {"deviation": 0.0}, {"deviation": 334.0}):
        with pytest.raises(ValueError, match="blur: the deviation must be above 0 and at most 333"):
            gs.Blur(**bad)


def test_a_system_that_is_its_floor_alone_is_solved():
    """Where A V Aᵀ is 0 to rounding, what is left is noise, and the solution b/σ²."""
    from guidestar.guidance.methods.posterior import least_residual

    b = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    solved = least_residual(lambda v: 0.25 * v, b, 3, floor=0.25)
    torch.testing.assert_close(solved, 4 * b)
    negative = least_residual(lambda v: 0.249 * v, b, 3, floor=0.25)  # V is below 0
    assert negative.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("gamma", "done"), [(1.0, 0.0), (0.99, 1.0)])
def test_adaptive_guidance_stops_above_its_cosine_alone(gamma, done):
    """Equal predictions (3, 4) have a cosine of 1, which is not above 1."""
    v, state = torch.tensor([[3.0, 4.0]]), {"done": torch.zeros(1)}
    side: Any = SimpleNamespace(view=lambda space: v, x0=v)
    low, high = (SimpleNamespace(rho=torch.tensor([rho])) for rho in (5.0, 5.01))
    term: Any = gs.adaptive(2, gamma=gamma)
    for level, wanted in ((low, done), (high, 0.0)):
        live: Any = SimpleNamespace(step=SimpleNamespace(t=level), state=state)
        push, found = term.shape(side, side, live)
        assert push.tolist() == [[0.0, 0.0]] and found["done"].tolist() == [wanted]


def test_slopes_that_are_taken_together_are_those_of_models(monkeypatch):
    """A user's function is called for its own run alone."""
    from guidestar.guidance.bases import log_prob_term

    class Model:
        def log_prob(self, x, level, target):
            return x.sum(1) + target

    target = torch.tensor([3.0, 4.0])
    own: Any = gs.classifier(1, log_prob=lambda x, level, target: x.sum(1), target=(0, 1))
    group: Any = SimpleNamespace(x_t=torch.ones(2, 2), step=SimpleNamespace(t="level"),
                                 own_rows=lambda given: given + 1)  # fmt: skip
    assert own.slope(group) is None
    monkeypatch.setattr(log_prob_term, "LogProbModel", Model)
    model = Model()
    kind: Any = type("Told", (type(own),), {"climbed": (model.log_prob, target)})
    term = object.__new__(kind)
    vars(term).update(vars(own))
    found: Any = term.slope(group)
    assert found.x is group.x_t and found.level == "level" and found.key == model.log_prob
    assert found.target.tolist() == [4.0, 5.0]
    x = group.x_t.clone().requires_grad_()
    assert found.function(x, "level", found.target).detach().tolist() == [6.0, 7.0]
    kind.climbed = (None, target)
    assert term.slope(group) is None
    kind.climbed = (model.log_prob, None)
    assert term.slope(group) is None
