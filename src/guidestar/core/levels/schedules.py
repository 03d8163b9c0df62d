"""Schedules: how alpha and sigma depend on time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from .level import Level, Schedule, Value


def _on_tensors(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """Apply a float64 tensor function to a float or a tensor; return the same kind."""
    if isinstance(value, Tensor):
        return function(value.to("cpu", torch.float64))
    return float(function(torch.tensor(value, dtype=torch.float64)))


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate linearly through the points ``(xs, ys)``, ``xs`` rising; clamp outside."""
    x = x.clamp(xs[0], xs[-1])
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return torch.lerp(ys[right - 1], ys[right], share)


@dataclass(frozen=True)
class VP(Schedule):
    """Variance-preserving schedule of a table: ``alpha² = alphas_cumprod[t]``.

    Time is the (fractional) table index, in ``[0, T − 1]``. Between entries the angle
    ``atan2(sigma, alpha)`` is interpolated linearly: it is finite at both ends, so a table of zero
    terminal SNR (``alphas_cumprod[-1] = 0``) needs no special case.

    References:
        Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239
        Improved DDPM (cosine), https://arxiv.org/abs/2102.09672
        Common Diffusion Noise Schedules and Sample Steps are Flawed,
        https://arxiv.org/abs/2305.08891
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = [1.0, *self.alphas_cumprod]
        if len(table) < 3 or table[-1] < 0 or any(a <= b for a, b in pairwise(table)):
            raise ValueError(
                "alphas_cumprod must be at least two numbers that fall strictly, within [0, 1)"
            )
        object.__setattr__(self, "t_max", len(self.alphas_cumprod) - 1.0)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> VP:
        """Build the schedule whose forward steps have variances ``betas``."""
        table = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), 0)
        return cls(tuple(table.tolist()))

    @classmethod
    def linear(cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> VP:
        """Build DDPM's schedule: betas uniform between ``start`` and ``end``."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> VP:
        """Build Stable Diffusion's schedule: square roots of betas uniform."""
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> VP:
        """Build Improved DDPM's schedule, ``alpha_bar = cos²((t + s)/(1 + s) · pi/2)``.

        Betas are at most ``max_beta``.
        """
        bar = [
            math.cos((i / steps + offset) / (1 + offset) * math.pi / 2) ** 2
            for i in range(steps + 1)
        ]
        return cls.from_betas([min(1 - b / a, max_beta) for a, b in pairwise(bar)])

    def zero_terminal_snr(self) -> VP:
        """Return this table with ``alpha`` shifted and scaled so that it ends in pure noise.

        References:
            https://arxiv.org/abs/2305.08891, algorithm 1
        """
        a = torch.tensor(self.alphas_cumprod, dtype=torch.float64).sqrt()
        return VP(tuple((((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2).tolist()))

    def __repr__(self) -> str:
        table = self.alphas_cumprod
        return f"VP(alphas_cumprod={len(table)} numbers from {table[0]:.6g} to {table[-1]:.6g})"

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The entries' alphas, sigmas, angles and times."""
        # Python's square root is correctly rounded on every machine; torch's is not on some.
        roots = [(math.sqrt(a), math.sqrt(1 - a)) for a in self.alphas_cumprod]
        alphas, sigmas = torch.tensor(roots, dtype=torch.float64).T.contiguous()
        times = torch.arange(len(alphas), dtype=torch.float64)
        return alphas, sigmas, torch.atan2(sigmas, alphas), times

    t_min = 0.0

    def __call__(self, t: Value) -> Level:
        alphas, sigmas, angles, times = self._table

        def pick(t: Tensor, entries: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
            # Table entries are returned exactly: a cosine would lose the smallest of them.
            exact = entries[t.clamp(0, len(entries) - 1).long()]
            return torch.where(t == t.round(), exact, between(_interpolate(t, times, angles)))

        alpha = _on_tensors(lambda t: pick(t, alphas, torch.cos), t)
        return Level(alpha, _on_tensors(lambda t: pick(t, sigmas, torch.sin), t), t)

    def at_rho(self, rho: Value) -> Level:
        _, _, angles, times = self._table
        t = _on_tensors(lambda r: _interpolate(r.atan(), angles, times), rho)
        alpha = _on_tensors(lambda r: (1 + r * r).rsqrt(), rho)
        return Level(alpha, _on_tensors(lambda r: (1 + 1 / (r * r)).rsqrt(), rho), t)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance-exploding schedule, EDM's: ``alpha = 1, sigma = t``.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models,
        https://arxiv.org/abs/2206.00364
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def __call__(self, t: Value) -> Level:
        return Level(t * 0 + 1.0, t, t)

    def at_rho(self, rho: Value) -> Level:
        if bool(torch.as_tensor(rho).isinf().any()):
            raise ValueError("a variance-exploding schedule has no level of infinite noise ratio")
        clamp = _on_tensors(lambda r: r.clamp(self.t_min, self.t_max), rho)
        return Level(rho * 0 + 1.0, rho, clamp)

    @property
    def clean(self) -> Level:
        return Level(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: ``alpha = 1 − t, sigma = t``, t in [0, 1].

    ``shift`` changes only how grids space their steps: ``t = shift·u / (1 + (shift − 1)·u)``.

    References:
        Flow Straight and Fast, https://arxiv.org/abs/2209.03003
        Scaling Rectified Flow Transformers (time shift), https://arxiv.org/abs/2403.03206
    """

    shift: float = 1.0
    t_min = 0.0
    t_max = 1.0

    def __call__(self, t: Value) -> Level:
        return Level(1 - t, t, t)

    def at_rho(self, rho: Value) -> Level:
        sigma = _on_tensors(lambda r: 1 / (1 + 1 / r), rho)
        return Level(_on_tensors(lambda r: 1 / (1 + r), rho), sigma, sigma)

    def time(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)
