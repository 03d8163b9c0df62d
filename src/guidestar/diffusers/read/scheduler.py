"""Read the training from a Diffusers scheduler: the schedule, and what the network predicts.

How a scheduler steps (its spacing, order, clipping) belongs to sampling, and is not read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...core.levels import VE, VP, Flow, Schedule
from ...io.documents import (
    ValueKind,
    check_values,
    flag,
    many,
    maybe,
    number,
    one_line,
    read_json,
    shown,
    text,
    whole,
)
from ...networks.network import OutputKind
from ..objects import Config

GridKind = Literal["by time", "inverted", "on ratios", "scaled", "halfway", "edm", "flow"]

_NAMES: dict[GridKind, tuple[str, ...]] = {
    "by time": (
        *(
            "CogVideoXDDIMScheduler",
            "CogVideoXDPMScheduler",
            "DDIMParallelScheduler",
            "DDIMScheduler",
        ),
        *(
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "LCMScheduler",
            "PNDMScheduler",
            "TCDScheduler",
            "UnCLIPScheduler",
        ),
    ),
    "inverted": ("DDIMInverseScheduler",),
    "on ratios": (
        *(
            "DEISMultistepScheduler",
            "DPMSolverMultistepInverseScheduler",
            "DPMSolverMultistepScheduler",
        ),
        *("DPMSolverSinglestepScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
    ),
    "scaled": (
        *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
        *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler"),
    ),
    "halfway": ("DPMSolverSDEScheduler",),
    "edm": (
        "CosineDPMSolverMultistepScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
    ),
    "flow": (
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
    ),
}
KINDS: dict[str, GridKind] = {name: kind for kind, names in _NAMES.items() for name in names}
"""Every known scheduler class, and how it keeps its levels.

