"""Exponential Adams methods: the weights of a polynomial through earlier predictions, exactly.

With ``λ = log(α/σ)`` (half the log-SNR) and ``h = λ_s − λ_t`` the solution of the ODE is

    x_s = (σ_s/σ_t) x_t + α_s ∫_0^h e^{−(h−u)} D(λ_t + u) du        of clean estimates D, and
    x_s = (α_s/α_t) x_t − σ_s ∫_0^h e^{+(h−u)} ε(λ_t + u) du        of noise estimates ε.

Solvers replace D or ε by a polynomial in u. With a constant both are DDIM, ``α_s x0 + σ_s ε``; what
is added are differences from the newest estimate, so that a split prediction moves the result by
``α_s Δ``, as under DDIM.

Weights are computed in Python's numbers, sample by sample where levels differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.levels import Level, Step, Value, expand, inverse_or_zero, log
from ..core.prediction import Prediction
from .changes import BASE, SAME, TERMS, AtChanges, change, where
from .solver import Memory

HIGHEST_ORDER = 4


def half_step(step: Step) -> Value:
    """Return h, half the gain in log-SNR; infinite towards data or from pure noise, 0 where a
    sample rests at either.
    """
    h = (step.s.log_snr - step.t.log_snr) / 2
    if isinstance(h, Tensor):
        return torch.where(h.isnan(), 0.0, h)
    return 0.0 if math.isnan(h) else h


def half_log_snr(level: Level) -> Value:
    """Return ``λ = log(α/σ)``: −inf at pure noise, inf at data."""
    return -log(level.rho)


def clean_estimate(x_t: Tensor, prediction: Prediction, level: Level) -> Tensor:
    """Return ``D̄ = (x_t − σε)/α``, of which histories are made: x0 unless the prediction is split.

    Where α is 0 it is x0.
    """
    x0 = prediction.x0
    estimate = (x_t - expand(level.sigma, x_t) * prediction.eps) * expand(
        inverse_or_zero(level.alpha), x_t
    )
    if not isinstance(level.alpha, Tensor):
        return estimate if level.alpha else x0
    return torch.where(torch.as_tensor(expand((level.alpha != 0) * 1.0, x_t)) > 0, estimate, x0)


def each(function: Callable[..., tuple[float, ...]], *values: Value) -> tuple[Value, ...]:
    """Apply a function of numbers to floats, or to every sample where some are tensors ``[B]``."""
    size = next((len(v) for v in values if isinstance(v, Tensor)), None)
    if size is None:
        return function(*values)
    columns = [v.tolist() if isinstance(v, Tensor) else [v] * size for v in values]
    rows = [function(*row) for row in zip(*columns, strict=True)]
    return tuple(torch.tensor(c, dtype=torch.float64) for c in zip(*rows, strict=True))


def decay(eta: Value, h: Value) -> Value:
    """Return ``e^{−ηh}``; 1 where η is 0, also for an infinite h."""
    return each(lambda eta, h: (math.exp(-eta * h) if eta else 1.0,), eta, h)[0]


def moments(z: float, count: int) -> list[float]:
    """Return ``∫_0^1 z e^{−z(1−v)} v^i dv`` for i = 0 … count − 1."""
    if abs(z) < 1:
        return [_series(z, i) for i in range(count)]
    found = [-math.expm1(-z)]
    for i in range(1, count):
        found.append(1 - i / z * found[-1])
    return found


def _series(z: float, i: int) -> float:
    """Return moment i as its power series, which loses no digits where z is small."""
    term, total, j = z / (i + 1), 0.0, 1
    while total + term != total:
        total, j = total + term, j + 1
        term *= -z / (i + j)
    return total


@lru_cache(maxsize=4096)
def adams(h: float, k: float, places: tuple[float, ...]) -> tuple[float, ...]:
    """Return the weights ``∫_0^h k e^{−k(h−u)} ℓ_j(u) du`` of the Lagrange polynomials ℓ_j.

    The polynomial goes through u = 0 and through ``places``; weight j multiplies the difference
    between the estimate at place j and the one at 0.

    Args:
        h: length of the step in λ.
        k: 1 for clean estimates, −1 for noise estimates, ``1 + τ²`` with noise.
        places: in λ, relative to where the step begins: negative in the past. From the first one
            on that cannot be used (infinite, 0, twice the same) all weights are 0.
    """
    none = (0.0,) * len(places)
    if not 0 < h < 700:
        return none
    used = usable([p / h for p in places])
    if not used:
        return none
    total = moments(k * h, len(used) + 1)
    found = []
    for j, place in enumerate(used):
        polynomial, scale = [0.0, 1.0], place
        for i, other in enumerate(used):
            if i != j:
                polynomial = _times(polynomial, other)
                scale *= place - other
        found.append(sum(c * m for c, m in zip(polynomial, total, strict=True)) / scale)
    return (*found, *none[len(used) :])


def usable(places: Sequence[float]) -> list[float]:
    """Return the places up to the first that is infinite, 0 or there already."""
    used: list[float] = []
    for place in places:
        if not math.isfinite(place) or place == 0 or place in used:
            break
        used.append(place)
    return used


def _times(polynomial: list[float], root: float) -> list[float]:
    """Multiply a polynomial (coefficients from the lowest) by ``u − root``."""
    shifted, scaled = [0.0, *polynomial], [*(-root * c for c in polynomial), 0.0]
    return [a + b for a, b in zip(shifted, scaled, strict=True)]


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a history is made of: a new estimate, and what it was before guidance.

    Args:
        value: ``[B, *S]``.
        base: the same of the base ``[B, *S]``, where it is known.
        terms: which terms act (`Unguided.terms`).
    """

    value: Tensor
    base: Tensor | None = None
    terms: tuple[Value, ...] = ()

    @classmethod
    def clean(
        cls, x_t: Tensor, prediction: Prediction, level: Level, at_changes: AtChanges
    ) -> Estimate:
        """Return the clean estimate of a prediction (`clean_estimate`); without its base, which
        nothing reads, where earlier estimates are kept.
        """
        value = clean_estimate(x_t, prediction, level)
        plain = None if at_changes == "keep" else prediction.unguided
        return cls(value, plain.x0, plain.terms) if plain else cls(value)

    @classmethod
    def noise(cls, prediction: Prediction, at_changes: AtChanges) -> Estimate:
        """Return the noise estimate of a prediction, as `clean` does."""
        plain = None if at_changes == "keep" else prediction.unguided
        return cls(prediction.eps, plain.eps, plain.terms) if plain else cls(prediction.eps)


