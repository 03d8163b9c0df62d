"""Adaptive guidance: classifier-free guidance that stops where it no longer changes much."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Level, Step, Value, expand
from ...core.prediction import Prediction
from ..bases.conditional_contrast import Conditioned
from ..bases.statistics import dot, norm, safe
from ..expression import register
from ..term import Live, Pushed, TermState
from ..weights import finite


@register
@dataclass(frozen=True)
class Adaptive(Conditioned):
    """Adaptive guidance: ``u + s(c − u)`` until ``cos(c, u) > γ``, then c, for each sample.

    The step at which the cosine first exceeds γ is still guided. In the rest of the run the null
    pass of that sample is not evaluated. The paper takes the cosine of ε, which is near 1 at high
    noise for any network (``ε ≈ x_t``). Here it is the cosine of the velocity (``ε − x0``), and it
    counts only at noise ratios of at most ``below``.

    Args:
        scale: s, as in cfg.
        gamma: γ in (−1, 1], which differs between models; 1 never stops.
        below: the highest noise ratio at which the cosine counts.
        negative: as in cfg.

    2 evaluations a step, then 1. That depends on the samples, so plans give the smallest and the
    largest number, and each evaluation waits once for the device.

    References:
        Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models,
        https://arxiv.org/abs/2312.12487
            Angela Castillo, Jonas Kohler, Juan C. Pérez, Juan Pablo Pérez, Albert Pumarola, Bernard
            Ghanem, Pablo Arbeláez, Ali Thabet
    """

    gamma: float = 0.99
    below: float = 5.0
    negative: str | int | Condition | None = None
    name = "adaptive"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not finite(self.gamma) or not -1 < self.gamma <= 1:
            raise ValueError(f"adaptive: gamma must be in (-1, 1], not {self.gamma!r}")
        if not finite(self.below) or self.below <= 0:
            raise ValueError(f"adaptive: below must be a positive noise ratio, not {self.below!r}")

    def start(self, x_t: Tensor) -> TermState:
        return {"done": x_t.new_zeros(len(x_t))}

    def weight(
        self, step: Step, rows: Tensor | None = None, state: TermState | None = None
    ) -> Value:
        weight = super().weight(step, rows)
        if state is None:
            return weight
        weight = torch.as_tensor(weight, dtype=torch.float64)
        return torch.where((state["done"] == 0).cpu(), weight, 0.0)

    def may_stop(self, step: Step) -> bool:
        before = step.grid[: step.index]
        return any(bool(self._counts(level).any()) for level in before)

    def _counts(self, level: Level) -> Tensor:
        return torch.as_tensor(level.rho, dtype=torch.float64) <= self.below

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        c, u = good.view("velocity"), bad.view("velocity")
        cosine = dot(c, u) / safe(norm(c) * norm(u))
        counts = expand(self._counts(live.step.t).double().expand(len(c)), c)
        reached = ((cosine > self.gamma) * counts).reshape(-1).to(c.dtype)
        done = torch.maximum(live.state["done"], reached)
        return good.x0 - bad.x0, {"done": done}
