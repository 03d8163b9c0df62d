"""Schedules and grids, against formulas written out and Diffusers' tables."""

import math

import numpy as np
import pytest
import torch

from diffusers import DDIMScheduler, DDPMScheduler
from guidestar.core.levels import (
    VE,
    VP,
    Flow,
    Grid,
    Level,
    Step,
    divide,
    exp,
    expand,
    inverse_or_zero,
    log,
    sqrt,
)
from guidestar.sampling.grids import GRIDS, karras, leading, linspace, log_snr, trailing, uniform

SCHEDULES = {
    "vp": VP.linear(),
    "cosine": VP.cosine(),
    "zero-snr": VP.scaled_linear().zero_terminal_snr(),
    "ve": VE(),
    "flow": Flow(),
    "shifted": Flow(shift=3.0),
}
DIFFUSERS = {
    "linear": (VP.linear(), {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (VP.scaled_linear(), {"beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": (VP.cosine(), {}),
}

all_schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def refused(message, make, *args, **kwargs):
    with pytest.raises(ValueError, match=message):
        make(*args, **kwargs)


# --- values


def test_expand_keeps_floats_and_shapes_tensors():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    shaped = expand(double(1, 2), x)
    assert expand(0.5, x) == 0.5 and shaped.shape == (2, 1, 1, 1) and shaped.dtype == torch.float16


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (sqrt, [(4.0,), (-1e-18,)], [2.0, 0.0]),
        (divide, [(1.0, 4.0), (2.0, 0.0), (-2.0, 0.0)], [0.25, math.inf, -math.inf]),
        (inverse_or_zero, [(4.0,), (0.0,)], [0.25, 0.0]),
        (log, [(math.e,), (0.0,)], [1.0, -math.inf]),
    ],
)
def test_floats_and_tensors_agree_in_arithmetic(function, arguments, expected):
    assert [function(*a) for a in arguments] == expected
    assert (
        function(*(double(*column) for column in zip(*arguments, strict=True))).tolist() == expected
    )


def test_level_properties():
    level = Level(0.6, 0.3, 5.0)
    assert (
        level.rho == 0.5
        and level.log_snr == pytest.approx(2 * math.log(2))
        and level.norm == pytest.approx(math.sqrt(0.45))
    )
    assert Level(0.0, 1.0, 9.0).rho == math.inf and Level(0.0, 1.0, 9.0).log_snr == -math.inf
    assert Level(1.0, 0.0, 0.0).rho == 0 and Level(1.0, 0.0, 0.0).log_snr == math.inf


def test_level_take_and_where():
    level = Level(double(1, 2, 3), 0.5, double(7, 8, 9))
    taken = level.take(torch.tensor([2, 0]))
    assert taken.alpha.tolist() == [3, 1] and taken.sigma == 0.5 and taken.t.tolist() == [9, 7]
    mixed = Level(0.1, 0.2, 0.3).where(torch.tensor([True, False, True]), level)
    assert (
        mixed.alpha.tolist() == [0.1, 2, 0.1]
        and mixed.sigma.tolist() == [0.2, 0.5, 0.2]
        and mixed.t.dtype == torch.float64
    )


def test_exponentials_overflow_to_infinity_and_not_to_an_error():
    for value, expected in (
        (0.0, 1.0),
        (-800.0, 0.0),
        (699.0, math.exp(699.0)),
        (710.0, math.inf),
        (1e6, math.inf),
        (-math.inf, 0.0),
    ):
        assert exp(value) == pytest.approx(expected) and float(exp(double(value))) == pytest.approx(
            expected
        )


def test_divide_of_nothing_by_nothing_is_not_a_number_and_signs_stay():
    assert math.isnan(divide(0.0, 0.0)) and torch.isnan(divide(double(0.0), 0.0)).all()
    assert divide(double(3.0), 2.0).tolist() == [1.5] and divide(-3.0, 2.0) == -1.5


# --- schedules


@pytest.mark.parametrize("name", DIFFUSERS)
def test_vp_tables_equal_diffusers(name):
    schedule, betas = DIFFUSERS[name]
    theirs = DDPMScheduler(beta_schedule=name, **betas).alphas_cumprod.double()
    torch.testing.assert_close(double(*schedule.alphas_cumprod), theirs, rtol=1e-4, atol=0)
    level = schedule(torch.arange(1000, dtype=torch.float64))
    torch.testing.assert_close(level.alpha, theirs.sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(level.sigma, (1 - theirs).sqrt(), rtol=1e-4, atol=1e-5)


def test_zero_terminal_snr_equals_diffusers():
    ours = VP.scaled_linear().zero_terminal_snr()
    theirs = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=True,
    ).alphas_cumprod.double()
    torch.testing.assert_close(double(*ours.alphas_cumprod), theirs, rtol=1e-4, atol=1e-6)
    assert ours(999.0) == Level(0.0, 1.0, 999.0) and ours.rho_range[1] == math.inf
    assert ours.alphas_cumprod[0] == pytest.approx(VP.scaled_linear().alphas_cumprod[0])


def test_vp_interpolates_the_angle_between_entries():
    schedule = VP((0.9, 0.5, 0.1))
    angle = 0.75 * math.acos(math.sqrt(0.5)) + 0.25 * math.acos(math.sqrt(0.1))
    assert schedule(1.25).alpha == pytest.approx(math.cos(angle), rel=1e-12)
    assert schedule(1.25).sigma == pytest.approx(math.sin(angle), rel=1e-12)
    assert schedule(1.0).alpha == math.sqrt(0.5) and schedule(1.25).t == 1.25


def test_forward_process_of_ve_and_flow():
    assert VE()(3.0) == Level(1.0, 3.0, 3.0)
    assert (
        Flow()(0.25) == Level(0.75, 0.25, 0.25)
        and Flow()(1.0) == Level(0.0, 1.0, 1.0)
        and Flow()(0.0) == Level(1.0, 0.0, 0.0)
    )


@all_schedules
def test_clean_level_is_data(schedule):
    assert schedule.clean.alpha == 1 and schedule.clean.sigma == 0 and schedule.clean.rho == 0


@all_schedules
def test_time_and_ratio_round_trip(schedule):
    low, high = schedule.t_min, schedule.t_max
    for share in (0.0, 0.013, 0.5, 0.77, 0.999, 1.0):
        level = schedule(low + share * (high - low))
        again = schedule.at_rho(level.rho)
        assert again == pytest.approx(level, rel=1e-9, abs=1e-9)
        assert schedule.inverse(level.log_snr) == pytest.approx(level.t, rel=1e-9, abs=1e-9)


@all_schedules
@pytest.mark.parametrize("rho", [1e-3, 0.02, 1.0, 7.3, 80.0, 1e4])
def test_at_rho_has_that_ratio_even_beyond_the_table(schedule, rho):
    level = schedule.at_rho(rho)
    assert level.sigma / level.alpha == pytest.approx(rho, rel=1e-9)
    assert schedule.t_min <= level.t <= schedule.t_max


@pytest.mark.parametrize("name", ["vp", "zero-snr", "flow"])
def test_at_rho_infinite_is_pure_noise(name):
    level = SCHEDULES[name].at_rho(math.inf)
    assert (level.alpha, level.sigma, level.t) == (0.0, 1.0, SCHEDULES[name].t_max)
    assert SCHEDULES[name].at_rho(double(math.inf)).alpha.tolist() == [0.0]


def test_ve_refuses_an_infinite_ratio():
    refused("infinite", VE().at_rho, math.inf)
    refused("infinite", VE().at_rho, double(1.0, math.inf))


@all_schedules
def test_floats_and_tensors_agree(schedule):
    times = [schedule.t_min + u * (schedule.t_max - schedule.t_min) for u in (0.1, 0.5, 0.9)]
    for function, values in ((schedule, times), (schedule.at_rho, [0.05, 1.0, 30.0])):
        together = function(double(*values))
        singles = [function(v) for v in values]
        for name in ("alpha", "sigma", "t"):
            assert getattr(together, name).dtype == torch.float64
            assert getattr(together, name).tolist() == pytest.approx(
                [getattr(one, name) for one in singles], rel=1e-14
            )


@pytest.mark.parametrize("table", [(0.5,), (0.5, 0.5), (0.5, 0.6), (1.0, 0.5), (0.5, -0.1)])
def test_vp_refuses_tables_that_do_not_fall(table):
    refused("fall strictly", VP, table)


# --- one step


STEPS = [
    (SCHEDULES["vp"](700.0), SCHEDULES["vp"](650.0)),
    (Level(1.0, 5.0, 5.0), Level(1.0, 2.0, 2.0)),
    (Flow()(1.0), Flow()(0.6)),
    (Flow()(0.3), Flow()(0.0)),
]


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_variances_of_a_step(t, s):
    step = Step(t, s, 0, Grid(levels=(t, s), schedule=Flow()))
    added = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
    assert step.transition_variance == pytest.approx(added, rel=1e-12)
    assert step.posterior_variance == pytest.approx(s.sigma**2 * added / t.sigma**2, rel=1e-12)


def test_variances_of_mixed_levels():
    step = Step(
        *(
            Level(*(double(*v) for v in zip(*side, strict=True)))
            for side in zip(*STEPS, strict=True)
        ),
        0,
        Grid(levels=(), schedule=Flow()),
    )
    expected = [t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2 for t, s in STEPS]
    assert step.transition_variance.tolist() == pytest.approx(expected)
    assert step.take(torch.tensor([3, 1])).transition_variance.tolist() == pytest.approx(
        [expected[3], expected[1]]
    )


def test_vp_transition_variance_is_beta():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert leading(VP.linear(), 1000).step(0).transition_variance == pytest.approx(
        float(betas[999]), rel=1e-9
    )


def test_tau_runs_from_one_to_one_step():
    grid = uniform(Flow(), 4)
    assert [grid.step(i).tau for i in range(grid.steps)] == [1, 0.75, 0.5, 0.25]


# --- grids


COUNTS = [1, 2, 3, 5, 7, 10, 15, 16, 20, 28, 30, 37, 50, 100, 128, 250, 333, 1000]


def diffusers_times(steps, spacing, offset=0):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def times(grid):
    assert grid[-1] == grid.schedule.clean
    return [level.t for level in grid.levels[:-1]]


@pytest.mark.parametrize("steps", COUNTS)
def test_table_grids_equal_diffusers(steps):
    schedule = VP.linear()
    assert times(leading(schedule, steps)) == diffusers_times(steps, "leading")
    assert times(trailing(schedule, steps)) == diffusers_times(steps, "trailing")[:steps]
    if steps > 1:  # Diffusers' linspace of one step starts at data (t = 0); ours starts at noise.
        assert times(linspace(schedule, steps)) == diffusers_times(steps, "linspace")
    if steps < 300:
        assert times(leading(schedule, steps, offset=1)) == diffusers_times(steps, "leading", 1)


def test_linspace_unrounded_and_of_one_step():
    assert times(linspace(VP.linear(), 5, rounded=False)) == pytest.approx(
        np.linspace(999, 0, 5).tolist()
    )
    assert times(linspace(VP.linear(), 1)) == [999.0]


def test_grid_levels_come_from_the_schedule():
    schedule = VP.linear()
    assert leading(schedule, 10)[0].alpha == math.sqrt(schedule.alphas_cumprod[900])
    assert trailing(schedule, 10)[0].sigma == math.sqrt(1 - schedule.alphas_cumprod[999])


@all_schedules
def test_karras_from_its_formula(schedule):
    n, high, low = 9, 70.0, 0.03
    expected = [
        (high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)
    ]
    assert [level.rho for level in karras(schedule, n, rho_max=high, rho_min=low)] == pytest.approx(
        [*expected, 0], rel=1e-9
    )
    assert [
        level.rho for level in karras(schedule, n - 1, rho_max=high, rho_min=low, clean=False)
    ] == pytest.approx(expected, rel=1e-9)


@all_schedules
def test_log_snr_from_its_formula(schedule):
    n, high, low = 6, 70.0, 0.03
    expected = [
        math.exp(math.log(high) + i / (n - 1) * (math.log(low) - math.log(high))) for i in range(n)
    ]
    assert [
        level.rho for level in log_snr(schedule, n, rho_max=high, rho_min=low)
    ] == pytest.approx([*expected, 0], rel=1e-9)
    assert [
        level.rho for level in log_snr(schedule, n - 1, rho_max=high, rho_min=low, clean=False)
    ] == pytest.approx(expected, rel=1e-9)


def test_grid_ends_default_to_the_schedules():
    assert [round(float(karras(s, 3)[0].rho), 9) for s in (VE(), Flow(), VE(t_max=10.0))] == [
        80,
        80,
        10,
    ]
    assert karras(VE(), 3)[2].rho == pytest.approx(0.002) and karras(Flow(), 3)[
        2
    ].rho == pytest.approx(0.002)
    bar = VP.linear().alphas_cumprod
    assert log_snr(VP.linear(), 3)[0].rho == pytest.approx(math.sqrt((1 - bar[-1]) / bar[-1]))
    assert log_snr(VP.linear(), 3)[2].rho == pytest.approx(math.sqrt((1 - bar[0]) / bar[0]))


@pytest.mark.parametrize(("make", "counts"), [(karras, [1, 2, 3]), (log_snr, [1, 2, 3])])
def test_few_steps_keep_their_number_and_ends(make, counts):
    for n in counts:
        grid, open_ended = (
            make(VE(), n, rho_max=10.0, rho_min=0.1),
            make(VE(), n, rho_max=10.0, rho_min=0.1, clean=False),
        )
        assert grid.steps == open_ended.steps == n and len(grid) == len(open_ended) == n + 1
        assert (grid[0].rho, grid[-1].rho, open_ended[0].rho) == pytest.approx(
            (10.0, 0.0, 10.0)
        ) and open_ended[-1].rho == pytest.approx(0.1)
        assert grid[-2].rho == pytest.approx(10.0 if n == 1 else 0.1)


def test_karras_takes_its_power():
    expected = [(8 ** (1 / 3) + i / 3 * (1 - 8 ** (1 / 3))) ** 3 for i in range(4)]
    assert [
        level.rho for level in karras(VE(), 4, rho_max=8.0, rho_min=1.0, power=3.0)
    ] == pytest.approx([*expected, 0.0])


def test_levels_of_a_grid_that_starts_lower_include_the_given_ratio():
    grid = log_snr(VE(), 4, rho_max=8.0, rho_min=1.0)
    assert [round(level.rho, 6) for level in grid.from_rho(4.0)] == [4.0, 2.0, 1.0, 0.0]
    assert [round(level.rho, 6) for level in grid.from_rho(3.999)] == [2.0, 1.0, 0.0]
    assert len(grid.from_rho(1.0)) == 2
    refused("its lowest is 1$", grid.from_rho, 0.9)


def test_uniform_and_the_flow_shift():
    assert times(uniform(Flow(), 4)) == [1, 0.75, 0.5, 0.25]
    assert times(uniform(Flow(shift=3.0), 4)) == pytest.approx(
        [3 * u / (1 + 2 * u) for u in (1, 0.75, 0.5, 0.25)]
    )
    assert times(uniform(VP.linear(), 3)) == pytest.approx([999, 666, 333])
    assert times(uniform(VE(t_min=0.5, t_max=2.5), 2)) == [2.5, 1.5]


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 11])
def test_every_grid_falls_to_data_in_that_many_steps(make, steps):
    grid = make(VP.linear(), steps)
    rho = [float(level.rho) for level in grid]
    assert (
        grid.steps == steps == len(grid) - 1
        and rho == sorted(rho, reverse=True)
        and len(set(rho)) == len(rho)
        and rho[-1] == 0
    )
    assert grid.step(steps - 1) == Step(grid[steps - 1], grid[steps], steps - 1, grid)


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
def test_grids_refuse_no_steps(make):
    refused("from 1 to 10,000, not 0", make, VP.linear(), 0)


