"""Write a model as a folder, in Diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from ..core.denoiser import Denoiser
from ..diffusers import guidance_file as recipe
from ..diffusers.export import describe_pipeline, scheduler_settings, write_index
from ..diffusers.objects import Config
from ..diffusers.read.vae import Decoder
from ..diffusers.write import write_classifier, write_denoiser, write_module, write_scheduler
from ..io.files import check_name, make_folder
from ..io.images import write_text
from ..networks.clip import CLIP
from .manifest import FORMAT, NAME
from .model import Model

if TYPE_CHECKING:
    from ..networks.conditional import ConditionalModel

_PARTS = frozenset(
    {
        "unet",
        "transformer",
        "network",
        "condition",
        "scheduler",
        "vae",
        "text_encoder",
        "tokenizer",
        "averages",
        "variants",
        "judge",
        "guidestar.json",
        "guidance.toml",
        "model_index.json",
        "readme.md",
    }
)
"""Names in a folder that no further network or classifier can have."""


def save(model: Model, folder: Path | str, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's networks, configs, ``guidestar.json`` and ``guidance.toml``.

    Where one of Diffusers' pipelines can be the model (`guidestar.diffusers.export.pipeline_of`),
    ``model_index.json`` names it, and ``DiffusionPipeline.from_pretrained`` loads the folder
    without guidestar; else the network and the scheduler load.

    Args:
        model: its networks must be of the classes named in this module's docstring.
        folder: made if it is missing.
        dtype: of the weights.

    Raises:
        ValueError: the model was read from Diffusers, so its folder is there already; or a
            network's or classifier's name cannot be a folder's.
    """
    config = _scheduler(model)
    for name in (*model.nets, *model.classifiers):
        check_name(name, "the name of a network or classifier", taken=_PARTS)
    root = make_folder(Path(folder))
    write_denoiser(model.denoiser, model.encoder, root, dtype)
    for name, (denoiser, encoder) in model.nets.items():
        write_denoiser(denoiser, encoder, root / name, dtype)
    clips = {n: c for n, c in model.classifiers.items() if isinstance(c, CLIP)}
    for name, net in {
        **model.classifiers,
        **({"judge": model.judge} if model.judge is not None else {}),
    }.items():
        write_classifier(net, root / name, dtype, whole=name == "judge")
    write_scheduler(config, root / "scheduler")
    if isinstance(model.decode, Decoder):
        write_module(model.decode.vae, root / "vae", dtype)
    about = {
        **model.card,
        "format": FORMAT,
        "shape": list(model.shape),
        "nets": list(model.nets),
        "classifiers": [n for n in model.classifiers if n not in clips],
        "defaults": model.defaults,
        "diffusers": describe_pipeline(model),
    }
    write_index(model, root, config)
    if guidance := model.defaults.get("guidance"):
        recipe.write(
            recipe.GuidanceRecipe(
                guidance=guidance, **{k: model.defaults.get(k) for k in ("steps", "solver", "grid")}
            ),
            root,
        )
    if clips:
        about["clips"] = {
            n: {"log_scale": float(c.log_scale.detach()), "rho_max": c.rho_max}
            for n, c in clips.items()
        }
    write_text(json.dumps(about, indent=2) + "\n", root / NAME)


def write_average(
    module: ConditionalModel, folder: Path, name: str, dtype: torch.dtype = torch.float16
) -> None:
    """Add another average of the main network's weights (a `ConditionalModel`) to a folder, under
    ``name``.

    Raises:
        ValueError: the name cannot be a folder's.
    """
    check_name(name, "the name of an average")
    denoiser = cast(Denoiser, module.denoiser)
    encoder = getattr(module.encoder, "alone")()  # noqa: B009
    write_denoiser(denoiser, encoder, folder / "averages" / name, dtype)


def _scheduler(model: Model) -> Config:
    if "scheduler" not in model.card and "schedule" not in model.card:
        raise ValueError(
            f"the model {model.name!r} was not trained by guidestar, so its scheduler "
            "is not known; copy the folder that it was read from"
        )
    return scheduler_settings(model, model.card.get("scheduler") or _of_betas(model))


def _of_betas(model: Model) -> Config:
    kinds = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    predicts = getattr(model.denoiser, "predicts", None)
    return {
        "_class_name": "DDPMScheduler",
        **model.card["schedule"],
        "prediction_type": kinds[str(predicts)],
        "clip_sample": False,
    }
