"""DPM-Solver++(2M), as an ODE and as an SDE solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.levels import Level, Step, Value, divide, exp, expand, inverse_or_zero, sqrt
from ..core.rng import Draw
from .solver import Memory, Moving, Point, Solver


def _curvature(x_t: Tensor, clean: Tensor, h: Value, memory: Memory) -> Tensor | float:
    """Return ``(D̄_t − D̄_prev)/(2r)``, ``r = h_prev/h``; 0 where there is no finite history."""
    if not memory:
        return 0.0
    slope = divide(h, 2 * memory["h"])
    finite = torch.isfinite(torch.as_tensor(slope))
    slope = (
        torch.where(finite, slope, 0.0)
        if isinstance(slope, Tensor)
        else slope
        if bool(finite)
        else 0.0
    )
    return expand(slope, x_t) * (clean - memory["clean"])


def _half_step(step: Step) -> Value:
    """Return h, half the gain in log-SNR; infinite towards data or from pure noise, 0 where a
    sample rests at either.
    """
    h = (step.s.log_snr - step.t.log_snr) / 2
    if isinstance(h, Tensor):
        return torch.where(h.isnan(), 0.0, h)
    return 0.0 if math.isnan(h) else h


def _clean(x_t: Tensor, eps: Tensor, level: Level, x0: Tensor) -> Tensor:
    """Return ``D̄ = (x_t − σε)/α``: what the history is made of (x0 itself unless the prediction is
    split).
    """
    estimate = (x_t - expand(level.sigma, x_t) * eps) * expand(inverse_or_zero(level.alpha), x_t)
    if not isinstance(level.alpha, Tensor):
        return estimate if level.alpha else x0
    return torch.where(torch.as_tensor(expand((level.alpha != 0) * 1.0, x_t)) > 0, estimate, x0)


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Solver):
    """``x_s = α_s x0 + σ_s ε + α_s (1 − e^{−h}) (D̄_t − D̄_prev)/(2r)``, ``h`` the half step in
    log-SNR.

    The first step, and the last where it leads to data, are of first order.

    References:
        DPM-Solver++, algorithm 2, https://arxiv.org/abs/2211.01095
    """

    name = "dpmpp-2m"
    order = 2
    history = True

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        h, s = _half_step(step), step.s
        clean = _clean(x_t, prediction.eps, step.t, prediction.x0)
        x_s = expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma, x_t) * prediction.eps
        x_s = x_s + expand(s.alpha * (1 - exp(-h)), x_t) * _curvature(x_t, clean, h, memory)
        return x_s, {"clean": clean, "h": h}


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp2M(Solver):
    """The stochastic form of DPM-Solver++(2M), with the noise z.

        x_s = α_s x0 + σ_s e^{−h} ε + α_s (1 − e^{−2h}) (D̄_t − D̄_prev)/(2r) + σ_s √(1 − e^{−2h}) z

    References:
        DPM-Solver++, https://arxiv.org/abs/2211.01095
    """

    name = "sde-dpmpp-2m"
    order = 2
    history = True

    @property
    def stochastic(self) -> bool:
        return True

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        h, s = _half_step(step), step.s
        clean = _clean(x_t, prediction.eps, step.t, prediction.x0)
        gain = 1 - exp(-2 * h)
        x_s = expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma * exp(-h), x_t) * prediction.eps
        x_s = x_s + expand(s.alpha * gain, x_t) * _curvature(x_t, clean, h, memory)
        x_s = x_s + expand(s.sigma * sqrt(gain), x_t) * draw.normal_like("sde", x_t)
        return x_s, {"clean": clean, "h": h}
