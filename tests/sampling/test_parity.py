"""Every solver walks step by step with Diffusers' scheduler of that method.

The model is the exact denoiser of a Gaussian mixture, nonlinear in x. Both sides take the levels
from the scheduler's own float32 tables and, where they draw noise, the same noise.
"""

from dataclasses import dataclass

import pytest
import torch

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from guidestar.core.levels import VP, Flow, Grid
from guidestar.core.prediction import Prediction
from guidestar.sampling import DDIM, DDPM, DPMpp2M, Heun, SDEDPMpp2M, trajectory
from guidestar.sampling.grids import leading, trailing

# Diffusers turns tensors into arrays in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (3, 2, 4, 4)
WEIGHTS, MEANS, VARIANCES = (0.2, 0.5, 0.3), (-1.2, 0.3, 0.9), (0.05, 0.2, 0.01)
OWN_PRECISION = 1e-6  # of schedulers that compute in float32
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def randn(seed, count=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def denoise(x, alpha, sigma):
    """D of the mixture, each element of x by itself."""
    totals = [alpha**2 * v + sigma**2 for v in VARIANCES]
    logits = [
        torch.log(torch.as_tensor(w / t**0.5, dtype=torch.float64)) - (x - alpha * m) ** 2 / (2 * t)
        for w, m, t in zip(WEIGHTS, MEANS, totals, strict=True)
    ]
    shares = torch.stack(logits).softmax(0)
    means = [
        m + alpha * v / t * (x - alpha * m)
        for m, v, t in zip(MEANS, VARIANCES, totals, strict=True)
    ]
    return (shares * torch.stack(means)).sum(0)


def noise_in(x, alpha, sigma):
    return (x - alpha * denoise(x, alpha, sigma)) / sigma


def predict(x, step, gstate):
    return Prediction.from_x0(x, step.t, denoise(x, step.t.alpha, step.t.sigma)), gstate


@dataclass
class Listed:
    """A Draw that gives ``noises[step]``."""

    noises: list
    step: int = 0

    def at(self, step):
        return Listed(self.noises, step)

    def normal_like(self, tag, x):
        return self.noises[self.step]


def walked(solver, grid, x, noises=()):
    return [
        state.x
        for state in trajectory(predict, x, grid=grid, solver=solver, draw=Listed(list(noises)))
    ]


def assert_same_walk(ours, theirs, tolerance):
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)]
    assert max(errors) <= tolerance


