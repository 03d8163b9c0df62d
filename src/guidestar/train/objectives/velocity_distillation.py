"""Average velocities: in one step of any length where the teacher's flow leads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...core.levels import Grid, Level, Schedule, divide, expand
from ...core.prediction import Prediction
from ...core.rng import Draw
from .objective import Objective
from .students import chosen, ddim, noise_rows, nulls_of, student
from .teacher import Batch, Conditioning, StudentModel, Teacher, draw_conditioning, step_between


@dataclass(frozen=True, kw_only=True)
class VelocityDistillation(Objective):
    """Learn the average of the guided teacher's velocity over any interval (MeanFlow).

    In the time ``τ = σ/(α + σ)`` of a flow, every schedule's path is ``z = x_t/(α + σ)`` with
    ``dz/dτ = (z − G)/τ``, G the guided clean estimate. The student's estimate ``F(z, τ, τ_s)`` is
    the clean data with which one straight step lands at ``τ_s``, so the average velocity is
    ``u = (z − F)/τ``, and MeanFlow's identity ``u = v − (τ − τ_s) du/dτ`` reads, with
    ``r = τ_s/τ``:

        r (F − G) + (1 − r) τ dF/dτ = 0

    where the derivative is taken along the teacher's path. The loss moves F by what is left of it:

        √(mean ‖F − stop(r G + (1 − r)(F − τ dF/dτ))‖²/τ² + c²) − c

    The derivative is a central difference of the student between ``τ(1 − delta)`` and
    ``τ(1 + delta)``, in two passes without a graph and without autocast; any network serves, where
    a Jacobian-vector product needs forward derivatives of all its kernels. At the noisiest levels
    the two points move down, so that both are levels of the schedule.

    Args:
        teacher: whose velocity is averaged.
        grid: of which t and s are levels; the student is for grids of its levels.
        instant: share of samples with s = t, where the student matches G.
        delta: relative size of the difference; smaller ones show how a network wavers in t.
        huber: c.
        dropout: as of `GuidedDistillation`.
        scale: as of `GuidedDistillation`.

    References:
        Mean Flows for One-step Generative Modeling, equations 6 and 9 to 11,
        https://arxiv.org/abs/2505.13447
        Improved Mean Flows, section 4, https://arxiv.org/abs/2512.02012
    """

    teacher: Teacher
    grid: Grid
    instant: float = 0.25
    delta: float = 0.03
    huber: float = 0.03
    dropout: float = 0.1
    scale: tuple[float, float] | None = None

    def __call__(self, net: StudentModel, x0: Tensor, target: Batch, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the student ``net`` (``encoder`` and ``denoiser``)."""
        conditioning = draw_conditioning(
            x0, target, nulls_of(net), draw, rate=self.dropout, scale=self.scale
        )
        here, there = self._interval(draw)
        t, s = chosen(self.grid, here), chosen(self.grid, there)
        x_t, step = noise_rows(x0, t, draw), step_between(t, s, self.teacher.schedule)
        guided = self.teacher.predict(x_t, step, conditioning)
        slope = self._slope(net, guided, step.t, step.s, conditioning)
        found = student(net, x_t, t, conditioning, step.interval)
        tau, share = flow_time(t), expand(step.interval, x_t)
        wanted = (1 - share) * guided.x0 + share * (found.detach() - slope)
        error = ((found - wanted) * expand(1 / tau, x_t)).square().flatten(1).mean(1)
        return (error + self.huber**2).sqrt() - self.huber

    def _interval(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Draw the places of t and s on the grid: t evenly, and s evenly behind it, or t itself."""
        steps = self.grid.steps
        here = (draw.uniform("step") * steps).long()
        further = (draw.uniform("interval") * (steps - here)).long() + 1
        there = torch.where(draw.uniform("instant") < self.instant, here, here + further)
        return here, there

    @torch.no_grad()
    def _slope(
        self, net: StudentModel, guided: Prediction, t: Level, s: Level, conditioning: Conditioning
    ) -> Tensor:
        """Return ``τ dF/dτ`` along the teacher's path."""
        tau, schedule = cast(Tensor, flow_time(t)), self.teacher.schedule
        top = cast(float, flow_time(self.grid[0]))
        upper = (tau * (1 + self.delta)).clamp_max(top)
        found: list[Tensor] = []
        x = guided.x0
        with _exact(net, x):
            for end in (upper, upper - 2 * self.delta * tau):
                level = at_flow_time(schedule, end)
                step = step_between(level, s, schedule)
                moved = ddim(guided, level)
                found.append(student(net, moved, level, conditioning, step.interval))
        return (found[0] - found[1]) / (2 * self.delta)


def flow_time(level: Level) -> Tensor | float:
    """Return ``τ = σ/(α + σ)``, the time of a level in a flow."""
    return divide(level.sigma, level.alpha + level.sigma)


def at_flow_time(schedule: Schedule, tau: Tensor) -> Level:
    """Return the levels of a schedule at the times ``τ [B]`` of a flow."""
    return schedule.at_rho(tau / (1 - tau))


@contextmanager
def _exact(net: StudentModel, x: Tensor) -> Iterator[None]:
    """Let a network compute what a difference can be taken of: no dropout, and no autocast."""
    module = net.denoiser if isinstance(net.denoiser, nn.Module) else nn.Module()
    training = module.training
    module.eval()
    try:
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        module.train(training)
