"""RePaint: the known pixels of a picture are put in at every level."""

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
    """Put known pixels in after each step: ``x_s = m (α_s y + σ_s z) + (1 − m) x_s'``.

    x_s' is the result of the solver. At the end the known pixels are y. The resampling of the
    paper, which makes the others agree with them, is `TimeTravel` around it:
    ``TimeTravel(solver=RePaint(known=y, mask=m), times=10)``.

    Args:
        solver: takes the steps. One with history is refused, as it would keep other pixels.
        known: y ``[B, *S]``, or ``[1, *S]`` for all.
        mask: m, 1 where a pixel is known and 0 elsewhere; broadcasts to y.

    Raises:
        ValueError: a solver with history; in a run, shapes that do not fit the samples.

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
        super().__post_init__()
        if self.solver.history:
            raise ValueError(
                f"repaint has no meaning around {self.solver.name!r}, which keeps earlier steps; "
                "use ddpm, ddim or heun"
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
        known = self.known.to(x_s.device, x_s.dtype, non_blocking=True)
        mask = self.mask.to(x_s.device, x_s.dtype, non_blocking=True)
        z = draw.normal_like("repaint", x_s)
        noisy = expand(step.s.alpha, x_s) * known + expand(step.s.sigma, x_s) * z
        return mask * noisy + (1 - mask) * x_s, memory

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
