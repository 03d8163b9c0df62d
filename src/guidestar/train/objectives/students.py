"""What the objectives of students share: their pass, noised data, DDIM, and its inverse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.levels import Grid, Level, Value, divide, expand, sqrt
from ...core.prediction import Prediction
from ...core.rng import Draw
from .teacher import Conditioning, StudentModel, with_input


def student(
    net: StudentModel,
    x_t: Tensor,
    level: Level,
    conditioning: Conditioning,
    interval: Value | None = None,
) -> Tensor:
    """Return the student's clean estimate ``[B, *S]``, in one pass.

    Args:
        net: the student.
        x_t: noisy samples ``[B, *S]``.
        level: their level.
        conditioning: what they are of.
        interval: the share of the time that is to be covered, of a student that takes it.
    """
    cond = net.encoder(conditioning.rows)
    if conditioning.scale is not None:
        cond = with_input(cond, conditioning.scale.to(x_t.device))
    if interval is not None:
        cond = cond.with_interval(interval, x_t)
    out = net.denoiser(x_t, level, cond)
    return out.x0 if isinstance(out, Prediction) else out


def nulls_of(net: StudentModel) -> Callable[[str], Tensor]:
    """Return what gives the null row of a condition, by name."""
    return net.encoder.null_rows


def noise_rows(x0: Tensor, level: Level, draw: Draw) -> Tensor:
    """Return ``αx0 + σz`` with z of the stream "noise"."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * draw.normal_like("noise", x0)


def ddim(prediction: Prediction, s: Level) -> Tensor:
    """Return ``α_s x0 + σ_s ε``."""
    x = prediction.x0
    return expand(s.alpha, x) * x + expand(s.sigma, x) * prediction.eps


def landing(x_t: Tensor, x_s: Tensor, t: Level, s: Level) -> Tensor:
    """Return the clean estimate with which one DDIM step goes from ``x_t`` to ``x_s``."""
    ratio = divide(s.sigma, t.sigma)
    share = divide(1.0, s.alpha - ratio * t.alpha)
    return (x_s - expand(ratio, x_t) * x_t) * expand(share, x_t)


def chosen(grid: Grid, at: Tensor) -> Level:
    """Return the ``at``-th levels of a grid, one for each sample."""
    table = [
        torch.tensor([float(getattr(level, k)) for level in grid], dtype=torch.float64)
        for k in ("alpha", "sigma", "t")
    ]
    return Level(*(values[at] for values in table))


def squared(error: Tensor, weight: Value) -> Tensor:
    """Return ``weight · mean ‖error‖²``, ``[B]``; the root is taken before squaring."""
    return (expand(sqrt(weight), error) * error).square().flatten(1).mean(1)
