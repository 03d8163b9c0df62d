"""Slopes: gradients that are taken alone or together, with the same result."""

from __future__ import annotations

import torch

from guidestar.core.levels import Level
from guidestar.core.slopes import Slope, take_slopes
from helpers.toys import log_prob, log_prob_gradient


def level(rho: float) -> Level:
    import guidestar as gs

    grid = gs.karras(gs.VP.linear(), 8)
    return min((grid[k] for k in range(8)), key=lambda found: abs(float(found.rho) - rho))


def made(seed: int, rows: int, rho: float, calls: list[int], key: object = "same") -> Slope:
    def function(x, level, target):
        calls.append(len(x))
        return log_prob(x, level, target)

    x = torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(seed))
    target = torch.arange(rows) % 3
    return Slope(function=function, key=key, x=x, level=level(rho), target=target)


def right(slope: Slope) -> None:
    wanted = log_prob_gradient(slope.x, slope.level, slope.target)
    torch.testing.assert_close(slope.gradient, wanted, rtol=1e-5, atol=1e-6)


def test_a_slope_is_taken_when_it_is_read_and_once():
    calls: list[int] = []
    slope = made(0, 3, 1.0, calls)
    assert calls == []
    right(slope)
    right(slope)
    assert calls == [3]


def test_slopes_of_one_key_share_a_call_at_levels_of_their_own():
    calls: list[int] = []
    slopes = [made(0, 3, 0.1, calls), made(1, 2, 9.0, calls), made(2, 1, 1.0, calls)]
    take_slopes(slopes)
    assert calls == [6]
    for slope in slopes:
        right(slope)
    assert calls == [6]


def test_slopes_of_other_keys_and_shapes_do_not():
    calls: list[int] = []
    slopes = [made(0, 3, 0.1, calls), made(1, 2, 9.0, calls, key="other"), made(2, 1, 1.0, calls)]
    slopes[2].x = slopes[2].x[:, :1]
    take_slopes(slopes)
    assert calls == [3, 2, 1]
    for slope in slopes:
        right(slope)


def test_calls_have_at_most_max_rows():
    calls: list[int] = []
    slopes = [made(0, 3, 0.1, calls), made(1, 4, 9.0, calls)]
    take_slopes(slopes, max_rows=3)
    assert calls == [3, 3, 1]
    for slope in slopes:
        right(slope)
