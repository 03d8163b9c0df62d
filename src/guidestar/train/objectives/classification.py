"""Cross-entropy: noise-aware classifiers, which guide, and clean ones, which measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.levels import Level, Schedule, expand
from ...core.rng import Draw
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class NoisyClassification(Objective):
    """``−log p(y | x_t, level)`` at levels drawn as for the denoiser; its minimiser is the exact
    posterior.

    References:
        Diffusion Models Beat GANs on Image Synthesis, section 4, https://arxiv.org/abs/2105.05233
    """

    schedule: Schedule
    levels: Callable[[Schedule, Draw], Level]

    def __call__(self, net, x0: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the classifier ``net`` (``net(x_t, level)`` gives logits)."""
        level = self.levels(self.schedule, draw)
        noise = draw.normal_like("noise", x0)
        x_t = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise
        return F.cross_entropy(net(x_t, level).float(), target, reduction="none")


@dataclass(frozen=True, kw_only=True)
class NoisyRegression(Objective):
    """``−log p(y | x_t, level)`` of real numbers y, as independent normals.

    With means and log-variances ``m, l``: ``½ Σ ((y − m)² e^{−l} + l + ln 2π)``.
    """

    schedule: Schedule
    levels: Callable[[Schedule, Draw], Level]

    def __call__(self, net, x0: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the regressor ``net`` on numbers ``target [B, D]``."""
        level = self.levels(self.schedule, draw)
        noise = draw.normal_like("noise", x0)
        mean, log_var = (
            net(expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise, level)
            .float()
            .chunk(2, -1)
        )
        return 0.5 * (
            (target - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)
        ).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """``−log p(y | x)`` on clean images, shifted by up to ``shift`` pixels each way."""

    shift: int = 0

    def __call__(self, net, x0: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the classifier ``net`` (``net(x)`` gives logits)."""
        return F.cross_entropy(
            net(shifted(x0, self.shift, draw, ground=-1.0)).float(), target, reduction="none"
        )


def shifted(x: Tensor, most: int, draw: Draw, *, ground: float | None = None) -> Tensor:
    """Shift images ``[B, C, H, W]`` at random by up to ``most`` pixels each way.

    New pixels have the value ``ground``; by default they repeat the edge.
    """
    if not most:
        return x
    around = (most, most, most, most)
    padded = (
        F.pad(x, around, mode="replicate") if ground is None else F.pad(x, around, value=ground)
    )
    down = (draw.uniform("down") * (2 * most + 1)).long()
    right = (draw.uniform("right") * (2 * most + 1)).long()
    rows = (down[:, None] + torch.arange(x.shape[-2]))[:, :, None]
    cols = (right[:, None] + torch.arange(x.shape[-1]))[:, None, :]
    return padded.movedim(1, -1)[torch.arange(len(x))[:, None, None], rows, cols].movedim(-1, 1)
