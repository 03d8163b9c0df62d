"""Values of one function each that no other test holds."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.core.levels import VP, Level, Step
from guidestar.core.passes import NEGATIVE, Net, Slot
from guidestar.core.prediction import Prediction
from guidestar.data.identity import _tensor
from guidestar.diffusers.guide.part_denoiser import PartDenoiser
from guidestar.diffusers.guider import _instead
from guidestar.guidance.methods.posterior import _Posterior
from guidestar.networks.low_rank import LowRank
from guidestar.networks.perturbable.self_attention import find_image
from guidestar.train.loop.signals import Stop
from guidestar.train.objectives.teacher import _take


def among(schedule, times) -> Level:
    """Return the levels of a schedule at these times, one for each sample."""
    levels = [schedule(time) for time in times]
    numbers = lambda key: torch.tensor([float(getattr(v, key)) for v in levels]).double()
    return Level(numbers("alpha"), numbers("sigma"), numbers("t"))


@pytest.mark.parametrize("start", [0, 2, 5])
def test_new_samples_stand_where_the_old_ones_did(start):
    """Among other channels of the network's input: in front, behind, or in the middle (refused)."""
    old, new = torch.rand(2, 3, 4), torch.rand(2, 3, 4) + 2
    whole = torch.rand(2, 8, 4) + 9
    whole[:, start : start + 3] = old
    subject: Any = object.__new__(PartDenoiser)
    subject.z, subject.layout = old, SimpleNamespace(batch=2)
    subject.c = SimpleNamespace(name="pipe")
    call: Any = SimpleNamespace(x=whole)
    if start == 2:
        with pytest.raises(ValueError, match="in a way that is not known"):
            subject._input(call, torch.arange(2), new)
        return
    wanted = whole.clone()
    wanted[:, start : start + 3] = new
    assert torch.equal(subject._input(call, torch.arange(2), new), wanted)


def test_without_a_null_prediction_damping_of_nothing_is_cfg():
    """exp(−0 · ‖c − 0‖/‖0‖) = 1, where 0 · ∞ would be no number."""
    level, x = VP.linear()(0.5), torch.ones(2, 3)
    made = [Prediction.from_x0(x, level, x0) for x0 in (x * 0.5, x * 0.25)]
    null: Any = SimpleNamespace(x0=made[1].x0, view=lambda space: torch.zeros(2, 3))
    live: Any = SimpleNamespace(state={})
    push, _ = gs.mambo(3, damping=0.0).shape(made[0], null, live)
    torch.testing.assert_close(push, made[0].x0 - made[1].x0)


def test_a_plan_names_the_level_of_the_first_sample():
    schedule = VP.linear()
    denoiser = lambda x, level, cond: x
    guided = gs.Guided("uncond", denoiser, null=gs.Condition(a=torch.zeros(1)))
    levels = [among(schedule, pair) for pair in ((0.4, 0.7), (0.2, 0.3))]
    step = Step(levels[0], levels[1], 0, gs.karras(schedule, 4))
    rho = float(schedule(0.4).sigma) / float(schedule(0.4).alpha)
    assert guided.plan_step(step, 2).rho == pytest.approx(rho)


def test_a_teachers_step_is_taken_by_rows_at_both_ends():
    schedule = VP.linear()
    ends = [among(schedule, times) for times in ((0.9, 0.8, 0.7), (0.3, 0.2, 0.1))]
    taken = _take(Step(*ends, 0, gs.karras(schedule, 4)), torch.tensor([2, 0]))
    for end, times in zip((taken.t, taken.s), ((0.7, 0.9), (0.1, 0.3)), strict=True):
        wanted = torch.tensor([float(schedule(v).sigma) for v in times]).double()
        torch.testing.assert_close(torch.as_tensor(end.sigma), wanted)


