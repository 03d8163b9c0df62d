"""Consistency distillation: the same clean estimate all along the teacher's path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.levels import Grid, Schedule, divide, expand
from ...core.rng import Draw
from .objective import Objective
from .students import chosen, ddim, noise_rows, nulls_of, student
from .teacher import Batch, StudentModel, Teacher, draw_conditioning, step_between


@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(Objective):
    """Estimate the same clean data all along the teacher's path.

    From ``x_t`` the teacher takes one guided DDIM step to ``x_s``, and the student's estimate at t
    moves to its own estimate at s, held fixed (at data: to ``x_s`` itself):

        loss = √(mean ‖D_s(x_t) − stop(D_s(x_s))‖² + c²) − c

    Steps are those of a grid that gets finer as the training goes: ``first`` steps at its start,
    doubled up to ``last`` at its end.

    Args:
        teacher: what steps.
        spacing: makes a grid of a schedule and a number of steps.
        steps: of the training.
        first: grid steps at the start.
        last: grid steps at the end.
        huber: c.
        dropout: as of `GuidedDistillation`.
        scale: as of `GuidedDistillation`.

    References:
        Latent Consistency Models, equation 12, https://arxiv.org/abs/2310.04378
        Consistency Models Made Easy, section 3.2, https://arxiv.org/abs/2406.14548
    """

    teacher: Teacher
    spacing: Callable[[Schedule, int], Grid]
    steps: int
    first: int = 4
    last: int = 64
    huber: float = 0.03
    dropout: float = 0.1
    scale: tuple[float, float] | None = None

    def fineness(self, done: int) -> int:
        """Return how many steps the grid has after ``done`` steps of the training."""
        doublings = max(0, (self.last // self.first).bit_length() - 1)
        return self.first * 2 ** min(doublings, done * (doublings + 1) // max(1, self.steps))

    def __call__(self, net: StudentModel, x0: Tensor, target: Batch, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the student ``net`` (``encoder`` and ``denoiser``)."""
        conditioning = draw_conditioning(
            x0, target, nulls_of(net), draw, rate=self.dropout, scale=self.scale
        )
        grid = self.spacing(self.teacher.schedule, self.fineness(draw.step))
        at = (draw.uniform("step") * grid.steps).long()
        t, s = chosen(grid, at), chosen(grid, at + 1)
        x_t = noise_rows(x0, t, draw)
        step = step_between(t, s, self.teacher.schedule)
        x_s = ddim(self.teacher.predict(x_t, step, conditioning), s)
        with torch.no_grad():
            at_data = (torch.as_tensor(s.sigma) == 0).to(x_s.device)
            clean = x_s * expand(divide(1.0, s.alpha), x_s)
            ahead = student(net, x_s, s, conditioning)
            wanted = torch.where(at_data.view(-1, *[1] * (x_s.ndim - 1)), clean, ahead)
        error = (student(net, x_t, t, conditioning) - wanted).square().flatten(1).mean(1)
        return (error + self.huber**2).sqrt() - self.huber
