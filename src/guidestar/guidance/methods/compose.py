"""Composable diffusion: conjunction and negation of concepts."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.arguments import check_arguments
from ...core.denoiser import Condition
from ...core.levels import Step
from ...core.passes import COND, NULL, Pass, Slot
from ..expression import register
from ..term import Contrast, Traits


@register
@dataclass(frozen=True)
class AND(Contrast):
    """Composition: each AND adds ``w (cᵢ − u)`` to u; together ``u + Σ wᵢ(cᵢ − u)``.

    Args:
        scale: w. Usual: 7.5.
        concept: a name, prompt or `Condition`; by default the run's condition.

    1 evaluation for each concept, and 1 for the null; base uncond.

    References:
        Compositional Visual Generation with Composable Diffusion Models,
        https://arxiv.org/abs/2206.01714
            Nan Liu, Shuang Li, Yilun Du, Antonio Torralba, Joshua B. Tenenbaum
    """

    concept: str | int | Condition | None = None
    name = "AND"

    @property
    def traits(self) -> Traits:
        return Traits(requires=Slot.NULL)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "concept")

    def good(self, step: Step) -> Pass:
        return COND if self.concept is None else Pass(cond=self.concept)

    def bad(self, step: Step) -> Pass:
        return NULL


@register
@dataclass(frozen=True)
class NOT(Contrast):
    """Negation: moves away from a concept, adding ``−w (cᵢ − u)`` to u (2206.01714, as `AND`).

    Args:
        scale: w, positive.
        concept: a name, prompt or `Condition`.

    1 evaluation for each concept, and 1 for the null; base uncond.

    References:
        Compositional Visual Generation with Composable Diffusion Models,
        https://arxiv.org/abs/2206.01714
            Nan Liu, Shuang Li, Yilun Du, Antonio Torralba, Joshua B. Tenenbaum
    """

    concept: str | int | Condition = ""
    name = "NOT"

    @property
    def traits(self) -> Traits:
        return Traits(requires=Slot.NULL)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "concept")

    def good(self, step: Step) -> Pass:
        return NULL

    def bad(self, step: Step) -> Pass:
        return Pass(cond=self.concept)
