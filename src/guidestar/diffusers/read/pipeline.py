"""Whole pipelines of Diffusers as parts of a model: Stable Diffusion, SDXL, SD3, Flux, PixArt, DiT,
DDPM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from ...core.levels import Flow, Schedule
from ...io.documents import (
    as_value_error,
    check_values,
    choice,
    flag,
    many,
    maybe,
    number,
    one_word,
    read_json,
    text,
    whole,
)
from ..objects import Config, DiffusersNetwork
from .network import Adapter, Parts, read_parts
from .scheduler import class_defaults, scheduler_file
from .text import FluxText, PixArtText, PromptEncoder, SD3Text, SDXLText
from .text_models import read_clip_text, read_t5_text

FLUX_SIZE = 128
"""Default side of Flux's latents; its network has none."""


@dataclass(frozen=True, kw_only=True)
class Readable:
    """A kind of pipeline.

    Args:
        guidance: what its own default guidance is as an expression.
        prompts: it takes prompts, and so samples in any size.
        patch: how many latents of a side go together.
    """

    guidance: str
    prompts: bool = True
    patch: int = 1


READABLE = {
    "StableDiffusionPipeline": Readable(guidance="cfg(7.5)"),
    "StableDiffusionXLPipeline": Readable(guidance="cfg(5)"),
    "StableDiffusion3Pipeline": Readable(guidance="cfg(7)", patch=2),
    "FluxPipeline": Readable(guidance="cond", patch=2),
    "PixArtAlphaPipeline": Readable(guidance="cfg(4.5)", patch=2),
    "PixArtSigmaPipeline": Readable(guidance="cfg(4.5)", patch=2),
    "DiTPipeline": Readable(guidance="cfg(4)", prompts=False),
    "DDPMPipeline": Readable(guidance="uncond", prompts=False),
    "DDIMPipeline": Readable(guidance="uncond", prompts=False),
}
"""Every pipeline class that is read."""


def readable_of(folder: Path) -> Readable | None:
    """Return the family that ``model_index.json`` names; None where it names no pipeline.

    Raises:
        ValueError: a pipeline of a class that is not read; it is named.
    """
    file = folder / "model_index.json"
    about = read_json(file) if file.is_file() else {}
    check_values(file, about, {"_class_name": maybe(text), "force_zeros_for_empty_prompt": flag})
    name = about.get("_class_name")
    if name is None:
        return None
    if name not in READABLE:
        raise ValueError(
            f"{file}: a {one_word(name)} is not read as a model; these are: "
            f"{', '.join(READABLE)}; its network is, from a folder of that and scheduler/ alone"
        )
    return READABLE[name]


def read_pipeline(
    folder: str | Path, *, size: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32
) -> Parts:
    """Read a folder as a pipeline's ``save_pretrained`` writes it: network, levels, and what makes
    its conditions.

    Args:
        folder: holds model_index.json beside the parts; without it, the folder is read as
            `diffusers.read` does.
        size: height and width in pixels; by default what the network was made for. Flux's levels
            depend on it, and SDXL takes it.
        dtype: of the network and of the text encoders.

    Raises:
        ValueError: one line that names the file at fault, or the class of pipeline that is not
            read.
    """
    folder = Path(folder)
    family = readable_of(folder)
    parts = read_parts(folder, dtype=dtype)
    if family is None or not family.prompts:
        if size is not None:
            raise ValueError(f"{folder}: size= is for pipelines that take a prompt")
        return parts
    net = _network(parts)
    _refuse_embedded_guidance(folder, net)
    parts = replace(parts, shape=_shape(folder, parts, family, size))
    encoder = _encoder(folder, net, parts, dtype)
    return replace(
        parts,
        encoder=encoder or parts.encoder,
        schedule=_shift(parts.schedule, folder, parts.shape or (0, 0, 0), family.patch),
    )


def _network(parts: Parts) -> DiffusersNetwork:
    adapter = parts.denoiser.net
    assert isinstance(adapter, Adapter)  # as `read` makes it of Diffusers' networks
    return cast(DiffusersNetwork, adapter.net)


def _refuse_embedded_guidance(folder: Path, net: DiffusersNetwork) -> None:
    if dict(net.config).get("time_cond_proj_dim") is not None:
        raise ValueError(
            f"{folder}: its network takes a guidance scale (a consistency model, "
            "time_cond_proj_dim), which is not supported"
        )


