"""RePaint: what is known of a picture is put in its place at every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.levels import Grid, Step, expand
from ..core.rng import Draw
from .ddim import DDPM
from .solver import Memory, Moving, Predict, Solver


@dataclass(frozen=True, kw_only=True, eq=False)
class RePaint(Solver):
    """After each step, known pixels are what the forward process makes of them: ``α_s y + σ_s z``.

    ``x_s = m (α_s y + σ_s z) + (1 − m) x_s'``, with x_s' the solver's. At the end they are y
    itself. The paper's resampling, which lets the rest agree with them, is `TimeTravel` around it:
    ``TimeTravel(solver=RePaint(known=y, mask=m), times=10)``.

    Args:
        solver: what takes the steps. One with history is refused: it would remember other pixels.
        known: y ``[B, *S]``, or ``[1, *S]`` for all.
        mask: m, 1 where a pixel is known and 0 elsewhere; broadcasts to y.

    References:
        RePaint: Inpainting using Denoising Diffusion Probabilistic Models, algorithm 1,
        https://arxiv.org/abs/2201.09865
            Andreas Lugmayr, Martin Danelljan, Andres Romero, Fisher Yu, Radu Timofte, Luc Van Gool
    """

    solver: Solver = field(default_factory=DDPM)
    known: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    name = "repaint"
    order = 1

    def __post_init__(self) -> None:
        if self.solver.history:
            raise ValueError(
                f"repaint has no meaning around {self.solver.name!r}, which remembers other "
                "steps; use ddpm, ddim or heun"
            )

    @property
    def stochastic(self) -> bool:
        return True

    def check(self, predict: Predict, grid: Grid) -> None:
        self.solver.check(predict, grid)

    def evaluations(self, step: Step) -> Sequence[Step]:
        return self.solver.evaluations(step)

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        x_s, memory = yield from self.solver.move(x_t, step, memory, draw)
        self._check_shapes(x_s)
        known, mask = (
            v.to(x_s.device, x_s.dtype, non_blocking=True) for v in (self.known, self.mask)
        )
        there = expand(step.s.alpha, x_s) * known + expand(step.s.sigma, x_s) * draw.normal_like(
            "repaint", x_s
        )
        return mask * there + (1 - mask) * x_s, memory

    def _check_shapes(self, x: Tensor) -> None:
        fits = self.known.shape[1:] == x.shape[1:] and len(self.known) in (1, len(x))
        try:
            fits = fits and torch.broadcast_shapes(self.mask.shape, x.shape) == x.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"repaint: known {tuple(self.known.shape)} and mask {tuple(self.mask.shape)} do "
                f"not fit the samples {tuple(x.shape)}"
            )
