"""CADS: annealed noise on the condition, for diverse samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Step
from ...core.passes import Edit, Inputs, Pass, Slot
from ...core.prediction import Prediction
from ..bases.statistics import safe, std
from ..expression import register
from ..term import Live, Post
from ..weights import finite


@register
@dataclass(frozen=True)
class CADS(Post):
    """Condition-annealed sampling: the network gets ``ŷ = √γ y + s √(1 − γ) n``.

    y is the condition. n ~ N(0, I) is drawn for each sample and step, and γ rises along the run,

        γ = 1 at τ ≤ τ₁, (τ₂ − τ)/(τ₂ − τ₁) between, 0 at τ ≥ τ₂

    with τ the remaining share of the run, 1 at noise. ŷ_r is ŷ rescaled to the mean and deviation
    of y; the network gets ``ψ ŷ_r + (1 − ψ) ŷ``. It is written after ``|``, as in
    ``cfg(7) | cads(0.25)``, and changes the inputs of the sum's passes, not the sum.

    Args:
        scale: s, usually 0.1–0.25.
        tau1: τ₁; below it the condition has no noise.
        tau2: τ₂; above it the condition is only noise.
        mix: ψ in [0, 1], usually 1.
        only: name of one tensor of the condition; by default all tensors of real numbers.

    A tensor of one number a sample has no deviation, and is not rescaled. Passes whose condition or
    time another term changes (icg, tsg) get noise too. An expression may have it once.

    0 evaluations more than the sum. Mean and deviation are per sample (over the whole batch in the
    paper's code). Needs the samples' seeds.

    References:
        CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed Sampling,
        https://arxiv.org/abs/2310.17347
            Seyedmorteza Sadat, Jakob Buhmann, Derek Bradley, Otmar Hilliges, Romann M. Weber
    """

    scale: float = 0.25
    tau1: float = 0.6
    tau2: float = 0.9
    mix: float = 1.0
    only: str | None = None
    name = "cads"

    def __post_init__(self) -> None:
        if not all(map(finite, (self.scale, self.tau1, self.tau2, self.mix))):
            raise ValueError("cads: its arguments must be finite numbers")
        if self.scale < 0 or not 0 <= self.tau1 < self.tau2 <= 1 or not 0 <= self.mix <= 1:
            raise ValueError(
                "cads: needs a scale of 0 or more, 0 <= tau1 < tau2 <= 1, and a mix in [0, 1]"
            )

    def gamma(self, step: Step) -> float:
        """Return the share γ of the condition at ``step``."""
        return min(1.0, max(0.0, (self.tau2 - step.tau) / (self.tau2 - self.tau1)))

    def instead(self, p: Pass, step: Step) -> Pass:
        gamma = self.gamma(step)
        if p.cond is not Slot.COND or gamma == 1:
            return p
        if isinstance(p.edit, Annealed):
            raise ValueError(
                "cads is there twice, so the second would add noise to noise; write it once, with "
                "a larger scale"
            )
        return replace(p, edit=Annealed(gamma, self.scale, self.mix, self.only, p.edit))

    def apply(self, prediction: Prediction, live: Live, *predictions: Prediction) -> Prediction:
        return prediction


@dataclass(frozen=True)
class Annealed:
    """Adds noise to the condition, or to that of another edit.

    Args:
        gamma: γ, the share of the condition.
        scale: s, the scale of the noise.
        mix: ψ, the share of the rescaled condition.
        only: name of one tensor (None: all of real numbers).
        before: an edit that comes first.
    """

    gamma: float
    scale: float
    mix: float
    only: str | None
    before: Edit | None = None

    def __call__(self, inputs: Inputs) -> Inputs:
        inputs = self.before(inputs) if self.before else inputs
        real = {
            k: y for k, y in inputs.cond.items() if y.is_floating_point() and self.only in (None, k)
        }
        if not real:
            kinds = {k: str(y.dtype).removeprefix("torch.") for k, y in inputs.cond.items()}
            raise ValueError(
                "cads adds noise to real numbers, and the condition has "
                f"none{f' named {self.only!r}' if self.only else ''}: it is "
                f"{', '.join(f'{k} ({kind})' for k, kind in kinds.items())}"
            )
        noisy = {k: self._add_noise(k, y, inputs) for k, y in real.items()}
        return replace(inputs, cond=Condition({**inputs.cond, **noisy}))

    def _add_noise(self, name: str, condition: Tensor, inputs: Inputs) -> Tensor:
        n = inputs.draw.normal_like(f"cads/{name}", condition).reshape(len(condition), -1)
        y = condition.reshape(len(condition), -1)
        noisy = math.sqrt(self.gamma) * y + self.scale * math.sqrt(1 - self.gamma) * n
        if y.shape[1] == 1:
            return noisy.reshape(condition.shape)
        unit = (noisy - noisy.mean(1, keepdim=True)) / safe(std(noisy))
        rescaled = unit * std(y) + y.mean(1, keepdim=True)
        return (self.mix * rescaled + (1 - self.mix) * noisy).reshape(condition.shape)
