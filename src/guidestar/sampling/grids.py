"""Grids: the levels that a run visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral

import torch

from ..core.levels import VP, Grid, Level, Schedule


def _at_times(schedule: Schedule, times: Iterable[float]) -> Grid:
    return _grid(schedule, [schedule(t) for t in times], True)


def _grid(schedule: Schedule, levels: Sequence[Level], clean: bool) -> Grid:
    ends = [schedule.clean] if clean and float(levels[-1].sigma) > 0 else []
    return Grid(levels=(*levels, *ends), schedule=schedule)


MOST_STEPS = 10_000
"""The most steps of a grid."""


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be a whole number from 1 to {MOST_STEPS:,}, not {steps!r}")


def uniform(schedule: Schedule, steps: int) -> Grid:
    """Space ``steps`` levels evenly in time from ``t_max``, and end at data.

    Raises:
        ValueError: a number of steps that is out of range.
    """
    _check_steps(steps)
    return _at_times(schedule, (schedule.time(1 - i / steps) for i in range(steps)))


def _by_rho(
    schedule: Schedule,
    steps: int,
    rho_max: float | None,
    rho_min: float | None,
    clean: bool,
    spacing: Callable[[float, float, float], float],
) -> Grid:
    """Place levels at the noise ratios ``spacing(high, low, share)``, with shares from 0 to 1."""
    _check_steps(steps)
    low, high = schedule.rho_range
    high = rho_max if rho_max is not None else high if math.isfinite(high) else 80.0
    low = rho_min if rho_min is not None else max(low, 0.002)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"noise ratios must satisfy 0 < rho_min < rho_max < inf, not {low:g} and {high:g}"
        )
    count = steps if clean else steps + 1
    shares = [i / max(1, count - 1) for i in range(count)]
    return _grid(schedule, [schedule.at_rho(spacing(high, low, u)) for u in shares], clean)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho_max: float | None = None,
    rho_min: float | None = None,
    power: float = 7.0,
    clean: bool = True,
) -> Grid:
    """Space the noise ratios evenly in ``rho^(1/power)``, from ``rho_max`` to ``rho_min``.

    Args:
        schedule: the levels are taken from it.
        steps: how many solver steps walk the grid, 1 to `MOST_STEPS`.
        rho_max: the first noise ratio; by default the schedule's highest, 80 if that is infinite.
        rho_min: the last one before data; by default the schedule's lowest, at least 0.002.
        power: 7 in the paper; a larger one spends more steps at low noise.
        clean: end with the level of data.

    Raises:
        ValueError: a number of steps or noise ratios that are out of range.

    References:
        Elucidating the Design Space, equation 5, https://arxiv.org/abs/2206.00364
    """
    root = lambda rho: rho ** (1 / power)
    spacing = lambda high, low, u: (root(high) + u * (root(low) - root(high))) ** power
    return _by_rho(schedule, steps, rho_max, rho_min, clean, spacing)


def log_snr(
    schedule: Schedule,
    steps: int,
    *,
    rho_max: float | None = None,
    rho_min: float | None = None,
    clean: bool = True,
) -> Grid:
    """Space the levels evenly in log-SNR, from ``rho_max`` to ``rho_min``.

    Arguments and errors as in `karras`.
    """
    spacing = lambda high, low, u: high * (low / high) ** u
    return _by_rho(schedule, steps, rho_max, rho_min, clean, spacing)


def _table_length(schedule: Schedule, name: str, steps: int) -> int:
    _check_steps(steps)
    if not isinstance(schedule, VP):
        raise ValueError(
            f"the grid {name!r} spaces the entries of a beta table; use 'uniform', 'karras' or "
            f"'log_snr' on {type(schedule).__name__}"
        )
    if steps > (length := len(schedule.alphas_cumprod)):
        raise ValueError(f"{steps} steps do not fit a table of {length} entries")
    return length


def leading(schedule: Schedule, steps: int, *, offset: int = 0) -> Grid:
    """Take every ``T // steps``-th entry of a beta table, from ``offset`` (Diffusers' "leading").

    Raises:
        ValueError: the schedule is no table, or the steps do not fit it.
    """
    length = _table_length(schedule, "leading", steps)
    stride = length // steps
    if not 0 <= offset < length - (steps - 1) * stride:
        raise ValueError(
            f"{steps} steps from offset {offset} do not fit a table of {length} entries"
        )
    return _at_times(schedule, (float(i * stride + offset) for i in reversed(range(steps))))


def linspace(schedule: Schedule, steps: int, *, rounded: bool = True) -> Grid:
    """Space entries of a beta table evenly from T − 1 to 0 (Diffusers' "linspace").

    Args:
        schedule: the table.
        steps: how many entries.
        rounded: take whole entries; some schedulers of Diffusers interpolate instead.

    Raises:
        ValueError: the schedule is no table, or the steps do not fit it.
    """
    last = _table_length(schedule, "linspace", steps) - 1
    times = torch.linspace(last, 0, steps, dtype=torch.float64)
    return _at_times(schedule, (times.round() if rounded else times).tolist())


def trailing(schedule: Schedule, steps: int) -> Grid:
    """Space entries of a beta table evenly, the first at T − 1 (Diffusers' "trailing").

    Raises:
        ValueError: the schedule is no table, or the steps do not fit it.
    """
    length = _table_length(schedule, "trailing", steps)
    return _at_times(schedule, (round(length - i * length / steps) - 1.0 for i in range(steps)))


GRIDS: dict[str, Callable[..., Grid]] = {
    f.__name__: f for f in (uniform, log_snr, karras, leading, linspace, trailing)
}
"""Every function that makes a grid, by name."""
