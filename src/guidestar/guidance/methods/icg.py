"""Independent condition guidance: away from a condition drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Independent condition guidance: ``û + s(c − û)``, û at a condition drawn for each sample and
    step.

    A condition that is independent of the sample tells nothing about it, so û is an estimate of the
    unconditional prediction, from a network that was never trained without its condition.

    Args:
        scale: s, as in cfg.
        among: what to draw from, evenly: a list of names or prompts, a `Condition` of several rows,
            or a number K, for the classes 0 to K − 1. By default normal noise of the mean and
            deviation of the sample's own condition, tensor by tensor; of one number a sample there
            is none.

    2 evaluations a step. Linear, so it reads the same in every space. Needs the samples' seeds.

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
        object.__setattr__(
            self, "among", tuple(self.among) if isinstance(self.among, list) else self.among
        )
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
        return replace(
            self,
            among=context.encode(
                list(range(self.among)) if isinstance(self.among, int) else list(self.among)
            ),
        )

    def good(self, step: Step) -> Pass:
        return COND

    def bad(self, step: Step) -> Pass:
        return replace(COND, edit=Independent(self.among))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Independent:
    """A condition drawn from several, or noise like the sample's own."""

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
                f"icg: the condition ({', '.join(inputs.cond)}) has no real numbers that noise "
                "could take the place of; say what to draw from, among="
            )
        if all(y.numel() == len(y) for y in inputs.cond.values() if y.is_floating_point()):
            raise ValueError(
                f"icg: the condition ({', '.join(inputs.cond)}) has one number a sample, which "
                "has no deviation to draw noise of; say what to draw from, among="
            )
        return Condition(
            {
                k: _like(y, draw.normal_like(f"icg/{k}", y)) if y.is_floating_point() else y
                for k, y in inputs.cond.items()
            }
        )


def _like(y: Tensor, noise: Tensor) -> Tensor:
    flat = y.reshape(len(y), -1)
    return (flat.mean(1, keepdim=True) + std(flat) * noise.reshape(len(y), -1)).reshape(y.shape)
