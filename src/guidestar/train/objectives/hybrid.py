"""The hybrid objective of Improved DDPM: it trains the reverse variance beside the mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Level, Schedule, expand
from ...core.prediction import Prediction
from ...core.rng import Draw
from .denoising import Denoising
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class Hybrid(Objective):
    """``L_simple + weight · L_vlb``, of a network that predicts its reverse variance too.

    ``L_simple`` is `Denoising`'s. Of the T terms of the variational bound one is drawn, so it
    counts T times:

        L_vlb ≈ T · L_t,   L_t = KL(q(x_{t−1} | x_t, x0) ‖ N(μ, Σ))   for t > 0
                           L_0 = −log p(x0 | x_1), within bins of 1/127.5 around x0

    in bits for each number. ``μ`` is the mean of ``q(x_{t−1} | x_t, D)``, through which no gradient
    goes, and ``ln Σ = v ln β_t + (1 − v) ln β̃_t`` with the network's ``v``, from 0 to 1; ``β̃_0``
    is 0, and counts as ``β̃_1``. Outside [−0.999, 0.999] a bin is open to its side.

    Args:
        simple: the loss of the mean; its levels must be whole times of a table (VP).
        weight: of the bound; 0.001 as published.

    References:
        Improved Denoising Diffusion Probabilistic Models, equations 13 to 16,
        https://arxiv.org/abs/2102.09672
    """

    simple: Denoising
    weight: float = 0.001

    def __call__(self, net, x0: Tensor, target: Condition, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the denoiser ``net`` on ``x0 [B, *S]``.

        Raises:
            ValueError: the network predicts no variance.
        """
        level, x_t = self.simple.noised(x0, draw)
        out = net(x_t, level, target)
        if not isinstance(out, Prediction) or out.log_var is None:
            raise ValueError(
                "the hybrid objective trains a variance; the network must return twice as many "
                "channels as it takes (out_channels)"
            )
        bound = bound_term(self.simple.schedule, level, x0, x_t, out)
        count = self.simple.schedule.t_max - self.simple.schedule.t_min + 1
        return self.simple.error(out.x0, x0, level) + self.weight * count * bound


def bound_term(
    schedule: Schedule, level: Level, x0: Tensor, x_t: Tensor, out: Prediction
) -> Tensor:
    """Return ``L_t`` of `Hybrid` ``[B]``, in bits for each number of ``x0 [B, *S]``.

    Args:
        schedule: a table, whose times are whole.
        level: of ``x_t``, with a time for each sample.
        x0: the data.
        x_t: they with noise.
        out: what the network predicts.
    """
    last = torch.as_tensor(level.t).expand(len(x0)) <= schedule.t_min
    to_x0, to_x_t, small, large = posterior(schedule, level, len(x0))
    real = expand(to_x0, x0) * x0 + expand(to_x_t, x0) * x_t
    made = (expand(to_x0, x0) * out.x0 + expand(to_x_t, x0) * x_t).detach().float()
    assert out.log_var is not None
    share = (out.log_var.float() + 1) / 2
    least, most = small.log().to(x0).view(_as(x0)), large.log().to(x0).view(_as(x0))
    log_var = share * most + (1 - share) * least
    nats = torch.where(
        last.to(x0.device).view(_as(x0)),
        -_log_likelihood(x0, made, log_var),
        _divergence(real, least, made, log_var),
    )
    return nats.flatten(1).mean(1) / math.log(2)


def _as(x: Tensor) -> list[int]:
    return [-1, *[1] * (x.ndim - 1)]


def posterior(
    schedule: Schedule, level: Level, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the coefficients of x0 and x_t in the mean of ``q(x_{t−1} | x_t, x0)``, its variance
    ``β̃_t`` (at the first time that of the second) and ``β_t``; each ``[B]``, float64.
    """
    t = torch.as_tensor(level.t, dtype=torch.float64).expand(count)
    to_x0, to_x_t, _, large = _coefficients(schedule, t)
    clipped = _coefficients(schedule, t.clamp_min(schedule.t_min + 1))[2]
    return to_x0, to_x_t, clipped, large


def _coefficients(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    now, before = schedule(t), schedule((t - 1).clamp_min(schedule.t_min))
    first = t <= schedule.t_min
    alpha_s = torch.where(first, torch.ones_like(t), torch.as_tensor(before.alpha))
    sigma_s = torch.where(first, torch.zeros_like(t), torch.as_tensor(before.sigma))
    alpha, sigma = torch.as_tensor(now.alpha), torch.as_tensor(now.sigma)
    ratio = alpha / alpha_s
    large = sigma**2 - ratio**2 * sigma_s**2
    to_x0, to_x_t = alpha_s * large / sigma**2, ratio * sigma_s**2 / sigma**2
    return to_x0, to_x_t, sigma_s**2 * large / sigma**2, large


def _divergence(mean: Tensor, log_var: Tensor, other: Tensor, other_log_var: Tensor) -> Tensor:
    """Return the KL divergence of one normal from another, by number, in nats."""
    return 0.5 * (
        other_log_var
        - log_var
        - 1
        + (log_var - other_log_var).exp()
        + (mean - other).square() * (-other_log_var).exp()
    )


def _log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return the logarithm of a normal's mass in the bin around each number of ``x``."""
    deviation = (-0.5 * log_var).exp()
    above = torch.special.ndtr((x - mean + 1 / 255) * deviation)
    below = torch.special.ndtr((x - mean - 1 / 255) * deviation)
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return mass.clamp_min(1e-12).log()
