"""Restart: once below a level, noise is put back and the way is gone again, several times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..core.levels import Grid, Level, Step, Value, divide, expand, sqrt
from ..core.rng import Draw
from .heun import Heun
from .solver import Memory, Moving, Predict, Solver
from .time_travel import TimeTravel


@dataclass(frozen=True, kw_only=True)
class Restart(Solver):
    """Restart sampling around any solver.

    After the step that leads to or below the noise ratio ``low``, to the level s, ``times`` times:
    the forward process leads back to ``high``, ``x_r = (α_r/α_s) x_s + σ_{r|s} z``, and ``solver``
    walks ``steps`` steps, even in ``ρ^(1/7)``, down to s again. What the solver keeps begins anew
    each time.

    Args:
        solver: what takes the steps.
        low, high: the noise ratios of the interval, ``0 < low < high``.
        times: how often; 0 is the solver alone.
        steps: of each way down.

    All samples of a batch must stand at the same levels. What the terms keep is that of the step
    that the restarts follow.

    References:
        Restart Sampling for Improving Generative Processes, algorithm 1,
        https://arxiv.org/abs/2306.14878
            Yilun Xu, Mingyang Deng, Xiang Cheng, Yonglong Tian, Ziming Liu, Tommi Jaakkola
    """

    solver: Solver = field(default_factory=Heun)
    low: float = 0.1
    high: float = 2.0
    times: int = 1
    steps: int = 5
    name = "restart"
    order = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "accepts_split", self.solver.accepts_split)
        if isinstance(self.solver, Restart | TimeTravel):
            raise ValueError(
                f"restart around {self.solver.name!r} has no meaning, as both go back; set times "
                "instead"
            )
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(
                "restart: the interval must be noise ratios with 0 < low < high, not "
                f"{self.low!r} and {self.high!r}"
            )
        for key, least in (("times", 0), ("steps", 1)):
            value = getattr(self, key)
            if isinstance(value, bool) or value not in range(least, 1001):
                raise ValueError(
                    f"restart: {key} must be a whole number from {least} to 1,000, not {value!r}"
                )

    @property
    def stochastic(self) -> bool:
        return self.times > 0 or self.solver.stochastic

    @property
    def convergence(self) -> int:
        """As the solver that takes the steps."""
        return self.solver.convergence

    def check(self, predict: Predict, grid: Grid) -> None:
        self.solver.check(predict, grid)
        if any(isinstance(v, Tensor) and bool((v != v[0]).any()) for lv in grid for v in lv):
            raise ValueError(
                "restart needs samples that all stand at the same levels; sample those of other "
                "levels each in a run of its own"
            )

    def evaluations(self, step: Step) -> Sequence[Step]:
        ways = [inner for _, inner in self._ways(step)]
        return [e for inner in (step, *ways) for e in self.solver.evaluations(inner)]

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        x, memory = yield from self.solver.move(x_t, step, memory, draw)
        for first, inner in self._ways(step):
            own = draw.again(inner.visit)
            if first:
                x, memory = _back(x, step.s, inner, own), {}
            x, memory = yield from self.solver.move(x, inner, memory, own)
        return x, memory

    def _ways(self, step: Step) -> Iterator[tuple[bool, Step]]:
        """Yield the steps of all ways down that follow ``step``, and which begin one."""
        begin, end = (_number(v.rho) for v in (step.t, step.s))
        if not end <= self.low < begin or end == 0 or end >= self.high:
            return
        way = self._grid(step, end)
        for visit in range(self.times):
            for index in range(self.steps):
                inner = way.step(index)
                yield index == 0, inner._replace(visit=1 + visit * self.steps + index)

    def _grid(self, step: Step, end: float) -> Grid:
        roots = [
            (self.high ** (1 / 7) * (self.steps - i) + end ** (1 / 7) * i) / self.steps
            for i in range(self.steps)
        ]
        levels = (*(step.grid.schedule.at_rho(r**7) for r in roots), step.s)
        return Grid(levels=levels, schedule=step.grid.schedule)


def _number(value: Value) -> float:
    """Return the value that all samples share."""
    return float(value[0]) if isinstance(value, Tensor) else value


def _back(x_s: Tensor, level: Level, step: Step, draw: Draw) -> Tensor:
    """Noise ``x_s`` from ``level`` to where ``step`` begins, as the forward process does."""
    ratio = divide(step.t.alpha, level.alpha)
    variance = step.t.sigma**2 - ratio**2 * level.sigma**2
    return expand(ratio, x_s) * x_s + expand(sqrt(variance), x_s) * draw.normal_like("back", x_s)
