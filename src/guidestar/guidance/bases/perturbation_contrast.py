"""The base of methods that contrast a pass with the same pass of a perturbed network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...core.arguments import check_arguments
from ...core.levels import Step
from ...core.passes import Pass, Perturbation, Slot
from ..term import Context, Contrast, Direction


def checked_layers(layers: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of layers as a tuple; text is one name."""
    return (layers,) if isinstance(layers, str) else tuple(layers)


@dataclass(frozen=True)
class Perturbed(Contrast):
    """A term ``s (c − c_perturbed)``: away from the prediction of the perturbed network.

    Args:
        scale: s.
        layers: names of the perturbed layers; by default the family's usual ones.
        of: the pass that is contrasted: "cond" ("uncond" in a run without a condition), "uncond"
            or "neg".

    Raises:
        ValueError: an argument of another kind or range.
    """

    layers: str | Sequence[str] = ()
    of: Literal["cond", "uncond", "neg"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "layers")
        object.__setattr__(self, "layers", checked_layers(self.layers))
        if self.of not in (None, "cond", "uncond", "neg"):
            raise ValueError(f"{self.name}: of must be cond, uncond or neg, not {self.of!r}")

    @abstractmethod
    def change(self) -> Perturbation:
        """Return the perturbation of the bad pass."""

    def bind(self, context: Context) -> Direction:
        return replace(self, of=self.of or ("cond" if context.conditional else "uncond"))

    def good(self, step: Step) -> Pass:
        return Pass(cond=Slot(self.of or "cond"))

    def bad(self, step: Step) -> Pass:
        return replace(self.good(step), perturb=self.change())
