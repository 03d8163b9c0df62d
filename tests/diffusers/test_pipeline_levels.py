"""What a pipeline's network is told and answers, at each call of a run: levels, outputs and places,
from the scheduler's own numbers.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import diffusers
from guidestar.core.levels import Level
from guidestar.core.prediction import Prediction
from guidestar.diffusers.guide.levels import Output, read_timetable
from guidestar.diffusers.guide.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
F64 = torch.float64
X = torch.tensor([[0.3, -1.2, 2.0], [0.9, 0.1, -0.4]], dtype=F64)
OUT = torch.tensor([[-0.7, 0.2, 1.1], [0.5, -2.0, 0.8]], dtype=F64)
ALPHA, SIGMA = 0.8, 0.45


@pytest.mark.parametrize(
    ("output", "clean"),
    [
        (Output(kind="eps"), (X - SIGMA * OUT) / ALPHA),
        (Output(kind="x0"), OUT),
        (Output(kind="v"), (ALPHA * X - SIGMA * OUT) / (ALPHA**2 + SIGMA**2)),
        (Output(kind="velocity"), (X - SIGMA * OUT) / (ALPHA + SIGMA)),
        (Output(kind="edm"), 0.25 * ALPHA * X + 0.5 * SIGMA * OUT),
        (Output(kind="edm", d=0.7, sign=-1.0), 0.49 * ALPHA * X - 0.7 * SIGMA * OUT),
    ],
    ids=str,
)
def test_an_output_means_a_clean_estimate_and_the_other_way_round(output, clean):
    level = Level(ALPHA, SIGMA, 0.5)
    torch.testing.assert_close(output.to_x0(X, OUT, level), clean)
    prediction = Prediction(x_t=X, level=level, x0=clean, eps=(X - ALPHA * clean) / SIGMA)
    torch.testing.assert_close(output.of(prediction), OUT)


def test_an_output_without_noise_says_nothing():
    x0 = torch.ones(1, 2, dtype=F64)
    at = Prediction(x_t=x0, level=Level(1.0, 0.0, 0.0), x0=x0, eps=0 * x0)
    assert Output(kind="edm").of(at).tolist() == [[0.0, 0.0]]


def set_up(name, steps=5, **config):
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler, read_timetable(scheduler)


def triples(levels):
    return torch.tensor([[float(v) for v in level] for level in levels], dtype=F64)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_levels_of_a_table_by_time(name):
    scheduler, table = set_up(name, beta_schedule="linear", beta_start=0.001, beta_end=0.03)
    bar = torch.cumprod(1 - torch.linspace(0.001, 0.03, 1000, dtype=F64), 0)
    times = scheduler.timesteps.long()
    wanted = torch.stack([bar[times].sqrt(), (1 - bar[times]).sqrt(), times.double()], 1)
    torch.testing.assert_close(triples(table.levels[:-1]), wanted, rtol=1e-4, atol=1e-5)
    end = table.levels[-1]
    assert (float(end.alpha), float(end.sigma)) == (1.0, 0.0) and table.reads_t
    assert table.times == tuple(times.tolist()) and table.output == Output(kind="eps")


def test_levels_of_a_table_that_is_walked_upwards():
    scheduler, table = set_up("DDIMInverseScheduler", steps=4)
    bar, times = scheduler.alphas_cumprod.double(), scheduler.timesteps.tolist()
    assert times == [0, 250, 500, 750]
    before = bar[torch.tensor([0, 0, 250, 500])]
    wanted = torch.stack([before.sqrt(), (1 - before).sqrt(), torch.tensor(times).double()], 1)
    torch.testing.assert_close(triples(table.levels[:-1]), wanted, rtol=1e-6, atol=1e-6)
    last = bar[750]
    torch.testing.assert_close(
        triples(table.levels[-1:])[0, :2], torch.stack([last.sqrt(), (1 - last).sqrt()])
    )
    assert table.levels[-1][2] == 750


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_levels_of_noise_ratios_are_of_unit_size(name):
    scheduler, table = set_up(name, beta_schedule="scaled_linear")
    rho = scheduler.sigmas.double()
    size = (1 + rho**2).sqrt()
    times = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=F64)])
    rows = min(len(rho), len(times))
    wanted = torch.stack([(1 / size)[:rows], (rho / size)[:rows], times[:rows]], 1)
    torch.testing.assert_close(triples(table.levels), wanted)
    assert table.reads_t and table.order == (2 if "Heun" in name else 1)


def test_a_network_that_is_told_the_ratio_reads_no_time():
    _, table = set_up("EulerDiscreteScheduler", timestep_type="continuous")
    assert not table.reads_t


@pytest.mark.parametrize(
    ("name", "ahead"), [("KDPM2DiscreteScheduler", 0), ("KDPM2AncestralDiscreteScheduler", 1)]
)
def test_a_second_call_between_two_entries_is_at_the_scheduler_s_own_ratio(name, ahead):
    """The ancestral one has its ratio one entry before the step's index."""
    scheduler, table = set_up(name)
    x, ratios = torch.zeros(1, 2), []
    for place, t in enumerate(scheduler.timesteps):
        first = scheduler.state_in_first_order
        x = scheduler.scale_model_input(x, t)
        index = scheduler.step_index
        rho = scheduler.sigmas[index] if first else scheduler.sigmas_interpol[index - ahead]
        level = table.level(place)
        size = math.sqrt(1 + float(rho) ** 2)
        assert [float(v) for v in level[:2]] == pytest.approx([1 / size, float(rho) / size])
        # It is what the scheduler divides the input by.
        scaled = scheduler.scale_model_input(torch.ones(1), t)
        assert float(level.alpha) == pytest.approx(float(scaled), rel=1e-6)
        assert float(level.t) == pytest.approx(float(t))
        ratios.append(float(rho))
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    assert ratios[-1] < 0.1 * ratios[0]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(ratios))  # some are equal but for rounding


