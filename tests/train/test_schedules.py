"""From a recipe to its schedule, its Diffusers scheduler and its objective: each choice."""

import pytest
import torch
from torch import nn

from guidestar.core.levels import VE, VP, Flow, Level
from guidestar.core.rng import Draw
from guidestar.data.source import InMemory
from guidestar.networks.low_rank import adapt
from guidestar.train.build.schedules import denoising, process, scheduler_config
from guidestar.train.examine import _levels
from guidestar.train.loop.memory import activations, training_memory
from guidestar.train.objectives.denoising import Denoising
from guidestar.train.objectives.level_distributions import LogitNormal, UniformTime
from guidestar.train.objectives.objective import Built, Objective, TrainSettings
from guidestar.train.objectives.weighting import EDM, MinSNR, Sigmoid, SNRPlusOne, Uniform
from guidestar.train.recipe.schema import checked

F64 = torch.float64


def recipe(**tables):
    least = {
        "name": "r",
        "data": {"kind": "fashion-mnist"},
        "model": {"widths": [32], "train": {"steps": 1}},
    }
    return checked({**least, **tables}, "r.toml")


EDM_CONFIG = {
    "_class_name": "EDMEulerScheduler",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "prediction_type": "epsilon",
}
TABLE = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "clip_sample": False,
}
SOLVED = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
}
EULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
}


@pytest.mark.parametrize(
    ("schedule", "predicts", "told", "config"),
    [
        ({}, None, "v", TABLE),
        ({}, "eps", "eps", {**TABLE, "prediction_type": "epsilon"}),
        ({}, "x0", "x0", {**TABLE, "prediction_type": "sample"}),
        ({"kind": "edm"}, None, "edm", EDM_CONFIG),
        ({"kind": "flow"}, None, "velocity", EULER),
        ({"kind": "flow", "shift": 3.0}, "velocity", "velocity", {**EULER, "shift": 3.0}),
        ({"kind": "flow"}, "v", "v", {**SOLVED, "prediction_type": "v_prediction"}),
        (
            {"kind": "flow", "shift": 2.0, "num_train_timesteps": 9},
            "x0",
            "x0",
            {
                **SOLVED,
                "prediction_type": "sample",
                "flow_shift": 2.0,
                "num_train_timesteps": 9,
            },
        ),
        ({"kind": "flow"}, "eps", "eps", {**SOLVED, "prediction_type": "epsilon"}),
    ],
)
def test_the_scheduler_says_what_is_trained(schedule, predicts, told, config):
    found = recipe(schedule=schedule, objective={"predicts": predicts} if predicts else {})
    p = process(found)
    assert (p.predicts, scheduler_config(found)) == (told, config)
    kind = {"edm": VE, "flow": Flow}.get(schedule.get("kind"), VP)
    assert type(p.schedule) is kind
    assert p.time_scale == (float(config["num_train_timesteps"]) if kind is Flow else 1.0)


def test_tables_of_cosine_and_of_pure_noise():
    cosine = process(recipe(schedule={"beta_schedule": "squaredcos_cap_v2"})).schedule
    assert cosine == VP.cosine(1000)
    for zero in (False, True):
        levels = {"kind": "uniform"}
        found = recipe(schedule={"zero_terminal_snr": zero}, levels=levels)
        table = process(found).schedule.alphas_cumprod
        assert (table[-1] == 0.0) == zero == ("rescale_betas_zero_snr" in scheduler_config(found))
        assert scheduler_config(found).get("rescale_betas_zero_snr", True) is True


@pytest.mark.parametrize(
    ("objective", "schedule", "weighting"),
    [
        ({}, {}, Uniform(space="v")),
        ({"predicts": "eps"}, {}, Uniform(space="eps")),
        ({"weighting": "uniform"}, {"kind": "edm"}, Uniform(space="x0")),
        ({}, {"kind": "flow"}, Uniform(space="velocity")),
        ({}, {"kind": "edm", "sigma_data": 0.7}, EDM(sigma_data=0.7)),
        ({"weighting": "edm"}, {"sigma_data": 0.3}, EDM(sigma_data=0.3)),
        ({"weighting": "min-snr", "gamma": 2.0}, {}, MinSNR(gamma=2.0)),
        ({"weighting": "snr+1"}, {}, SNRPlusOne()),
        ({"weighting": "sigmoid", "bias": -1.5}, {}, Sigmoid(bias=-1.5)),
    ],
)
def test_the_weighting_is_the_recipes(objective, schedule, weighting):
    found = denoising(recipe(objective=objective, schedule=schedule))
    assert found.weighting == weighting


def test_the_levels_are_the_recipes():
    levels = {"mean": -0.4, "std": 1.2, "data_std": 0.7}
    assert denoising(recipe(levels=levels)).levels == LogitNormal(**levels)
    assert denoising(recipe(levels={"kind": "uniform"})).levels == UniformTime()


def test_levels_are_drawn_by_their_formula():
    draw = Draw(range(200), 3)
    found = LogitNormal(mean=-0.4, std=1.2, data_std=0.7)(Flow(), draw)
    rho = 0.7 * (-0.4 + 1.2 * draw.gaussian("level")).exp()
    torch.testing.assert_close(found.sigma / found.alpha, rho)
    low, high = 0.3, 2.0
    ve = LogitNormal(std=3.0)(VE(t_min=low, t_max=high), draw)
    torch.testing.assert_close(ve.sigma, (3.0 * draw.gaussian("level")).exp().clamp(low, high))
    assert float(ve.sigma.min()) == low and float(ve.sigma.max()) == high
    u = draw.uniform("level")
    torch.testing.assert_close(UniformTime()(VE(t_min=low, t_max=high), draw).t, 0.3 + 1.7 * u)
    torch.testing.assert_close(UniformTime()(VP.linear(), draw).t, 999 * u)
    assert torch.equal(UniformTime(discrete=True)(VP.linear(10), draw).t, (10 * u).floor())
    torch.testing.assert_close(UniformTime()(Flow(), draw).t, u)


