"""Write networks, condition encoders and classifiers as folders in Diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from ..core.denoiser import Denoiser
from ..io.files import name_write_errors, whole_or_not
from ..io.images import write_text
from ..networks.clip import CLIP
from ..networks.conditions import Conditions
from .export import network_of
from .objects import Config
from .read.clip import write_clip, write_pretrained, write_tower
from .read.network import INTERVAL_FOLDER, SCALE_FOLDER
from .read.text_encoder import TextEncoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_denoiser(
    denoiser: Denoiser, encoder: object | None, folder: Path, dtype: torch.dtype
) -> None:
    """Write a denoiser's network and the encoder of its conditions."""
    net = network_of(denoiser)
    own = getattr(net, "made_by", None)
    write_module(
        net,
        folder
        / (
            "network" if own else "unet" if type(net).__name__.startswith("UNet") else "transformer"
        ),
        dtype,
        own,
    )
    for name, part in _inputs_of(denoiser).items():
        write_module(part, folder / name, dtype)
    if isinstance(encoder, TextEncoder):
        _write_text(encoder, folder, folder / "condition", dtype)
    elif encoder is not None:
        write_condition(encoder, folder / "condition", dtype)


def _inputs_of(denoiser: object) -> dict[str, nn.Module]:
    """Return what embeds the further inputs of a student, within its wrappers, by folder."""
    from ..networks.guidance_scale import ScaledNetwork
    from ..networks.interval import IntervalNetwork

    found: dict[str, nn.Module] = {}
    while denoiser is not None:
        if isinstance(denoiser, ScaledNetwork):
            found[SCALE_FOLDER] = denoiser.scale
        if isinstance(denoiser, IntervalNetwork):
            found[INTERVAL_FOLDER] = denoiser.interval
        denoiser = getattr(denoiser, "net", None)
    return found


def write_condition(encoder: object, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a condition encoder, or several."""
    if isinstance(encoder, TextEncoder):
        _write_text(encoder, folder, folder, dtype)
    elif isinstance(encoder, Conditions):
        for name, part in encoder.parts.items():
            write_condition(part, folder / name, dtype)
        write_text(
            json.dumps({"_class_name": "Conditions", "names": list(encoder.parts)}) + "\n",
            folder / "config.json",
        )
    else:
        write_module(cast(nn.Module, encoder), folder, dtype)


def _write_text(encoder: TextEncoder, folder: Path, about: Path, dtype: torch.dtype) -> None:
    write_pretrained(encoder.text, folder / "text_encoder", dtype)
    with name_write_errors(folder / "tokenizer"):
        encoder.tokenizer.save_pretrained(folder / "tokenizer")
    write_text(
        json.dumps({"_class_name": "TextEncoder", **encoder.settings}) + "\n", about / "config.json"
    )


def write_classifier(net: object, folder: Path, dtype: torch.dtype, *, whole: bool) -> None:
    """Write a classifier; of a CLIP the image tower alone, unless it is to be ``whole``."""
    if not isinstance(net, CLIP):
        write_module(cast(nn.Module, net), folder, dtype)
    elif whole:
        write_clip(net, folder, dtype)
    else:
        write_tower(net.vision, folder, dtype)


def write_module(
    module: nn.Module,
    folder: Path,
    dtype: torch.dtype = torch.float16,
    made_by: Config | None = None,
) -> None:
    """Write a module's config (or what made it), and its weights in ``dtype``, whole or not
    at all.
    """
    from safetensors.torch import save as serialised

    tensors = {
        k: (v.to(dtype) if v.is_floating_point() else v).cpu().contiguous()
        for k, v in module.state_dict().items()
    }
    with whole_or_not(folder / WEIGHTS) as beside:
        beside.write_bytes(serialised(tensors, {"format": "pt"}))
    if made_by is None:
        with name_write_errors(folder / "config.json"):
            cast(ConfigMixin, module).save_config(folder)
    else:
        write_text(json.dumps(made_by, indent=2) + "\n", folder / "config.json")


def write_scheduler(config: Config, folder: Path) -> None:
    """Write the settings of the Diffusers scheduler that ``_class_name`` names."""
    import diffusers

    settings = {k: v for k, v in config.items() if k != "_class_name"}
    with name_write_errors(folder / "scheduler_config.json"):
        getattr(diffusers, config["_class_name"])(**settings).save_config(folder)
