"""Discriminator guidance: towards what a discriminator takes for data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...core.levels import Level, Step, expand
from ...core.passes import Pass
from ...core.prediction import Prediction
from ..bases.loss_term import scoring
from ..expression import register
from ..term import Context, Direction, Live, Pushed, Traits

LogOdds = Callable[[Tensor, Level], Tensor]


@register
@dataclass(frozen=True)
class Discriminator(Direction):
    """Discriminator guidance: ``D̂ = D + s (σ²/α) ∇_{x_t} log d/(1 − d)``, that is score + s ∇.

    d is the probability that a noised sample comes from data and not from the model; the log odds
    of an exact one are the log ratio of the two densities, so s = 1 corrects the model's score.

    Args:
        scale: s; 1 for the exact discriminator.
        net: which of the run's classifiers; it has ``log_odds(x, level) -> [B]``.
        log_odds: any differentiable ``log_odds(x_t, level) -> [B]`` in place of ``net``: the
            discriminator's logit.

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
        critic: Any = context.classifiers.get(self.net)
        if not hasattr(critic, "log_odds"):
            known = (
                ", ".join(n for n, c in context.classifiers.items() if hasattr(c, "log_odds"))
                or "none"
            )
            raise ValueError(
                f"discriminator: there is no discriminator {self.net!r} (there is {known}); give "
                "log_odds=, or a model that carries one"
            )
        return replace(self, log_odds=critic.log_odds)

    @property
    def traits(self) -> Traits:
        return Traits(gradients=1)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return ()

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        t = live.step.t
        up = live.slope("discriminator: log_odds", lambda x: self.log_odds(x, t), None)  # type: ignore[misc]
        return expand(scoring(t), up) * up, live.state