class Nothing:
    """A draw of 0."""

    def uniform(self, tag):
        return torch.zeros(2, dtype=F64)


def test_a_flow_is_not_trained_without_noise():
    assert UniformTime()(Flow(), Nothing()).t.tolist() == [1e-5, 1e-5]
    assert UniformTime()(VP.linear(), Nothing()).t.tolist() == [0.0, 0.0]


LEVELS = [Level(0.8, 0.6, 0.0), Level(0.3, 0.7, 0.0)]


@pytest.mark.parametrize("level", LEVELS)
def test_weightings_by_their_formulas(level):
    a, s = level.alpha, level.sigma
    snr = (a / s) ** 2
    for weighting, wanted in (
        (SNRPlusOne(), snr + 1),
        (EDM(sigma_data=0.7), snr + 1 / 0.49),
        (EDM(), snr + 4),
        (MinSNR(gamma=1.0), min(snr, 1.0)),
        (MinSNR(), min(snr, 5.0)),
        (Sigmoid(bias=0.4), snr / (1 + snr * 2.718281828459045**-0.4)),
        (Sigmoid(), snr / (1 + snr)),
        (Uniform(space="x0"), 1.0),
        (Uniform(space="eps"), snr),
        (Uniform(space="v"), ((a * a + s * s) / s) ** 2),
        (Uniform(space="velocity"), ((a + s) / s) ** 2),
    ):
        assert float(weighting(level)) == pytest.approx(wanted, rel=1e-9), weighting
        rows = weighting(Level(*(torch.tensor([v, v], dtype=F64) for v in level)))
        assert torch.as_tensor(rows, dtype=F64).expand(2).tolist() == pytest.approx([wanted] * 2)


def test_the_loss_is_the_weighted_mean_square():
    x0, draw = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 4), Draw([1, 2, 3])
    levels = lambda schedule, draw: Level(
        *(torch.tensor(v, dtype=F64) for v in ([0.8, 0.6, 1.0], [0.6, 0.8, 0.5], [0.0] * 3))
    )
    objective = Denoising(schedule=Flow(), levels=levels, weighting=EDM())
    noise = draw.normal_like("noise", x0)
    found = objective(lambda x, level, cond: x / 2, x0, None, draw)
    for k, (a, s) in enumerate(((0.8, 0.6), (0.6, 0.8), (1.0, 0.5))):
        error = (a * x0[k] + s * noise[k]) / 2 - x0[k]
        wanted = ((a / s) ** 2 + 4) * error.square().mean()
        assert float(found[k]) == pytest.approx(float(wanted), rel=1e-6)


class Squared(Objective):
    def __call__(self, net, x0, target, draw):
        seen.append((x0, target, draw.seeds))
        return net(x0).square().mean(1)


seen = []


class Told(nn.Module):
    """A layer whose answer is no tensor counts nothing."""

    def forward(self, x):
        return {"x": x}


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        self.told = Told()

    def forward(self, x):
        return self.layers(self.told(x)["x"])


def test_what_a_sample_adds_to_memory_is_what_the_layers_put_out():
    module, x = Whole().double(), torch.arange(12.0).reshape(4, 3)
    source = InMemory(x=x, targets={"v": torch.arange(4)}, columns={})
    built = Built(module=module, objective=Squared(), prepare=lambda targets: targets["v"] + 7)
    found = activations(built, source, F64)
    assert found == pytest.approx((5 + 5 + 2) * 8 / 1e6)
    x0, target, seeds = seen.pop()
    assert x0.tolist() == [[0, 1, 2]] and target.tolist() == [7] and list(seeds) == [0]
    assert not any(m._forward_hooks for m in module.modules())
    module.float()
    assert activations(built, source) == pytest.approx((5 + 5 + 2) * 4 / 1e6)


def test_weights_that_a_pass_makes_are_held_once_and_not_for_each_sample():
    """Of layers of 3 × 40 and 40 × 2 numbers, rank 1 is kept of both: 43 and 42 numbers."""
    module = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2))
    source = InMemory(x=torch.zeros(4, 3), targets={"v": torch.arange(4)}, columns={})
    built = Built(module=module, objective=Squared(), prepare=lambda targets: targets["v"])
    whole = activations(built, source)
    assert whole == pytest.approx((40 + 40 + 2) * 4 / 1e6)
    adapt(module, 1)
    assert activations(built, source) == pytest.approx((40 + 40 + 2) * 4 / 1e6)
    found = training_memory(module, TrainSettings(steps=1, batch=1, power=()), (3,))
    # Factors and biases: themselves, gradients, two moments, one average; 3 · 40 + 40 · 2 numbers
    # stand still, and are held a second time with the product added.
    trained, still = 43 + 42 + 40 + 2, 3 * 40 + 40 * 2
    assert found["weights and optimiser"] == pytest.approx((trained * 5 + 2 * still) * 4 / 1e6)


def test_what_sees_noise_is_examined_within_the_schedules_range():
    schedule, rhos = _levels(recipe(schedule={"kind": "edm", "sigma_min": 0.05, "sigma_max": 12.0}))
    assert schedule == VE(t_min=0.05, t_max=12.0)
    assert rhos == [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0]
    _, rhos = _levels(recipe(schedule={"kind": "edm", "sigma_min": 0.06, "sigma_max": 11.9}))
    assert rhos == [0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0]
