"""Autoguidance: away from a bad version of the same model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...core.levels import Step
from ...core.passes import Pass, Slot
from ..expression import register
from ..term import Context, Contrast, Direction, Traits


@register
@dataclass(frozen=True)
class Autoguidance(Contrast):
    """Autoguidance: ``bad + s(good − bad)``, with a smaller or less trained network as the bad one.

    Args:
        scale: s, usually 1.7–2.9; 1 is the plain model.
        net: name of the bad network.
        of: the prediction of both networks: "cond" ("uncond" in a run without a condition), or
            "uncond".

    1 evaluation a step of each network. Linear, so it is the same in every space.

    References:
        Guiding a Diffusion Model with a Bad Version of Itself, https://arxiv.org/abs/2406.02507
            Tero Karras, Miika Aittala, Tuomas Kynkäänniemi, Jaakko Lehtinen, Timo Aila, Samuli
            Laine
    """

    net: str = "weak"
    of: Literal["cond", "uncond"] = "cond"
    name = "autoguidance"
    neutral = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in ("cond", "uncond"):
            raise ValueError(f"autoguidance: of must be cond or uncond, not {self.of!r}")

    @property
    def traits(self) -> Traits:
        return Traits(nets=(self.net,))

    def bind(self, context: Context) -> Direction:
        if self.net not in context.nets:
            raise ValueError(
                f"autoguidance: there is no network {self.net!r} (there is "
                f"{', '.join(context.nets)}); give a model that has one, or net="
            )
        return self if context.conditional else replace(self, of="uncond")

    def good(self, step: Step) -> Pass:
        return Pass(cond=Slot(self.of))

    def bad(self, step: Step) -> Pass:
        return Pass(cond=Slot(self.of), net=self.net)
