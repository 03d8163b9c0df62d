"""How strong a guidance is at each step: constant, per sample, scheduled, within an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..levels import Step, Value

Scale = float | int | list | tuple
"""One number, or a list of one number for each sample."""


@dataclass(frozen=True)
class Linear:
    """``w(τ) = 2 w (1 − τ)``: nothing at noise, twice the weight at data, w on average.

    References:
        Analysis of Classifier-Free Guidance Weight Schedulers, https://arxiv.org/abs/2404.13040
    """

    def __call__(self, w: Value, step: Step) -> Value:
        return 2 * w * (1 - step.tau)

    def __str__(self) -> str:
        return "linear"


@dataclass(frozen=True)
class Cosine:
    """``w(τ) = w (1 + cos πτ)``: nothing at noise, twice the weight at data, w on average (2404.13040)."""

    def __call__(self, w: Value, step: Step) -> Value:
        return w * (1 + math.cos(math.pi * step.tau))

    def __str__(self) -> str:
        return "cosine"


@dataclass(frozen=True)
class Clamp:
    """``w(τ) = max(floor, schedule(w, τ))`` (2404.13040)."""

    floor: float
    schedule: Callable[[Value, Step], Value] = Linear()

    def __call__(self, w: Value, step: Step) -> Value:
        value = self.schedule(w, step)
        return value.clamp_min(self.floor) if isinstance(value, Tensor) else max(self.floor, value)

    def __str__(self) -> str:
        return f"clamp({self.floor:g}, {self.schedule})"


linear, cosine, clamp = Linear(), Cosine(), Clamp
SCHEDULES: dict[str, object] = {"linear": linear, "cosine": cosine, "clamp": clamp}
"""What ``schedule=`` may name in an expression."""

Schedule = Callable[[Value, Step], Value]


def check_scale(name: str, scale: Scale) -> None:
    """Refuse anything but finite numbers."""
    numbers = scale if isinstance(scale, list | tuple) else [scale]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in numbers):
        raise ValueError(f"{name}: the scale must be a finite number, or a list of one for each sample, not {scale!r}")


def check_interval(name: str, interval: tuple[float, float] | None) -> None:
    """Refuse anything but ``0 <= lo < hi``."""
    if interval is not None and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
        raise ValueError(f"{name}: the interval (lo, hi] of noise ratios must satisfy 0 <= lo < hi, not {interval!r}")


def weigh(value: Scale, schedule: Schedule | None, interval: tuple[float, float] | None, step: Step, rows: Tensor | None) -> Value:
    """Return the weight of each sample (or of all) at ``step``.

    Args:
        value: the weight, one number or one for each sample of the run.
        schedule: maps the weight along the run.
        interval: noise ratios ``(lo, hi]`` where it acts; elsewhere the weight is 0.
        step: of the samples at hand.
        rows: which samples of the run these are (None: all).
    """
    weight: Value = float(value) if not isinstance(value, list | tuple) else _per_sample(value, rows)
    weight = schedule(weight, step) if schedule else weight
    if interval is None:
        return weight
    rho, (low, high) = step.t.rho, interval
    if isinstance(rho, Tensor):
        return torch.where((rho > low) & (rho <= high), torch.as_tensor(weight, dtype=torch.float64), 0.0)
    return weight if low < rho <= high else weight * 0.0


def _per_sample(values: list | tuple, rows: Tensor | None) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor if rows is None else tensor[rows]
