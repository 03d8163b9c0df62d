"""Universal guidance: forward through the network, backward from the clean estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...core.arguments import check_counts
from ...core.levels import expand
from ...core.prediction import Prediction
from ..bases.loss_term import Steered, scoring
from ..expression import register
from ..losses import gradient
from ..term import Live, Pushed, Traits
from ..weights import finite


@register
@dataclass(frozen=True)
class UGD(Steered):
    """Universal guidance, forward: ``ε̂ = ε + s σ ∇_{x_t} ℓ(D(x_t))``.

    That is ``D̂ = D − s (σ²/α) ∇_{x_t} ℓ``. The backward part is the term ugd_backward; the solver
    `TimeTravel` does the recurrences.

    Args:
        scale: s.
        loss: ℓ: any differentiable ``loss(x0) -> [B]``, an `Observation`, or the name of a loss of
            the run.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network a step. The push is 0 at alpha = 0.

    References:
        Universal Guidance for Diffusion Models, algorithm 1, https://arxiv.org/abs/2302.07121
            Arpit Bansal, Hong-Min Chu, Avi Schwarzschild, Soumyadip Sengupta, Micah Goldblum, Jonas
            Geiping, Tom Goldstein
    """

    name = "ugd"

    @property
    def traits(self) -> Traits:
        return replace(super().traits, linked=True)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        down = live.gradient(self.loss_of(live), *predictions)
        return -expand(scoring(live.step.t), down) * down, live.state


@register
@dataclass(frozen=True)
class UGDBackward(Steered):
    """Universal guidance, backward: ``D̂ = D + s Δ``, by m descent steps ``Δ ← Δ − a ∇ℓ(D + Δ)``.

    The steps start at the estimate of the pass, before any guidance; eps follows. With the forward
    part: ``ugd(6) + ugd_backward(1, steps=10, rate=0.1)``.

    Args:
        scale: s, the share of Δ; 1 in the paper.
        loss: ℓ, as in ugd.
        steps: m.
        rate: a.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation a step, and m gradients of the loss.

    References:
        Universal Guidance for Diffusion Models, algorithm 1, https://arxiv.org/abs/2302.07121
            Arpit Bansal, Hong-Min Chu, Avi Schwarzschild, Soumyadip Sengupta, Micah Goldblum, Jonas
            Geiping, Tom Goldstein
    """

    steps: int = 5
    rate: float = 0.1
    name = "ugd_backward"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        if self.steps < 1 or not finite(self.rate):
            raise ValueError(
                "ugd_backward: there must be at least one step, and a finite rate, not "
                f"{self.steps} and {self.rate!r}"
            )

    @property
    def traits(self) -> Traits:
        return replace(super().traits, linked=True, differentiates=None, repeats=self.steps - 1)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        (base,) = predictions
        loss, x0 = self.loss_of(live), base.x0.detach()
        delta = torch.zeros_like(x0)
        for _ in range(self.steps):
            delta = delta - self.rate * gradient(loss, x0 + delta)
        return delta, live.state
