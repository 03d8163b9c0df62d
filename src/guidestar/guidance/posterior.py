"""Linear inverse problems: the likelihood of an observation, with the covariance of the clean sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..levels import expand
from ..prediction import Prediction
from ._core import Context, Direction, Live, Pushed, Traits
from ._statistics import dot
from ._steered import Steered, scoring, spread
from .expression import register
from .losses import Observation

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Posterior(Steered):
    """``D̂ = D + s (σ²/α) Jᵀ Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y − A D)``, with ``J = ∂D/∂x_t`` and V as each method says."""

    def bind(self, context: Context) -> Direction:
        bound = super().bind(context)
        if not isinstance(bound.loss, Observation) or not bound.loss.linear:  # type: ignore[attr-defined]
            raise ValueError(f"{self.name}: the loss must be an Observation whose operator is linear and has a transpose (inpaint, downsample, blur, gray)")
        return bound

    @property
    def traits(self) -> Traits:
        return replace(super().traits, linked=True)

    def to_clean(self, live: Live, seen: Tensor) -> Tensor:
        """Return ``(σ²/α) Jᵀ seen``, which is ``V seen`` for the exact denoiser (Tweedie)."""
        carried = self.through_network(live, lambda x0: (x0 * seen).flatten(1).sum(1))
        return expand(scoring(live.step.t), carried) * carried

    def solved(self, live: Live, covariance: Map, iterations: int) -> Pushed:
        """Solve for the observation's share, and carry it to the clean estimate."""
        observed = self.loss.of(live)  # type: ignore[union-attr]
        operator, noise = observed.operator, observed.noise
        share = conjugate(lambda v: operator(covariance(operator.transpose(v))) + noise**2 * v, observed.residual(live.predictions[0].x0.detach()), iterations)
        return self.to_clean(live, operator.transpose(share)), live.state


@register
@dataclass(frozen=True)
class PiGDM(_Posterior):
    """Pseudoinverse-guided diffusion: ``D̂ = D + s (σ²/α) Jᵀ Aᵀ (r² A Aᵀ + σ_y² I)⁻¹ (y − A D)``.

    ``J = ∂D/∂x_t``, and ``r² = ρ²/(1 + ρ²)`` is the variance of the clean sample around its estimate
    for data of variance 1: for normal data of that variance, D̂ is the exact posterior mean at s = 1.

    Args:
        scale: s; 1 in the paper.
        loss: an `Observation` whose operator is linear, with its noise σ_y, or the name of one of
            the run.
        iterations: of conjugate gradients, which solve the system (no network in it); 1 is exact
            where ``A Aᵀ`` is a multiple of the identity (inpaint, downsample, gray).
        through: the pass it looks at, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network a step. The push is 0 at alpha = 0.

    References:
        Pseudoinverse-Guided Diffusion Models for Inverse Problems, https://openreview.net/forum?id=9_gsMA8MRKQ
            Jiaming Song, Arash Vahdat, Morteza Mardani, Jan Kautz
    """

    iterations: int = 10
    name = "pigdm"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_iterations(self.name, self.iterations)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        variance = spread(live.step.t) ** 2
        return self.solved(live, lambda x: expand(variance, x) * x, self.iterations)


@register
@dataclass(frozen=True)
class MMPS(_Posterior):
    """Moment-matching posterior sampling: ``D̂ = D + s V Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y − A D)``.

    ``V = (σ²/α) ∂D/∂x_t`` is the covariance of the clean sample (Tweedie), taken from the network
    without being written out: for normal data of any covariance, D̂ is the exact posterior mean at
    s = 1.

    Args:
        scale: s; 1 in the paper.
        loss: an `Observation` whose operator is linear, with its noise σ_y, or the name of one of
            the run.
        iterations: of conjugate gradients, each of which differentiates the network; 1 to 5.
        through: the pass it looks at, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network for each iteration and one more. The push is 0
    at alpha = 0.

    References:
        Learning Diffusion Priors from Observations by Expectation Maximization, algorithm 3, https://arxiv.org/abs/2405.13712
            François Rozet, Gérôme Andry, François Lanusse, Gilles Louppe
    """

    iterations: int = 3
    name = "mmps"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_iterations(self.name, self.iterations)

    @property
    def traits(self) -> Traits:
        return replace(super().traits, gradients=self.iterations + 1)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        return self.solved(live, lambda x: self.to_clean(live, x), self.iterations)


def _check_iterations(name: str, iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"{name}: there must be at least one iteration, not {iterations}")


def conjugate(apply: Map, b: Tensor, iterations: int) -> Tensor:
    """Solve ``apply(v) = b`` of each sample by conjugate gradients; apply is symmetric and not negative.

    A sample that is solved to rounding, or that apply says nothing of, stays as it is.
    """
    v, r = torch.zeros_like(b), b
    p, rest = r, dot(r, r)
    enough = rest * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        applied = apply(p)
        curvature = dot(p, applied)
        going = (rest > enough) & (curvature > 0)
        step = torch.where(going, rest / torch.where(going, curvature, 1.0), 0.0)
        v, r = v + step * p, r - step * applied
        left = dot(r, r)
        p = r + torch.where(going, left / torch.where(going, rest, 1.0), 0.0) * p
        rest = left
    return v
