"""Trajectory distillation: in one step what a run of the teacher reaches in several."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...core.levels import Grid, divide
from ...core.rng import Draw
from .objective import Objective
from .students import chosen, landing, nulls_of, squared, student
from .teacher import PathBatch, StudentModel, draw_conditioning


@dataclass(frozen=True, kw_only=True)
class TrajectoryDistillation(Objective):
    """Go in one DDIM step from one visited state of a teacher's run to the next.

    A run starts from noise and may be of any solver, guidance and grid. For the states
    ``x_t`` and ``x_s`` at two of its levels the wanted clean estimate is

        x̃0 = (x_s − (σ_s/σ_t) x_t) / (α_s − (σ_s/σ_t) α_t)

    and the loss is ``max(SNR, 1)·‖D_s(x_t) − x̃0‖²``. Data have no part in it: the states are
    those that sampling meets.

    Args:
        levels: of the teacher's runs.
        visits: the levels that the student visits, by their place in ``levels``: from 0 to the
            last, rising.
        first_seed: of the runs (`guidestar.data.paths.Paths`).
        dropout: as of `GuidedDistillation`; it must be that of the runs.
        scale: likewise.

    Raises:
        ValueError: ``visits`` do not rise from 0 to the last level.

    References:
        Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed,
        https://arxiv.org/abs/2101.02388
    """

    levels: Grid
    visits: tuple[int, ...]
    first_seed: int = 0
    dropout: float = 0.1
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.visits))
        if len(self.visits) < 2 or not rising or {0, self.levels.steps} - {*self.visits}:
            raise ValueError(
                f"visits must rise from 0 to {self.levels.steps}, the teacher's steps, not "
                f"{list(self.visits)}"
            )

    def __call__(self, net: StudentModel, x0: Tensor, target: PathBatch, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the student ``net`` on runs ``x0 [B, n + 1, *S]``."""
        runs = target["path"].tolist()
        own = Draw([self.first_seed + k for k in runs])
        conditioning = draw_conditioning(
            x0, target, nulls_of(net), own, rate=self.dropout, scale=self.scale
        )
        steps = len(self.visits) - 1
        at = (draw.uniform("step") * steps).long()
        places, row = torch.tensor(self.visits), torch.arange(len(x0))
        here, there = places[at], places[at + 1]
        t, s = chosen(self.levels, here), chosen(self.levels, there)
        x_t, x_s = x0[row, here], x0[row, there]
        wanted = landing(x_t, x_s, t, s)
        snr = torch.as_tensor(divide(t.alpha, t.sigma), dtype=torch.float64) ** 2
        return squared(student(net, x_t, t, conditioning) - wanted, snr.clamp_min(1.0))
