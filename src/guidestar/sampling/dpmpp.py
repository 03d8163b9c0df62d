"""DPM-Solver++(2M), as an ODE and as an SDE solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.levels import Step, Value, divide, exp, expand, sqrt
from ..core.rng import Draw
from .changes import Remembering
from .exponential import Estimate, History, half_log_snr, half_step
from .solver import Memory, Moving, Point


def _curvature(past: History, clean: Estimate, h: Value, memory: Memory) -> Tensor | float:
    """Return ``(D̄_t − D̄_prev)/(2r)``, ``r = h_prev/h``; 0 where there is no finite history."""
    if not past.estimates:
        return 0.0
    slope = divide(h, 2 * memory["h"])
    if isinstance(slope, Tensor):
        slope = torch.where(slope.isfinite(), slope, 0.0)
    elif not math.isfinite(slope):
        slope = 0.0
    return expand(slope, clean.value) * (clean.value - past.estimates[0])


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Remembering):
    """``x_s = α_s x0 + σ_s ε + α_s (1 − e^{−h}) (D̄_t − D̄_prev)/(2r)``, ``h`` the half step in
    log-SNR.

    The first step, and the last where it leads to data, are of first order.

    References:
        DPM-Solver++, algorithm 2, https://arxiv.org/abs/2211.01095
    """

    name = "dpmpp-2m"
    order = 2

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        h, s = half_step(step), step.s
        clean = Estimate.clean(x_t, prediction, step.t, self.at_changes)
        past = History.read(memory).follow(clean, self.at_changes)
        x_s = expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma, x_t) * prediction.eps
        x_s = x_s + expand(s.alpha * (1 - exp(-h)), x_t) * _curvature(past, clean, h, memory)
        return x_s, {**past.memory(clean, half_log_snr(step.t), 1, 2), "h": h}


@dataclass(frozen=True, kw_only=True)
class SDEDPMpp2M(Remembering):
    """The stochastic form of DPM-Solver++(2M), with the noise z.

        x_s = α_s x0 + σ_s e^{−h} ε + α_s (1 − e^{−2h}) (D̄_t − D̄_prev)/(2r) + σ_s √(1 − e^{−2h}) z

    References:
        DPM-Solver++, https://arxiv.org/abs/2211.01095
    """

    name = "sde-dpmpp-2m"
    order = 2

    @property
    def stochastic(self) -> bool:
        return True

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        h, s = half_step(step), step.s
        clean = Estimate.clean(x_t, prediction, step.t, self.at_changes)
        past = History.read(memory).follow(clean, self.at_changes)
        gain = 1 - exp(-2 * h)
        x_s = expand(s.alpha, x_t) * prediction.x0 + expand(s.sigma * exp(-h), x_t) * prediction.eps
        x_s = x_s + expand(s.alpha * gain, x_t) * _curvature(past, clean, h, memory)
        x_s = x_s + expand(s.sigma * sqrt(gain), x_t) * draw.normal_like("sde", x_t)
        return x_s, {**past.memory(clean, half_log_snr(step.t), 1, 2), "h": h}
