"""Heads of classifiers and regressors: temperatures by noise level, and log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.levels import Level, Value, expand, inverse_or_zero, log


def temperature_at(rho: Value, table: Sequence[tuple[float, float]]) -> Value:
    """Interpolate ``T`` linearly in ``ln ρ``; constant outside the table (rising in ρ)."""
    xs = torch.tensor([math.log(r) for r, _ in table], dtype=torch.float64)
    ys = torch.tensor([t for _, t in table], dtype=torch.float64)
    at = torch.as_tensor(rho, dtype=torch.float64).clamp_min(1e-300).log().clamp(xs[0], xs[-1])
    if len(table) == 1:
        found = ys[0].expand(at.shape)
    else:
        right = 1 + torch.searchsorted(xs[1:-1], at.contiguous())
        found = torch.lerp(
            ys[right - 1], ys[right], (at - xs[right - 1]) / (xs[right] - xs[right - 1])
        )
    return found if isinstance(rho, Tensor) else float(found)


class _CalibratedHead:
    """Mixin of networks that predict a class, or real numbers (a mean and a log-variance for each).

    The network has ``head``, ``drop``, ``features(x, time)`` and, in its config, ``outputs``,
    ``temperature`` and ``temperatures``.
    """

    if TYPE_CHECKING:
        noise_aware: bool
        outputs: int | None
        temperature: float
        temperatures: tuple[tuple[float, float], ...]
        head: nn.Linear
        drop: nn.Module
        config: Mapping[str, Sequence[float] | None]

        def features(self, x: Tensor, time: Tensor | float | None = None) -> Tensor: ...
        def register_to_config(self, **settings: object) -> None: ...
        def __call__(self, x: Tensor, level: Level | None = None) -> Tensor: ...

    def calibrate(self, table: Sequence[tuple[float, float]]) -> None:
        """Set temperatures by noise ratio: they divide logits, or multiply a regressor's variances.

        Raises:
            ValueError: the ratios do not rise, or a temperature is not positive.
        """
        rows = tuple((float(r), float(t)) for r, t in table)
        if any(a[0] >= b[0] for a, b in pairwise(rows)) or any(r <= 0 or t <= 0 for r, t in rows):
            raise ValueError(
                f"temperatures are pairs (rho, T) of positive numbers, rho rising, not {rows}"
            )
        self.temperatures = rows
        self.register_to_config(temperatures=rows)

    def forward(self, x: Tensor, level: Level | None = None) -> Tensor:
        """Return logits ``[B, K]`` (a regressor: means and log-variances ``[B, 2D]``).

        A noise-aware network needs the level of ``x``.
        """
        if not self.noise_aware:
            return self._apply_temperature(self.head(self.drop(self.features(x))), None)
        if level is None:
            raise ValueError("a noise-aware classifier needs the noise level; give the level of x")
        x = x * expand(inverse_or_zero(level.norm), x)
        return self._apply_temperature(self.head(self.drop(self.features(x, level.t))), level)

    def _apply_temperature(self, out: Tensor, level: Level | None) -> Tensor:
        if self.outputs:
            return self._in_units(out, level)
        out = out / self.temperature
        if level is None or not self.temperatures:
            return out
        return out * expand(1 / temperature_at(level.rho, self.temperatures), out)

    def _in_units(self, out: Tensor, level: Level | None) -> Tensor:
        """Return a regressor's means and log-variances in the units of its numbers.

        A temperature multiplies the variance.
        """
        mean, log_var = out.chunk(2, -1)
        centre, spread = (
            out.new_tensor(self.config.get(key) or [default])
            for key, default in (("centre", 0.0), ("spread", 1.0))
        )
        log_var = log_var + 2 * spread.log()
        if level is not None and self.temperatures:
            log_var = log_var + expand(log(temperature_at(level.rho, self.temperatures)), log_var)
        return torch.cat([mean * spread + centre, log_var], -1)

    def log_prob(self, x: Tensor, level: Level | None, target: Tensor) -> Tensor:
        """Return ``log p(target | x, level)``, ``[B]``.

        The target is a class ``[B]``, or numbers ``[B, D]`` (independent normals).
        """
        out, target = self(x.to(self.head.weight.dtype), level), target.to(x.device)
        if not self.outputs:
            return F.log_softmax(out, -1).gather(-1, target[:, None])[:, 0]
        mean, log_var = out.chunk(2, -1)
        return -0.5 * (
            (target.to(mean) - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)
        ).sum(-1)
