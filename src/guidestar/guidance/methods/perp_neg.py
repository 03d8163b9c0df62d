"""Perp-Neg: negative prompts that take nothing from the requested condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.arguments import check_arguments
from ...core.denoiser import Condition
from ...core.levels import Step
from ...core.passes import COND, NEGATIVE, NULL, Pass, Slot
from ...core.prediction import Prediction
from ..bases.conditional_contrast import needs_condition
from ..bases.statistics import dot, safe
from ..expression import register
from ..term import Context, Direction, Live, Pushed, Traits
from ..weights import finite


@register
@dataclass(frozen=True)
class PerpNeg(Direction):
    """Perpendicular negatives: ``u + s[(p − u) + Σ wᵢ ((nᵢ − u) ⊥ (p − u))]``.

    ``a ⊥ b = a − b ⟨a, b⟩/‖b‖²`` is the part of a negative's direction that is orthogonal to the
    direction of the condition p.

    Args:
        scale: s, as in cfg.
        negative: a name, prompt or `Condition`, or a list of these; by default the run's negative.
        weights: wᵢ, below 0 to move away: one number, or a list of one for each negative.

    2 evaluations a step, and 1 for each negative; base uncond. It has differences only, so it is
    the same in every space; the projection is per sample.

    References:
        Re-imagine the Negative Prompt Algorithm: Transform 2D Diffusion into 3D, alleviate Janus
        problem and Beyond,
        https://arxiv.org/abs/2304.04968
            Mohammadreza Armandpour, Ali Sadeghian, Huangjie Zheng, Amir Sadeghian, Mingyuan Zhou
    """

    negative: str | int | Condition | Sequence[str | int | Condition] | None = None
    weights: float | Sequence[float] = -1.0
    name = "perp_neg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "negative", "weights")
        for field in ("negative", "weights"):
            if isinstance(value := getattr(self, field), list):
                object.__setattr__(self, field, tuple(value))
        if not all(map(finite, self._weights())):
            raise ValueError(f"perp_neg: weights must be finite numbers, not {self.weights!r}")
        if len(self._weights()) != len(self._negatives()):
            raise ValueError(
                f"perp_neg: there are {len(self._weights())} weights for "
                f"{len(self._negatives())} negatives; give one number, or one for each"
            )

    def _negatives(self) -> tuple[Pass, ...]:
        if self.negative is None:
            return (NEGATIVE,)
        if isinstance(self.negative, str | int | Condition):
            return (Pass(cond=self.negative),)
        return tuple(Pass(cond=n) for n in self.negative)

    def _weights(self) -> tuple[float, ...]:
        if isinstance(self.weights, Sequence):
            return tuple(self.weights)
        return (self.weights,) * len(self._negatives())

    @property
    def traits(self) -> Traits:
        return Traits(requires=Slot.NULL)

    def bind(self, context: Context) -> Direction:
        return needs_condition(self, context)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return COND, NULL, *self._negatives()

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        c, u, *negatives = (p.x0 for p in predictions)
        wanted = push = c - u
        for negative, weight in zip(negatives, self._weights(), strict=True):
            away = negative - u
            along = wanted * (dot(away, wanted) / safe(dot(wanted, wanted)))
            push = push + weight * (away - along)
        return push, live.state
