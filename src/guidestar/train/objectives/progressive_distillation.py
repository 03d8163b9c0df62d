"""Progressive distillation: in one step what the teacher's DDIM reaches in several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ...core.levels import Grid, Level, Step, Value, divide
from ...core.rng import Draw
from .objective import Objective
from .students import chosen, ddim, landing, noise_rows, nulls_of, squared, student
from .teacher import Batch, StudentModel, Teacher, draw_conditioning, step_between


@dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Objective):
    """Land in one DDIM step where the teacher's DDIM lands in several.

    From ``x_t`` the teacher walks ``substeps`` DDIM steps to ``x_s``. The clean estimate with which
    one step lands there is

        x̃0 = (x_s − (σ_s/σ_t) x_t) / (α_s − (σ_s/σ_t) α_t)

    and the loss is ``w(level)·‖D_s − x̃0‖²``.

    Args:
        teacher: what is walked with.
        grid: of the student, whose every step is a part of the teacher's grid.
        walked: the teacher's grid, of ``substeps`` times as many steps.
        weighting: "truncated" (max(SNR, 1)) or "snr+1".
        dropout: as of `GuidedDistillation`.
        scale: as of `GuidedDistillation`.

    Raises:
        ValueError: the levels of ``grid`` are not among those of ``walked``.

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models, algorithm 2 and section 4,
        https://arxiv.org/abs/2202.00512
    """

    teacher: Teacher
    grid: Grid
    walked: Grid
    weighting: Literal["truncated", "snr+1"] = "truncated"
    dropout: float = 0.1
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        steps, more = self.grid.steps, self.walked.steps
        nested = more % steps == 0 and all(
            math.isclose(a.alpha, b.alpha, rel_tol=1e-9)
            and math.isclose(a.sigma, b.sigma, rel_tol=1e-9)
            for a, b in zip(self.grid, self.walked[:: more // steps], strict=True)
        )
        if not nested:
            raise ValueError(
                f"a student of {steps} steps needs a teacher whose steps are a multiple of that, "
                f"on a grid that holds its levels; {more} steps do not (use the grid 'uniform')"
            )

    @property
    def substeps(self) -> int:
        """How many steps of the teacher one of the student's is."""
        return self.walked.steps // self.grid.steps

    def __call__(self, net: StudentModel, x0: Tensor, target: Batch, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the student ``net`` (``encoder`` and ``denoiser``)."""
        conditioning = draw_conditioning(
            x0, target, nulls_of(net), draw, rate=self.dropout, scale=self.scale
        )
        at = (draw.uniform("step") * self.grid.steps).long()
        level = chosen(self.grid, at)
        x_t = noise_rows(x0, level, draw)
        places = [at * self.substeps + j for j in range(self.substeps)]
        path = [*(chosen(self.walked, place) for place in places), chosen(self.grid, at + 1)]
        x_s = x_t
        for t, s in pairwise(path):
            x_s = ddim(self.teacher.predict(x_s, self._step(t, s), conditioning), s)
        wanted = landing(x_t, x_s, level, path[-1])
        return squared(student(net, x_t, level, conditioning) - wanted, self._weight(level))

    def _step(self, t: Level, s: Level) -> Step:
        return step_between(t, s, self.teacher.schedule)

    def _weight(self, level: Level) -> Value:
        snr = torch.as_tensor(divide(level.alpha, level.sigma), dtype=torch.float64) ** 2
        return snr.clamp_min(1.0) if self.weighting == "truncated" else snr + 1