@dataclass(frozen=True, eq=False)
class History:
    """Estimates of earlier steps, the newest first, and where each was made.

    Args:
        estimates: ``[B, *S]`` each.
        places: λ, or another coordinate of the level, of each.
        order: of the step that led here.
        bases: what the estimates were without guidance, where that is known.
        terms: which terms acted in the newest (`Unguided.terms`).
    """

    estimates: tuple[Tensor, ...] = ()
    places: tuple[Value, ...] = ()
    order: int = 0
    bases: tuple[Tensor, ...] = ()
    terms: tuple[Value, ...] = ()

    @classmethod
    def read(cls, memory: Memory) -> History:
        """Read what `memory` wrote."""

        def numbered(name: str) -> tuple[Any, ...]:
            count = sum(key.rstrip("0123456789") == name for key in memory)
            return tuple(memory[f"{name}{i}"] for i in range(count))

        return cls(
            numbered("estimate"),
            numbered("place"),
            memory.get("order", 0),
            numbered("base"),
            memory.get("terms", ()),
        )

    def memory(self, here: Estimate, place: Value, keep: int, order: int) -> Memory:
        """Return what a solver keeps: this with a new estimate, at most ``keep`` in all."""
        kept: dict[str, tuple[object, ...]] = {
            "estimate": (here.value, *self.estimates),
            "place": (place, *self.places),
        }
        found: dict[str, Any] = {"order": order}
        if here.base is not None:
            kept["base"], found["terms"] = (here.base, *self.bases), here.terms
        for name, values in kept.items():
            found |= {f"{name}{i}": value for i, value in enumerate(values[:keep])}
        return found

    def follow(self, here: Estimate, at_changes: AtChanges) -> History:
        """Return the history that a new estimate goes on from: where the terms that act have
        changed, with other estimates (`Remembering`).
        """
        changed = self.change(here, at_changes)
        if here.base is None or (isinstance(changed, float) and changed == SAME):
            return self
        push, restarts = here.value - here.base, changed == BASE
        known = (*self.bases, *self.estimates[len(self.bases) :])  # the latter are not used
        replaced = [where(restarts, here.value, base + push) for base in known]
        pairs = zip(replaced, self.estimates, strict=True)
        return replace(self, estimates=tuple([where(changed > SAME, *pair) for pair in pairs]))

    def carry_push(self, here: Estimate, changed: Value) -> Tensor:
        """Return a new estimate; where the terms that act have changed, its base with the push of
        the newest estimate before.
        """
        if here.base is None or (isinstance(changed, float) and changed != TERMS):
            return here.value
        base = self.bases[0] if self.bases else self.estimates[0]
        carried = here.base + self.estimates[0] - base
        return where(changed == TERMS, carried, here.value)

    def change(self, here: Estimate, at_changes: AtChanges) -> Value:
        """Return what has changed since the newest estimate; `BASE` where history is of no use."""
        if at_changes == "keep" or here.base is None or not self.estimates:
            return SAME
        if len(self.bases) < len(self.estimates):
            return BASE
        changed = change(self.terms, here.terms)
        if at_changes == "base":
            return changed
        if isinstance(changed, Tensor):
            return (changed > SAME).double() * BASE
        return BASE if changed else SAME

    def correction(self, newest: Tensor, weights: Sequence[Value]) -> Tensor | float:
        """Return ``Σ_j weight_j (estimate_j − newest)``."""
        total: Tensor | float = 0.0
        for weight, estimate in zip(weights, self.estimates, strict=False):
            if isinstance(weight, Tensor) or weight:
                total = total + expand(weight, newest) * (estimate - newest)
        return total


