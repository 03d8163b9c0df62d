"""Guidance distillation: in one pass what guidance gives in several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ...core.levels import Level, Schedule, Value
from ...core.rng import Draw
from .objective import Objective
from .students import noise_rows, nulls_of, squared, student
from .teacher import Batch, StudentModel, Teacher, draw_conditioning, step_between
from .weighting import Uniform


@dataclass(frozen=True, kw_only=True)
class GuidedDistillation(Objective):
    """Match the guided prediction in one pass: ``w(level)·‖D_s(x_t, c, w) − D_guided‖²``.

    Args:
        teacher: what is matched.
        levels: draws one level a sample.
        weighting: of the squared error of x0; by default errors of v count equally.
        dropout: how many samples are unconditional; there the student matches the plain pass.
        scale: the range in which w is drawn for each sample (`draw_conditioning`); None where the
            expression holds no w.

    References:
        On Distillation of Guided Diffusion Models, section 3.1, https://arxiv.org/abs/2210.03142
    """

    teacher: Teacher
    levels: Callable[[Schedule, Draw], Level]
    weighting: Callable[[Level], Value] = field(default_factory=lambda: Uniform(space="v"))
    dropout: float = 0.1
    scale: tuple[float, float] | None = None

    def __call__(self, net: StudentModel, x0: Tensor, target: Batch, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the student ``net`` (``encoder`` and ``denoiser``)."""
        conditioning = draw_conditioning(
            x0, target, nulls_of(net), draw, rate=self.dropout, scale=self.scale
        )
        level = self.levels(self.teacher.schedule, draw)
        x_t = noise_rows(x0, level, draw)
        step = step_between(level, self.teacher.schedule.clean, self.teacher.schedule)
        wanted = self.teacher.predict(x_t, step, conditioning).x0
        return squared(student(net, x_t, level, conditioning) - wanted, self.weighting(level))
