"""Pipelines of pictures."""

from __future__ import annotations

from typing import Any

import torch

from .base import FLOW, SCALE, STOCHASTIC, TABLE, add, draw, embeds, mask, picture, pooled, tiny

SIZE = {"height": 32, "width": 32}
TRUE = {"true_cfg_scale": SCALE}
NOISED = {"FlowMatchEulerDiscreteScheduler": {}, "FlowMatchLCMScheduler": {}}
"""Schedulers that noise a picture to start from."""


def kl(channels: int = 4, **more: Any) -> Any:
    sizes = {
        "block_out_channels": (4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "latent_channels": channels,
        "shift_factor": 0.1,
    }
    return tiny("AutoencoderKL", **{**sizes, **more})


# --- Qwen-Image ---


def qwen(**more: Any) -> Any:
    sizes = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "axes_dims_rope": (4, 6, 6),
    }
    return tiny("QwenImageTransformer2DModel", **{**sizes, **more})


def qwen_vae() -> Any:
    return tiny(
        "AutoencoderKLQwenImage",
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


QWEN_SAYS = lambda: embeds(masks="prompt_embeds_mask") | SIZE
RENORMED = f"cfg({SCALE}) | rescale(1, space='velocity', along='last')"
QWEN = {"scale": TRUE, "guidance": RENORMED}
add("QwenImagePipeline", lambda: {"transformer": qwen()}, QWEN_SAYS, **QWEN)
add(
    "QwenImageImg2ImgPipeline",
    lambda: {"transformer": qwen(), "vae": qwen_vae()},
    lambda: QWEN_SAYS() | {"image": picture(), "strength": 1.0},
    schedulers=NOISED,
    **QWEN,
)
add(
    "QwenImageInpaintPipeline",
    lambda: {"transformer": qwen(), "vae": qwen_vae()},
    lambda: QWEN_SAYS() | {"image": picture(), "mask_image": mask(), "strength": 1.0},
    schedulers=NOISED,
    **QWEN,
)

# --- Z-Image ---


def z_image(**more: Any) -> Any:
    sizes = {
        "in_channels": 4,
        "dim": 16,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 8,
        "axes_dims": [2, 2, 4],
        "axes_lens": [64, 16, 16],
    }
    return tiny("ZImageTransformer2DModel", **{**sizes, **more})


def listed() -> dict[str, Any]:
    told = embeds()
    return {k: [v[0]] for k, v in told.items()} | SIZE


NEXT = {"guidance": f"cfg({SCALE + 1})"}
"""Those that write c + s(c − u)."""
Z = lambda: {"transformer": z_image(), "vae": kl()}
add("ZImagePipeline", Z, listed, schedulers=NOISED, **NEXT)
add(
    "ZImageImg2ImgPipeline",
    Z,
    lambda: listed() | {"image": picture(), "strength": 1.0},
    schedulers=NOISED,
    **NEXT,
)
add(
    "ZImageInpaintPipeline",
    Z,
    lambda: listed() | {"image": picture(), "mask_image": mask(), "strength": 1.0},
    schedulers=NOISED,
    **NEXT,
)

# --- FLUX.2, Chroma, Flux Kontext ---


def flux2(**more: Any) -> Any:
    sizes = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    return tiny("Flux2Transformer2DModel", **{**sizes, **more})


def flux2_vae() -> Any:
    return tiny(
        "AutoencoderKLFlux2",
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
        layers_per_block=1,
    )


add(
    "Flux2Pipeline",
    lambda: {"transformer": flux2(), "vae": flux2_vae()},
    lambda: {"prompt_embeds": draw(1, 5, 8)} | SIZE,
    guidance=None,
)
KLEIN = lambda: {"transformer": flux2(guidance_embeds=False), "vae": flux2_vae()}
add("Flux2KleinPipeline", KLEIN, lambda: embeds() | SIZE)
add(
    "Flux2KleinInpaintPipeline",
    KLEIN,
    lambda: embeds() | SIZE | {"image": picture(), "mask_image": mask(), "strength": 1.0},
    schedulers=NOISED,
)


def chroma() -> Any:
    return tiny(
        "ChromaTransformer2DModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )


CHROMA = lambda: {"transformer": chroma(), "vae": kl()}
CHROMA_SAYS = lambda: embeds(masks="prompt_attention_mask", kind=torch.bool) | SIZE
add("ChromaPipeline", CHROMA, CHROMA_SAYS)
add(
    "ChromaImg2ImgPipeline",
    CHROMA,
    lambda: CHROMA_SAYS() | {"image": picture(), "strength": 1.0},
    schedulers=NOISED,
)


def flux(**more: Any) -> Any:
    sizes = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (4, 6, 6),
    }
    return tiny("FluxTransformer2DModel", **{**sizes, **more})


FLUX = lambda: {"transformer": flux(), "vae": kl()}
FLUX_SAYS = lambda: embeds() | pooled() | SIZE | {"max_area": 32 * 32, "_auto_resize": False}
add("FluxKontextPipeline", FLUX, lambda: FLUX_SAYS() | {"image": picture()}, scale=TRUE)
add(
    "FluxKontextInpaintPipeline",
    FLUX,
    lambda: FLUX_SAYS() | {"image": picture(), "mask_image": mask(), "strength": 1.0},
    schedulers=NOISED,
    scale=TRUE,
)

# --- Sana, Lumina, PRX, CogView, Bria, HiDream, Kandinsky ---


def sana(**more: Any) -> Any:
    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 8,
        "sample_size": 8,
    }
    return tiny("SanaTransformer2DModel", **{**sizes, **more})