class Orders(Protocol):
    """The orders of a solver's steps: the highest, and what is wanted at the ends."""

    @property
    def order(self) -> int:
        """The highest."""
        ...

    @property
    def first_order_steps(self) -> int:
        """How many of the first steps are of first order."""
        ...

    @property
    def lower_order_final(self) -> bool:
        """Whether the last step is of first order, the one before of second, …."""
        ...


def order_at(wanted: Orders, step: Step, history: int) -> int:
    """Return the order of one step: the one requested, known so far, and wanted at the ends.

    Args:
        wanted: the solver.
        step: which.
        history: how many earlier estimates there are.
    """
    found = min(wanted.order, history + 1, step.index + 2 - wanted.first_order_steps)
    if wanted.lower_order_final:
        found = min(found, step.grid.steps - step.index)
    return max(1, found)


def check_orders(name: str, first_order_steps: object, **orders: object) -> None:
    """Refuse orders that are no whole numbers from 1 to 4, and a number of steps below 1.

    Raises:
        ValueError: the argument is named.
    """
    for key, order in orders.items():
        if isinstance(order, bool) or order not in range(1, HIGHEST_ORDER + 1):
            raise ValueError(f"{name}: {key} must be from 1 to {HIGHEST_ORDER}, not {order!r}")
    if isinstance(first_order_steps, bool) or first_order_steps not in range(1, 10_001):
        raise ValueError(
            f"{name}: first_order_steps must be a whole number of at least 1, not "
            f"{first_order_steps!r}"
        )
