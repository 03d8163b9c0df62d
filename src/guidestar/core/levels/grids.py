"""Grids: which levels a run visits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch

from .level import Grid, Level, Schedule
from .schedules import VP


def _grid(schedule: Schedule, levels: Sequence[Level], clean: bool) -> Grid:
    ends = [schedule.clean] if clean and float(levels[-1].sigma) > 0 else []
    return Grid(levels=(*levels, *ends), schedule=schedule)


MOST_STEPS = 10_000
"""Steps of a grid."""


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be a whole number from 1 to {MOST_STEPS:,}, not {steps!r}")


def uniform(schedule: Schedule, steps: int) -> Grid:
    """Space ``steps`` levels evenly in time from ``t_max``, and end at data."""
    _check_steps(steps)
    return _grid(schedule, [schedule(schedule.time(1 - i / steps)) for i in range(steps)], True)


def _rho_span(
    schedule: Schedule, rho_max: float | None, rho_min: float | None
) -> tuple[float, float]:
    low, high = schedule.rho_range
    high = rho_max if rho_max is not None else high if math.isfinite(high) else 80.0
    low = rho_min if rho_min is not None else max(low, 0.002)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"noise ratios must satisfy 0 < rho_min < rho_max < inf, not {low:g} and {high:g}"
        )
    return high, low


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

    The ends default to the schedule's own, within [0.002, 80] where those are 0 or infinite.
    ``clean`` adds the level of data at the end.

    References:
        Elucidating the Design Space, equation 5, https://arxiv.org/abs/2206.00364
    """
    _check_steps(steps)
    high, low = _rho_span(schedule, rho_max, rho_min)
    count = steps if clean else steps + 1
    root = [
        high ** (1 / power) + i / max(1, count - 1) * (low ** (1 / power) - high ** (1 / power))
        for i in range(count)
    ]
    return _grid(schedule, [schedule.at_rho(r**power) for r in root], clean)


def log_snr(
    schedule: Schedule,
    steps: int,
    *,
    rho_max: float | None = None,
    rho_min: float | None = None,
    clean: bool = True,
) -> Grid:
    """Space the levels evenly in log-SNR, from ``rho_max`` to ``rho_min``; ends as in `karras`."""
    _check_steps(steps)
    high, low = _rho_span(schedule, rho_max, rho_min)
    count = steps if clean else steps + 1
    return _grid(
        schedule,
        [schedule.at_rho(high * (low / high) ** (i / max(1, count - 1))) for i in range(count)],
        clean,
    )


def _table_length(schedule: Schedule, name: str, steps: int) -> int:
    _check_steps(steps)
    if not isinstance(schedule, VP):
        raise ValueError(
            f"the grid {name!r} spaces the entries of a beta table; use 'uniform', 'karras' or "
            f"'log_snr' on {type(schedule).__name__}"
        )
    if steps > len(schedule.alphas_cumprod):
        raise ValueError(
            f"{steps} steps do not fit a table of {len(schedule.alphas_cumprod)} entries"
        )
    return len(schedule.alphas_cumprod)


def leading(schedule: Schedule, steps: int, *, offset: int = 0) -> Grid:
    """Take every ``T // steps``-th table entry, from ``offset`` (Diffusers' "leading")."""
    length = _table_length(schedule, "leading", steps)
    stride = length // steps
    if not 0 <= offset < length - (steps - 1) * stride:
        raise ValueError(
            f"{steps} steps from offset {offset} do not fit a table of {length} entries"
        )
    return _grid(
        schedule, [schedule(float(i * stride + offset)) for i in reversed(range(steps))], True
    )


def linspace(schedule: Schedule, steps: int, *, rounded: bool = True) -> Grid:
    """Space table entries evenly from T − 1 to 0 (Diffusers' "linspace"; some of its schedulers do
    not round).
    """
    last = _table_length(schedule, "linspace", steps) - 1
    times = torch.linspace(last, 0, steps, dtype=torch.float64)
    return _grid(
        schedule, [schedule(t) for t in (times.round() if rounded else times).tolist()], True
    )


def trailing(schedule: Schedule, steps: int) -> Grid:
    """Space table entries evenly, ending the last stride at T − 1 (Diffusers' "trailing")."""
    length = _table_length(schedule, "trailing", steps)
    return _grid(
        schedule,
        [schedule(float(round(length - i * length / steps) - 1)) for i in range(steps)],
        True,
    )


GRIDS: dict[str, Callable[..., Grid]] = {
    f.__name__: f for f in (uniform, log_snr, karras, leading, linspace, trailing)
}
"""Every grid by name."""
