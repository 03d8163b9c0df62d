"""DPM-Solver++(2S): two evaluations a step, and its ancestral form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.levels import Level, Step, Value, expand
from ..core.rng import Draw
from .exponential import clean_estimate, each
from .solver import Memory, Moving, Point, Solver


@dataclass(frozen=True, kw_only=True)
class DPMpp2S(Solver):
    """DPM-Solver++(2S) with its middle at half of the step in log-SNR.

    With ``h`` the half step in log-SNR to the level d, the middle m at ``λ_t + h/2``, and D̄ the
    clean estimates at t and at ``x_m = α_m x0 + σ_m ε``:

        x_s = α_s (x0 + ρ_d ε) + α_s (1 − e^{−h}) (D̄_m − D̄_t) + α_s ρ_up z

    Args:
        eta: 0 is deterministic, d = s. Else it is ancestral, as in k-diffusion:
            ``ρ_up² = η² ρ_s² (1 − ρ_s²/ρ_t²)`` and ``ρ_d² = ρ_s² − ρ_up²``.

    2 evaluations a step; 1, of first order, to data and from pure noise. A split prediction has no
    published meaning here and is refused.

    References:
        DPM-Solver++, algorithm 1, https://arxiv.org/abs/2211.01095
    """

    eta: float = 0.0
    name = "dpmpp-2s"
    order = 2
    accepts_split = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"dpmpp-2s: eta must be in [0, 1], not {self.eta!r}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def evaluations(self, step: Step) -> Sequence[Step]:
        return [step] if self._middle(step) is None else [step, self._second(step)]

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        first = yield Point(x_t, step)
        down, up, _, weight = self._levels(step)
        s = step.s
        x_s = expand(s.alpha, x_t) * first.x0 + expand(s.alpha * down, x_t) * first.eps
        if self._middle(step) is not None:
            second = self._second(step)
            m = second.t
            x_m = expand(m.alpha, x_t) * first.x0 + expand(m.sigma, x_t) * first.eps
            middle = yield Point(x_m, second)
            difference = clean_estimate(x_m, middle, m) - clean_estimate(x_t, first, step.t)
            x_s = x_s + expand(s.alpha * weight, x_t) * difference
        if self.eta:
            x_s = x_s + expand(s.alpha * up, x_t) * draw.normal_like("2s", x_t)
        return x_s, memory

    def _levels(self, step: Step) -> tuple[Value, ...]:
        """Return ρ_d, ρ_up, the middle's ρ (0: there is none), and ``1 − e^{−h}`` (0 likewise)."""

        def levels(t: float, s: float) -> tuple[float, ...]:
            ratio = s / t if 0 < t < math.inf else 0.0
            up = self.eta * s * math.sqrt(max(0.0, 1 - ratio * ratio))
            down = math.sqrt(max(0.0, s * s - up * up))
            if not (down > 0 and t < math.inf) or down >= t:
                return down, up, 0.0, 0.0
            return down, up, math.sqrt(down * t), 1 - down / t

        return each(levels, step.t.rho, step.s.rho)

    def _middle(self, step: Step) -> Value | None:
        """Return the noise ratio of the middle, where any sample has one."""
        middle = self._levels(step)[2]
        return middle if bool((torch.as_tensor(middle) > 0).any()) else None

    def _second(self, step: Step) -> Step:
        """Return where the second evaluation is: samples without a middle stay where they are."""
        middle = self._middle(step)
        assert middle is not None
        if not isinstance(middle, Tensor):
            return step._replace(t=step.grid.schedule.at_rho(middle))
        there = middle > 0
        level = step.grid.schedule.at_rho(torch.where(there, middle, 1.0))
        tensors = Level(*(torch.as_tensor(v, dtype=torch.float64) for v in step.t))
        return step._replace(t=level.where(there, tensors))
