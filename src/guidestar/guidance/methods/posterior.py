"""Linear inverse problems: the likelihood of an observation, with a covariance of the sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...core.arguments import check_counts
from ...core.levels import expand, inverse_or_zero
from ...core.prediction import Prediction
from ..bases.loss_term import Steered, scoring, spread
from ..bases.statistics import dot
from ..expression import register
from ..losses import Observation
from ..operators import Linear
from ..term import Context, Direction, Live, Pushed, Traits

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Posterior(Steered):
    """``D̂ = D + s (σ²/α) Jᵀ Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y − A D)``, with ``J = ∂D/∂x_t``.

    The covariance V differs between the methods.
    """

    def bind(self, context: Context) -> Direction:
        bound = super().bind(context)
        assert isinstance(bound, Steered)
        if not isinstance(bound.loss, Observation) or not bound.loss.linear:
            raise ValueError(
                f"{self.name}: the loss must be an Observation whose operator is linear and has "
                "a transpose (inpaint, downsample, blur, gray); through a decoder of latents none "
                "is, so use dps, lgd or tfg there"
            )
        return bound

    @property
    def traits(self) -> Traits:
        return replace(super().traits, linked=True)

    def transposed_jacobian(self, live: Live, d: Prediction, v: Tensor) -> Tensor:
        """Return ``Jᵀ v``."""
        return live.gradient(lambda x0: (x0 * v).flatten(1).sum(1), d)

    def covariance(self, live: Live, d: Prediction, v: Tensor) -> Tensor:
        """Return ``(σ²/α) Jᵀ v``, which is ``V v`` for the exact denoiser (Tweedie)."""
        back = self.transposed_jacobian(live, d, v)
        return expand(scoring(live.step.t), back) * back

    def share(self, live: Live, d: Prediction, covariance: Map, iterations: int) -> Tensor:
        """Return ``Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y − A D)``."""
        assert isinstance(self.loss, Observation)
        observed = self.loss.of(live)
        operator, variance = observed.operator, observed.noise**2
        assert isinstance(operator, Linear)
        residual = observed.residual(d.x0)
        system = lambda v: operator(covariance(operator.transpose(v))) + variance * v
        return operator.transpose(least_residual(system, residual, iterations, floor=variance))


@register
@dataclass(frozen=True)
class PiGDM(_Posterior):
    """Pseudoinverse-guided diffusion: ``D̂ = D + s (σ²/α) Jᵀ Aᵀ (r² A Aᵀ + σ_y² I)⁻¹ (y − A D)``.

    ``J = ∂D/∂x_t``, and ``r² = ρ²/(1 + ρ²)`` is the variance of the clean sample around its
    estimate, for data of variance 1. For normal data of that variance, D̂ is the exact posterior
    mean at s = 1. eps follows D̂.

    Algorithm 1 of the paper uses the same gradient in another way (``form="published"``): it leaves
    D and eps, and adds ``d = s √ᾱ_t r² Jᵀ Aᵀ (r² A Aᵀ + σ_y² I)⁻¹ (y − A D)`` to x_s, where r²
    cancels if σ_y is 0. On any schedule, with n = √(α² + σ²), ``d = s α_t n_s r² Jᵀ…``, a split
    shift of x0 by d/α_s. (Later code of the same authors has √(ᾱ_s ᾱ_t) for √ᾱ_t.)

    Args:
        scale: s; 1 in the paper.
        loss: an `Observation` whose operator is linear, with its noise σ_y, or the name of one of
            the run.
        iterations: number of iterations of the linear solver, without a network; 1 is exact if
            ``A Aᵀ`` is a multiple of the identity (inpaint, downsample, gray).
        form: "linked" (the posterior mean) or "published".
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network a step. The push is 0 at alpha = 0.

    References:
        Pseudoinverse-Guided Diffusion Models for Inverse Problems,
        https://openreview.net/forum?id=9_gsMA8MRKQ
            Jiaming Song, Arash Vahdat, Morteza Mardani, Jan Kautz
    """

    iterations: int = 10
    form: Literal["linked", "published"] = "linked"
    name = "pigdm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        _check_iterations(self.name, self.iterations)
        if self.form not in ("linked", "published"):
            raise ValueError(f"pigdm: the form must be linked or published, not {self.form!r}")

    @property
    def traits(self) -> Traits:
        published = self.form == "published"
        return replace(
            super().traits,
            linked=not published,
            reads_target=published,
            repeats=self.iterations,
        )

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        (d,), variance = predictions, spread(live.step.t) ** 2
        share = self.share(live, d, lambda x: expand(variance, x) * x, self.iterations)
        if self.form == "linked":
            return self.covariance(live, d, share), live.state
        t, s = live.step.t, live.step.s
        size = t.alpha * s.norm * variance * inverse_or_zero(s.alpha)
        return expand(size, share) * self.transposed_jacobian(live, d, share), live.state


@register
@dataclass(frozen=True)
class MMPS(_Posterior):
    """Moment-matching posterior sampling: ``D̂ = D + s V Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y − A D)``.

    ``V = (σ²/α) ∂D/∂x_t`` is the covariance of the clean sample (Tweedie). It is applied through
    the network, and never formed. For normal data of any covariance, D̂ is the exact posterior mean
    at s = 1.

    The Jacobian of a trained network is no covariance: it is not symmetric, and V is negative in
    some directions. Conjugate gradients, as in the paper, then diverge with more iterations. Here
    each iteration minimises the residual, so it never rises, and a sample stops when V becomes
    negative (`least_residual`).

    Args:
        scale: s; 1 in the paper.
        loss: an `Observation` whose operator is linear, with its noise σ_y, or the name of one of
            the run.
        iterations: number of iterations of the linear solver, usually 1 to 5; each differentiates
            the network.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network for each iteration and one more. The push is 0
    at alpha = 0.

    References:
        Learning Diffusion Priors from Observations by Expectation Maximization, algorithm 3,
        https://arxiv.org/abs/2405.13712
            François Rozet, Gérôme Andry, François Lanusse, Gilles Louppe
    """

    iterations: int = 3
    name = "mmps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        _check_iterations(self.name, self.iterations)

    @property
    def traits(self) -> Traits:
        return replace(super().traits, gradients=self.iterations + 1)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        (d,) = predictions
        share = self.share(live, d, lambda v: self.covariance(live, d, v), self.iterations)
        return self.covariance(live, d, share), live.state


def _check_iterations(name: str, iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"{name}: there must be at least one iteration, not {iterations}")


def least_residual(apply: Map, b: Tensor, iterations: int, *, floor: float = 0.0) -> Tensor:
    """Solve ``apply(v) = b`` for each sample ``[B, *O]``.

    By generalised conjugate residuals: iteration k minimises ``‖b − apply(v)‖`` over the span of
    ``b, apply(b), …, apply^k(b)``; apply need not be symmetric. A sample stops when it is solved to
    rounding, or when its residual r has ``⟨r, apply(r)⟩ ≤ floor ‖r‖²``: with
    ``apply = A V Aᵀ + floor``, V is then no covariance.

    Args:
        apply: linear, and for a covariance not negative.
        b: the right side.
        iterations: the largest number of iterations.
        floor: the part of ``apply`` that is a multiple of the identity.

    References:
        Variational iterative methods for nonsymmetric systems of linear equations,
        https://doi.org/10.1137/0720023
            Stanley C. Eisenstat, Howard C. Elman, Martin H. Schultz
    """
    v, r, going, before = torch.zeros_like(b), b, True, []
    rounding, floor = torch.finfo(b.dtype).eps, floor * (1 - 1e-3)  # V may be 0 to rounding
    for _ in range(iterations):
        p, q = r, apply(r)
        going = going & (dot(r, q) > floor * dot(r, r)) & (dot(r, r) > rounding**2 * dot(b, b))
        new = rounding * dot(q, q)  # a smaller remainder below is rounding error
        for p_k, q_k, square in before:
            along = dot(q, q_k) / square
            p, q = p - along * p_k, q - along * q_k
        square = torch.where(going & (dot(q, q) > new), dot(q, q), torch.inf)
        step = dot(r, q) / square
        v, r = v + step * p, r - step * q
        before.append((p, q, square))
    return v
