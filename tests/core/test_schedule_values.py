"""Schedules by hand: tables of two or three entries, whose angles are known."""

from __future__ import annotations

import math

import pytest
import torch

import guidestar as gs
from guidestar.core.levels.schedules import VE, VP, Flow

HALF, ROOT = 0.5, math.sqrt(3) / 2


def table(schedule: VP) -> list[float]:
    return list(schedule.alphas_cumprod)


def test_tables_of_betas():
    assert table(VP.from_betas([0.1, 0.5])) == pytest.approx([0.9, 0.45])
    assert table(VP.linear(3, 0.1, 0.3)) == pytest.approx([0.9, 0.72, 0.504])
    assert table(VP.scaled_linear(3, 0.04, 0.16)) == pytest.approx([0.96, 0.8736, 0.733824])
    assert table(VP.cosine(2, 0.0)) == pytest.approx([0.5, 0.0005])
    assert table(VP.cosine(2, 0.5)) == pytest.approx([1 / 3, 1 / 3000])
    assert table(VP.cosine(2, 0.5, 0.6)) == pytest.approx([0.4, 0.16])
    assert len(table(VP.cosine(5))) == 5
    zero = VP((0.81, 0.49, 0.25)).zero_terminal_snr()
    assert table(zero) == pytest.approx([0.81, 0.2025, 0.0])


def test_a_table_falls_strictly_from_below_one():
    assert VP((0.9, 0.0)).t_max == 1.0 and VP((0.9, 0.5, 0.1)).t_max == 2.0
    for wrong in ((0.9,), (), (1.0, 0.5), (0.9, 0.9), (0.5, 0.9), (0.9, -0.1), (0.9, 0.5, 0.6)):
        with pytest.raises(ValueError, match="at least two numbers that fall strictly"):
            VP(wrong)


def test_between_entries_the_angle_is_interpolated():
    vp = VP((0.75, 0.25))  # 30° and 60°
    for t, alpha, sigma in (
        (0.0, ROOT, HALF), (1.0, HALF, ROOT), (0.5, math.sqrt(0.5), math.sqrt(0.5)),
        (-0.5, ROOT, HALF), (1.5, HALF, ROOT), (7.0, HALF, ROOT), (-3.0, ROOT, HALF),
        (1 / 3, math.cos(math.radians(40)), math.sin(math.radians(40))),
    ):  # fmt: skip
        level = vp(t)
        assert (level.alpha, level.sigma) == (pytest.approx(alpha), pytest.approx(sigma))
        assert level.t == t and isinstance(level.alpha, float)
    many = vp(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert isinstance(many.alpha, torch.Tensor) and isinstance(many.sigma, torch.Tensor)
    assert many.alpha.tolist() == pytest.approx([HALF, math.sqrt(0.5), ROOT])
    assert many.sigma.tolist() == pytest.approx([ROOT, math.sqrt(0.5), HALF])
    assert VP((0.75, 0.0))(1.0).alpha == 0.0 and VP((0.75, 0.0))(1.0).sigma == 1.0
    three = VP((0.75, 0.25, 0.0))  # 30°, 60° and 90°
    assert three(1.5).alpha == pytest.approx(math.cos(math.radians(75)))
    assert three(1.0).alpha == pytest.approx(HALF) and three.t_min == 0.0


def test_the_level_of_a_noise_ratio():
    vp = VP((0.75, 0.25))
    for rho, t in ((1.0, 0.5), (math.tan(math.radians(40)), 1 / 3), (0.0, 0.0), (9.0, 1.0)):
        level = vp.at_rho(rho)
        assert level.t == pytest.approx(t)
        assert level.alpha == pytest.approx(1 / math.sqrt(1 + rho**2))
        assert level.sigma == pytest.approx(rho / math.sqrt(1 + rho**2))
    last = vp.at_rho(math.inf)
    assert (last.alpha, last.sigma, last.t) == (0.0, 1.0, 1.0)
    many = vp.at_rho(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert isinstance(many.t, torch.Tensor) and many.t.tolist() == pytest.approx([0.5, 0.0])


def test_levels_of_exploding_variance():
    ve = VE()
    assert tuple(ve(3.0)) == (1.0, 3.0, 3.0) and tuple(ve.clean) == (1.0, 0.0, 0.0)
    for rho, t in ((3.0, 3.0), (1e-4, 0.002), (200.0, 80.0)):
        assert tuple(ve.at_rho(rho)) == (1.0, rho, t)
    for rho in (math.inf, torch.tensor([1.0, math.inf], dtype=torch.float64)):
        with pytest.raises(ValueError, match="no level of infinite noise ratio"):
            ve.at_rho(rho)
    each = ve(torch.tensor([2.0, 5.0], dtype=torch.float64))
    assert each.alpha.tolist() == [1, 1] and each.sigma.tolist() == [2, 5]


def test_levels_of_flows():
    flow = Flow()
    assert tuple(flow(0.25)) == (0.75, 0.25, 0.25)
    for rho, sigma in ((1.0, 0.5), (3.0, 0.75), (0.0, 0.0), (math.inf, 1.0)):
        assert tuple(flow.at_rho(rho)) == pytest.approx((1 - sigma, sigma, sigma))
    assert [Flow(shift=3.0).time(u) for u in (0.0, 0.5, 1.0)] == pytest.approx([0, 0.75, 1])
    assert Flow(shift=1.0).time(0.3) == pytest.approx(0.3)
    first, last = (gs.uniform(Flow(shift=3.0), 2)[i] for i in (1, 2))
    assert first.sigma == pytest.approx(0.75) and last.sigma == pytest.approx(0.0)