@pytest.mark.parametrize(("kind", "sign"), [("epsilon", 1.0), ("v_prediction", -1.0)])
def test_levels_of_edm_are_of_the_scaled_input(kind, sign):
    scheduler, table = set_up(
        "EDMEulerScheduler", sigma_data=0.7, sigma_min=0.01, sigma_max=50.0, prediction_type=kind
    )
    rho = scheduler.sigmas.double()
    alpha = 1 / (rho**2 + 0.49).sqrt()
    times = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=F64)])
    torch.testing.assert_close(triples(table.levels), torch.stack([alpha, rho * alpha, times], 1))
    assert table.output == Output(kind="edm", d=0.7, sign=sign) and not table.reads_t
    assert (table.schedule.t_min, table.schedule.t_max) == (0.01, 50.0)
    # The network's output is turned into what the scheduler takes for the clean sample.
    scheduler.scale_model_input(X, scheduler.timesteps[0])
    clean = scheduler.precondition_outputs(X, OUT, scheduler.sigmas[0])
    level = table.levels[0]
    scaled = X * float(level.alpha)
    torch.testing.assert_close(table.output.to_x0(scaled, OUT, level), clean, rtol=1e-5, atol=1e-5)


def test_levels_of_a_flow_are_its_sigmas():
    for name, config in (
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 2.0}),
    ):
        kind = {} if name.startswith("Flow") else {"prediction_type": "flow_prediction"}
        scheduler, table = set_up(name, **config, **kind)
        sigma = scheduler.sigmas.double()
        torch.testing.assert_close(triples(table.levels), torch.stack([1 - sigma, sigma, sigma], 1))
        assert table.output == Output(kind="velocity") and table.reads_t
    # Time that runs from noise to data: sigma is the share of the data, the velocity x0 − eps.
    scheduler, table = set_up("FlowMatchEulerDiscreteScheduler", invert_sigmas=True)
    share = scheduler.sigmas.double()
    torch.testing.assert_close(triples(table.levels), torch.stack([share, 1 - share, 1 - share], 1))
    assert table.output == Output(kind="velocity", sign=-1.0) and not table.reads_t