SANA_SAYS = lambda: (
    embeds(masks="prompt_attention_mask")
    | {
        "height": 128,
        "width": 96,
        "use_resolution_binning": False,
        "negative_prompt": None,
    }
)
SANA = {
    "DPMSolverMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "FlowMatchEulerDiscreteScheduler": {},
}
add("SanaPipeline", lambda: {"transformer": sana()}, SANA_SAYS, schedulers=SANA)
add(
    "SanaPAGPipeline",
    lambda: {"transformer": sana()},
    lambda: SANA_SAYS() | {"pag_scale": 0.0},
    schedulers=SANA,
)
add(
    "SanaSprintPipeline",
    lambda: {"transformer": sana(guidance_embeds=True)},
    lambda: {k: v for k, v in SANA_SAYS().items() if "negative" not in k},
    schedulers={"SCMScheduler": {}},
    guidance=None,
)


def lumina2() -> Any:
    return tiny(
        "Lumina2Transformer2DModel",
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(16, 16, 16),
        cap_feat_dim=8,
    )


MASKED = lambda: embeds(masks="prompt_attention_mask") | SIZE
add("Lumina2Pipeline", lambda: {"transformer": lumina2(), "vae": kl()}, MASKED, guidance=RENORMED)


def lumina() -> Any:
    return tiny(
        "LuminaNextDiT2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=8,
    )


add(
    "LuminaPipeline",
    lambda: {"transformer": lumina(), "vae": kl()},
    MASKED,
    guidance=f"cfg({SCALE}, channels=3)",
)


def cogview(kind: str, **more: Any) -> Any:
    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "text_embed_dim": 8,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "pos_embed_max_size": 16,
        "sample_size": 8,
    }
    return tiny(kind, **{**sizes, **more})


COG = {"CogVideoXDDIMScheduler": {}, "CogVideoXDPMScheduler": {}}
add(
    "CogView3PlusPipeline",
    lambda: {"transformer": cogview("CogView3PlusTransformer2DModel"), "vae": kl()},
    lambda: embeds() | SIZE,
    schedulers=COG,
)
FOUR = {"rope_axes_dim": (8, 8)}
add(
    "CogView4Pipeline",
    lambda: {"transformer": cogview("CogView4Transformer2DModel", **FOUR), "vae": kl()},
    lambda: embeds() | SIZE,
    schedulers=NOISED,
)
add(
    "CogView4ControlPipeline",
    lambda: {
        "transformer": cogview("CogView4Transformer2DModel", **FOUR | {"in_channels": 8}),
        "vae": kl(),
    },
    lambda: embeds() | SIZE | {"control_image": picture()},
    schedulers=NOISED,
)


def bria() -> Any:
    return tiny(
        "BriaTransformer2DModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=[4, 6, 6],
    )


add(
    "BriaPipeline",
    lambda: {"transformer": bria(), "vae": kl()},
    lambda: embeds() | SIZE,
    schedulers={
        "FlowMatchEulerDiscreteScheduler": {},
        "EulerDiscreteScheduler": {},
        "EulerAncestralDiscreteScheduler": {},
    },
)


def hidream() -> Any:
    return tiny(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[8, 8],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=(0, 0),
        force_inference_output=True,
    )


def hidream_says() -> dict[str, Any]:
    both = lambda name, *shape: {
        name: draw(*shape, seed=5),
        f"negative_{name}": draw(*shape, seed=6),
    }
    return (
        both("prompt_embeds_t5", 1, 5, 8)
        | both("prompt_embeds_llama3", 1, 1, 5, 8)
        | both("pooled_prompt_embeds", 1, 16)
        | SIZE
    )


add("HiDreamImagePipeline", lambda: {"transformer": hidream(), "vae": kl()}, hidream_says, steps=1)


def kandinsky3() -> Any:
    return tiny(
        "Kandinsky3UNet",
        time_embedding_dim=32,
        groups=4,
        attention_head_dim=8,
        layers_per_block=3,
        block_out_channels=(8, 16, 32, 64),
        cross_attention_dim=8,
        encoder_hid_dim=8,
    )


def movq(blocks: int = 2) -> Any:
    return tiny(
        "VQModel",
        block_out_channels=[4] * blocks,
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        latent_channels=4,
        norm_num_groups=2,
        num_vq_embeddings=8,
    )


THREE = lambda: {"unet": kandinsky3(), "movq": movq()}
THREE_SAYS = lambda: embeds(masks="attention_mask")
add(
    "Kandinsky3Pipeline",
    THREE,
    lambda: THREE_SAYS() | {"height": 64, "width": 64},
    schedulers=STOCHASTIC,
    guidance=f"cfg({SCALE + 1})",
)
add(
    "Kandinsky3Img2ImgPipeline",
    THREE,
    lambda: THREE_SAYS() | {"image": picture(64), "strength": 1.0},
    schedulers=STOCHASTIC,
    guidance=f"cfg({SCALE + 1})",
)

__all__ = ["FLOW", "TABLE"]
