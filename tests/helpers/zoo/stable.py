"""Stable Diffusion, XL and 3, Flux, and what else has Stable Diffusion's network."""

from __future__ import annotations

import inspect
from typing import Any

import torch

import diffusers

from .base import SCALE, STOCHASTIC, TABLE, add, draw, drawn, embeds, mask, picture, pooled, tiny
from .images import NOISED, flux, kl, movq

SMALL = 16


def unet(**more: Any) -> Any:
    sizes = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": 8,
    }
    return tiny("UNet2DConditionModel", **sizes | more)


XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 8 + 24,
}


def control(net: Any, **more: Any) -> Any:
    torch.manual_seed(1)
    return drawn(
        diffusers.ControlNetModel.from_unet(net, conditioning_channels=3, **more), 1
    ).eval()


def union(net: Any) -> Any:
    return tiny(
        "ControlNetUnionModel",
        seed=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=8,
        conditioning_embedding_out_channels=(4, 4),
        transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=8 + 24,
        addition_time_embed_dim=4,
        addition_embed_type="text_time",
        num_control_type=2,
        num_trans_channel=8,
        num_trans_head=2,
        num_proj_channel=8,
    )


def parts(name: str) -> dict[str, Any]:
    """Return the components of one of Stable Diffusion's pipelines."""
    told = inspect.signature(getattr(diffusers, name).__init__).parameters
    big = "XL" in name
    channels = 9 if "Depth" not in name and "Unreal" in name else 4
    channels = 8 if "InstructPix2Pix" in name else 5 if "Depth2Img" in name else channels
    channels = 7 if name == "StableDiffusionUpscalePipeline" else channels
    net = unet(in_channels=channels, **XL if big else {})
    made: dict[str, Any] = {"unet": net, "vae": kl()}
    if "controlnet" in told:
        made["controlnet"] = (
            union(net)
            if "Union" in name
            else control(net, conditioning_embedding_out_channels=(4, 4))
        )
    if "adapter" in told:
        made["adapter"] = tiny(
            "T2IAdapter",
            in_channels=3,
            channels=[8, 8],
            num_res_blocks=1,
            downscale_factor=2,
            adapter_type="full_adapter",
        )
    if "requires_safety_checker" in told:
        made["requires_safety_checker"] = False
    if "low_res_scheduler" in told:
        made["low_res_scheduler"] = diffusers.DDPMScheduler()
    return made


def asks(name: str) -> dict[str, Any]:
    """Return the arguments of such a pipeline's call."""
    told = inspect.signature(getattr(diffusers, name).__call__).parameters
    possible = {
        **embeds(),
        **pooled(),
        "image": picture(SMALL),
        "control_image": picture(SMALL, 1),
        "mask_image": mask(SMALL),
        "height": SMALL,
        "width": SMALL,
        "strength": 1.0,
        "pag_scale": 0.0,
        "control_mode": 0 if "Union" in name else None,
        # Diffusers repeats the sizes of the two halves in turn, so both are given alike.
        "original_size": (SMALL, SMALL),
        "target_size": (SMALL, SMALL),
    }
    return {k: v for k, v in possible.items() if k in told and v is not None}


def stable(names: str, **more: Any) -> None:
    for name in names.split():
        extra = more.get("extra", dict)
        add(
            name,
            lambda name=name: parts(name) | extra(),
            lambda name=name: asks(name) | more.get("says", dict)(),
            **{
                "schedulers": TABLE,
                **{k: v for k, v in more.items() if k not in ("extra", "says")},
            },
        )


stable(
    "StableDiffusionPipeline StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline "
    "StableDiffusionAdapterPipeline StableDiffusionPAGPipeline StableDiffusionPAGImg2ImgPipeline "
    "StableDiffusionPAGInpaintPipeline StableDiffusionControlNetPipeline "
    "StableDiffusionControlNetImg2ImgPipeline StableDiffusionControlNetInpaintPipeline "
    "StableDiffusionControlNetPAGPipeline StableDiffusionControlNetPAGInpaintPipeline "
    "StableDiffusionXLPipeline StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline "
    "StableDiffusionXLAdapterPipeline StableDiffusionXLPAGPipeline "
    "StableDiffusionXLPAGImg2ImgPipeline StableDiffusionXLPAGInpaintPipeline "
    "StableDiffusionXLControlNetPipeline StableDiffusionXLControlNetImg2ImgPipeline "
    "StableDiffusionXLControlNetInpaintPipeline StableDiffusionXLControlNetPAGPipeline "
    "StableDiffusionXLControlNetPAGImg2ImgPipeline StableDiffusionXLControlNetUnionPipeline "
    "StableDiffusionXLControlNetUnionImg2ImgPipeline "
    "StableDiffusionXLControlNetUnionInpaintPipeline"
)
stable("StableDiffusionUpscalePipeline", says=lambda: {"image": picture(8)})
stable(
    "StableDiffusionInstructPix2PixPipeline StableDiffusionXLInstructPix2PixPipeline",
    guidance=f"pix2pix(1.5, {SCALE})",
    says=lambda: {"image_guidance_scale": 1.5},
)
LCM = {"LCMScheduler": {}}
TOLD = lambda: {"unet": unet(time_cond_proj_dim=8)}
stable(
    "LatentConsistencyModelPipeline LatentConsistencyModelImg2ImgPipeline",
    extra=TOLD,
    schedulers=LCM,
    guidance=None,
)

