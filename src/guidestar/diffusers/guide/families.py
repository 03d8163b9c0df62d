"""What differs between families of pipelines: how a network takes its request, and where the
parts of a batch are.

A pipeline hands its network the rows of several conditions at once (negative, then prompt; DiT the
other way round), or calls it once for each (Flux, Wan). Families are found by the class of the
network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ..objects import Arguments, DiffusersNetwork, Pipeline
from ..read import flux
from .classes import plain_kind
from .kinds import learns


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of networks within their pipelines.

    Args:
        x: the network's argument that is the noisy sample.
        prompts: arguments (or entries of dictionaries among them) that are the request; what else
            has one row a sample is passed on row by row.
        shared: arguments that have no rows, whatever their shape.
        parts: whose rows come in which order, where a pipeline makes the negative pass.
        calls: how many calls of the network these rows come in, 1 or 2.
        grid: the sizes that ``unpack`` needs, from the arguments of a call.
        unpack, pack: between what the network takes and samples ``[B, C, *S]``, by that grid.
        channel: which dimension of what the network takes are channels.
        encodes: what the pipeline's ``encode_prompt`` returns, by the names of ``prompts`` ("" is
            left out).
    """

    x: str = "hidden_states"
    prompts: tuple[str, ...] = ("encoder_hidden_states",)
    shared: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("uncond", "cond")
    calls: int = 1
    grid: Callable[[Arguments], tuple[int, ...]] = lambda arguments: ()
    unpack: Callable[[Tensor, tuple[int, ...]], Tensor] = lambda x, grid: x
    pack: Callable[[Tensor, tuple[int, ...]], Tensor] = lambda x, grid: x
    channel: int = 1
    encodes: tuple[str, ...] = ("encoder_hidden_states",)


