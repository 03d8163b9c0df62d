"""Multistep methods on clean estimates: RES, and DPM-Solver++(3M) with its stochastic form."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.levels import Step, Value, expand, sqrt
from ..core.prediction import Prediction
from ..core.rng import Draw
from .changes import Remembering
from .exponential import (
    Estimate,
    History,
    adams,
    check_orders,
    decay,
    each,
    half_log_snr,
    half_step,
    moments,
    order_at,
    usable,
)
from .solver import Memory, Moving, Point


def first_order(
    x_t: Tensor, prediction: Prediction, step: Step, h: Value, eta: Value, draw: Draw, tag: str
) -> Tensor:
    """Return ``α_s x0 + σ_s e^{−ηh} ε + σ_s √(1 − e^{−2ηh}) z``: DDIM where η is 0."""
    s = step.s
    if not isinstance(eta, Tensor) and not eta:
        return expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma, x_t) * prediction.eps
    x_s = (
        expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma * decay(eta, h), x_t) * prediction.eps
    )
    deviation = s.sigma * sqrt(1 - decay(2 * eta, h))
    return x_s + expand(deviation, x_t) * draw.normal_like(tag, x_t)


@dataclass(frozen=True, kw_only=True)
class Multistep(Remembering, ABC):
    """Base of multistep methods on clean estimates; ``weights`` is what sets them apart."""

    order: int = 2
    eta: float = 0.0
    first_order_steps: int = 1
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_orders(self.name, self.first_order_steps, order=self.order)
        if not 0 <= self.eta <= 10:
            raise ValueError(f"{self.name}: eta must be from 0 to 10, not {self.eta!r}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def weights(self, h: float, places: tuple[float, ...]) -> tuple[float, ...]:
        """Return the weight of each earlier estimate's difference from the newest."""
        return adams(h, 1 + self.eta, places)

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        clean, here = Estimate.clean(x_t, prediction, step.t, self.at_changes), half_log_snr(step.t)
        past = History.read(memory).follow(clean, self.at_changes)
        order = order_at(self, step, len(past.estimates))
        x_s = first_order(x_t, prediction, step, half_step(step), self.eta, draw, "sde")
        if order > 1:
            weights = each(
                lambda s, t, *ps: self.weights(s - t, tuple(p - t for p in ps)),
                half_log_snr(step.s),
                here,
                *past.places[: order - 1],
            )
            x_s = x_s + expand(step.s.alpha, x_t) * past.correction(clean.value, weights)
        return x_s, past.memory(clean, here, self.order - 1, order)


@dataclass(frozen=True, kw_only=True)
class RES(Multistep):
    """Exponential Adams–Bashforth: the exact integral of a polynomial through clean estimates.

        x_s = α_s x0 + σ_s ε + α_s Σ_j w_j (D̄_j − D̄_t),   w_j = ∫_0^h e^{−(h−u)} ℓ_j(u) du

    over the last ``order − 1`` estimates. Of order 2 it is the multistep form of RES, of order p
    also SA-Solver's predictor without noise. The step to data is of first order.

    Args:
        order: how many estimates the polynomial goes through, from 1 (DDIM) to 4.
        eta: τ² of the SDE with noise (0: the ODE). Then ε decays by a further ``e^{−ηh}``, the
            weights have ``(1 + η)`` in the exponent, and ``σ_s √(1 − e^{−2ηh}) z`` is added.
        first_order_steps: how many of the first steps are of first order.
        lower_order_final: whether the order falls to 1 over the last steps.

    References:
        Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling,
        https://arxiv.org/abs/2308.02157
            Qinsheng Zhang, Jiaming Song, Yongxin Chen
    """

    name = "res-multistep"

    @property
    def convergence(self) -> int:
        """With noise the weak order is 2 at most: the polynomial is fitted to a rough path."""
        return min(self.order, 2) if self.eta else self.order


@dataclass(frozen=True, kw_only=True)
class Published3M(Multistep, ABC):
    """DPM-Solver++(3M) as it is published in code.

    With ``r_0 = h_{−1}/h``, ``r_1 = h_{−2}/h``, ``D_0 = (D̄_t − D̄_{−1})/r_0``,
    ``D_1 = (D̄_{−1} − D̄_{−2})/r_1``, ``φ_2 = (e^{−h} − 1)/h + 1`` and ``φ_3 = φ_2/h − 1/2``:

        x_s = α_s x0 + σ_s ε + α_s φ_2 (D_0 + r_0/(r_0 + r_1) (D_0 − D_1))
                             − α_s φ_3 (D_0 − D_1)/(r_0 + r_1)

    The last term is half of the exact integral, so the order is 2, with a smaller error than 2M's;
    `RES` of order 3 has the whole of it. Arguments as there.

    References:
        DPM-Solver++, https://arxiv.org/abs/2211.01095
        The authors' code (``multistep_dpm_solver_third_update``),
        https://github.com/LuChengTHU/dpm-solver
    """

    order: Literal[3] = 3

    @property
    def convergence(self) -> int:
        """Order of convergence: the published weights are of second order."""
        return 2

    def weights(self, h: float, places: tuple[float, ...]) -> tuple[float, ...]:
        used = usable([p / h for p in places]) if 0 < h < 700 else []
        if len(used) < 2:
            return adams(h, 1 + self.eta, places)
        r0, r1 = -used[0], used[0] - used[1]
        z = (1 + self.eta) * h
        phi2, minus_phi3 = moments(z, 3)[1:]
        minus_phi3 /= 2
        share, both = r0 / (r0 + r1), 1 / r0 + 1 / r1
        return (
            -phi2 * (1 / r0 + share * both) - minus_phi3 * both / (r0 + r1),
            phi2 * share / r1 + minus_phi3 / (r1 * (r0 + r1)),
        )


@dataclass(frozen=True, kw_only=True)
class DPMpp3M(Published3M):
    """DPM-Solver++(3M); see `Published3M`."""

    name = "dpmpp-3m"


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp3M(Published3M):
    """The stochastic form of DPM-Solver++(3M) in k-diffusion, with ``h(1 + η)`` in its weights."""

    eta: float = 1.0
    name = "sde-dpmpp-3m"
