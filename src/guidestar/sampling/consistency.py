"""Multistep consistency sampling: jump to data, and put fresh noise back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.levels import Step, expand
from ..core.rng import Draw
from .solver import Memory, Moving, Point, Solver


@dataclass(frozen=True, kw_only=True)
class Consistency(Solver):
    """``x_s = α_s x0 + σ_s z`` with fresh noise z: for students that estimate the end of a path.

    Of an ordinary denoiser it does not converge to the model's distribution (order 0).

    References:
        Consistency Models, algorithm 1, https://arxiv.org/abs/2303.01469
    """

    name = "consistency"
    order = 0

    @property
    def stochastic(self) -> bool:
        return True

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        noise = expand(step.s.sigma, x_t) * draw.normal_like("consistency", x_t)
        return expand(step.s.alpha, x_t) * prediction.x0 + noise, memory
