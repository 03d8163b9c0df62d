"""Noise levels: where on the way from data to noise a sample stands.

The forward process is ``x_t = alpha x_0 + sigma eps`` with ``eps ~ N(0, I)``, and the noise ratio
``rho = sigma / alpha`` (EDM's "sigma") orders all levels of all schedules. Levels are Python
floats, or CPU float64 tensors ``[B]`` where samples of one batch stand at different levels: they
never live on a device, so planning, intervals and row selection cost no synchronisation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Value = float | Tensor
"""A Python float, or a CPU float64 tensor ``[B]`` with one value for each sample."""


def expand(value: Value, x: Tensor) -> Value:
    """Shape ``value`` so that it multiplies ``x [B, *S]`` sample by sample.

    A float stays a float (no kernel, no transfer); a tensor ``[B]`` becomes ``[B, 1, …]`` on the
    device and in the dtype of ``x``.
    """
    if not isinstance(value, Tensor):
        return value
    return value.to(x.device, x.dtype, non_blocking=True).reshape(-1, *[1] * (x.ndim - 1))


def sqrt(value: Value) -> Value:
    """Return the square root, with values that rounding left just under zero taken as zero."""
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
    """A noise level: ``x_t = alpha x_0 + sigma eps``, and the time ``t`` its network is told."""

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
        return Level(*(torch.where(chosen, torch.as_tensor(a, dtype=torch.float64), b) for a, b in pairs))


@dataclass(frozen=True, kw_only=True)
class Grid(Sequence[Level]):
    """The levels of one run, noisiest first, with the schedule they were taken from."""

    levels: tuple[Level, ...]
    schedule: Schedule

    def __getitem__(self, index):  # type: ignore[override]
        return self.levels[index]

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def steps(self) -> int:
        """How many solver steps walk this grid."""
        return len(self.levels) - 1

    def step(self, index: int) -> Step:
        """Return step ``index``: from level ``index`` to level ``index + 1``."""
        return Step(self.levels[index], self.levels[index + 1], index, self)

    def from_rho(self, rho: float) -> Grid:
        """Keep the levels with noise ratio at most ``rho`` (to start from a noised image)."""
        kept = tuple(level for level in self.levels if level.rho <= rho)
        if len(kept) < 2:
            raise ValueError(f"no step of this grid starts at a noise ratio of at most {rho:g}; its lowest is {float(self.levels[-2].rho):g}")
        return Grid(levels=kept, schedule=self.schedule)


class Step(NamedTuple):
    """One step of a solver: from level ``t`` to level ``s``, the ``index``-th of ``grid``."""

    t: Level
    s: Level
    index: int
    grid: Grid

    @property
    def tau(self) -> float:
        """Share of the run that is still ahead: 1 at noise, 1/n at the last of n steps."""
        return 1 - self.index / max(1, self.grid.steps)

    @property
    def transition_variance(self) -> Value:
        """``σ²_{t|s} = σ_t² − (α_t/α_s)² σ_s²``: what the forward process adds from s to t ("fixed large")."""
        ratio = divide(self.t.alpha, self.s.alpha)
        return sqrt(self.t.sigma**2 - ratio**2 * self.s.sigma**2) ** 2

    @property
    def posterior_variance(self) -> Value:
        """``σ_s² σ²_{t|s} / σ_t²``: variance of x_s given x_t and x_0 ("fixed small")."""
        return self.s.sigma**2 * self.transition_variance * inverse_or_zero(self.t.sigma) ** 2

    def take(self, rows: Tensor) -> Step:
        """Select samples (``rows``: int64 indices)."""
        return self._replace(t=self.t.take(rows), s=self.s.take(rows))


class Schedule(ABC):
    """How ``alpha`` and ``sigma`` depend on time."""

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
        """Lowest and highest noise ratio of the schedule; the highest may be infinite."""
        return float(self(self.t_min).rho), float(self(self.t_max).rho)


def _on_tensors(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """Apply a float64 tensor function to a float or a tensor, returning the same kind."""
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
    """Variance-preserving schedule through a table: ``alpha² = alphas_cumprod[t]``.

    Time is the (fractional) table index, in ``[0, T − 1]``. Between entries the angle
    ``atan2(sigma, alpha)`` is interpolated linearly: it is finite at both ends, so a table of zero
    terminal SNR (``alphas_cumprod[-1] = 0``) needs no special case.

    References:
        Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239
        Improved DDPM (cosine), https://arxiv.org/abs/2102.09672
        Common Diffusion Noise Schedules and Sample Steps are Flawed, https://arxiv.org/abs/2305.08891
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = [1.0, *self.alphas_cumprod]
        if len(table) < 3 or table[-1] < 0 or any(a <= b for a, b in pairwise(table)):
            raise ValueError("alphas_cumprod must be at least two numbers that fall strictly, within [0, 1)")

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
        """Build Improved DDPM's schedule: ``alpha_bar = cos²((t + s)/(1 + s) · pi/2)``, betas capped."""
        bar = [math.cos((i / steps + offset) / (1 + offset) * math.pi / 2) ** 2 for i in range(steps + 1)]
        return cls.from_betas([min(1 - b / a, max_beta) for a, b in pairwise(bar)])

    def zero_terminal_snr(self) -> VP:
        """Return this table shifted and scaled in ``alpha`` so that it ends in pure noise (2305.08891)."""
        a = torch.tensor(self.alphas_cumprod, dtype=torch.float64).sqrt()
        return VP(tuple((((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2).tolist()))

    @cached_property
    def _alphas(self) -> Tensor:
        return torch.tensor(self.alphas_cumprod, dtype=torch.float64).sqrt()

    @cached_property
    def _sigmas(self) -> Tensor:
        return (1 - torch.tensor(self.alphas_cumprod, dtype=torch.float64)).sqrt()

    @cached_property
    def _angles(self) -> Tensor:
        return torch.atan2(self._sigmas, self._alphas)

    @cached_property
    def _times(self) -> Tensor:
        return torch.arange(len(self.alphas_cumprod), dtype=torch.float64)

    t_min = 0.0

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """Index of the table's last entry."""
        return len(self.alphas_cumprod) - 1.0

    def __call__(self, t: Value) -> Level:
        def pick(t: Tensor, entries: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
            # Table entries are returned as they stand: a cosine would lose the smallest of them.
            exact = entries[t.clamp(0, len(entries) - 1).long()]
            return torch.where(t == t.round(), exact, between(_interpolate(t, self._times, self._angles)))

        alpha = _on_tensors(lambda t: pick(t, self._alphas, torch.cos), t)
        return Level(alpha, _on_tensors(lambda t: pick(t, self._sigmas, torch.sin), t), t)

    def at_rho(self, rho: Value) -> Level:
        t = _on_tensors(lambda r: _interpolate(r.atan(), self._angles, self._times), rho)
        alpha = _on_tensors(lambda r: (1 + r * r).rsqrt(), rho)
        return Level(alpha, _on_tensors(lambda r: (1 + 1 / (r * r)).rsqrt(), rho), t)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance-exploding schedule, EDM's: ``alpha = 1, sigma = t``.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models, https://arxiv.org/abs/2206.00364
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

    ``shift`` bends only how grids spend their steps: ``t = shift·u / (1 + (shift − 1)·u)``.

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


def _grid(schedule: Schedule, levels: Sequence[Level], clean: bool) -> Grid:
    ends = [schedule.clean] if clean and float(levels[-1].sigma) > 0 else []
    return Grid(levels=(*levels, *ends), schedule=schedule)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")


def uniform(schedule: Schedule, steps: int) -> Grid:
    """Space ``steps`` levels evenly in time from ``t_max``, and end at data."""
    _check_steps(steps)
    return _grid(schedule, [schedule(schedule.time(1 - i / steps)) for i in range(steps)], True)


def _rho_span(schedule: Schedule, rho_max: float | None, rho_min: float | None) -> tuple[float, float]:
    low, high = schedule.rho_range
    high = rho_max if rho_max is not None else high if math.isfinite(high) else 80.0
    low = rho_min if rho_min is not None else max(low, 0.002)
    if not 0 < low < high < math.inf:
        raise ValueError(f"noise ratios must satisfy 0 < rho_min < rho_max < inf, not {low:g} and {high:g}")
    return high, low


def karras(schedule: Schedule, steps: int, *, rho_max: float | None = None, rho_min: float | None = None, power: float = 7.0, clean: bool = True) -> Grid:
    """Space the noise ratios evenly in ``rho^(1/power)``, from ``rho_max`` to ``rho_min``.

    The ends default to the schedule's own, within [0.002, 80] where those are 0 or infinite.
    ``clean`` adds the level of data at the end.

    References:
        Elucidating the Design Space, equation 5, https://arxiv.org/abs/2206.00364
    """
    _check_steps(steps)
    high, low = _rho_span(schedule, rho_max, rho_min)
    count = steps if clean else steps + 1
    root = [high ** (1 / power) + i / max(1, count - 1) * (low ** (1 / power) - high ** (1 / power)) for i in range(count)]
    return _grid(schedule, [schedule.at_rho(r**power) for r in root], clean)


def log_snr(schedule: Schedule, steps: int, *, rho_max: float | None = None, rho_min: float | None = None, clean: bool = True) -> Grid:
    """Space the levels evenly in log-SNR, from ``rho_max`` to ``rho_min``; ends as in `karras`."""
    _check_steps(steps)
    high, low = _rho_span(schedule, rho_max, rho_min)
    count = steps if clean else steps + 1
    return _grid(schedule, [schedule.at_rho(high * (low / high) ** (i / max(1, count - 1))) for i in range(count)], clean)


def _table_length(schedule: Schedule, name: str, steps: int) -> int:
    _check_steps(steps)
    if not isinstance(schedule, VP):
        raise ValueError(f"the grid {name!r} spaces the entries of a beta table; use 'uniform', 'karras' or 'log_snr' on {type(schedule).__name__}")
    if steps > len(schedule.alphas_cumprod):
        raise ValueError(f"{steps} steps do not fit a table of {len(schedule.alphas_cumprod)} entries")
    return len(schedule.alphas_cumprod)


def leading(schedule: Schedule, steps: int, *, offset: int = 0) -> Grid:
    """Take every ``T // steps``-th table entry, from ``offset`` (Diffusers' "leading")."""
    length = _table_length(schedule, "leading", steps)
    stride = length // steps
    if not 0 <= offset < length - (steps - 1) * stride:
        raise ValueError(f"{steps} steps from offset {offset} do not fit a table of {length} entries")
    return _grid(schedule, [schedule(float(i * stride + offset)) for i in reversed(range(steps))], True)


def linspace(schedule: Schedule, steps: int, *, rounded: bool = True) -> Grid:
    """Space table entries evenly from T − 1 to 0 (Diffusers' "linspace"; some of its schedulers do not round)."""
    last = _table_length(schedule, "linspace", steps) - 1
    times = torch.linspace(last, 0, steps, dtype=torch.float64)
    return _grid(schedule, [schedule(t) for t in (times.round() if rounded else times).tolist()], True)


def trailing(schedule: Schedule, steps: int) -> Grid:
    """Space table entries evenly, ending the last stride at T − 1 (Diffusers' "trailing")."""
    length = _table_length(schedule, "trailing", steps)
    return _grid(schedule, [schedule(float(round(length - i * length / steps) - 1)) for i in range(steps)], True)


GRIDS: dict[str, Callable[..., Grid]] = {f.__name__: f for f in (uniform, log_snr, karras, leading, linspace, trailing)}
"""Every grid by name."""
