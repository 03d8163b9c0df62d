"""Training-free guidance: a general form, of which most other methods are settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...core.arguments import check_counts
from ...core.levels import Level, Step, Value, expand, inverse_or_zero
from ...core.prediction import Prediction
from ..bases.loss_term import Steered, smoothed, spread
from ..expression import register
from ..losses import Loss, gradient
from ..term import Live, Pushed, Traits
from ..weights import finite

Course = Literal["increase", "decrease", "constant"]


@register
@dataclass(frozen=True)
class TFG(Steered):
    """Training-free guidance: ``d = s [(α_s/α_t) r_t ∇_{x_t} log f̃(D(x_t)) + α_s Δ0]``.

    d displaces x_s. ``f̃(x) = mean_i exp(−ℓ(x + γ̄ σ_t n_i))``, and Δ0 is the result of N ascent
    steps ``Δ0 ← Δ0 + m_t ∇ log f̃(D + Δ0)``. r_t and m_t are ``variance`` and ``mean`` times a
    course along the run, whose mean is 1: "increase" ∝ ᾱ_t/ᾱ_s, "decrease" ∝ 1 − ᾱ_t/ᾱ_s, or
    "constant". Sizes are those of variance-preserving coordinates: on any schedule, with
    n = √(α² + σ²), σ_t is σ_t/n_t and the gradient n_t² ∇_{x_t}. The solver `TimeTravel` does the
    recurrences.

    Args:
        scale: s, a factor of the whole push; 1 in the paper.
        loss: ℓ: any differentiable ``loss(x0) -> [B]``, an `Observation`, or the name of a loss of
            the run.
        variance: the paper's ρ̄, the size of the step through the network; with 0 the network is
            not differentiated.
        mean: the paper's μ̄, the size of the steps on the clean estimate.
        iterations: N, the number of these steps.
        smoothing: γ̄, the deviation of the noise in the loss; 0 for none, which needs no seeds.
        samples: the number of n_i.
        variance_course: the course of r_t: "increase", "decrease" or "constant".
        mean_course: the course of m_t.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    1 evaluation and 1 gradient through the network a step, and N gradients of the loss. The step
    through the network is 0 at alpha = 0.

    References:
        TFG: Unified Training-Free Guidance for Diffusion Models, algorithm 1,
        https://arxiv.org/abs/2409.15761
            Haotian Ye, Haowei Lin, Jiaqi Han, Minkai Xu, Sheng Liu, Yitao Liang, Jianzhu Ma, James
            Zou, Stefano Ermon
    """

    variance: float = 1.0
    mean: float = 1.0
    iterations: int = 4
    smoothing: float = 0.0
    samples: int = 4
    variance_course: Course = "increase"
    mean_course: Course = "increase"
    name = "tfg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        sizes = (self.variance, self.mean, self.smoothing)
        if not all(map(finite, sizes)) or self.smoothing < 0:
            raise ValueError(
                "tfg: variance, mean and smoothing must be finite, and smoothing 0 or more, not "
                f"{self.variance!r}, {self.mean!r} and {self.smoothing!r}"
            )
        if self.iterations < 0 or self.samples < 1:
            raise ValueError(
                f"tfg: iterations must be 0 or more and samples 1 or more, not {self.iterations} "
                f"and {self.samples}"
            )
        for course in (self.variance_course, self.mean_course):
            if course not in ("increase", "decrease", "constant"):
                raise ValueError(
                    f"tfg: a course must be increase, decrease or constant, not {course!r}"
                )

    @property
    def traits(self) -> Traits:
        traits = super().traits
        through = traits.differentiates if self.variance else None
        steps = (self.iterations if self.mean else 0) + (1 if self.variance else 0)
        losses = steps * (self.samples if self.smoothing else 1)
        return replace(
            traits, reads_target=True, differentiates=through, repeats=max(losses - 1, 0)
        )

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        (base,) = predictions
        log_f, x0 = self._log_f(live), base.x0.detach()
        push = self._clean_steps(live.step, log_f, x0)
        if self.variance:
            t, course = live.step.t, _along(self.variance_course, live.step)
            size = self.variance * course * t.norm**2 * inverse_or_zero(t.alpha)
            push = push + expand(size, x0) * live.gradient(log_f, base)
        return push, live.state

    def _log_f(self, live: Live) -> Loss:
        loss = self.loss_of(live)
        if self.smoothing:
            return smoothed(loss, live, self.samples, self.smoothing * spread(live.step.t))
        return lambda x0: -loss(x0)

    def _clean_steps(self, step: Step, log_f: Loss, x0: Tensor) -> Tensor:
        size, delta = expand(self.mean * _along(self.mean_course, step), x0), torch.zeros_like(x0)
        for _ in range(self.iterations if self.mean else 0):
            delta = delta + size * gradient(log_f, x0 + delta)
        return delta


def _along(course: Course, step: Step) -> Value:
    """Return the value of a course at ``step``; its mean over the run is 1."""
    every = [_raw(course, *step.grid.step(i)[:2]) for i in range(step.grid.steps)]
    mean = sum(every) / len(every)
    return _raw(course, step.t, step.s) * inverse_or_zero(mean)


def _raw(course: Course, t: Level, s: Level) -> Value:
    kept = (t.alpha * inverse_or_zero(t.norm) * s.norm * inverse_or_zero(s.alpha)) ** 2
    return {"increase": kept, "decrease": 1 - kept, "constant": kept * 0 + 1.0}[course]
