"""What the training-free guidances share: a loss, the pass it looks at, and sizes on any
schedule.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import torch

from ...core.levels import Level, Step, Value, expand, inverse_or_zero
from ...core.passes import Pass, Slot
from ..losses import Loss, found, of_samples
from ..term import Context, Direction, Guidance, Live, Traits


@dataclass(frozen=True)
class Steered(Direction, ABC):
    """A term that lowers a loss of the clean estimate of one pass."""

    loss: str | Loss = "loss"
    _: KW_ONLY
    through: Literal["cond", "uncond", "neg"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.through not in (None, "cond", "uncond", "neg"):
            raise ValueError(
                f"{self.name}: through must be one of None, cond, uncond, neg, not {self.through!r}"
            )

    def bind(self, context: Context) -> Direction:
        return replace(
            self,
            loss=found(self.name, self.loss, context),
            through=self.through or context.base.cond.value,  # type: ignore[reportAttributeAccessIssue]
        )

    @property
    def seen(self) -> Pass:
        """The pass whose clean estimate the loss looks at; the base, once it is bound."""
        return Pass(cond=Slot(self.through))

    @property
    def traits(self) -> Traits:
        return Traits(linked=False, gradients=1, differentiates=self.seen if self.through else None)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return (self.seen,)

    def loss_of(self, live: Live) -> Loss:
        """Return the loss of these samples."""
        return of_samples(self.name, self.loss, live)  # type: ignore[arg-type]


def losses_of(guidance: Guidance) -> tuple[str, ...]:
    """Return the names of the run's losses that an expression lowers, each once."""
    return tuple(
        dict.fromkeys(
            t.loss for t in guidance.terms if isinstance(t, Steered) and isinstance(t.loss, str)
        )
    )


def displacing(step: Step) -> Value:
    """Return ``n_t n_s/α_s``: what turns ``∇_{x_t}`` into the split shift of x0 that displaces x_s.

    With ``n = √(α² + σ²)``, a step ``−ζ ∇`` in variance-preserving coordinates is
    ``d = −ζ n_t n_s ∇_{x_t}`` on any schedule, and displacing x_s by d is shifting x0 by ``d/α_s``.
    """
    return step.t.norm * step.s.norm * inverse_or_zero(step.s.alpha)


def scoring(level: Level) -> Value:
    """Return ``σ²/α``: what turns a score into the shift of x0; 0 at pure noise."""
    return level.sigma**2 * inverse_or_zero(level.alpha)


def spread(level: Level) -> Value:
    """Return ``σ/√(α² + σ²)``: σ_t in variance-preserving coordinates, and ``ρ/√(1 + ρ²)``."""
    return level.sigma * inverse_or_zero(level.norm)


def smoothed(loss: Loss, live: Live, samples: int, radius: Value) -> Loss:
    """Return ``log Σ_i exp(−loss(x0 + radius·n_i))``, n_i drawn for each sample and step."""
    noises = [
        expand(radius, live.x_t) * live.draw.normal_like(f"smooth/{i}", live.x_t)
        for i in range(samples)
    ]
    return lambda x0: torch.stack([-loss(x0 + n) for n in noises]).logsumexp(0)