def in_double(scheduler):
    """Let the scheduler compute in float64, with the numbers of its own table."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler, VP(tuple(scheduler.alphas_cumprod.tolist()))


def on_sigmas(schedule, sigmas):
    """Return the grid of these noise ratios, the last of them 0."""
    assert sigmas[-1] == 0
    return Grid(
        levels=(*(schedule.at_rho(float(s)) for s in sigmas[:-1]), schedule.clean),
        schedule=schedule,
    )


# --- table schedulers


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("spacing", "steps", "offset"), [("leading", 20, 1), ("trailing", 10, 0)])
def test_ddim(eta, spacing, steps, offset):
    scheduler, schedule = in_double(
        DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing, steps_offset=offset)
    )
    scheduler.set_timesteps(steps)
    x, noises, theirs = randn(0)[0], randn(1, steps), []
    grid = (
        trailing(schedule, steps)
        if spacing == "trailing"
        else leading(schedule, steps, offset=offset)
    )
    ours = walked(DDIM(eta=eta), grid, x, noises)
    for t, z in zip(scheduler.timesteps, noises, strict=True):
        bar = scheduler.alphas_cumprod[t]
        x = scheduler.step(
            noise_in(x, bar**0.5, (1 - bar) ** 0.5),
            t,
            x,
            eta=eta,
            variance_noise=z if eta else None,
        ).prev_sample
        theirs.append(x)
    assert_same_walk(ours, theirs, 1e-11)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("steps", [20, 1000])
def test_ddpm(variance, steps):
    kind = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[variance]
    scheduler, schedule = in_double(DDPMScheduler(clip_sample=False, variance_type=kind))
    scheduler.set_timesteps(steps)
    first = 20
    x, share, generator, theirs = randn(0)[0], randn(5)[0], torch.Generator().manual_seed(1), []

    def predict_share(x, step, gstate):
        return Prediction(**{**vars(predict(x, step, gstate)[0]), "log_var": share}), gstate

    grid = leading(schedule, steps)
    walk = trajectory(
        predict_share, x, grid=grid, solver=DDPM(variance=variance), draw=Listed(randn(1, first))
    )
    ours = [state.x for _, state in zip(range(first), walk, strict=False)]
    for t in scheduler.timesteps[:first]:
        bar = scheduler.alphas_cumprod[t]
        eps = noise_in(x, bar**0.5, (1 - bar) ** 0.5)
        out = torch.cat([eps, share], 1) if variance == "learned" else eps
        x = scheduler.step(out, t, x, generator=generator).prev_sample
        theirs.append(x)
    assert_same_walk(ours, theirs, 1e-11)


# --- schedulers on sigmas, in coordinates y = x/alpha


def walk_on_sigmas(scheduler, y):
    for t in scheduler.timesteps:
        scheduler.scale_model_input(y, t)
        sigma = scheduler.sigmas[scheduler.step_index].double()
        y = scheduler.step(noise_in(y, 1.0, sigma), t, y).prev_sample
        yield y


@pytest.mark.parametrize(
    "options",
    [
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing"},
        {"use_karras_sigmas": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("make", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_euler_and_heun(make, steps, options):
    scheduler = make(**BETAS, **options)
    scheduler.set_timesteps(steps)
    heun = make is HeunDiscreteScheduler
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]) if heun else scheduler.sigmas
    grid = on_sigmas(VP(tuple(scheduler.alphas_cumprod.tolist())), sigmas)
    y = randn(0)[0] * float(sigmas[0])
    ours = walked(Heun() if heun else DDIM(), grid, grid[0].alpha * y)
    theirs = list(walk_on_sigmas(scheduler, y))
    theirs = [*theirs[1::2], theirs[-1]] if heun else theirs
    assert_same_walk(
        [x / level.alpha for x, level in zip(ours, grid[1:], strict=True)], theirs, OWN_PRECISION
    )


@pytest.mark.parametrize(
    "options", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}], ids=str
)
@pytest.mark.parametrize("steps", [8, 25])
@pytest.mark.parametrize(
    ("solver", "algorithm"), [(DPMpp2M(), "dpmsolver++"), (SDEDPMpp2M(), "sde-dpmsolver++")]
)
def test_dpmpp(solver, algorithm, steps, options):
    scheduler = DPMSolverMultistepScheduler(
        **BETAS,
        **options,
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()  # the same numbers; the samples stay float32
    grid = on_sigmas(VP(tuple(scheduler.alphas_cumprod.tolist())), scheduler.sigmas)
    x, noises, theirs = randn(0)[0], randn(1, steps), []
    ours = walked(solver, grid, x, noises)
    for t, level, z in zip(scheduler.timesteps, grid, noises, strict=False):
        x = scheduler.step(
            noise_in(x, level.alpha, level.sigma), t, x, variance_noise=z
        ).prev_sample
        theirs.append(x)
    assert_same_walk(ours, theirs, OWN_PRECISION)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    grid = Grid(levels=tuple(Flow()(float(s)) for s in scheduler.sigmas), schedule=Flow())
    assert grid[0].alpha == 0 and grid[-1] == Flow().clean
    x, theirs = randn(0)[0], []
    ours = walked(DDIM(), grid, x)
    for t, level in zip(scheduler.timesteps, grid, strict=False):
        x = scheduler.step(
            noise_in(x, level.alpha, level.sigma) - denoise(x, level.alpha, level.sigma), t, x
        ).prev_sample.double()
        theirs.append(x)
    assert_same_walk(ours, theirs, OWN_PRECISION)
