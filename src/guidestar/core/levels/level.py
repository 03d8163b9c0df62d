"""Noise levels: how much of a sample is data, and how much is noise.

The forward process is ``x_t = alpha x_0 + sigma eps`` with ``eps ~ N(0, I)``. The noise ratio
``rho = sigma / alpha`` (EDM's "sigma") orders the levels of all schedules. The numbers of a level
are Python floats, or CPU float64 tensors ``[B]`` where samples of one batch have different levels.
They are never on a device, so planning, intervals and row selection cost no synchronisation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
from torch import Tensor

Value = float | Tensor
"""A Python float, or a CPU float64 tensor ``[B]`` with one value for each sample."""


def expand(value: Value, x: Tensor) -> Value:
    """Shape ``value`` so that it multiplies ``x [B, *S]`` sample by sample.

    A float stays a float: no kernel, no transfer. A tensor ``[B]`` becomes ``[B, 1, …]`` on the
    device and in the dtype of ``x``.
    """
    if not isinstance(value, Tensor):
        return value
    return value.to(x.device, x.dtype, non_blocking=True).reshape(-1, *[1] * (x.ndim - 1))


def sqrt(value: Value) -> Value:
    """Return the square root; negative values, which rounding makes, count as 0."""
    return value.clamp_min(0).sqrt() if isinstance(value, Tensor) else math.sqrt(max(value, 0.0))


def divide(a: Value, b: Value) -> Value:
    """Return ``a / b``, infinite (or, for 0/0, not a number) where ``b`` is zero."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.as_tensor(a, dtype=torch.float64) / torch.as_tensor(b, dtype=torch.float64)
    return a / b if b else math.nan if a == 0 else math.copysign(math.inf, a)


def inverse_or_zero(value: Value) -> Value:
    """Return ``1 / value``, and 0 where ``value`` is 0."""
    if isinstance(value, Tensor):
        return torch.where(value == 0, 0.0, 1 / torch.where(value == 0, 1.0, value))
    return 1 / value if value else 0.0


def log(value: Value) -> Value:
    """Return the natural logarithm, ``-inf`` at zero."""
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value else -math.inf


def exp(value: Value) -> Value:
    """Return the exponential, ``inf`` where it overflows."""
    if isinstance(value, Tensor):
        return value.exp()
    return math.exp(value) if value < 700 else math.inf


class Level(NamedTuple):
    """A noise level ``x_t = alpha x_0 + sigma eps``, and the time ``t`` that networks get."""

    alpha: Value
    sigma: Value
    t: Value

    @property
    def rho(self) -> Value:
        """Noise ratio ``sigma / alpha``, in ``[0, inf]``."""
        return divide(self.sigma, self.alpha)

    @property
    def log_snr(self) -> Value:
        """``2 log(alpha / sigma)``, in ``[-inf, inf]``."""
        return -2 * log(self.rho)

    @property
    def norm(self) -> Value:
        """``sqrt(alpha² + sigma²)``: 1 on a variance-preserving schedule."""
        return sqrt(self.alpha**2 + self.sigma**2)

    def take(self, rows: Tensor) -> Level:
        """Select samples (``rows``: int64 indices); floats serve every sample as they are."""
        return Level(*(v[rows] if isinstance(v, Tensor) else v for v in self))

    def where(self, chosen: Tensor, other: Level) -> Level:
        """Return this level for the samples where ``chosen [B]`` is true, ``other`` elsewhere."""
        pairs = zip(self, other, strict=True)
        return Level(
            *(torch.where(chosen, torch.as_tensor(a, dtype=torch.float64), b) for a, b in pairs)
        )