@pytest.mark.parametrize(
    ("kind", "name"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")]
)
def test_the_output_is_what_the_scheduler_says(kind, name):
    assert set_up("DDIMScheduler", prediction_type=kind)[1].output == Output(kind=name)


def test_zero_terminal_snr_starts_without_data():
    scheduler, table = set_up(
        "DDIMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert table.schedule.alphas_cumprod[-1] == 0.0
    assert float(table.levels[0].sigma) == pytest.approx(1.0, abs=1e-6)
    assert len(table.schedule.alphas_cumprod) == 1000 == scheduler.config.num_train_timesteps


# --- places ---


def test_a_timestep_that_comes_twice_is_the_next_one():
    """Heun's timesteps come twice; what came before tells which one it is."""
    _, table = set_up("HeunDiscreteScheduler", steps=3)
    assert len(table.times) == 5 and table.times[1] == table.times[2]
    told = table.times[1]
    assert [table.place(told, last) for last in (-1, 0, 1, 2)] == [1, 1, 2, 1]


def test_the_scheduler_s_own_index_is_taken_where_it_can_be_meant():
    scheduler, table = set_up("HeunDiscreteScheduler", steps=3)
    scheduler._step_index = 2
    assert table.place(table.times[1], -1) == 2
    scheduler._step_index = 4  # of another time
    assert table.place(table.times[1], -1) == 1
    scheduler._step_index, scheduler._begin_index = None, 2
    assert table.place(table.times[1], -1) == 2
    scheduler._step_index = 1
    assert table.place(table.times[1], -1) == 1  # where it is, before where it began


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_timestep_is_found_divided_repeated_and_rounded(scale):
    scheduler, table = set_up("FlowMatchEulerDiscreteScheduler", steps=9)
    scheduler._step_index = None
    for place, t in enumerate(table.times):
        assert table.place(t / scale, place - 1) == place
        assert table.place(torch.tensor([t / scale] * 3, dtype=F64), place - 1) == place
        assert table.place(torch.tensor(t / scale).half(), place - 1) == place


def test_only_a_view_of_the_table_is_found_without_reading():
    scheduler, table = set_up("EulerDiscreteScheduler")
    times = scheduler.timesteps
    found = table._find_in_table
    assert [found(t) for t in times] == [0, 1, 2, 3, 4]
    assert found(times[3:4]) == 3 and found(times[2].expand(4)) == 2
    assert found(times[1:3]) is None  # two times are none
    assert found(times[2].clone()) is None and found(times[:0]) is None
    assert found(times.view(torch.int32)[2]) is None and found(7) is None
    shifted = torch.arange(12.0)[2:10:2]  # a view of every second number from the third on
    table = type(table)(**{**vars(table), "source": shifted, "times": tuple(shifted.tolist())})
    assert [table._find_in_table(t) for t in shifted] == [0, 1, 2, 3]
    other = torch.arange(12.0)
    assert table._find_in_table(other[4]) is None
    assert type(table)(**{**vars(table), "source": None})._find_in_table(shifted[0]) is None
    whole = shifted.as_strided((12,), (1,), 0)
    assert table._find_in_table(whole[11]) is None and table._find_in_table(whole[0]) is None


def test_whether_the_table_is_still_the_scheduler_s():
    scheduler, table = set_up("EulerDiscreteScheduler")
    assert table.current
    scheduler.set_timesteps(5)
    assert not table.current


def test_a_time_of_one_may_be_the_first_divided_or_the_last_as_it_is():
    scheduler, table = set_up("FlowMatchEulerDiscreteScheduler", steps=9)
    scheduler._step_index = None
    assert table.times[0] == 1000 and table.times[-1] == pytest.approx(1.0)
    assert table.place(1.0, -1) == 0 and table.place(table.times[-1], 7) == 8
    scheduler._step_index = 8
    assert table.place(table.times[-1], -1) == 8


def test_a_run_may_begin_anywhere_and_again():
    """Where its first timestep comes twice, it begins at the first of the two."""
    scheduler, table = set_up("HeunDiscreteScheduler", steps=4)
    run = object.__new__(Run)
    run.pipe, run.table = SimpleNamespace(scheduler=scheduler), None

    def place(time):
        return run._place(SimpleNamespace(arguments={"timestep": torch.tensor(time)}))

    assert place(table.times[1]) == 1 and (run.begin, run.last) == (1, 1)
    run.state = "kept"
    assert [place(table.times[i]) for i in (2, 3)] == [2, 3] and (run.begin, run.last) == (1, 3)
    assert run.state == "kept"
    assert place(table.times[0]) == 0 and (run.begin, run.last, run.state) == (0, 0, None)
    scheduler.set_timesteps(3)
    again = read_timetable(scheduler)
    run.state = "kept"
    assert place(again.times[3]) == 3 and (run.begin, run.last, run.state) == (3, 3, None)
    other, third = set_up("HeunDiscreteScheduler", steps=5)
    run.pipe.scheduler = other
    assert place(third.times[1]) == 1 and run.table.scheduler is other