A table of ᾱ by the network's time, or by an earlier one (inverted); noise ratios, where x may be
scaled by √(σ² + 1) (scaled), with second calls between two of them (halfway); EDM's; or a flow's.
"""

PREDICTS: dict[str, OutputKind] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "velocity",
}


@dataclass(frozen=True, kw_only=True)
class Process:
    """The noising process a network was trained on, read from its scheduler.

    Args:
        schedule: alpha and sigma by time.
        predicts: what the network's output means (`guidestar.Network`).
        time_scale: what the schedule's time is multiplied by before the network takes it
            (1000 for a flow, whose time is in [0, 1]; an EDM network takes ln(rho)/4 instead).
        sigma_data: standard deviation of the data, for EDM preconditioning.
    """

    schedule: Schedule
    predicts: OutputKind
    time_scale: float = 1.0
    sigma_data: float = 0.5


def read_scheduler(folder: str | Path) -> Process:
    """Read ``scheduler/scheduler_config.json`` (or ``scheduler_config.json``) of a Diffusers
    folder.

    Beta tables (DDPM, DDIM, PNDM, Euler, Heun, LMS, DPM-Solver, UniPC, …) become `VP`, computed in
    float64 (Diffusers' own tables are float32), with ``use_flow_sigmas`` `Flow`; EDM schedulers
    become `VE` and predict "edm"; flow-matching ones become `Flow` and predict "velocity". Keys
    that the file leaves out have the defaults of its scheduler class.

    Raises:
        ValueError: no such file, an unknown scheduler class, or a setting that is not supported;
            the file is named.
    """
    file = scheduler_file(folder)
    if file is None:
        raise ValueError(f"{folder}: there is no scheduler/scheduler_config.json")
    return process_of(read_json(file), where=str(file))


def process_of(written: Config, *, where: str = "scheduler") -> Process:
    """Return the process of a scheduler's settings, as `read_scheduler`.

    Args:
        written: ``dict(scheduler.config)``, with ``_class_name``.
        where: they were found, for the message.

    Raises:
        ValueError: an unknown scheduler class, or a setting that is not supported.
    """
    file, name = where, written.get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(
            f"{file}: the scheduler {shown(name)} is not supported; these are: "
            f"{', '.join(sorted(KINDS))}"
        )
    build = {"edm": _edm, "flow": _flow}.get(KINDS[name], _table)
    check_values(file, written, _SETTINGS)
    config = {**class_defaults(name), **written}
    if (
        lost := next((key for key in _NEEDED.get(KINDS[name], ()) if key not in config), None)
    ) is not None:
        raise ValueError(f"{file}: there is no {lost!r}")
    try:
        return build(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:
        raise ValueError(f"{file}: its settings do not go together ({one_line(error)})") from error


_TEXTS = ("prediction_type", "beta_schedule", "timestep_type")
_FLAGS = ("use_flow_sigmas", "rescale_betas_zero_snr", "invert_sigmas")
_POSITIVE: ValueKind = number(0, 1e6, above=True)
_SETTINGS: dict[str, ValueKind] = {
    **dict.fromkeys(_TEXTS, maybe(text)),
    **dict.fromkeys(_FLAGS, maybe(flag)),
    **dict.fromkeys(("shift", "flow_shift", "sigma_data"), _POSITIVE),
    **dict.fromkeys(
        ("sigma_min", "sigma_max"), maybe(number(0, 1e6))
    ),  # of flows they may be null, or 0
    **dict.fromkeys(("beta_start", "beta_end"), number(0, 1)),
    "snr_shift_scale": maybe(number(0, 1e6)),
    "num_train_timesteps": whole(1, 1_000_000),
    "trained_betas": maybe(many(number(0, 1), 1, 1_000_000)),
}
_NEEDED: dict[str, tuple[str, ...]] = {
    "flow": ("shift", "num_train_timesteps"),
    "edm": ("sigma_min", "sigma_max", "sigma_data"),
}


def scheduler_file(folder: str | Path) -> Path | None:
    """Find the scheduler's settings of a Diffusers folder; None where it has none."""
    candidates = (
        Path(folder) / "scheduler" / "scheduler_config.json",
        Path(folder) / "scheduler_config.json",
    )
    return next((file for file in candidates if file.is_file()), None)


def class_defaults(name: str) -> Config:
    """Return the defaults of a scheduler class's settings."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _predicts(config: Config) -> OutputKind:
    kind = config["prediction_type"]
    if kind not in PREDICTS:
        raise ValueError(
            f"the prediction_type {kind!r} is not supported; these are: {', '.join(PREDICTS)}"
        )
    return PREDICTS[kind]


def _table(config: Config) -> Process:
    predicts = _predicts(config)
    if config.get("use_flow_sigmas"):
        return Process(
            schedule=Flow(shift=float(config["flow_shift"])),
            predicts=predicts,
            time_scale=float(config["num_train_timesteps"]),
        )
    if predicts == "velocity":
        raise ValueError(
            "a flow_prediction needs use_flow_sigmas, but the schedule is a table of betas"
        )
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"the timestep_type {config['timestep_type']!r} is not supported, only 'discrete'"
        )
    schedule = VP.from_betas(_betas(config))
    if shift := config.get("snr_shift_scale"):
        schedule = VP(
            tuple(a / (shift + (1 - shift) * a) for a in schedule.alphas_cumprod)
        )  # CogVideoX's
    return Process(
        schedule=schedule.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule,
        predicts=predicts,
    )


def _betas(config: Config) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    kind, steps = config["beta_schedule"], config["num_train_timesteps"]
    if kind not in _BETAS:
        raise ValueError(
            f"the beta_schedule {kind!r} is not supported; these are: {', '.join(_BETAS)}"
        )
    ends = (0.0, 0.0) if kind == "squaredcos_cap_v2" else (config["beta_start"], config["beta_end"])
    return _BETAS[kind](steps, *ends)


def _linspace(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _cosine(steps: int, start: float, end: float) -> Tensor:
    bar = torch.tensor([1.0, *VP.cosine(steps).alphas_cumprod], dtype=torch.float64)
    return 1 - bar[1:] / bar[:-1]


_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, start, end: _linspace(start, end, steps),
    "scaled_linear": lambda steps, start, end: _linspace(start**0.5, end**0.5, steps) ** 2,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": lambda steps, start, end: _linspace(-6, 6, steps).sigmoid() * (end - start) + start,
}


def _edm(config: Config) -> Process:
    if config.get("_class_name") == "CosineDPMSolverMultistepScheduler":
        raise ValueError(
            "its network takes the angle of the noise ratio, which only its pipeline does: "
            "guide that, guidestar.guide(pipe, …)"
        )
    if config["prediction_type"] != "epsilon":
        raise ValueError(
            f"the prediction_type {config['prediction_type']!r} of an EDM scheduler is not "
            "supported, only 'epsilon'"
        )
    schedule = VE(t_min=float(config["sigma_min"]), t_max=float(config["sigma_max"]))
    return Process(schedule=schedule, predicts="edm", sigma_data=float(config["sigma_data"]))


def _flow(config: Config) -> Process:
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas (time that runs from noise to data) is not supported")
    return Process(
        schedule=Flow(shift=float(config["shift"])),
        predicts="velocity",
        time_scale=float(config["num_train_timesteps"]),
    )
