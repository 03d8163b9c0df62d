"""Heun's method, in EDM's and in flow coordinates, and EDM's churn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.levels import Grid, Level, Step, Value, expand, inverse_or_zero, sqrt
from ..core.prediction import Prediction
from ..core.rng import Draw
from .solver import Memory, Moving, Point, Predict, Solver


def _coordinates(level: Level, flow: bool | Tensor) -> tuple[Value, Value]:
    """Return the divisor of x and the time, in flow coordinates or EDM's."""
    if not isinstance(flow, Tensor):
        total = level.alpha + level.sigma
        return (total, level.sigma / total) if flow else (level.alpha, level.rho)
    pairs = zip(_coordinates(level, True), _coordinates(level, False), strict=True)
    n, tau = (
        torch.where(flow, *(torch.as_tensor(v, dtype=torch.float64) for v in p)) for p in pairs
    )
    return n, tau


def _slope(prediction: Prediction, flow: bool | Tensor) -> Tensor:
    if not isinstance(flow, Tensor):
        return prediction.view("velocity") if flow else prediction.eps
    chosen = torch.as_tensor(expand(flow * 1.0, prediction.eps)) > 0
    return torch.where(chosen, prediction.view("velocity"), prediction.eps)


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Heun's second-order method.

    In EDM's coordinates ``y = x/α`` at time ρ the ODE is ``dy/dρ = ε``; in flow coordinates
    ``y = x/(α + σ)`` at time ``σ/(α + σ)`` it is ``dy/dτ = ε − x0``, finite at both ends:

        y_s' = y_t + (τ_s − τ_t) d_t;   y_s = y_t + (τ_s − τ_t)(d_t + d_s')/2

    The step to data is Euler's. 2 evaluations a step, 1 in the last.

    Args:
        form: "edm" (needs alpha > 0), "flow", or "auto": the flow form for samples that start at
            pure noise (alpha = 0), and EDM's for all others.
        churn: EDM's S_churn: noise before a step raises ρ to ``ρ (1 + min(churn/n, √2 − 1))``.
        churn_interval: noise ratios [lo, hi] of the churn.
        churn_noise: EDM's S_noise.

    A split prediction has no published meaning here, so it is refused.

    Raises:
        ValueError: an argument out of range; in a run, the edm form at pure noise, or a guidance
            that splits the prediction.

    References:
        Elucidating the Design Space, algorithms 1 and 2, https://arxiv.org/abs/2206.00364
    """

    form: Literal["auto", "edm", "flow"] = "auto"
    churn: float = 0.0
    churn_interval: tuple[float, float] = (0.0, math.inf)
    churn_noise: float = 1.0
    name = "heun"
    order = 2
    accepts_split = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.churn < math.inf:
            raise ValueError(f"heun: churn must be finite and not negative, not {self.churn}")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def check(self, predict: Predict, grid: Grid) -> None:
        super().check(predict, grid)
        pure = any(bool((torch.as_tensor(level.alpha) == 0).any()) for level in grid)
        if self.form == "edm" and pure:
            raise ValueError(
                "heun in its edm form divides by alpha and cannot start at pure noise (alpha = "
                "0); leave the form out, or use a grid that starts below it"
            )

    def evaluations(self, step: Step) -> Sequence[Step]:
        start = self._raised(step)
        return [start] if _all_clean(step.s) else [start, self._second(step)]

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        x, step = self._add_noise(x_t, step, draw)
        first = yield Point(x, step)
        flow = self._flow(step.grid)
        (n_t, tau_t), (n_s, tau_s) = _coordinates(step.t, flow), _coordinates(step.s, flow)
        y, d = x * expand(inverse_or_zero(n_t), x), _slope(first, flow)
        gap = expand(tau_s - tau_t, x)
        euler = expand(n_s, x) * (y + gap * d)
        if _all_clean(step.s):
            return euler, memory
        second = yield Point(euler, self._second(step))
        heun = expand(n_s, x) * (y + gap * (d + _slope(second, flow)) / 2)
        if not isinstance(step.s.sigma, Tensor):
            return heun, memory
        clean = torch.as_tensor(expand((step.s.sigma == 0) * 1.0, x)) > 0
        return torch.where(clean, euler, heun), memory

    def _flow(self, grid: Grid) -> bool | Tensor:
        """Return whether the flow form is used, for all samples or for each."""
        if self.form != "auto":
            return self.form == "flow"
        return grid[0].alpha == 0

    def _second(self, step: Step) -> Step:
        return step._replace(t=step.s)

    def _gamma(self, step: Step) -> Value:
        low, high = self.churn_interval
        gamma = min(self.churn / step.grid.steps, math.sqrt(2) - 1)
        rho = step.t.rho
        if isinstance(rho, Tensor):
            return ((rho >= low) & (rho <= high) & rho.isfinite()).double() * gamma
        return gamma if low <= rho <= high and rho < math.inf else 0.0

    def _raised(self, step: Step) -> Step:
        """Return the step from the level that churn raises; other levels stay equal, to the bit."""
        gamma = self._gamma(step)
        if not isinstance(gamma, Tensor) and gamma == 0:
            return step
        raised = step.grid.schedule.at_rho(step.t.rho * (1 + gamma))
        raised = raised.where(gamma > 0, step.t) if isinstance(gamma, Tensor) else raised
        return step._replace(t=raised)

    def _add_noise(self, x_t: Tensor, step: Step, draw: Draw) -> tuple[Tensor, Step]:
        """Add noise: in ``y = x/α``, ``y ← y + S_noise √(ρ̂² − ρ²) z``."""
        if not self.churn:
            return x_t, step
        raised = self._raised(step)
        # α̂/α, and 1 at pure noise, which is not raised.
        pure = (step.t.alpha == 0) * 1.0
        ratio = raised.t.alpha / (step.t.alpha + pure) + pure
        added = sqrt(raised.t.sigma**2 - (ratio * step.t.sigma) ** 2) * self.churn_noise
        z = draw.normal_like("churn", x_t)
        return expand(ratio, x_t) * x_t + expand(added, x_t) * z, raised


def _all_clean(level: Level) -> bool:
    return bool((torch.as_tensor(level.sigma) == 0).all())
