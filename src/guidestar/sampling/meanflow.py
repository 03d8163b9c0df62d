"""Sampling by average velocities: each step is taken whole, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.levels import Step, expand
from ..core.rng import Draw
from .solver import Memory, Moving, Point, Solver


@dataclass(frozen=True, kw_only=True)
class MeanFlow(Solver):
    """``x_s = α_s x0 + σ_s ε`` with the pair of the whole step from t to s.

    The network gets the share of the flow's time that the step covers, and estimates the clean data
    with which one straight step lands at ``x_s``: in a flow, ``x_s = x_t − (t − s) u(x_t, s, t)``
    with the average velocity ``u = ε − x0``. A network that takes no such input estimates the
    velocity at t, so of an ordinary denoiser this is `DDIM`.

    References:
        Mean Flows for One-step Generative Modeling, equation 12, https://arxiv.org/abs/2505.13447
    """

    name = "meanflow"
    order = 1

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step._replace(leap=True))
        x_0, eps = prediction.x0, prediction.eps
        return expand(step.s.alpha, x_t) * x_0 + expand(step.s.sigma, x_t) * eps, memory