def test_a_difference_begins_at_the_scale_of_its_columns():
    """down ~ N(0, 1/n), so that down · x is of the size of x's numbers."""
    torch.manual_seed(0)
    made = LowRank(torch.zeros(7, 20, 20), 50)
    assert float(made.down.detach().std()) == pytest.approx(1 / 20, rel=0.03)
    assert made.down.shape == (50, 400) and not made.up.any() and made.up.shape == (7, 50)


@pytest.mark.parametrize("perturbed", [True, False])
def test_without_a_negative_its_pass_is_the_nulls(perturbed):
    net: Any = object.__new__(Net)
    object.__setattr__(net, "negative", None)
    change: Any = "a change"
    given = replace(NEGATIVE, perturb=change) if perturbed else NEGATIVE
    found = net.canonical(given)
    assert (found.cond, found.perturb) == (Slot.NULL, change if perturbed else None)


def test_samples_that_are_no_numbers_are_no_fault_of_the_decoder():
    model: Any = gs.load("fashion-mnist")
    broken = torch.full((1, 1, 28, 28), torch.nan)
    assert bool(model.to_images(broken).isnan().all())
    decoding = replace(model, decode=lambda x: x / 0)
    with pytest.raises(FloatingPointError, match="the decoder of 'fashion-mnist'"):
        decoding.to_images(torch.ones(1, 1, 28, 28))


@pytest.mark.parametrize("key", ["linked", "reads_target", "only_solver", None])
def test_what_a_guider_cannot_serve_needs_a_solver_of_ours(key):
    given = {"linked": True, "reads_target": False, "only_solver": None}
    changed = {"linked": False, "reads_target": True, "only_solver": ("ddim", {})}
    traits = SimpleNamespace(**{**given, **({key: changed[key]} if key else {})})
    term: Any = SimpleNamespace(traits=traits, name="cfg", scale=2.0)
    assert _instead(term).startswith("load the model with guidestar.load") == (key is not None)


def test_all_tokens_of_another_network_are_the_pictures():
    net = torch.nn.Identity()
    assert find_image(net, {}, torch.zeros(2, 5, 3), 9) == slice(0, 5)
    assert find_image(net, {}, torch.zeros(2, 3, 4, 6), 9) == slice(0, 24)


def test_tensors_of_no_numbers_have_an_identity():
    assert list(_tensor(torch.zeros(3, 0))) == [b"torch.float32 (3, 0)", b""]


def test_no_process_has_agreed_to_stop_at_the_start():
    assert (Stop().requested, Stop().agreed) == (False, False)


def test_blocks_are_counted_from_the_first():
    with pytest.raises(ValueError, match=r"counted from 0, but one is -1"):
        gs.stg(1, blocks=(3, -1))
    assert gs.stg(1, blocks=(3, 0)).blocks == (3, 0)


def test_the_largest_number_of_an_expression():
    """Squares of larger ones could not be computed."""
    assert gs.parse(f"cfg({2.0**999})").terms[0].scale == 2.0**999
    for number in (2.0**1000, 1.5 * 2.0**1000):
        with pytest.raises(gs.ExpressionError, match="too large"):
            gs.parse(f"cfg({number})")


def test_directions_that_are_no_covariance_stop_the_posterior_at_the_noise():
    """⟨r, (AVAᵀ + σ_y²) r⟩ ≤ σ_y² ‖r‖² where V is negative: nothing is pushed."""
    noise = 0.5
    observed = SimpleNamespace(
        operator=gs.Identity(), noise=noise, residual=lambda x0: torch.ones(1, 2) - x0
    )
    loss: Any = object.__new__(gs.Observation)
    object.__setattr__(loss, "of", lambda live: observed)
    subject: Any = SimpleNamespace(loss=loss)
    at: Any = SimpleNamespace(x0=torch.zeros(1, 2))
    for variance, wanted in ((-0.1, 0.0), (1.0, 1 / (1.0 + noise**2))):
        found = _Posterior.share(subject, None, at, lambda v, k=variance: k * v, 3)
        torch.testing.assert_close(found, torch.full((1, 2), wanted))
