"""How strong a guidance is at each step: constant, per sample, scheduled, within an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.levels import Step, Value
from .serialize import literal

Scale = float | Sequence[float]
"""One number, or a list of one number for each sample."""


@dataclass(frozen=True)
class Linear:
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
    schedule: Callable[[Value, Step], Value] = Linear()

    def __post_init__(self) -> None:
        if not finite(self.floor):
            raise ValueError(f"clamp: the floor must be a finite number, not {self.floor!r}")
        checked_schedule("clamp", self.schedule)

    def __call__(self, w: Value, step: Step) -> Value:
        value = self.schedule(w, step)
        return value.clamp_min(self.floor) if isinstance(value, Tensor) else max(self.floor, value)

    def __str__(self) -> str:
        return f"clamp({literal(self.floor)}, {literal(self.schedule)})"


linear, cosine, clamp = Linear(), Cosine(), Clamp
SCHEDULES: dict[str, object] = {"linear": linear, "cosine": cosine}
"""What ``schedule=`` may name in an expression, beside ``clamp(…)``."""

Schedule = Callable[[Value, Step], Value]


def finite(number: object) -> bool:
    """Tell whether this is a number, and finite as a float."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return abs(number) < 2**1000 and math.isfinite(number)


def _plain(value: Any) -> Any:
    """Return the numbers of a tensor, an array or a list of such as Python's own; anything else as
    it is.
    """
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def checked_scale(name: str, scale: Any) -> Scale:
    """Return one finite number, or a tuple of them; refuse anything else."""
    value = _plain(scale)
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(map(finite, numbers)):
        raise ValueError(
            f"{name}: the scale must be a finite number, or a list of one for each sample, not "
            f"{scale!r}"
        )
    return tuple(numbers) if isinstance(value, list) else value


def checked_interval(name: str, interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the pair ``0 <= lo < hi`` (which may be infinite); refuse anything else."""
    if interval is None:
        return None
    found = _plain(interval)
    numbers = found if isinstance(found, list) and len(found) == 2 else ()
    if not all(n == math.inf or finite(n) for n in numbers) or not (
        numbers and 0 <= numbers[0] < numbers[1]
    ):
        raise ValueError(
            f"{name}: the interval (lo, hi] of noise ratios must be two numbers with 0 <= lo < "
            f"hi, not {interval!r}"
        )
    return numbers[0], numbers[1]


def checked_schedule(name: str, schedule: Schedule | None) -> Schedule | None:
    """Return what maps ``(weight, step)`` to a weight; refuse anything else."""
    if schedule is not None and (isinstance(schedule, type) or not callable(schedule)):
        raise ValueError(
            f"{name}: the schedule must be linear, cosine, clamp(…) or a function of (weight, "
            f"step), not {schedule!r}"
        )
    return schedule


def weigh(
    value: Scale,
    schedule: Schedule | None,
    interval: tuple[float, float] | None,
    step: Step,
    rows: Tensor | None,
) -> Value:
    """Return the weight of each sample (or of all) at ``step``.

    Args:
        value: the weight, one number or one for each sample of the run.
        schedule: maps the weight along the run.
        interval: noise ratios ``(lo, hi]`` where it acts; elsewhere the weight is 0.
        step: of the samples at hand.
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


def _scheduled(weight: Any) -> Value:
    """Return what a schedule made: a single number as Python's own, whatever holds it."""
    return float(weight) if getattr(weight, "ndim", 0) == 0 else weight


def _per_sample(values: Sequence[float], rows: Tensor | None) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor if rows is None else tensor[rows]
