"""ER-SDE: extended reverse-time SDEs, whose noise follows a function of the noise ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from ..core.levels import Step, expand
from ..core.rng import Draw
from .changes import Remembering
from .exponential import Estimate, History, check_orders, each, order_at
from .solver import Memory, Moving, Point

_POINTS = 32


def _growth(rho: float) -> float:
    """Return ``φ(ρ)/ρ = e^{ρ^0.3} + 10``."""
    return math.exp(min(rho**0.3, 700.0)) + 10 if rho < math.inf else math.inf


@dataclass(frozen=True, kw_only=True)
class ERSDE(Remembering):
    """ER-SDE-Solver with the noise function ``φ(ρ) = ρ (e^{ρ^0.3} + 10)`` (the paper's SDE 5).

    With ``r = φ(ρ_s)/φ(ρ_t)`` and ``Δ = ρ_s − ρ_t``:

        x_s = α_s x0 + α_s r ρ_t ε + α_s √(ρ_s² − r² ρ_t²) z
              + α_s (Δ + φ(ρ_s) ∫_{ρ_s}^{ρ_t} dρ/φ) D'
              + α_s (Δ²/2 + φ(ρ_s) ∫_{ρ_s}^{ρ_t} (ρ − ρ_t)/φ dρ) D''

    where D' and D'' are differences of the last clean estimates in ρ. The integrals are taken by
    Gauss–Legendre quadrature, exact to rounding.

    Args:
        order: 1, 2 (with D') or 3 (with D'').
        first_order_steps: how many of the first steps are of first order.
        lower_order_final: whether the order falls to 1 over the last steps.

    References:
        Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models,
        https://arxiv.org/abs/2309.06169
            Qinpeng Cui, Xinyi Zhang, Qiqi Bao, Qingmin Liao
    """

    order: int = 3
    first_order_steps: int = 1
    lower_order_final: bool = False
    name = "er-sde"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_orders(self.name, self.first_order_steps, order=self.order)
        if self.order > 3:
            raise ValueError(f"er-sde: order must be from 1 to 3, not {self.order}")

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def convergence(self) -> int:
        """The weak order is 2 at most."""
        return min(self.order, 2)

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        clean, rho, s = Estimate.clean(x_t, prediction, step.t, self.at_changes), step.t.rho, step.s
        past = History.read(memory).follow(clean, self.at_changes)
        order = order_at(self, step, len(past.estimates))
        ratio, deviation = each(_noise, s.rho, rho)
        x_s = expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma * ratio, x_t) * prediction.eps
        x_s = x_s + expand(s.sigma * deviation, x_t) * draw.normal_like("er-sde", x_t)
        if order > 1:
            weights = each(_weights, s.rho, rho, *past.places[: order - 1])
            x_s = x_s + expand(s.alpha, x_t) * past.correction(clean.value, weights)
        return x_s, past.memory(clean, rho, self.order - 1, order)


def _noise(rho_s: float, rho_t: float) -> tuple[float, float]:
    """Return ``r ρ_t/ρ_s`` and ``√(1 − (r ρ_t/ρ_s)²)``."""
    if not rho_s < rho_t:
        return 1.0, 0.0
    ratio = _growth(rho_s) / _growth(rho_t)
    return ratio, math.sqrt(1 - ratio * ratio)


def _weights(rho_s: float, rho_t: float, *past: float) -> tuple[float, ...]:
    """Return the weights of the earlier estimates' differences from the newest."""
    none = (0.0,) * len(past)
    if not 0 < rho_s < rho_t < past[0] < math.inf:
        return none
    gap = rho_s - rho_t
    first, second = _integrals(rho_s, rho_t)
    scale = rho_s * _growth(rho_s)
    slope = (gap + scale * first) / (past[0] - rho_t)  # D' is (D_{−1} − D) over this gap
    if len(past) == 1 or not past[0] < past[1] < math.inf:
        return (slope, *none[1:])
    bend = (gap * gap / 2 + scale * second) / ((rho_t - past[1]) / 2)
    # D'' = ((D − D_{−1})/(ρ_t − ρ_{−1}) − (D_{−1} − D_{−2})/(ρ_{−1} − ρ_{−2})) / ((ρ_t − ρ_{−2})/2)
    near, far = 1 / (rho_t - past[0]), 1 / (past[0] - past[1])
    return slope - bend * (near + far), bend * far


def _integrals(low: float, high: float) -> tuple[float, float]:
    """Return ``∫ dρ/φ`` and ``∫ (ρ − high)/φ dρ`` from low to high, substituting log ρ."""
    start, span = math.log(low), math.log(high / low)
    zeroth = first = 0.0
    for node, weight in _legendre(_POINTS):
        rho = math.exp(start + span * (node + 1) / 2)
        value = weight * span / 2 / _growth(rho)
        zeroth, first = zeroth + value, first + (rho - high) * value
    return zeroth, first


@cache
def _legendre(count: int) -> tuple[tuple[float, float], ...]:
    """Return nodes in [−1, 1] and weights of Gauss–Legendre quadrature, by Newton's method."""
    found: list[tuple[float, float]] = []
    for i in range(count):
        x = math.cos(math.pi * (i + 0.75) / (count + 0.5))
        for _ in range(8):  # each squares the error
            value, slope = _polynomial(count, x)
            x -= value / slope
        slope = _polynomial(count, x)[1]
        found.append((x, 2 / ((1 - x * x) * slope * slope)))
    return tuple(found)


def _polynomial(count: int, x: float) -> tuple[float, float]:
    """Return Legendre's polynomial of that degree, and its slope."""
    before, now = 1.0, x
    for k in range(2, count + 1):
        before, now = now, ((2 * k - 1) * x * now - (k - 1) * before) / k
    return now, count * (x * now - before) / (x * x - 1)
