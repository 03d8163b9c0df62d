"""The objective of motions: denoising of their own frames, and errors of where the joints are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import expand, sqrt
from ...core.prediction import Prediction
from ...core.rng import Draw
from ...data.tensors import Standardiser
from ...motion import MotionFormat
from ...networks.lengths import FRAMES
from .denoising import Denoising
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class MotionDenoising(Objective):
    """`Denoising` over the frames of a motion without its padding, with errors of its joints.

    With the clean estimate D, x0, the level's weight w, m frames, and of the numbers in their units
    the joints' positions y by forward kinematics (`MotionFormat.local`) and their steps v from
    frame to frame (`MotionFormat.steps`):

        w [ mean (D − x0)² + a mean |y(D) − y(x0)|²/σ_y² + b mean |v(D) − v(x0)|²/σ_v²
            + c mean |contact · v(D)|²/σ_v² ]

    σ_y and σ_v are the standard deviations of the parts ``positions`` and ``velocities``. The last
    is over feet, with the contacts of x0.

    Args:
        denoising: levels, noise and weights.
        format: what the numbers of a frame are.
        scale: by which they are standardised.
        positions: a.
        velocities: b.
        contacts: c.

    References:
        Human Motion Diffusion Model, equations 3 to 5, https://arxiv.org/abs/2209.14916
    """

    denoising: Denoising
    format: MotionFormat
    scale: Standardiser
    positions: float = 0.0
    velocities: float = 0.0
    contacts: float = 0.0

    def __call__(self, net, x0: Tensor, target: Condition, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the denoiser ``net`` on ``x0 [B, T, C]``; ``target`` holds the
        mask of frames.
        """
        level, x_t = self.denoising.noised(x0, draw)
        out = net(x_t, level, target)
        made = out.x0 if isinstance(out, Prediction) else out
        mask = target[FRAMES].to(x0) if FRAMES in target else torch.ones_like(x0[..., 0])
        root = expand(sqrt(self.denoising.weighting(level)), x0)
        loss = _mean((root * (made - x0)).square().mean(-1), mask)
        if self.positions or self.velocities or self.contacts:
            weight = torch.as_tensor(self.denoising.weighting(level)).to(x0)
            loss = loss + weight * self._of_joints(made, x0, mask)
        return loss

    def _of_joints(self, made: Tensor, x0: Tensor, mask: Tensor) -> Tensor:
        """Return the weighted errors of joints ``[B]``."""
        form = self.format
        made, x0 = self.scale.undo(made), self.scale.undo(x0)
        y, wanted = form.local(made), form.local(x0)
        near, fast = (
            float(self.scale.std[form.parts[part]][0]) for part in ("positions", "velocities")
        )
        error = lambda a, b, unit: ((a - b) / unit).square().flatten(2).mean(-1)
        loss = self.positions * _mean(error(y, wanted, near), mask)
        if self.velocities or self.contacts:
            pairs = mask[:, 1:] * mask[:, :-1]
            v, true = form.steps(made, y), form.steps(x0, wanted)
            loss = loss + self.velocities * _mean(error(v, true, fast), pairs)
        if self.contacts and form.feet:
            down = x0[:, 1:, form.parts["contacts"]].clamp(0, 1)
            slide = (v[:, :, list(form.feet)] * down[..., None] / fast).square()
            loss = loss + self.contacts * _mean(slide.flatten(2).mean(-1), pairs)
        return loss


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean ``[B]`` of values ``[B, T]`` where the mask is 1."""
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)
