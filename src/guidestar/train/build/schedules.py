"""Make a recipe's noise schedule, its Diffusers scheduler, and the objective of a denoiser."""

from __future__ import annotations

from ...core.levels import VE, VP, Flow
from ...data.source import Source
from ...diffusers.read.scheduler import Process
from ...io.documents import JSONObject
from ..objectives.denoising import Denoising
from ..objectives.hybrid import Hybrid
from ..objectives.level_distributions import LogitNormal, UniformTime
from ..objectives.motion import MotionDenoising
from ..objectives.objective import Objective
from ..objectives.weighting import EDM, MinSNR, Sigmoid, SNRPlusOne, Uniform
from ..recipe.schema import Recipe
from ..recipe.tables import MotionLosses
from .data import body_of, standardiser_of


def process(recipe: Recipe) -> Process:
    """Return the schedule, and what the network predicts."""
    s, predicts = recipe.schedule, recipe.predicts()
    if s.kind == "edm":
        return Process(
            schedule=VE(t_min=s.sigma_min, t_max=s.sigma_max),
            predicts="edm",
            sigma_data=s.sigma_data,
        )
    if s.kind == "flow":
        return Process(
            schedule=Flow(shift=s.shift),
            predicts=predicts,
            time_scale=float(s.num_train_timesteps),
        )
    if s.beta_schedule == "squaredcos_cap_v2":
        table = VP.cosine(s.num_train_timesteps)
    else:
        make = VP.linear if s.beta_schedule == "linear" else VP.scaled_linear
        table = make(s.num_train_timesteps, s.beta_start, s.beta_end)
    return Process(
        schedule=table.zero_terminal_snr() if s.zero_terminal_snr else table,
        predicts=predicts,
    )


def scheduler_config(recipe: Recipe) -> JSONObject:
    """Return the settings of the Diffusers scheduler of the same noise."""
    s, predicts = recipe.schedule, recipe.predicts()
    if s.kind == "edm":
        return {
            "_class_name": "EDMEulerScheduler",
            "sigma_min": s.sigma_min,
            "sigma_max": s.sigma_max,
            "sigma_data": s.sigma_data,
            "prediction_type": "epsilon",
        }
    if s.kind == "flow" and predicts == "velocity":
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": s.num_train_timesteps,
            "shift": s.shift,
        }
    kind = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[predicts]
    if s.kind == "flow":
        flow = {"use_flow_sigmas": True, "flow_shift": s.shift}
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            "num_train_timesteps": s.num_train_timesteps,
            "prediction_type": kind,
            **flow,
        }
    table = {
        k: getattr(s, k) for k in ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end")
    }
    zero = {"rescale_betas_zero_snr": True} if s.zero_terminal_snr else {}
    return {
        "_class_name": "DDPMScheduler",
        **table,
        "prediction_type": kind,
        "clip_sample": False,
        **zero,
    }


def denoising(recipe: Recipe) -> Denoising:
    """Return the objective of a denoiser."""
    p, o, levels = process(recipe), recipe.objective, recipe.levels
    times = (
        LogitNormal(mean=levels.mean, std=levels.std, data_std=levels.data_std)
        if levels.kind == "logit-normal"
        else UniformTime(discrete=o.variance == "learned")
    )
    weightings = {
        "uniform": lambda: Uniform(space="x0" if p.predicts == "edm" else p.predicts),
        "min-snr": lambda: MinSNR(gamma=o.gamma),
        "snr+1": SNRPlusOne,
        "edm": lambda: EDM(sigma_data=recipe.schedule.sigma_data),
        "sigmoid": lambda: Sigmoid(bias=o.bias),
    }
    return Denoising(
        schedule=p.schedule,
        levels=times,
        weighting=weightings[o.weighting or ("edm" if p.predicts == "edm" else "uniform")](),
    )


def objective_of(recipe: Recipe, source: Source | None = None) -> Objective:
    """Return what trains a denoiser: the error of its mean, and where it learns its variance the
    variational bound; of motions, the errors that the recipe weighs.

    Args:
        recipe: the recipe.
        source: its data; None for data that are no motions.
    """
    simple, o = denoising(recipe), recipe.objective
    body, scale = body_of(source), standardiser_of(source)
    if body is not None and scale is not None:
        weights = o.motion or MotionLosses()
        return MotionDenoising(
            denoising=simple, format=body.format, scale=scale, **weights.model_dump()
        )
    return Hybrid(simple=simple, weight=o.bound) if o.variance == "learned" else simple
