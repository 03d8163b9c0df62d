"""DDIM, and the ancestral sampler of DDPM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.levels import Step, expand, inverse_or_zero, sqrt
from ..core.rng import Draw
from .solver import Memory, Moving, Point, Solver


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    """``x_s = α_s x0 + √(σ_s² − v) ε + √v z`` with ``v = η² σ_s² σ²_{t|s} / σ_t²``.

    Args:
        eta: η in [0, 1]. 0 is deterministic: Euler's method in (x/α, ρ), and in a flow also that
            of the flow. 1 is ancestral sampling.

    Raises:
        ValueError: eta is out of range.

    References:
        Denoising Diffusion Implicit Models, equation 12, https://arxiv.org/abs/2010.02502
    """

    eta: float = 0.0
    name = "ddim"
    order = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"ddim: eta must be in [0, 1], not {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        variance = self.eta**2 * step.posterior_variance
        sigma = expand(sqrt(step.s.sigma**2 - variance), x_t)
        x_s = expand(step.s.alpha, x_t) * prediction.x0 + sigma * prediction.eps
        if self.eta:
            x_s = x_s + expand(sqrt(variance), x_t) * draw.normal_like("ddim", x_t)
        return x_s, memory


@dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    """Ancestral sampling: the mean of ``q(x_s | x_t, x0)``, and noise of variance Σ.

    ``x_s = α_s x0 + √(σ_s² − σ_s²σ²_{t|s}/σ_t²) ε + √Σ z``.

    Args:
        variance: Σ: "small" (``σ_s²σ²_{t|s}/σ_t²``, the posterior's), "large" (``σ²_{t|s}``; no
            noise in the last step), or "learned" (by the network, between the logs of the two).

    Raises:
        ValueError: another variance; in a run, "learned" with a network that predicts none.

    References:
        Denoising Diffusion Probabilistic Models, section 3.2, https://arxiv.org/abs/2006.11239
        Improved DDPM, equation 15, https://arxiv.org/abs/2102.09672
    """

    variance: Literal["small", "large", "learned"] = "small"
    name = "ddpm"
    order = 1

    @property
    def stochastic(self) -> bool:
        return True

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        small, large = step.posterior_variance, step.transition_variance
        sigma = expand(sqrt(step.s.sigma**2 - small), x_t)
        mean = expand(step.s.alpha, x_t) * prediction.x0 + sigma * prediction.eps
        deviation = expand(sqrt(large if self.variance == "large" else small), x_t)
        if self.variance == "learned":
            if prediction.log_var is None:
                raise ValueError(
                    "ddpm(variance='learned') needs a network that predicts its variance (2C "
                    "channels, learned_variance=True)"
                )
            # 1 where the posterior has no variance, as a network's share may be below −1.
            ratio = expand(large * inverse_or_zero(small) + (small == 0), x_t)
            deviation = deviation * ratio ** ((prediction.log_var + 1) / 4)
        noisy = expand((step.s.sigma != 0) * 1.0, x_t)
        return mean + noisy * deviation * draw.normal_like("ddpm", x_t), memory
