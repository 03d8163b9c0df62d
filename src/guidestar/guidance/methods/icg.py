"""Independent condition guidance: away from a condition drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Step
from ...core.passes import COND, Inputs, Pass
from ..bases.conditional_contrast import needs_condition
from ..bases.statistics import std
from ..expression import register
from ..term import Context, Contrast, Direction


@register
@dataclass(frozen=True)
class ICG(Contrast):
    """Independent condition guidance: ``û + s(c − û)``, û the pass of a random condition.

    The condition is drawn for each sample and step, independently of the sample. So û estimates the
    unconditional prediction with a network that was never trained without its condition.

    Args:
        scale: s, as in cfg.
        among: the conditions to draw from, evenly: a list of names or prompts, a `Condition` of
            several rows, or a number K for the classes 0 to K − 1. By default normal noise with the
            mean and deviation of the sample's own condition, tensor by tensor, which needs more
            than one number a sample.

    2 evaluations a step. Linear, so it is the same in every space. Needs the samples' seeds.

    References:
        No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models, section
        4,
        https://arxiv.org/abs/2407.02687
            Seyedmorteza Sadat, Manuel Kansy, Otmar Hilliges, Romann M. Weber
    """

    among: int | Sequence[str | int] | Condition | None = None
    name = "icg"
    neutral = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.among, list):
            object.__setattr__(self, "among", tuple(self.among))
        if self.among == () or (isinstance(self.among, int) and self.among < 1):
            raise ValueError(f"icg: there must be something to draw from, not among={self.among!r}")

    def bind(self, context: Context) -> Direction:
        needs_condition(self, context)
        if self.among is None or isinstance(self.among, Condition):
            return self
        if context.encode is None:
            raise ValueError(
                "icg: the conditions to draw from need an encoder: give encode=, or a Condition "
                "of several rows as among="
            )
        names = range(self.among) if isinstance(self.among, int) else self.among
        return replace(self, among=context.encode(list(names)))

    def good(self, step: Step) -> Pass:
        return COND

    def bad(self, step: Step) -> Pass:
        among = cast("Condition | None", self.among)  # of a bound term
        return replace(COND, edit=Independent(among))


@dataclass(frozen=True)
class Independent:
    """Draws a condition from several rows, or noise like the sample's own (None)."""

    among: Condition | None

    def __call__(self, inputs: Inputs) -> Inputs:
        if self.among is None:
            return replace(inputs, cond=self._noise(inputs))
        chosen = (inputs.draw.uniform("icg") * self.among.batch).long()
        return replace(inputs, cond=self.among.take(chosen))

    def _noise(self, inputs: Inputs) -> Condition:
        draw = inputs.draw
        if not any(y.is_floating_point() for y in inputs.cond.values()):
            raise ValueError(
                f"icg: the condition ({', '.join(inputs.cond)}) has no real numbers to replace by "
                "noise; give the conditions to draw from, among="
            )
        if all(y.numel() == len(y) for y in inputs.cond.values() if y.is_floating_point()):
            raise ValueError(
                f"icg: the condition ({', '.join(inputs.cond)}) has one number a sample, which "
                "has no deviation for noise; give the conditions to draw from, among="
            )
        real = {k: y for k, y in inputs.cond.items() if y.is_floating_point()}
        noise = {k: _scale(draw.normal_like(f"icg/{k}", y), y) for k, y in real.items()}
        return Condition({**inputs.cond, **noise})


def _scale(noise: Tensor, y: Tensor) -> Tensor:
    """Give noise the mean and deviation of each sample of ``y``."""
    flat = y.reshape(len(y), -1)
    return (flat.mean(1, keepdim=True) + std(flat) * noise.reshape(len(y), -1)).reshape(y.shape)