@dataclass(frozen=True, kw_only=True)
class Grid(Sequence[Level]):
    """The levels of one run, noisiest first, and the schedule they were taken from."""

    levels: tuple[Level, ...]
    schedule: Schedule

    @overload
    def __getitem__(self, index: int) -> Level: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Level, ...]: ...
    def __getitem__(self, index: int | slice) -> Level | tuple[Level, ...]:
        return self.levels[index]

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def steps(self) -> int:
        """Number of solver steps from the first level to the last."""
        return len(self.levels) - 1

    def step(self, index: int) -> Step:
        """Return step ``index``: from level ``index`` to level ``index + 1``."""
        return Step(self.levels[index], self.levels[index + 1], index, self)

    def from_rho(self, rho: float) -> Grid:
        """Keep the levels with noise ratio at most ``rho``, e.g. to start from a noised image.

        Raises:
            ValueError: fewer than two levels are left.
        """
        kept = tuple(level for level in self.levels if level.rho <= rho)
        if len(kept) < 2:
            raise ValueError(
                f"no step of this grid starts at a noise ratio of at most {rho:g}; its lowest is "
                f"{float(self.levels[-2].rho):g}"
            )
        return Grid(levels=kept, schedule=self.schedule)


class Step(NamedTuple):
    """One step of a solver: from level ``t`` to level ``s``, the ``index``-th of ``grid``.

    ``visit`` counts how often the run took it before: 0, unless the run travels back in time. With
    ``leap`` it is taken whole, by a network that takes the `interval` as an input.
    """

    t: Level
    s: Level
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    grid: Grid
    visit: int = 0
    leap: bool = False

    @property
    def interval(self) -> Value:
        """Share of the flow's time that it covers: ``1 − τ_s/τ_t`` with ``τ = σ/(α + σ)``.

        In [0, 1]: 0 where s is t, and 1 where s is data.
        """
        tau_t = divide(self.t.sigma, self.t.alpha + self.t.sigma)
        tau_s = divide(self.s.sigma, self.s.alpha + self.s.sigma)
        return 1 - tau_s * inverse_or_zero(tau_t)

    @property
    def tau(self) -> float:
        """Share of the run that remains: 1 at noise, 1/n at the last of n steps."""
        return 1 - self.index / max(1, self.grid.steps)

    @property
    def transition_variance(self) -> Value:
        """``σ²_{t|s} = σ_t² − (α_t/α_s)² σ_s²``, the noise added from s to t ("fixed large")."""
        ratio = divide(self.t.alpha, self.s.alpha)
        return sqrt(self.t.sigma**2 - ratio**2 * self.s.sigma**2) ** 2

    @property
    def posterior_variance(self) -> Value:
        """``σ_s² σ²_{t|s} / σ_t²``, the variance of x_s given x_t and x_0 ("fixed small")."""
        return self.s.sigma**2 * self.transition_variance * inverse_or_zero(self.t.sigma) ** 2

    def take(self, rows: Tensor) -> Step:
        """Select samples (``rows``: int64 indices)."""
        return self._replace(t=self.t.take(rows), s=self.s.take(rows))


class Schedule(ABC):
    """How ``alpha`` and ``sigma`` depend on time, in ``[t_min, t_max]``."""

    t_min: float
    t_max: float

    @abstractmethod
    def __call__(self, t: Value) -> Level:
        """Return the level at time ``t``, in ``[t_min, t_max]``."""

    @abstractmethod
    def at_rho(self, rho: Value) -> Level:
        """Return the level of noise ratio ``rho``; its ``t`` is clamped to the schedule's range."""

    def inverse(self, log_snr: Value) -> Value:
        """Return the time at which ``log(alpha²/sigma²)`` is ``log_snr``."""
        return self.at_rho(exp(log_snr * -0.5)).t

    def time(self, u: float) -> float:
        """Map ``u`` in [0, 1] to a time: ``t_min`` at 0, ``t_max`` at 1."""
        return self.t_min + u * (self.t_max - self.t_min)

    @property
    def clean(self) -> Level:
        """The level of data: no noise at all."""
        return Level(1.0, 0.0, self.t_min)

    @property
    def rho_range(self) -> tuple[float, float]:
        """The lowest and the highest noise ratio; the highest may be infinite."""
        return float(self(self.t_min).rho), float(self(self.t_max).rho)