# --- Stable Diffusion 3 ---


def sd3(**more: Any) -> Any:
    sizes = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 8,
    }
    return tiny("SD3Transformer2DModel", **sizes | more)


def sd3_control(**more: Any) -> Any:
    sizes = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (),
    }
    return tiny("SD3ControlNetModel", **sizes | more)


THREE = lambda **more: {"transformer": sd3(), "vae": kl()} | more
add("StableDiffusion3Pipeline", THREE, lambda: asks("StableDiffusion3Pipeline"))
for name in (
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3PAGPipeline",
    "StableDiffusion3PAGImg2ImgPipeline",
):
    add(name, THREE, lambda name=name: asks(name), schedulers=NOISED)
add(
    "StableDiffusion3InpaintPipeline",
    lambda: {"transformer": sd3(in_channels=16, out_channels=16), "vae": kl(16)},
    lambda: asks("StableDiffusion3InpaintPipeline"),
    schedulers=NOISED,
)
add(
    "StableDiffusion3ControlNetPipeline",
    lambda: THREE(controlnet=sd3_control()),
    lambda: asks("StableDiffusion3ControlNetPipeline"),
)
add(
    "StableDiffusion3ControlNetInpaintingPipeline",
    lambda: THREE(controlnet=sd3_control(extra_conditioning_channels=1)),
    lambda: asks("StableDiffusion3ControlNetInpaintingPipeline") | {"control_mask": mask(SMALL)},
)

# --- Flux ---

FLUX = lambda **more: {"transformer": flux(), "vae": kl()} | more
TRUE = {"true_cfg_scale": SCALE}
ALONE = {"guidance": None}


def flux_control() -> Any:
    return tiny(
        "FluxControlNetModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=[4, 6, 6],
    )


def flux_entry(name: str, make: Any, **more: Any) -> None:
    add(name, make, lambda: asks(name), **{"schedulers": NOISED} | more)


flux_entry("FluxPipeline", FLUX, scale=TRUE)
flux_entry("FluxImg2ImgPipeline", FLUX, scale=TRUE)
flux_entry("FluxInpaintPipeline", FLUX, scale=TRUE)
flux_entry(
    "FluxFillPipeline",
    lambda: FLUX(transformer=flux(in_channels=16 + 16 + 16, out_channels=16)),
    **ALONE,
)
WIDE = lambda: FLUX(transformer=flux(in_channels=32, out_channels=16))
for name in ("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline"):
    flux_entry(name, WIDE, **ALONE)
WITH = lambda: FLUX(controlnet=flux_control())
flux_entry("FluxControlNetPipeline", WITH, scale=TRUE)
flux_entry("FluxControlNetImg2ImgPipeline", WITH, **ALONE)
flux_entry("FluxControlNetInpaintPipeline", WITH, **ALONE)

# --- pixels: DeepFloyd IF ---


def deep(channels: int = 3, **more: Any) -> Any:
    return unet(
        in_channels=channels,
        out_channels=6,
        encoder_hid_dim=8,
        act_fn="gelu",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        **more,
    )


