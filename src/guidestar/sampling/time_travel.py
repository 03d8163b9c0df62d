"""Time travel: steps that are repeated from a noised result, around a solver without history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

from torch import Tensor

from ..core.levels import Grid, Step, divide, expand, sqrt
from ..core.rng import Draw
from .ddim import DDPM
from .solver import Memory, Moving, Predict, Solver


@dataclass(frozen=True, kw_only=True)
class TimeTravel(Solver):
    """Take each step ``times`` times; in between, the forward process leads back from s to t.

    ``x_t = (α_t/α_s) x_s + σ_{t|s} z``, with other noise z at each visit. Also called recurrence,
    self-recurrence and resampling. It corrects guided steps that left the data's distribution.

    Args:
        solver: takes the steps. One with history is refused, as it would keep a later level.
        times: how often a step is taken; 1 is the solver alone.
        where: shares of the run (lo, hi), from 1 at noise to 0 at data; steps whose middle is
            within it are repeated. FreeDoM's middle third is (1/3, 2/3).

    ``times`` times as many evaluations there. The state of the terms is that of the first visit.

    Raises:
        ValueError: a solver with history, or an argument out of range.

    References:
        RePaint: Inpainting using Denoising Diffusion Probabilistic Models,
        https://arxiv.org/abs/2201.09865
            Andreas Lugmayr, Martin Danelljan, Andres Romero, Fisher Yu, Radu Timofte, Luc Van Gool
        FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model, algorithm 2,
        https://arxiv.org/abs/2303.09833
            Jiwen Yu, Yinhuai Wang, Chen Zhao, Bernard Ghanem, Jian Zhang
        Universal Guidance for Diffusion Models, https://arxiv.org/abs/2302.07121
            Arpit Bansal, Hong-Min Chu, Avi Schwarzschild, Soumyadip Sengupta, Micah Goldblum, Jonas
            Geiping, Tom Goldstein
    """

    solver: Solver = field(default_factory=DDPM)
    times: int = 2
    where: tuple[float, float] = (0.0, 1.0)
    name = "time-travel"
    order = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver.history:
            raise ValueError(
                f"time travel has no meaning around {self.solver.name!r}, which keeps earlier "
                "steps; use ddpm, ddim or heun"
            )
        if isinstance(self.solver, TimeTravel):
            raise ValueError(
                "time travel around time travel repeats the same steps; set times instead"
            )
        if not _is_whole(self.times) or not 1 <= self.times <= 1000:
            raise ValueError(
                f"time travel: times must be a whole number from 1 to 1,000, not {self.times!r}"
            )
        if not 0 <= self.where[0] < self.where[1] <= 1:
            raise ValueError(
                "time travel: where must be two shares of the run with 0 <= lo < hi <= 1, not "
                f"{self.where!r}"
            )

    @property
    def stochastic(self) -> bool:
        return self.times > 1 or self.solver.stochastic

    def check(self, predict: Predict, grid: Grid) -> None:
        self.solver.check(predict, grid)

    def _visits(self, step: Step) -> int:
        middle = 1 - (step.index + 0.5) / step.grid.steps
        return self.times if self.where[0] < middle < self.where[1] else 1

    def evaluations(self, step: Step) -> Sequence[Step]:
        visits = [step._replace(visit=visit) for visit in range(self._visits(step))]
        return [e for visit in visits for e in self.solver.evaluations(visit)]

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        x_s, memory = yield from self.solver.move(x_t, step, memory, draw)
        for visit in range(1, self._visits(step)):
            again, own = step._replace(visit=visit), draw.again(visit)
            x_t = _back(x_s, step, own)
            x_s, memory = yield from self.solver.move(x_t, again, memory, own)
        return x_s, memory


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _back(x_s: Tensor, step: Step, draw: Draw) -> Tensor:
    """Noise ``x_s`` to the level t by the forward process."""
    ratio, z = divide(step.t.alpha, step.s.alpha), draw.normal_like("back", x_s)
    return expand(ratio, x_s) * x_s + expand(sqrt(step.transition_variance), x_s) * z
