"""Which noise levels are trained: distributions of levels, one draw a sample."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.levels import Level, Schedule
from ...core.rng import Draw


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """Draw levels whose ``sigma / (alpha + sigma)`` is logit-normal, that is
    ``log(rho / data_std) ~ N(mean, std²)``.

    For a flow that is time itself; with mean −1.2 and std 1.2 it is EDM's log-normal sigma.

    Args:
        mean, std: of the logarithm.
        data_std: standard deviation of the data: how much a noise ratio hides depends on the noise
            relative to the data, so levels for other data are offset by its logarithm.

    References:
        Scaling Rectified Flow Transformers, equation 19, https://arxiv.org/abs/2403.03206
        Elucidating the Design Space of Diffusion-Based Generative Models, table 1,
        https://arxiv.org/abs/2206.00364
    """

    mean: float = 0.0
    std: float = 1.0
    data_std: float = 1.0

    def __call__(self, schedule: Schedule, draw: Draw) -> Level:
        """Draw one level a sample, within the schedule's range."""
        low, high = schedule.rho_range
        rho = self.data_std * (self.mean + self.std * draw.gaussian("level")).exp()
        return schedule.at_rho(rho.clamp(low, high))


@dataclass(frozen=True, kw_only=True)
class UniformTime:
    """Draw times uniformly from the schedule's range (from 10⁻⁵ of it where it starts without
    noise).

    Args:
        discrete: whole times only, as DDPM does.
    """

    discrete: bool = False

    def __call__(self, schedule: Schedule, draw: Draw) -> Level:
        """Draw one level a sample."""
        u, low, high = draw.uniform("level"), schedule.t_min, schedule.t_max
        if schedule(low).sigma == 0:  # errors of eps or a velocity mean nothing there
            u = u.clamp_min(1e-5)
        return schedule(
            low + (u * (high - low + 1)).floor() if self.discrete else low + u * (high - low)
        )
