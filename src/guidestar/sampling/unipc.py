"""Predictor–corrector methods on clean estimates with one evaluation a step: UniPC."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.levels import Level, Step, Value, expand, inverse_or_zero
from ..core.rng import Draw
from .changes import BASE, Remembering
from .exponential import (
    Estimate,
    History,
    adams,
    check_orders,
    decay,
    each,
    half_log_snr,
    half_step,
    order_at,
)
from .multistep import first_order
from .solver import Memory, Moving, Point

Weights = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Remembering):
    """Base: at a level, the new estimate first corrects the sample that led there.

    A step needs one evaluation, at the sample that the predictor gave. The corrector is the
    integral of a polynomial that also goes through that estimate; what it changes,
    ``δ = α_t Σ_j (w'_j − w_j)(D̄_j − D̄)``, is carried on by ``(σ_s/σ_t) e^{−ηh}``.
    """

    @abstractmethod
    def orders(self, step: Step, history: int) -> int:
        """Return the order of the predictor in ``step``."""

    @abstractmethod
    def predicting(self, h: float, eta: float, places: Weights) -> Weights:
        """Return the predictor's weights of the estimates at ``places``."""

    @abstractmethod
    def correcting(self, h: float, eta: float, places: Weights, order: int) -> Weights:
        """Return the corrector's weights: of the new estimate first, then of some of ``places``.

        Args:
            h: length of the step that is corrected.
            eta: of that step.
            places: of the estimates before the one that the step began with, relative to it.
            order: of that step's predictor.
        """

    def noise(self, level: Level) -> Value:
        """Return η = τ² of a step that begins at ``level``."""
        return 0.0

    def move(self, x_t: Tensor, step: Step, memory: Memory, draw: Draw) -> Moving:
        prediction = yield Point(x_t, step)
        before, here, s = History.read(memory), half_log_snr(step.t), step.s
        clean = Estimate.clean(x_t, prediction, step.t, self.at_changes)
        past = before.follow(clean, self.at_changes)
        order, h, eta = self.orders(step, len(past.estimates)), half_step(step), self.noise(step.t)
        x_s = first_order(x_t, prediction, step, h, eta, draw, "sde")
        if past.estimates and self.corrects:
            delta = self._correction(before, clean, here, step.t, memory["eta"])
            carried = s.sigma * inverse_or_zero(step.t.sigma) * decay(eta, h)
            x_s = x_s + expand(carried, x_t) * delta
        if order > 1:
            weights = each(
                lambda eta, s, t, *ps: self.predicting(s - t, eta, tuple(p - t for p in ps)),
                eta,
                half_log_snr(s),
                here,
                *past.places[: order - 1],
            )
            x_s = x_s + expand(s.alpha, x_t) * past.correction(clean.value, weights)
        return x_s, {**past.memory(clean, here, self.keeps, order), "eta": eta}

    @property
    @abstractmethod
    def keeps(self) -> int:
        """How many estimates are kept."""

    @property
    def corrects(self) -> bool:
        """Whether there is a corrector."""
        return True

    def _correction(
        self, past: History, clean: Estimate, here: Value, level: Level, eta: Value
    ) -> Tensor | float:
        """Return δ: how far the corrector moves the sample that the last step led to.

        Where other terms act now, that step is corrected by the base, with its own push.
        """
        changed = past.change(clean, self.at_changes)
        if isinstance(changed, float) and changed == BASE:
            return 0.0
        new_estimate = past.carry_push(clean, changed)
        count, order = len(past.estimates) - 1, past.order

        def weights(eta: float, there: float, begin: float, *others: float) -> Weights:
            h, places = there - begin, tuple(p - begin for p in others)
            new, *old = self.correcting(h, eta, places, order)
            predicted = self.predicting(h, eta, places[: order - 1]) if order > 1 else ()
            return (
                new,
                *(a - b for a, b in zip(_to(count, old), _to(count, predicted), strict=True)),
            )

        found = each(weights, eta, here, *past.places)
        before, *rest = past.estimates
        total = History((new_estimate, *rest)).correction(before, found)
        if isinstance(changed, Tensor):
            total = expand((changed != BASE).double(), clean.value) * total
        return expand(level.alpha, clean.value) * total


def _to(count: int, weights: Sequence[float]) -> Weights:
    """Fill up with zeros."""
    return (*weights, *(0.0,) * (count - len(weights)))


@dataclass(frozen=True, kw_only=True)
class UniPC(PredictorCorrector):
    """UniPC-p on clean estimates: the predictor UniP-p and the corrector UniC-p.

        x_s = α_s x0 + σ_s ε + α_s B(h) Σ_k (a_k/r_k)(D̄_k − D̄_t)

    with ``r_k = (λ_k − λ_t)/h`` and the a_k that make it exact for polynomials, but a = 1/2 where
    there is one of them.

    Args:
        order: p, from 1 to 4; the corrector's result is of order p + 1.
        variant: B(h) is h ("bh1") or ``1 − e^{−h}`` ("bh2"); it matters where a = 1/2.
        corrector: whether UniC follows; without, this is UniP-p.
        first_order_steps: how many of the first steps are of first order.
        lower_order_final: whether the order falls to 1 over the last steps.

    References:
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models,
        https://arxiv.org/abs/2302.04867
            Wenliang Zhao, Lujia Bai, Yongming Rao, Jie Zhou, Jiwen Lu
    """

    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    first_order_steps: int = 1
    lower_order_final: bool = True
    name = "unipc"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_orders(self.name, self.first_order_steps, order=self.order)

    @property
    def convergence(self) -> int:
        return self.order + 1 if self.corrector else self.order

    @property
    def keeps(self) -> int:
        return self.order

    @property
    def corrects(self) -> bool:
        return self.corrector

    def orders(self, step: Step, history: int) -> int:
        return order_at(self, step, history)

    def predicting(self, h: float, eta: float, places: Weights) -> Weights:
        if len(places) == 1 and 0 < h < math.inf:
            place = places[0] / h
            return (self._b(h) / 2 / place if math.isfinite(place) and place else 0.0,)
        return adams(h, 1.0, places)

    def correcting(self, h: float, eta: float, places: Weights, order: int) -> Weights:
        if order == 1:
            return (self._b(h) / 2 if 0 < h < math.inf else 0.0,)
        return adams(h, 1.0, (h, *places[: order - 1]))

    def _b(self, h: float) -> float:
        return h if self.variant == "bh1" else -math.expm1(-h)
