"""Denoising: the objective of every diffusion and flow model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Condition
from ..draw import Draw
from ..levels import Level, Schedule, Value, expand
from ..prediction import Prediction, Space, slope
from ._core import Objective


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """Draw levels whose ``sigma / (alpha + sigma)`` is logit-normal, that is ``log rho ~ N(mean, std²)``.

    References:
        Scaling Rectified Flow Transformers, equation 19, https://arxiv.org/abs/2403.03206
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, schedule: Schedule, draw: Draw) -> Level:
        """Draw one level a sample, within the schedule's range."""
        low, high = schedule.rho_range
        rho = (self.mean + self.std * draw.gaussian("level")).exp()
        return schedule.at_rho(rho.clamp(low, high))


@dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """Mean squared error of the prediction in ``space``: ``‖f(D) − f(x0)‖²`` averaged over dimensions.

    With ``Δ_space = k(level)·Δx0`` (see `prediction.slope`) that is ``k²‖D − x0‖²``; its minimiser
    is ``D = E[x0 | x_t, cond]`` in every space.

    Args:
        schedule: where levels come from.
        levels: draws one level a sample.
        space: in which space errors count: v, eps, x0, velocity.
    """

    schedule: Schedule
    levels: Callable[[Schedule, Draw], Level]
    space: Space = "v"

    def __call__(self, net, x0: Tensor, target: Condition, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the denoiser ``net`` on ``x0 [B, *S]`` under the condition ``target``."""
        level = self.levels(self.schedule, draw)
        noise = draw.normal_like("noise", x0)
        x_t = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise
        out = net(x_t, level, target)
        denoised = out.x0 if isinstance(out, Prediction) else out
        weight: Value = slope(level, self.space)
        return (expand(weight, x0) * (denoised - x0)).square().flatten(1).mean(1)


def dropped(labels: Tensor, null_index: int, p: float, draw: Draw) -> Tensor:
    """Replace each label by the null with probability ``p``, drawn per sample and step.

    References:
        Classifier-Free Diffusion Guidance, algorithm 1, https://arxiv.org/abs/2207.12598
    """
    drop = (draw.uniform("drop") < p).to(labels.device)
    return torch.where(drop, torch.full_like(labels, null_index), labels)


@dataclass(frozen=True, kw_only=True)
class ClassConditional(Objective):
    """`Denoising` of a class-conditional model (a ``ConditionalModel``), its labels dropped at rate ``p``."""

    denoising: Denoising
    p: float = 0.1

    def __call__(self, net, x0: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the loss ``[B]``; ``net`` has an ``encoder`` and a ``denoiser``, ``target`` are labels ``[B]``."""
        labels = dropped(target, net.encoder.null_index, self.p, draw)
        return self.denoising(net.denoiser, x0, net.encoder(labels), draw)
