"""Diffusion posterior sampling: a step down the distance to an observation, through the network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.levels import expand
from ...core.prediction import Prediction
from ..bases.loss_term import Steered, displacing
from ..expression import register
from ..term import Live, Pushed, Traits


@register
@dataclass(frozen=True)
class DPS(Steered):
    """Diffusion posterior sampling: x_s is displaced by ``d = −ζ ∇_{x_t} ‖y − A(D(x_t))‖``.

    The distance is not squared, and per sample. Sizes are those of variance-preserving coordinates:
    on any schedule, with n = √(α² + σ²), ``d = −ζ n_t n_s ∇_{x_t}``, a split shift of x0 by d/α_s.

    ζ is that of the authors' code. The paper writes the step as ``ζ' ∇‖·‖²/‖·‖``, which is
    ``2 ζ' ∇‖·‖``, so ζ = 2ζ'.

    Args:
        scale: ζ, usually 0.3 to 1 with the paper's 1000 steps. A step moves a sample by about ζ at
            most, so few steps need a larger one: 5 with 12 steps on pictures of 28 × 28.
        loss: an `Observation`, or any differentiable ``loss(x0) -> [B]``, or the name of a loss of
            the run.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network a step.

    References:
        Diffusion Posterior Sampling for General Noisy Inverse Problems, algorithm 1,
        https://arxiv.org/abs/2209.14687
            Hyungjin Chung, Jeongsol Kim, Michael T. Mccann, Marc L. Klasky, Jong Chul Ye
    """

    name = "dps"

    @property
    def traits(self) -> Traits:
        return replace(super().traits, reads_target=True)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        gradient = live.gradient(self.loss_of(live), *predictions)
        return -expand(displacing(live.step), gradient) * gradient, live.state