@pytest.mark.parametrize("make", [leading, linspace, trailing])
def test_table_grids_refuse_other_schedules_and_too_many_steps(make):
    refused("Flow", make, Flow(), 10)
    refused("do not fit", make, VP.linear(), 1001)


def test_leading_refuses_an_offset_beyond_the_table():
    refused("offset", leading, VP.linear(), 1000, offset=1)
    refused("offset", leading, VP.linear(), 10, offset=100)
    refused("offset", leading, VP.linear(), 10, offset=-1)


@pytest.mark.parametrize("make", [karras, log_snr])
@pytest.mark.parametrize(
    "ends",
    [
        {"rho_max": 1.0, "rho_min": 2.0},
        {"rho_min": 0.0},
        {"rho_max": 0.0},
        {"rho_max": math.inf},
        {"rho_min": -1.0},
    ],
)
def test_ratio_grids_refuse_impossible_ends(make, ends):
    refused("must satisfy", make, Flow(), 5, **ends)


def test_from_rho_keeps_the_tail():
    grid = karras(VE(), 10)
    tail = grid.from_rho(grid[4].rho)
    assert (
        tail.levels == grid.levels[4:]
        and tail.schedule is grid.schedule
        and grid.from_rho(math.inf).levels == grid.levels
    )
    refused("no step of this grid", grid.from_rho, 0.001)


@pytest.mark.parametrize("t", [-1.0, -3.0, 10.0, 12.0])
def test_beyond_its_table_a_schedule_has_the_level_of_its_end(t):
    table = VP.linear(10)
    bar = table.alphas_cumprod[0 if t < 0 else -1]
    for time in (t, torch.tensor([t], dtype=torch.float64)):
        level = table(time)
        assert float(level.alpha) == pytest.approx(math.sqrt(bar))
        assert float(level.sigma) == pytest.approx(math.sqrt(1 - bar))
