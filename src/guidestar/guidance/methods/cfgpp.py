"""CFG++: classifier-free guidance that stays on the manifold."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.levels import Step
from ...core.passes import COND, NULL, Pass, Slot
from ..bases.conditional_contrast import needs_condition
from ..expression import register
from ..term import Context, Contrast, Direction, Traits


@register
@dataclass(frozen=True)
class CFGPP(Contrast):
    """CFG++: ``D_λ = u + λ(c − u)`` with the unconditional noise, ``x_s = α_s D_λ + σ_s ε_u``.

    The prediction is split: x0 moves, and eps is that of the null pass. Under DDIM it equals cfg on
    the base u with weight ``λ / (1 − ρ_s/ρ_t)``.

    Args:
        scale: λ, usually in [0, 1]; 0.6 is about cfg(7.5).

    2 evaluations a step; base uncond.

    References:
        CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models,
        https://arxiv.org/abs/2406.08070
            Hyungjin Chung, Jeongsol Kim, Geon Yeong Park, Hyelin Nam, Jong Chul Ye
    """

    name = "cfgpp"

    @property
    def traits(self) -> Traits:
        return Traits(requires=Slot.NULL, linked=False)

    def bind(self, context: Context) -> Direction:
        return needs_condition(self, context)

    def good(self, step: Step) -> Pass:
        return COND

    def bad(self, step: Step) -> Pass:
        return NULL