IF = {"DDPMScheduler": {"variance_type": "learned_range", "thresholding": True}}
"""Its pipelines read the scheduler's variance_type, which others lack."""
IF_SAYS = lambda **more: lambda: embeds() | {"output_type": "pt"} | more
PLAIN = lambda: {"unet": deep(), "requires_safety_checker": False}
TWICE = lambda: {
    "unet": deep(6, class_embed_type="timestep"),
    "image_noising_scheduler": diffusers.DDPMScheduler(),
    "requires_safety_checker": False,
}
P = lambda size=SMALL: (
    torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
)
M = lambda: torch.ones(1, 1, SMALL, SMALL)
add("IFPipeline", PLAIN, IF_SAYS(height=SMALL, width=SMALL), schedulers=IF)
add(
    "IFImg2ImgPipeline", PLAIN, lambda: IF_SAYS()() | {"image": P(), "strength": 1.0}, schedulers=IF
)
add(
    "IFInpaintingPipeline",
    PLAIN,
    lambda: IF_SAYS()() | {"image": P(), "mask_image": M(), "strength": 1.0},
    schedulers=IF,
)
add(
    "IFSuperResolutionPipeline",
    TWICE,
    lambda: IF_SAYS(height=SMALL, width=SMALL)() | {"image": P(8)},
    schedulers=IF,
)
add(
    "IFImg2ImgSuperResolutionPipeline",
    TWICE,
    lambda: IF_SAYS()() | {"image": P(8), "original_image": P(), "strength": 1.0},
    schedulers=IF,
)
add(
    "IFInpaintingSuperResolutionPipeline",
    TWICE,
    lambda: (
        IF_SAYS()() | {"image": P(8), "original_image": P(), "mask_image": M(), "strength": 1.0}
    ),
    schedulers=IF,
)

# --- Kandinsky 2 ---


def kandinsky(**more: Any) -> Any:
    sizes = {
        "out_channels": 8,
        "addition_embed_type": "image",
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "image_proj",
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "resnet_time_scale_shift": "scale_shift",
    }
    return unet(**sizes | more)


IMAGES = lambda: {"image_embeds": draw(1, 8, seed=1), "negative_image_embeds": draw(1, 8, seed=2)}
TWO = lambda blocks=2, **more: lambda: {"unet": kandinsky(**more), "movq": movq(blocks)}
TWO_SAYS = lambda: IMAGES() | {"height": 32, "width": 32}
HINT = {"addition_embed_type": "image_hint", "in_channels": 8}
add("KandinskyV22Pipeline", TWO(), TWO_SAYS, schedulers=STOCHASTIC)
add(
    "KandinskyV22Img2ImgPipeline",
    TWO(),
    lambda: TWO_SAYS() | {"image": picture(32), "strength": 1.0},
    schedulers=STOCHASTIC,
)
add(
    "KandinskyV22InpaintPipeline",
    TWO(in_channels=9),
    lambda: TWO_SAYS() | {"image": picture(32), "mask_image": mask(32)},
    schedulers=STOCHASTIC,
)
HINTED = lambda: (
    {"output_type": "pt"}
    | IMAGES()
    | {"height": 64, "width": 64}
    | {"hint": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))}
)
STRONG = {"scale": {"guidance_scale": 20.0}, "guidance": "cfg(20.0)", "schedulers": STOCHASTIC}
"""Seen through a decoder of random weights, less would hardly show."""
add("KandinskyV22ControlnetPipeline", TWO(4, **HINT), HINTED, **STRONG)
add(
    "KandinskyV22ControlnetImg2ImgPipeline",
    TWO(4, **HINT),
    lambda: HINTED() | {"image": picture(64), "strength": 1.0},
    **STRONG,
)

# --- PixArt, DiT, AuraFlow ---

MASKED = lambda: embeds(masks="prompt_attention_mask") | {"height": 16, "width": 16}
SMALL_BLOCKS = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "patch_size": 2,
    "sample_size": 8,
}


def pixart() -> Any:
    return tiny(
        "PixArtTransformer2DModel",
        **SMALL_BLOCKS,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        caption_channels=8,
        use_additional_conditions=False,
    )


PIXART = lambda: {"transformer": pixart(), "vae": kl()}
PIXART_SAYS = lambda: MASKED() | {"use_resolution_binning": False, "negative_prompt": None}
add("PixArtAlphaPipeline PixArtSigmaPipeline", PIXART, PIXART_SAYS, schedulers=TABLE)
add("PixArtSigmaPAGPipeline", PIXART, lambda: PIXART_SAYS() | {"pag_scale": 0.0}, schedulers=TABLE)
add(
    "DiTPipeline",
    lambda: {
        "transformer": tiny(
            "DiTTransformer2DModel",
            **SMALL_BLOCKS,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            num_embeds_ada_norm=1000,
        ),
        "vae": kl(),
    },
    lambda: {"class_labels": [3]},
    schedulers=TABLE,
    output="pt",
)
add(
    "AuraFlowPipeline",
    lambda: {
        "transformer": tiny(
            "AuraFlowTransformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=64,
        ),
        "vae": kl(),
    },
    MASKED,
)
