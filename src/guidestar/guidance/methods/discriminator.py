"""Discriminator guidance: towards samples that a discriminator takes for data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from ...core.levels import Level, Step, expand
from ...core.passes import Pass
from ...core.prediction import Prediction
from ...core.rounds import Group
from ...core.slopes import Slope
from ..bases.loss_term import scoring
from ..context import one_each
from ..expression import register
from ..term import Context, Direction, Live, Pushed, Traits

LogOdds = Callable[[Tensor, Level], Tensor]
"""``log_odds(x_t [B, *S], level) -> [B]``, differentiable: the logit of a discriminator."""


@runtime_checkable
class DiscriminatorModel(Protocol):
    """A discriminator of a model."""

    def log_odds(self, x: Tensor, level: Level, /) -> Tensor:
        """Return ``log d/(1 − d)`` of each sample, ``[B]``."""
        ...


@register
@dataclass(frozen=True)
class Discriminator(Direction):
    """Discriminator guidance: ``D̂ = D + s (σ²/α) ∇_{x_t} log d/(1 − d)``, that is score + s ∇.

    d is the probability that a noised sample comes from data and not from the model. The log odds
    of an exact d are the log ratio of the two densities, so s = 1 corrects the model's score.

    Args:
        scale: s; 1 for the exact discriminator.
        net: name of the run's discriminator, which has ``log_odds(x, level) -> [B]``.
        log_odds: any differentiable ``log_odds(x_t, level) -> [B]`` in place of ``net``.

    1 evaluation a step, and 1 gradient of the discriminator. The push is 0 at alpha = 0.

    References:
        Refining Generative Process with Discriminator Guidance in Score-based Diffusion Models,
        equation 8,
        https://arxiv.org/abs/2211.17091
            Dongjun Kim, Yeongmin Kim, Se Jung Kwon, Wanmo Kang, Il-Chul Moon
    """

    net: str = "discriminator"
    log_odds: LogOdds | None = None
    name = "discriminator"

    def bind(self, context: Context) -> Direction:
        if self.log_odds is not None:
            return self
        every = context.classifiers.items()
        models = {name: c for name, c in every if isinstance(c, DiscriminatorModel)}
        if self.net not in models:
            raise ValueError(
                f"discriminator: there is no discriminator {self.net!r} (there is "
                f"{', '.join(models) or 'none'}); give log_odds=, or a model that has one"
            )
        return replace(self, log_odds=models[self.net].log_odds)

    @property
    def traits(self) -> Traits:
        return Traits(gradients=1)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return ()

    def slope(self, group: Group) -> Slope | None:
        log_odds = self.log_odds
        if log_odds is None or not isinstance(
            getattr(log_odds, "__self__", None), DiscriminatorModel
        ):
            return None  # a user's function is called for its own run alone
        what = "discriminator: log_odds"
        return Slope(
            function=lambda x, level, target: one_each(what, log_odds(x, level), x),
            key=log_odds,
            x=group.x_t,
            level=group.step.t,
        )

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        t, log_odds = live.step.t, self.log_odds
        assert log_odds is not None
        if live.requested_slope is not None:
            up = live.requested_slope.gradient
        else:
            up = live.slope("discriminator: log_odds", lambda x: log_odds(x, t), None)
        return expand(scoring(t), up) * up, live.state
