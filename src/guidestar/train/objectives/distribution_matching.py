"""Distribution matching: samples of few steps as likely as the teacher's, not each like one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...core.levels import Grid, Level, Schedule, Value, expand
from ...core.prediction import Prediction
from ...core.rng import Draw
from ...networks.conditional import ConditionalModel
from ...networks.conditions import Conditions
from .objective import Objective
from .students import ddim, noise_rows, nulls_of, squared, student
from .teacher import Batch, Conditioning, StudentModel, Teacher, draw_conditioning, step_between
from .weighting import Uniform


class Matched(nn.Module):
    """A student, and the network that learns to denoise what the student makes.

    Args:
        student: makes samples.
        fake: estimates them clean; it starts as the teacher.
    """

    def __init__(self, student: ConditionalModel, fake: ConditionalModel) -> None:
        super().__init__()
        self.student, self.fake = student, fake

    @property
    def denoiser(self) -> nn.Module:
        """The student's."""
        return self.student.denoiser

    @property
    def encoder(self) -> Conditions:
        """The student's."""
        return self.student.encoder


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(Objective):
    """Move a student's samples to where the guided teacher finds them likelier than they are.

    The student's own run from noise gives samples ``x``; these are noised to ``x_t``, where the
    guided teacher's clean estimate is R and that of the fake network, which learns to denoise the
    student's samples, is F. With ``g = (F − R) / mean |x − R|``, the loss is

        ½‖x − stop(x − g)‖² + w(t)·‖F(x_t) − stop(x)‖²

    so the gradient of x is g, which is the difference of the scores up to a positive factor, and is
    zero where both distributions are one. F learns by the second part, which no student's weight
    enters. Of each run the last ``through`` steps carry the gradient.

    Args:
        teacher: what is matched.
        grid: of the student's sampling, by DDIM.
        levels: draws the level t of each sample.
        weighting: of the squared error of F.
        lead: training steps in which F alone learns.
        through: how many of the student's last steps carry the gradient.
        dropout: how many samples are unconditional, as of `GuidedDistillation`.

    Raises:
        ValueError: ``through`` is not from 1 to the steps of ``grid``.

    References:
        Improved Distribution Matching Distillation for Fast Image Synthesis, sections 3 and 4,
        https://arxiv.org/abs/2405.14867
        One-step Diffusion with Distribution Matching Distillation, equations 7 and 8,
        https://arxiv.org/abs/2311.18828
    """

    teacher: Teacher
    grid: Grid
    levels: Callable[[Schedule, Draw], Level]
    weighting: Callable[[Level], Value] = field(default_factory=lambda: Uniform(space="v"))
    lead: int = 0
    through: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.through <= self.grid.steps:
            raise ValueError(
                f"through must be from 1 to the student's {self.grid.steps} steps, not "
                f"{self.through}"
            )

    def __call__(self, net: Matched, x0: Tensor, target: Batch, draw: Draw) -> Tensor:
        """Return the loss ``[B]``; of ``x0`` the shape alone counts."""
        conditioning = draw_conditioning(
            x0, target, nulls_of(net), draw, rate=self.dropout, scale=None
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and draw.step >= self.lead):
            x = self.sample(net, x0, conditioning, draw)
        made = x.detach()
        level = self.levels(self.teacher.schedule, draw)
        x_t = noise_rows(made, level, draw)
        fake = student(net.fake, x_t, level, conditioning)
        learned = squared(fake - made, self.weighting(level))
        if draw.step < self.lead:
            return learned
        step = step_between(level, self.teacher.schedule.clean, self.teacher.schedule)
        real = self.teacher.predict(x_t, step, conditioning).x0
        size = (made - real).abs().flatten(1).mean(1).clamp_min(1e-8)
        direction = (fake.detach() - real) * expand(1 / size, real)
        return learned + 0.5 * (x - (made - direction)).square().flatten(1).mean(1)

    def sample(
        self, net: StudentModel, like: Tensor, conditioning: Conditioning, draw: Draw
    ) -> Tensor:
        """Return samples of the student, shaped ``like`` others, from noise of the stream "start".

        A DDIM step goes from ``x_t`` to ``α_s D(x_t) + σ_s ε``.
        """
        x = expand(self.grid[0].sigma, like) * draw.normal_like("start", like)
        first = self.grid.steps - self.through
        for i, (t, s) in enumerate(pairwise(self.grid)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= first):
                estimate = student(net, x, t, conditioning)
                x = ddim(Prediction.from_x0(x, t, estimate), s)
        return x
