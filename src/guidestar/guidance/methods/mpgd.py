"""Manifold-preserving guided diffusion: a step on the clean estimate itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.prediction import Prediction
from ..bases.loss_term import Steered
from ..expression import register
from ..losses import gradient
from ..term import Live, Pushed, Traits


@register
@dataclass(frozen=True)
class MPGD(Steered):
    """Manifold-preserving guided diffusion: ``D̂ = D − c ∇_D ℓ(D)``; eps does not follow.

    The network is not differentiated, so it may be any function.

    Args:
        scale: c, the step on the clean estimate.
        loss: ℓ: an `Observation`, or any differentiable ``loss(x0) -> [B]``, or the name of a loss
            of the run.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation a step, and 1 gradient of the loss.

    References:
        Manifold Preserving Guided Diffusion, algorithm 1, https://arxiv.org/abs/2311.16424
            Yutong He, Naoki Murata, Chieh-Hsin Lai, Yuhta Takida, Toshimitsu Uesaka, Dongjun Kim,
            Wei-Hsiang Liao, Yuki Mitsufuji, J. Zico Kolter, Ruslan Salakhutdinov, Stefano Ermon
    """

    name = "mpgd"

    @property
    def traits(self) -> Traits:
        return replace(super().traits, differentiates=None)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        (base,) = predictions
        return -gradient(self.loss_of(live), base.x0), live.state
