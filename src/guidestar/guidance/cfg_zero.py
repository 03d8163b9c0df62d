"""CFG-Zero*: classifier-free guidance for flows, with a rescaled null and a still start."""

from __future__ import annotations

from dataclasses import dataclass

from ..denoiser import Condition
from ..levels import Step
from ..prediction import Prediction
from ._conditioned import Conditioned
from ._core import Live, Pushed
from ._statistics import dot, safe
from .expression import register


@register
@dataclass(frozen=True)
class CFGZero(Conditioned):
    """CFG-Zero*: ``v̂ = a u + s(c − a u)`` with ``a = ⟨c, u⟩/‖u‖²``, in velocity (``ε − x0``).

    In the first K steps the velocity is 0: no pass is evaluated, for no term of the sum, and no
    post acts. With velocity 0 the pair is ``x0 = ε = x_t/(α + σ)``, so that ``x/(α + σ)`` does not
    move: in a flow that is x itself. A multistep solver remembers that estimate one step longer.

    Args:
        scale: s, as in cfg.
        zero: K, a number of steps; by default ``max(1, round(0.04 n))`` of n, as the paper suggests.
        negative: as in cfg.

    2 evaluations a step, 0 in the first K. The product and the norm are per sample.

    References:
        CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models, https://arxiv.org/abs/2503.18886
            Weichen Fan, Amber Yijia Zheng, Raymond A. Yeh, Ziwei Liu
    """

    zero: int | None = None
    negative: str | int | Condition | None = None
    name = "cfg_zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero is not None and (isinstance(self.zero, bool) or not isinstance(self.zero, int) or self.zero < 0):
            raise ValueError(f"cfg_zero: zero must be a number of steps, 0 or more, not {self.zero!r}")

    def still(self, step: Step) -> bool:
        return step.index < (max(1, round(0.04 * step.grid.steps)) if self.zero is None else self.zero)

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        c, u = good.view("velocity"), bad.view("velocity")
        share = dot(c, u) / safe(dot(u, u))
        return good.to_x0(c - share * u, "velocity"), live.state
