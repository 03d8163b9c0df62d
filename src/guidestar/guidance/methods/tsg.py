"""Time-step guidance: away from a network that gets a wrong time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ...core.levels import Step
from ...core.passes import Inputs, Pass, Slot
from ..expression import register
from ..term import Context, Contrast, Direction
from ..weights import finite


@register
@dataclass(frozen=True)
class TSG(Contrast):
    """Time-step guidance: ``D̃ + s(D − D̃)``, D̃ of a network that gets the time ``t̃``.

        t̃ = t + κ T (t/T)^p n

    n ~ N(0, 1) for each sample and step; T is the length of the schedule. Only the time changes: x
    and the meaning of the output stay those of the true level. The paper adds such noise to the
    network's embedding of t, with a strength tuned for each network. Here it is added to t, which
    any network has.

    Args:
        scale: s, as in cfg.
        noise: κ, as a share of the schedule, positive.
        power: p, which makes the noise fall towards data.
        of: the prediction of both passes: "cond" ("uncond" in a run without a condition), or
            "uncond".

    2 evaluations a step. Linear, so it is the same in every space. Needs the samples' seeds, and
    a network that gets the time (an edm network gets the noise ratio, and is refused).

    References:
        No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models, section
        5,
        https://arxiv.org/abs/2407.02687
            Seyedmorteza Sadat, Manuel Kansy, Otmar Hilliges, Romann M. Weber
    """

    noise: float = 0.1
    power: float = 1.0
    of: Literal["cond", "uncond"] = "cond"
    name = "tsg"
    neutral = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not finite(self.noise) or self.noise <= 0 or not finite(self.power) or self.power < 0:
            raise ValueError(
                f"tsg: needs a positive noise and a power of 0 or more, not {self.noise!r} and "
                f"{self.power!r}"
            )
        if self.of not in ("cond", "uncond"):
            raise ValueError(f"tsg: of must be cond or uncond, not {self.of!r}")

    def bind(self, context: Context) -> Direction:
        return self if context.conditional else replace(self, of="uncond")

    def good(self, step: Step) -> Pass:
        return Pass(cond=Slot(self.of))

    def bad(self, step: Step) -> Pass:
        schedule = step.grid.schedule
        edit = AnotherTime(self.noise, self.power, schedule.t_min, schedule.t_max)
        return Pass(cond=Slot(self.of), edit=edit)


@dataclass(frozen=True)
class AnotherTime:
    """Adds noise to the time, within the schedule.

    Args:
        noise: κ, as a share of the schedule.
        power: p, which makes the noise fall towards data.
        low: the earliest time.
        high: the latest time.
    """

    noise: float
    power: float
    low: float
    high: float

    def __call__(self, inputs: Inputs) -> Inputs:
        span, t = self.high - self.low, torch.as_tensor(inputs.t, dtype=torch.float64)
        share = ((t - self.low) / span).clamp(0, 1)
        moved = t + self.noise * span * share**self.power * inputs.draw.gaussian("tsg")
        return replace(inputs, t=moved.clamp(self.low, self.high))
