"""Weights of terms at each step: constant, per sample, scheduled, within an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..core.arguments import WORDS
from ..core.levels import Step, Value
from .serialize import literal

Scale = float | Sequence[float]
"""One number, or a list of one number for each sample."""


@dataclass(frozen=True)
class LinearWeight:
    """``w(τ) = 2 w (1 − τ)``: nothing at noise, twice the weight at data, w on average.

    References:
        Analysis of Classifier-Free Guidance Weight Schedulers, https://arxiv.org/abs/2404.13040
            Xi Wang, Nicolas Dufour, Nefeli Andreou, Marie-Paule Cani, Victoria Fernández Abrevaya,
            David Picard, Vicky Kalogeiton
    """

    def __call__(self, w: Value, step: Step) -> Value:
        return 2 * w * (1 - step.tau)

    def __str__(self) -> str:
        return "linear"


@dataclass(frozen=True)
class Cosine:
    """``w(τ) = w (1 + cos πτ)``: nothing at noise, twice the weight at data, w on average.

    References:
        Analysis of Classifier-Free Guidance Weight Schedulers, https://arxiv.org/abs/2404.13040
            Xi Wang, Nicolas Dufour, Nefeli Andreou, Marie-Paule Cani, Victoria Fernández Abrevaya,
            David Picard, Vicky Kalogeiton
    """

    def __call__(self, w: Value, step: Step) -> Value:
        return w * (1 + math.cos(math.pi * step.tau))

    def __str__(self) -> str:
        return "cosine"


@dataclass(frozen=True)
class Clamp:
    """``w(τ) = max(floor, schedule(w, τ))``.

    References:
        Analysis of Classifier-Free Guidance Weight Schedulers, https://arxiv.org/abs/2404.13040
            Xi Wang, Nicolas Dufour, Nefeli Andreou, Marie-Paule Cani, Victoria Fernández Abrevaya,
            David Picard, Vicky Kalogeiton
    """

    floor: float
    schedule: Callable[[Value, Step], Value] = LinearWeight()

    def __post_init__(self) -> None:
        if not finite(self.floor):
            raise ValueError(f"clamp: the floor must be a finite number, not {self.floor!r}")
        checked_schedule("clamp", self.schedule)

    def __call__(self, w: Value, step: Step) -> Value:
        value = self.schedule(w, step)
        return value.clamp_min(self.floor) if isinstance(value, Tensor) else max(self.floor, value)

    def __str__(self) -> str:
        return f"clamp({literal(self.floor)}, {literal(self.schedule)})"


linear, cosine, clamp = LinearWeight(), Cosine(), Clamp
SCHEDULES: dict[str, object] = {"linear": linear, "cosine": cosine}
"""The names of ``schedule=`` in an expression, beside ``clamp(…)``."""

WeightSchedule = Callable[[Value, Step], Value]
"""Maps ``(weight, step)`` to a weight."""
WORDS.update({WeightSchedule: "a weight schedule (linear, cosine, clamp(…))"})


def finite(number: object) -> bool:
    """Return whether this is a number, and finite as a float."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return abs(number) < 2**1000 and math.isfinite(number)


@runtime_checkable
class _Array(Protocol):
    """A tensor, or an array of NumPy."""

    def tolist(self) -> object: ...


def _plain(value: object) -> object:
    """Return the numbers of a tensor, an array or a list of these as numbers of Python."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, _Array) else value


def checked_scale(name: str, scale: object) -> Scale:
    """Return the scale as a finite number, or a tuple of such numbers.

    Args:
        name: of the term, for the message.
        scale: a number, or a list, tensor or array of numbers.

    Raises:
        ValueError: it is something else.
    """
    value = _plain(scale)
    numbers = cast("list[float]", value if isinstance(value, list) else [value])
    if not numbers or not all(map(finite, numbers)):
        raise ValueError(
            f"{name}: the scale must be a finite number, or a list of one for each sample, not "
            f"{scale!r}"
        )
    return tuple(numbers) if isinstance(value, list) else numbers[0]


def checked_interval(name: str, interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return an interval as a pair ``0 <= lo < hi``; both may be infinite.

    Args:
        name: of the term, for the message.
        interval: noise ratios ``(lo, hi]``, or None.

    Raises:
        ValueError: it is something else.
    """
    if interval is None:
        return None
    found = _plain(interval)
    pair = isinstance(found, list) and len(found) == 2
    numbers = cast("list[float]", found) if pair else []
    if not all(n == math.inf or finite(n) for n in numbers) or not (
        numbers and 0 <= numbers[0] < numbers[1]
    ):
        raise ValueError(
            f"{name}: the interval (lo, hi] of noise ratios must be two numbers with 0 <= lo < "
            f"hi, not {interval!r}"
        )
    return numbers[0], numbers[1]


def checked_frames(name: str, frames: object) -> tuple[float, ...] | None:
    """Return the factors of the frames of a video as numbers.

    Args:
        name: of the term, for the message.
        frames: a list, tensor or array of numbers, or None.

    Raises:
        ValueError: it is something else.
    """
    if frames is None:
        return None
    found = _plain(frames)
    numbers = cast("list[float]", found) if isinstance(found, list) else []
    if not numbers or not all(map(finite, numbers)):
        raise ValueError(
            f"{name}: frames must be a list of finite numbers, the factors from the first frame to "
            f"the last, not {frames!r}"
        )
    return tuple(numbers)


def checked_schedule(name: str, schedule: WeightSchedule | None) -> WeightSchedule | None:
    """Return a weight schedule as it is.

    Args:
        name: of the term, for the message.
        schedule: a function of ``(weight, step)``, or None.

    Raises:
        ValueError: it is something else.
    """
    if schedule is not None and (isinstance(schedule, type) or not callable(schedule)):
        raise ValueError(
            f"{name}: the schedule must be linear, cosine, clamp(…) or a function of (weight, "
            f"step), not {schedule!r}"
        )
    return schedule


def weigh(
    value: Scale,
    schedule: WeightSchedule | None,
    interval: tuple[float, float] | None,
    step: Step,
    rows: Tensor | None,
) -> Value:
    """Return the weight of each sample (or of all) at ``step``.

    Args:
        value: the weight, one number or one for each sample of the run.
        schedule: changes the weight along the run.
        interval: noise ratios ``(lo, hi]``; outside, the weight is 0.
        step: of these samples.
        rows: which samples of the run these are (None: all).

    References:
        Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models,
        https://arxiv.org/abs/2404.07724
            Tuomas Kynkäänniemi, Miika Aittala, Tero Karras, Samuli Laine, Timo Aila, Jaakko
            Lehtinen
    """
    weight: Value = _per_sample(value, rows) if isinstance(value, Sequence) else float(value)
    weight = _scheduled(schedule(weight, step)) if schedule else weight
    if interval is None:
        return weight
    rho, (low, high) = step.t.rho, interval
    if isinstance(rho, Tensor):
        return torch.where(
            (rho > low) & (rho <= high), torch.as_tensor(weight, dtype=torch.float64), 0.0
        )
    return weight if low < rho <= high else 0.0


def _scheduled(weight: Value) -> Value:
    """Return the result of a schedule, with a single number as a float."""
    return float(weight) if getattr(weight, "ndim", 0) == 0 else weight


def _per_sample(values: Sequence[float], rows: Tensor | None) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor if rows is None else tensor[rows]