def _frames_last(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x.transpose(1, 2)


def _flux_grid(arguments: Arguments) -> tuple[int, ...]:
    ids = arguments["img_ids"].reshape(-1, arguments["img_ids"].shape[-1])
    height = int(ids[:, 1].max()) + 1
    return 2 * height, 2 * (len(ids) // height)


def _flux_unpack(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return flux.unpack(x, *grid)


def _flux_pack(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return flux.pack(x)


def _ltx_grid(arguments: Arguments) -> tuple[int, ...]:
    return arguments["num_frames"], arguments["height"], arguments["width"]


def _ltx_unpack(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x.mT.reshape(len(x), -1, *grid)


def _ltx_pack(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    return x.flatten(2).mT


_UNET = Family(
    x="sample",
    prompts=("encoder_hidden_states", "text_embeds", "image_embeds", "class_labels"),
    shared=("ip_adapter_masks",),
)
_MASKED = ("encoder_hidden_states", "encoder_attention_mask")
_POOLED = ("encoder_hidden_states", "pooled_projections")

FAMILIES: dict[str, Family] = {
    "UNet2DModel": Family(x="sample", prompts=("class_labels",), parts=("cond",), encodes=()),
    "UNet2DConditionModel": _UNET,
    "UNetSpatioTemporalConditionModel": Family(
        x="sample", unpack=_frames_last, pack=_frames_last, channel=2, encodes=()
    ),
    "AudioLDM2UNet2DConditionModel": Family(
        x="sample",
        prompts=("encoder_hidden_states", "encoder_hidden_states_1", "encoder_attention_mask_1"),
        encodes=(),
    ),
    "DiTTransformer2DModel": Family(
        prompts=("class_labels",), parts=("cond", "uncond"), encodes=("class_labels",)
    ),
    "PixArtTransformer2DModel": Family(prompts=_MASKED, encodes=_MASKED),
    "SD3Transformer2DModel": Family(
        prompts=_POOLED, encodes=("encoder_hidden_states", "", "pooled_projections")
    ),
    "AuraFlowTransformer2DModel": Family(),
    "FluxTransformer2DModel": Family(
        prompts=_POOLED,
        shared=("img_ids", "txt_ids"),
        parts=("cond", "uncond"),
        calls=2,
        grid=_flux_grid,
        unpack=_flux_unpack,
        pack=_flux_pack,
        channel=2,
        encodes=_POOLED,
    ),
    "WanTransformer3DModel": Family(parts=("cond", "uncond"), calls=2),
    "LTXVideoTransformer3DModel": Family(
        prompts=_MASKED,
        shared=("rope_interpolation_scale",),
        grid=_ltx_grid,
        unpack=_ltx_unpack,
        pack=_ltx_pack,
        channel=2,
        encodes=_MASKED,
    ),
    "StableAudioDiTModel": Family(
        prompts=("encoder_hidden_states", "global_hidden_states"),
        shared=("rotary_embedding",),
        encodes=(),
    ),
}
_PIX2PIX = ("cond", "image", "uncond")
_THREE: dict[str, tuple[str, ...]] = {}
_PLACES = (
    *("unet", "transformer", "transformer_2", "unconditional_transformer"),
    *("prior", "decoder"),
)


def order_of(pipe: object) -> tuple[str, ...]:
    """Return the parts of pipelines that make three passes, in the order of their rows."""
    return _THREE.get(plain_kind(type(pipe)).__name__, ())


def networks(pipe: object) -> dict[str, DiffusersNetwork]:
    """Return the denoising networks of a pipeline, by their places in it.

    Raises:
        ValueError: it has none that is known; what it has is listed.
    """
    found = {
        place: net
        for place in _PLACES
        if isinstance(net := getattr(pipe, place, None), torch.nn.Module)
    }
    if found and (learns(pipe) or all(_class(net) in FAMILIES for net in found.values())):
        return cast(dict[str, DiffusersNetwork], found)
    parts = (
        ", ".join(
            f"{name} ({_class(part)})"
            for name, part in getattr(pipe, "components", {}).items()
            if part is not None
        )
        or "nothing"
    )
    raise ValueError(
        f"{type(pipe).__name__} has no denoising network that guidestar knows how to guide; "
        f"found {parts}; known are {', '.join(FAMILIES)}, and any in a pipeline of Diffusers, as "
        f"its {', '.join(_PLACES)}"
    )


def _class(net: object) -> str:
    return type(getattr(net, "_orig_mod", net)).__name__


def family_of(pipe: object, net: object) -> Family:
    """Return the family of a network within a pipeline."""
    family = FAMILIES[_class(net)]
    if "InstructPix2Pix" in type(pipe).__name__:
        return replace(family, parts=_PIX2PIX)
    return family


def negative_rows(pipe: Pipeline, family: Family, arguments: Arguments) -> bool:
    """Return whether the pipeline makes a negative pass in the call with these arguments, at this
    moment.
    """
    if len(family.parts) < 2:
        return False
    if _flux_alone(family, arguments):
        return False
    if "true_cfg_scale" in arguments:
        embedded = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
        given = arguments.get("negative_prompt") is not None or all(
            arguments.get(k) is not None for k in embedded
        )
        return arguments["true_cfg_scale"] > 1 and given
    if hasattr(type(pipe), "do_classifier_free_guidance"):
        return bool(pipe.do_classifier_free_guidance)
    scale = arguments.get("guidance_scale")
    return scale is not None and scale > 1 and arguments.get("image_guidance_scale", math.inf) >= 1


def _flux_alone(family: Family, arguments: Arguments) -> bool:
    """Return whether a Flux pipeline has no true_cfg_scale: guidance_scale is the distilled one,
    which the network takes.
    """
    return family is FAMILIES["FluxTransformer2DModel"] and "true_cfg_scale" not in arguments


def how_to_ask(pipe: Pipeline, family: Family, arguments: Arguments) -> str:
    """Say what makes the pipeline hand over negative rows, or that nothing does."""
    name, changes_nothing = (
        type(pipe).__name__,
        " (both halves get the guided result, so the pipeline's own number changes nothing)",
    )
    takes_scale = (
        getattr(getattr(getattr(pipe, "unet", None), "config", None), "time_cond_proj_dim", None)
        is not None
    )
    if takes_scale or _flux_alone(family, arguments):
        return f"{name} makes none at any guidance_scale, which it passes to its network"
    if "true_cfg_scale" in arguments:
        return (
            f"{name} was called without a negative prompt and a true_cfg_scale above 1; give "
            f"negative_prompt= and true_cfg_scale=2{changes_nothing}"
        )
    scale = getattr(pipe, "guidance_scale", None)
    if isinstance(scale, float | int) and scale <= 1 < arguments.get("guidance_scale", 0):
        return (
            f"{name} ended it during the run (a callback set its guidance_scale to "
            f"{scale:g}); leave it on, and say where to guide, interval=(lo, hi){changes_nothing}"
        )
    if (image := arguments.get("image_guidance_scale", math.inf)) < 1:
        needed = "give any image_guidance_scale of at least 1, and a guidance_scale above 1"
        return (
            f"{name} was called with image_guidance_scale={image:g}, at which it makes none; "
            f"{needed}{changes_nothing}"
        )
    for scale in ("guidance_scale", "max_guidance_scale"):
        if scale in arguments:
            return (
                f"{name} was called with {scale}={arguments[scale]:g}, at which it makes "
                f"none; give any {scale} above 1{changes_nothing}"
            )
    return f"{name} makes none: it has no condition to leave out"
