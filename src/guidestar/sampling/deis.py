"""Multistep methods on noise estimates: DEIS, iPNDM, LMS and gradient estimation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.levels import Level, Step, Value, expand
from ..core.rng import Draw
from .changes import Remembering
from .exponential import (
    Estimate,
    History,
    adams,
    check_orders,
    each,
    half_log_snr,
    order_at,
    usable,
)
from .solver import Memory, Moving, Point

_UNIFORM = {
    1: (),
    2: (-1 / 2,),
    3: (-16 / 12, 5 / 12),
    4: (-59 / 24, 37 / 24, -9 / 24),
}
"""Adams–Bashforth for equal steps: the weights of all estimates but the newest."""


def _rho_weights(rho_s: float, rho_t: float, *rhos: float) -> tuple[float, ...]:
    """Return ``∫_{ρ_t}^{ρ_s} ℓ_j(ρ) dρ`` of the polynomials through ρ_t and the earlier ρ."""
    gap = rho_s - rho_t
    used = usable([(rho - rho_t) / gap for rho in rhos]) if gap and math.isfinite(gap) else []
    found = []
    for j, place in enumerate(used):
        polynomial, scale = [1.0], place
        for i, other in enumerate(used):
            if i != j:
                low, high = [*(-other * c for c in polynomial), 0.0], [0.0, *polynomial]
                polynomial = [a + b for a, b in zip(low, high, strict=True)]
                scale *= place - other
        found.append(gap * sum(c / (n + 2) for n, c in enumerate(polynomial)) / scale)
    return (*found, *(0.0,) * (len(rhos) - len(used)))


@dataclass(frozen=True, kw_only=True)
class DEIS(Remembering):
    """Adams–Bashforth on noise estimates, in the ODE ``d(x/α)/dρ = ε``.

        x_s = α_s x0 + σ_s ε + α_s Σ_j c_j (ε_j − ε_t)

    Args:
        order: how many estimates are used, from 1 (DDIM) to 4.
        form: what the weights are: "log-snr" integrates a polynomial in the log-SNR exactly (DEIS
            with log ρ), "rho" one in ρ (LMS of k-diffusion, iPNDM with variable steps), "uniform"
            takes those for equal steps in ρ (iPNDM).
        gamma: with form "uniform" and order 2: ``ε_t + (γ − 1)(ε_t − ε_{−1})`` stands for ε
            (gradient estimation, where γ is 2; Adams–Bashforth has 3/2).
        first_order_steps: how many of the first steps are of first order.
        lower_order_final: whether the order falls to 1 over the last steps.

    References:
        Fast Sampling of Diffusion Models with Exponential Integrator,
        https://arxiv.org/abs/2204.13902
            Qinsheng Zhang, Yongxin Chen
        Interpreting and Improving Diffusion Models from an Optimization Perspective (gradient
        estimation), https://arxiv.org/abs/2306.04848
            Frank Permenter, Chenyang Yuan
    """

    order: int = 3
    form: Literal["log-snr", "rho", "uniform"] = "log-snr"
    gamma: float | None = None
    first_order_steps: int = 1
    lower_order_final: bool = True
    name = "deis"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_orders(self.name, self.first_order_steps, order=self.order)
        if self.gamma is None:
            return
        if self.form != "uniform" or self.order != 2:
            raise ValueError("deis: gamma needs form='uniform' and order=2")
        if not 0 <= self.gamma <= 10:
            raise ValueError(f"deis: gamma must be from 0 to 10, not {self.gamma!r}")

    @property
    def convergence(self) -> int:
        """Where steps change slowly "uniform" weights are of second order, any other γ of first."""
        if self.form != "uniform":
            return self.order
        return min(self.order, 2) if self.gamma in (None, 1.5) else 1

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        noise, here = Estimate.noise(prediction, self.at_changes), self._place(step.t)
        past = History.read(memory).follow(noise, self.at_changes)
        order = order_at(self, step, len(past.estimates))
        s = step.s
        x_s = expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma, x_t) * prediction.eps
        if order > 1:
            weights = each(self._weights, self._place(s), here, *past.places[: order - 1])
            scale = s.sigma if self.form == "log-snr" else s.alpha
            x_s = x_s + expand(scale, x_t) * past.correction(noise.value, weights)
        return x_s, past.memory(noise, here, self.order - 1, order)

    def _place(self, level: Level) -> Value:
        return half_log_snr(level) if self.form == "log-snr" else level.rho

    def _weights(self, there: float, here: float, *past: float) -> tuple[float, ...]:
        if self.form == "log-snr":
            return adams(there - here, -1.0, tuple(p - here for p in past))
        if self.form == "rho":
            return _rho_weights(there, here, *past)
        if not all(map(math.isfinite, (here, *past))):
            return (0.0,) * len(past)
        factors = _UNIFORM[len(past) + 1] if self.gamma is None else (1 - self.gamma,)
        return tuple((there - here) * c for c in factors)
