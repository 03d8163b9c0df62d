"""The base of training-free guidance: a loss, the pass of its clean estimate, sizes of steps."""

from __future__ import annotations

from abc import ABC
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import torch

from ...core.levels import Level, Step, Value, expand, inverse_or_zero
from ...core.passes import Pass, Slot
from ..losses import Loss, find_loss, loss_of_samples
from ..term import Context, Direction, Guidance, Live, Traits


@dataclass(frozen=True)
class Steered(Direction, ABC):
    """A term that lowers a loss of the clean estimate of one pass.

    Args:
        scale: its strength.
        loss: ``loss(x0 [B, *S]) -> [B]``, an `Observation`, or the name of a loss of the run.
        through: the pass of the clean estimate, "cond", "uncond" or "neg"; by default the base.

    Raises:
        ValueError: ``through`` is something else; once bound, the run has no such loss.
    """

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
        base = context.base.cond
        assert isinstance(base, Slot)
        loss = self.loss if has_own_loss(self) else find_loss(self.name, self.loss, context)
        return replace(self, loss=loss, through=self.through or base.value)

    @property
    def clean_pass(self) -> Pass:
        """The pass whose clean estimate the loss gets, once the term is bound."""
        return Pass(cond=Slot(self.through))

    @property
    def traits(self) -> Traits:
        through = self.clean_pass if self.through else None
        return Traits(linked=False, gradients=1, differentiates=through)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return (self.clean_pass,)

    def loss_of(self, live: Live) -> Loss:
        """Return the loss of these samples, ``loss(x0 [b, *S]) -> [b]``.

        A method that overrides this has a loss of its own, and needs none of the run.
        """
        assert not isinstance(self.loss, str)
        return loss_of_samples(self.name, self.loss, live)


def has_own_loss(term: Steered) -> bool:
    """Return whether a term overrides `Steered.loss_of`, so that it needs no loss of the run."""
    return type(term).loss_of is not Steered.loss_of


def losses_of(guidance: Guidance) -> tuple[str, ...]:
    """Return the names of the run's losses that an expression lowers, each once."""
    steered = [t for t in guidance.terms if isinstance(t, Steered)]
    losses = [t.loss for t in steered if not has_own_loss(t)]
    return tuple(dict.fromkeys(loss for loss in losses if isinstance(loss, str)))


def displacing(step: Step) -> Value:
    """Return ``n_t n_s/α_s``, the factor from ``∇_{x_t}`` to a split shift of x0 that moves x_s.

    With ``n = √(α² + σ²)``, a step ``−ζ ∇`` in variance-preserving coordinates is
    ``d = −ζ n_t n_s ∇_{x_t}`` on any schedule. To move x_s by d, x0 is shifted by ``d/α_s``.
    """
    return step.t.norm * step.s.norm * inverse_or_zero(step.s.alpha)


def scoring(level: Level) -> Value:
    """Return ``σ²/α``, the factor from a score to a shift of x0; 0 at pure noise."""
    return level.sigma**2 * inverse_or_zero(level.alpha)


def spread(level: Level) -> Value:
    """Return ``σ/√(α² + σ²) = ρ/√(1 + ρ²)``: σ_t in variance-preserving coordinates."""
    return level.sigma * inverse_or_zero(level.norm)


def smoothed(loss: Loss, live: Live, samples: int, radius: Value) -> Loss:
    """Return ``x0 -> log Σ_i exp(−loss(x0 + radius·n_i))``, with normal n_i.

    Args:
        loss: of these samples.
        live: the samples, whose random streams draw n_i at each step.
        samples: how many n_i.
        radius: their standard deviation.
    """
    noises = [
        expand(radius, live.x_t) * live.draw.normal_like(f"smooth/{i}", live.x_t)
        for i in range(samples)
    ]
    return lambda x0: torch.stack([-loss(x0 + n) for n in noises]).logsumexp(0)
