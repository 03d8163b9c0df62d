"""Denoising: the objective of every diffusion and flow model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Level, Schedule, Value, expand, sqrt
from ...core.prediction import Prediction
from ...core.rng import Draw
from .level_distributions import LogitNormal
from .objective import Objective
from .weighting import Uniform


@dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """Weighted squared error of the clean estimate: ``w(level)·‖D − x0‖²``, averaged over
    dimensions.

    Its minimiser is ``D = E[x0 | x_t, cond]`` whatever the weighting.

    Args:
        schedule: where levels come from.
        levels: draws one level a sample.
        weighting: w; by default errors of v count equally.
    """

    schedule: Schedule
    levels: Callable[[Schedule, Draw], Level]
    weighting: Callable[[Level], Value] = field(default_factory=lambda: Uniform(space="v"))

    def __call__(self, net, x0: Tensor, target: Condition, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the denoiser ``net`` on ``x0 [B, *S]`` under the condition
        ``target``.
        """
        level, x_t = self.noised(x0, draw)
        out = net(x_t, level, target)
        return self.error(out.x0 if isinstance(out, Prediction) else out, x0, level)

    def noised(self, x0: Tensor, draw: Draw) -> tuple[Level, Tensor]:
        """Draw levels, and return them with ``x_t [B, *S]``."""
        level = self.levels(self.schedule, draw)
        noise = draw.normal_like("noise", x0)
        return level, expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise

    def error(self, denoised: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return the weighted squared error ``[B]`` of clean estimates ``[B, *S]``."""
        # The root is taken before squaring: at high noise a weight may be tiny where the error is
        # large.
        return (
            (expand(sqrt(self.weighting(level)), x0) * (denoised - x0)).square().flatten(1).mean(1)
        )


def dropped(
    rows: Mapping[str, Tensor],
    nulls: Callable[[str], Tensor],
    rates: Mapping[str, float],
    joint: float,
    draw: Draw,
) -> dict[str, Tensor]:
    """Put the null in the place of each condition with its own probability, and of all together
    with ``joint``.

    Drawn per sample and step: ``"drop <name>"`` and ``"drop all"``, uniform in [0, 1).

    References:
        Classifier-Free Diffusion Guidance, algorithm 1, https://arxiv.org/abs/2207.12598
        InstructPix2Pix, section 3.2.1, https://arxiv.org/abs/2211.09800
    """
    everything = draw.uniform("drop all") < joint
    kept = {}
    for name, values in rows.items():
        drop = (everything | (draw.uniform(f"drop {name}") < rates.get(name, 0.0))).to(
            values.device
        )
        kept[name] = torch.where(
            drop.view(-1, *[1] * (values.ndim - 1)), nulls(name).to(values), values
        )
    return kept


@dataclass(frozen=True, kw_only=True)
class Conditional(Objective):
    """`Denoising` of a conditional model (a ``ConditionalModel``), its conditions dropped now and
    then.

    Args:
        denoising: the loss.
        dropout: how often each condition is left out, by name.
        joint: how often all of them are.
        always: conditions that never are, as a length.
    """

    denoising: Objective
    dropout: Mapping[str, float]
    joint: float = 0.0
    always: Collection[str] = ()

    def __call__(self, net, x0: Tensor, target: Mapping[str, Tensor], draw: Draw) -> Tensor:
        """Return the loss ``[B]``; ``net`` has an ``encoder`` and a ``denoiser``, ``target`` are
        its encoder's rows.
        """
        some = {name: rows for name, rows in target.items() if name not in self.always}
        rows = dropped(some, net.encoder.null_rows, self.dropout, self.joint, draw)
        return self.denoising(net.denoiser, x0, net.encoder({**target, **rows}), draw)


__all__ = ["Conditional", "Denoising", "LogitNormal", "dropped"]
