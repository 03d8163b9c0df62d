"""FreeDoM: a step down any energy of the clean estimate, through the network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.levels import expand, inverse_or_zero
from ...core.prediction import Prediction
from ..bases.loss_term import Steered, displacing
from ..expression import register
from ..term import Live, Pushed, Traits


@register
@dataclass(frozen=True)
class FreeDoM(Steered):
    """FreeDoM: x_s is displaced by ``d = −s √ᾱ_t ∇_{x_t} E(D(x_t))``, for any energy E.

    ``√ᾱ_t``, the step size of the authors' code, is α_t in variance-preserving coordinates. On any
    schedule, with n = √(α² + σ²), ``d = −s (α_t/n_t) n_t n_s ∇_{x_t}``, a split shift of x0 by
    d/α_s. The paper travels back in time in the middle third of the run:
    ``TimeTravel(solver=DDPM(), times=2, where=(1/3, 2/3))``.

    Args:
        scale: s.
        loss: E: any differentiable ``loss(x0) -> [B]``, an `Observation`, or the name of a loss of
            the run.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network a step.

    References:
        FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model, algorithm 1,
        https://arxiv.org/abs/2303.09833
            Jiwen Yu, Yinhuai Wang, Chen Zhao, Bernard Ghanem, Jian Zhang
    """

    name = "freedom"

    @property
    def traits(self) -> Traits:
        return replace(super().traits, reads_target=True)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        t = live.step.t
        size = displacing(live.step) * t.alpha * inverse_or_zero(t.norm)
        gradient = live.gradient(self.loss_of(live), *predictions)
        return -expand(size, gradient) * gradient, live.state
