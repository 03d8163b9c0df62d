"""guidestar steers diffusion models: any guidance, any number at once, on any model."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "core.levels": ("VE", "VP", "Flow", "Grid", "Level", "Schedule", "Step", "expand"),
    "sampling.grids": (
        "GRIDS",
        "karras",
        "leading",
        "linspace",
        "log_snr",
        "trailing",
        "uniform",
    ),
    "networks.network": ("Network",),
    "core.prediction": ("Prediction",),
    "core.rng": ("Draw",),
    "core.denoiser": ("Condition", "Denoiser"),
    "core.passes": ("COND", "NEGATIVE", "NULL", "Net", "Pass", "Slot"),
    "guidance": (
        *(
            "AND",
            "METHODS",
            "NOT",
            "Contrast",
            "Direction",
            "ExpressionError",
            "Guidance",
            "Guided",
            "Plan",
            "Post",
            "apg",
            "cfg",
            "cfgpp",
            "clamp",
        ),
        *(
            "adaptive",
            "autoguidance",
            "cads",
            "cfg_zero",
            "fdg",
            "icg",
            "mambo",
            "perp_neg",
            "pix2pix",
            "tcfg",
            "tsg",
        ),
        *(
            "classifier",
            "clip",
            "clip_x0",
            "cond",
            "cosine",
            "linear",
            "neg",
            "parse",
            "rescale",
            "threshold",
            "uncond",
        ),
        *("Conditioned", "Live", "Perturbed", "Steered", "Traits", "register"),
        *("modality", "nag", "pag", "sag", "seg", "slg", "stg", "tpg"),
        *(
            "discriminator",
            "dps",
            "freedom",
            "lgd",
            "mmps",
            "mpgd",
            "pigdm",
            "tfg",
            "ugd",
            "ugd_backward",
        ),
        *(
            "Blur",
            "Colour",
            "Downsample",
            "Identity",
            "Inpaint",
            "Linear",
            "Observation",
            "get_operator",
        ),
    ),
    "sampling": (
        "DDIM",
        "Consistency",
        "DDPM",
        "DEIS",
        "ERSDE",
        "RES",
        "SA",
        "SOLVERS",
        "DPMpp2M",
        "DPMpp2S",
        "DPMpp3M",
        "Heun",
        "MeanFlow",
        "Restart",
        "SDEDPMpp2M",
        "SDEDPMpp3M",
        "UniPC",
        "Solver",
        "State",
        "get_solver",
        "sample",
        "trajectory",
        "Population",
        "RePaint",
        "TimeTravel",
        "crowd",
        "steer",
    ),
    "model.checking": ("check",),
    "model.model": ("Model",),
    "model.upscaling": ("upscale",),
    "model.cascade": ("Cascade",),
    "model.cascade_stages": ("CascadeSamples", "StageSettings"),
    "model.samples": ("Samples", "Settings"),
    "model.folder_writing": ("save",),
    "model.loading": ("load",),
    "model.shipped": ("available",),
    "diffusers.guide.pipelines": ("guide", "guided"),
    "serve.engine": ("Engine",),
    "serve.ticket": ("Ticket",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'guidestar' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__")]
    return sorted({*special, *__all__})
