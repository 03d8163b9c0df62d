"""Classifier guidance: the gradient of a classifier pushes the sample towards a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from ...core.levels import VP, Step, expand, inverse_or_zero
from ...core.passes import Pass
from ...core.prediction import Prediction
from ..bases.log_prob_term import Climbing, LogProb, LogProbModel
from ..bases.loss_term import scoring
from ..expression import register
from ..term import Context, Direction, Live, Pushed, Traits

Target = int | float | tuple[float, ...]
"""A class index, or the numbers of a regressor's target."""


@register
@dataclass(frozen=True)
class ClassifierGuidance(Climbing):
    """Classifier guidance, from Bayes: ``∇ log p(x|y) = ∇ log p(x) + ∇ log p(y|x)``.

    Score form (every solver): ``D̂ = D + s (σ²/α) ∇_{x_t} log p(y | x_t)``, that is
    ``ε̂ = ε − s σ ∇``. Mean form (solver ddpm, variance-preserving schedules): the mean of the
    ancestral step is displaced, ``μ̂ = μ + s Σ ∇``, with the gradient taken at x_t as the reference
    code does, and Σ the variance of that step.

    Args:
        scale: s; 1 for the exact classifier. Usual for trained ones: 0.5–1 on the conditional base,
            about 3–10 on ``uncond``.
        target: class index or name, or a list of one for each sample; by default the requested
            class of each sample. Of a regressor: numbers as text ("0.3,1.2"), or a tensor
            ``[B, D]``.
        net: name of the model's classifier.
        log_prob: any differentiable ``log_prob(x, level, target) -> [B]`` in place of ``net``.
        form: "score" or "mean".
        variance: of the mean form, the same as the solver's: "small" (posterior), "large", or
            "learned".
        through: None to classify x_t (a noise-aware classifier); "cond" or "uncond" to classify the
            clean estimate of that pass, at the clean level, differentiated through the network.

    1 evaluation and 1 gradient of the classifier a step. If a classifier has a calibrated limit of
    the noise ratio (``rho_max``), that is the default interval. The push is 0 at alpha = 0.

    References:
        Diffusion Models Beat GANs on Image Synthesis, algorithms 1 and 2,
        https://arxiv.org/abs/2105.05233
            Prafulla Dhariwal, Alex Nichol
    """

    target: int | str | Sequence[int | str] | Tensor | None = None
    net: str = "classifier"
    log_prob: LogProb | None = None
    form: Literal["score", "mean"] = "score"
    variance: Literal["small", "large", "learned"] = "small"
    through: Literal["cond", "uncond"] | None = None
    name = "classifier"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target, list | Tensor):
            rows = self.target.tolist() if isinstance(self.target, Tensor) else self.target
            target = tuple(tuple(r) if isinstance(r, list) else r for r in rows)
            object.__setattr__(self, "target", target)
        choices = {"form": ("score", "mean"), "variance": ("small", "large", "learned")}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                known = ", ".join(allowed)
                raise ValueError(f"classifier: {name} must be one of {known}, not {value!r}")

    def bind(self, context: Context) -> Direction:
        if self.log_prob is not None:
            return replace(self, target=self._resolve(context))
        net = context.classifiers.get(self.net)
        if not isinstance(net, LogProbModel):
            known = ", ".join(sorted(context.classifiers)) or "none"
            raise ValueError(
                f"classifier: there is no classifier {self.net!r} (there is {known}); give "
                "log_prob=, or a model that has one"
            )
        target = self._resolve(context)
        _check_targets(target, net)
        interval = self.usable_interval(net, self.net)
        return replace(self, log_prob=net.log_prob, interval=interval, target=target)

    def _resolve(self, context: Context) -> tuple[Target, ...] | None:
        target = context.target if self.target is None else self.target
        if target is None and self.log_prob is None:
            raise ValueError(
                "classifier: no class was requested; give cond=, or target= in the expression"
            )
        if target is None:
            return None
        if isinstance(target, Tensor):
            target = cast("list[int | list[float]]", target.tolist())
        every = [target] if isinstance(target, int | str) else target
        return tuple(_index(one, context) for one in every)

    @property
    def traits(self) -> Traits:
        if self.form == "score":
            return super().traits
        # The mean is displaced by the variance of the solver's step, so the two must be equal.
        only: tuple[str, dict[str, object]] = ("ddpm", {"variance": self.variance})
        return replace(super().traits, linked=False, reads_target=True, only_solver=only)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        if self.form == "mean" and not isinstance(step.grid.schedule, VP):
            raise ValueError(
                "classifier(form='mean') is defined on variance-preserving schedules, not on "
                f"{type(step.grid.schedule).__name__}; use form='score'"
            )
        return super().passes(step)

    @property
    def climbed(self) -> tuple[LogProb | None, Tensor | None]:
        target = None if self.target is None else torch.tensor(self.target)
        return self.log_prob, target

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        _, target = self.climbed
        if target is not None:
            target = live.own_rows(target).to(live.x_t.device, non_blocking=True)
        gradient = self.ascend(live, self.log_prob, target, predictions)
        return self._factor(live, gradient) * gradient, live.state

    def _factor(self, live: Live, like: Tensor) -> Tensor | float:
        """Return the factor from the gradient to a push of x0: ``σ²/α``, or ``Σ/α_s``."""
        t, s = live.step.t, live.step.s
        if self.form == "score":
            return expand(scoring(t), like)
        small, large = live.step.posterior_variance, live.step.transition_variance
        if self.variance != "learned":
            variance = small if self.variance == "small" else large
            return expand(variance * inverse_or_zero(s.alpha), like)
        share = live.base.log_var
        if share is None:
            raise ValueError(
                "classifier(variance='learned') needs a network that predicts its variance (2C "
                "channels, learned_variance=True)"
            )
        ratio = expand(large, like) * expand(inverse_or_zero(small), like)
        learned = expand(small, like) * ratio ** ((share + 1) / 2)
        return learned * expand(inverse_or_zero(s.alpha), like)


def _index(target: int | str | Sequence[float], context: Context) -> Target:
    """Return a class as its index, a vector as a tuple of numbers."""
    if isinstance(target, str):
        if context.index is None:
            raise ValueError(f"classifier: the class {target!r} has no index here; give a number")
        found: int | Sequence[float] = context.index(target)
    else:
        found = target
    return found if isinstance(found, int) else tuple(found)


def _check_targets(target: tuple[Target, ...] | None, net: object) -> None:
    """Refuse classes that a classifier does not have, if it lists its own."""
    count = len(dict(getattr(net, "config", {})).get("classes", ()))
    for k in target or ():
        if count and isinstance(k, int) and not 0 <= k < count:
            raise ValueError(
                f"classifier: there is no class {k} to steer to; the classifier knows 0 to "
                f"{count - 1}"
            )