def _factor(folder: Path) -> int:
    """Return how many pixels of a side make one latent."""
    file = folder / "vae" / "config.json"
    about = read_json(file) if file.is_file() else {}
    check_values(file, about, {"block_out_channels": many(whole(1, 65_536), 1, 16)})
    return 2 ** (len(about.get("block_out_channels", (0,))) - 1)


def _shape(
    folder: Path, parts: Parts, family: Readable, size: tuple[int, int] | None
) -> tuple[int, int, int] | None:
    net = _network(parts)
    channels, height, width = parts.shape or (net.config.in_channels // 4, FLUX_SIZE, FLUX_SIZE)
    if size is None:
        return channels, height, width
    step = _factor(folder) * family.patch
    if (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(isinstance(s, int) for s in size)
    ):
        raise ValueError(f"size must be height and width in pixels, e.g. (512, 512), not {size!r}")
    if any(s < 1 or s % step for s in size):
        raise ValueError(
            f"{folder}: height and width must be multiples of {step} pixels, not "
            f"{size[0]}×{size[1]}"
        )
    return channels, size[0] // _factor(folder), size[1] // _factor(folder)


def _encoder(
    folder: Path, net: DiffusersNetwork, parts: Parts, dtype: torch.dtype
) -> PromptEncoder | None:
    index = read_json(folder / "model_index.json")
    _, height, width = parts.shape or (0, 0, 0)
    size = height * _factor(folder), width * _factor(folder)
    name = index["_class_name"]
    if name == "StableDiffusionXLPipeline":
        first, second = (read_clip_text(folder, part, dtype) for part in ("", "_2"))
        return SDXLText(
            first, second, size=size, zeros=bool(index.get("force_zeros_for_empty_prompt", True))
        )
    if name == "StableDiffusion3Pipeline":
        first, second = (read_clip_text(folder, part, dtype) for part in ("", "_2"))
        third = (
            read_t5_text(folder, "_3", 256, dtype) if (folder / "text_encoder_3").is_dir() else None
        )
        return SD3Text(first, second, third, width=net.config.joint_attention_dim)
    if name == "FluxPipeline":
        distilled = 3.5 if net.config.guidance_embeds else None
        return FluxText(
            read_clip_text(folder, "", dtype),
            read_t5_text(folder, "_2", 512, dtype),
            distilled=distilled,
        )
    if name.startswith("PixArt"):
        length = 120 if name == "PixArtAlphaPipeline" else 300
        return PixArtText(
            read_t5_text(folder, "", length, dtype),
            size=size if net.use_additional_conditions else None,
        )
    if parts.encoder is None:
        raise ValueError(
            f"{folder}: holds no text encoder that is read; a {name} has CLIP's in text_encoder/ "
            "and tokenizer/"
        )
    return None


def _shift(schedule: Schedule, folder: Path, shape: tuple[int, int, int], patch: int) -> Schedule:
    """Return the flow whose shift depends on the size of the picture, where the scheduler has
    that.
    """
    file = scheduler_file(folder)
    if file is None or not isinstance(schedule, Flow):
        return schedule
    written = read_json(file)
    about = {**class_defaults(str(written.get("_class_name"))), **written}
    check_values(file, about, _SHIFTS)
    if not about.get("use_dynamic_shifting"):
        return schedule
    with as_value_error(f"{file}: its shifts cannot be used"):
        mu = shift_of(about, shape[1] // patch * (shape[2] // patch))
        return Flow(shift=math.exp(mu) if about["time_shift_type"] == "exponential" else mu)


_SHIFTS = {
    "use_dynamic_shifting": flag,
    "time_shift_type": choice("exponential", "linear"),
    **dict.fromkeys(("base_shift", "max_shift"), maybe(number(0, 1000))),
    **dict.fromkeys(("base_image_seq_len", "max_image_seq_len"), maybe(whole(1, 10_000_000))),
}


def shift_of(config: Config, tokens: int) -> float:
    """Return μ, on the line through (base_image_seq_len, base_shift) and (max_image_seq_len,
    max_shift).

    The levels are then ``t = e^μ u / (1 + (e^μ − 1) u)``: a `Flow` of the shift ``e^μ``.

    References:
        Scaling Rectified Flow Transformers, section 5.3.2, https://arxiv.org/abs/2403.03206
    """
    slope = (config["max_shift"] - config["base_shift"]) / (
        config["max_image_seq_len"] - config["base_image_seq_len"]
    )
    return config["base_shift"] + slope * (tokens - config["base_image_seq_len"])
