"""Pipelines of videos."""

from __future__ import annotations

from typing import Any

import torch

from .base import SCALE, SHIFTED, TABLE, add, draw, embeds, picture, pooled, tiny
from .images import TRUE, kl

SIZE = {"height": 32, "width": 32, "num_frames": 5}


def wan_sizes(**more: Any) -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 8,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 1,
        "cross_attn_norm": True,
        "rope_max_seq_len": 32,
    } | more


NORMED = {"qk_norm": "rms_norm_across_heads"}


def wan_vae() -> Any:
    return tiny(
        "AutoencoderKLWan",
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def tower() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8,
            projection_dim=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            intermediate_size=8,
            patch_size=4,
        )
    ).eval()


def eye() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=8, size=8)


SAYS = lambda: embeds() | SIZE
film = lambda n=5: [picture(seed=k) for k in range(n)]
VACE = wan_sizes(**NORMED, vace_layers=[0], vace_in_channels=2 * 4 + 8 * 8)
add(
    "WanVACEPipeline",
    lambda: {"transformer": tiny("WanVACETransformer3DModel", **VACE), "vae": wan_vae()},
    SAYS,
    schedulers=SHIFTED,
)
add(
    "LucyEditPipeline",
    lambda: {
        "transformer": tiny("WanTransformer3DModel", **wan_sizes(**NORMED, in_channels=8)),
        "vae": wan_vae(),
    },
    lambda: SAYS() | {"video": film()},
    schedulers=SHIFTED,
)
SKY = lambda **more: {
    "transformer": tiny("SkyReelsV2Transformer3DModel", **wan_sizes(**NORMED, **more)),
    "vae": wan_vae(),
}
FORCED = lambda: (
    SAYS()
    | {"prompt": None}
    | {"num_frames": 9, "base_num_frames": 9, "overlap_history": None, "ar_step": 0}
)
SKY_SCHEDULERS = dict(reversed(SHIFTED.items()))
UNIPC = SHIFTED["UniPCMultistepScheduler"]
FORCING = {"UniPCMultistepScheduler": UNIPC, "DPMSolverMultistepScheduler": UNIPC}
add("SkyReelsV2Pipeline", SKY, SAYS, schedulers=SKY_SCHEDULERS)
add("SkyReelsV2DiffusionForcingPipeline", SKY, FORCED, schedulers=FORCING)
add(
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    SKY,
    lambda: FORCED() | {"image": picture()},
    schedulers=FORCING,
)
add(
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    SKY,
    lambda: (
        FORCED() | {"video": film(9), "num_frames": 17, "base_num_frames": 9, "overlap_history": 5}
    ),
    schedulers=FORCING,
)
add(
    "SkyReelsV2ImageToVideoPipeline",
    lambda: SKY(in_channels=12, image_dim=8) | {"image_encoder": tower(), "image_processor": eye()},
    lambda: SAYS() | {"image": picture()},
    schedulers=SKY_SCHEDULERS,
)
add(
    "ChronoEditPipeline",
    lambda: {
        "transformer": tiny(
            "ChronoEditTransformer3DModel", **wan_sizes(**NORMED, in_channels=12, image_dim=8)
        ),
        "vae": wan_vae(),
        "image_encoder": tower(),
        "image_processor": eye(),
    },
    lambda: SAYS() | {"image": picture()},
    schedulers=SHIFTED,
)
add(
    "AnyFlowPipeline",
    lambda: {"transformer": tiny("AnyFlowTransformer3DModel", **wan_sizes()), "vae": wan_vae()},
    SAYS,
    schedulers={"FlowMapEulerDiscreteScheduler": {}, "FlowMatchEulerDiscreteScheduler": {}},
)


def cogvideo(**more: Any) -> dict[str, Any]:
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 4,
        "text_embed_dim": 8,
        "num_layers": 1,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "patch_size": 2,
        "max_text_seq_length": 5,
    }
    vae = tiny(
        "AutoencoderKLCogVideoX",
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return {"transformer": tiny("CogVideoXTransformer3DModel", **sizes | more), "vae": vae}


COG = {"CogVideoXDDIMScheduler": {}, "CogVideoXDPMScheduler": {}}
COG_SAYS = lambda: embeds() | {"height": 32, "width": 32, "max_sequence_length": 5}
add("CogVideoXPipeline", cogvideo, lambda: COG_SAYS() | {"num_frames": 9}, schedulers=COG)
add(
    "CogVideoXVideoToVideoPipeline",
    cogvideo,
    lambda: COG_SAYS() | {"video": film(9), "strength": 1.0},
    schedulers=COG,
)
add(
    "CogVideoXImageToVideoPipeline",
    lambda: cogvideo(
        in_channels=8,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=False,
    ),
    lambda: COG_SAYS() | {"image": picture(), "num_frames": 9},
    schedulers=COG,
)
add(
    "CogVideoXFunControlPipeline",
    lambda: cogvideo(in_channels=8),
    lambda: COG_SAYS() | {"control_video": film(9)},
    schedulers={"CogVideoXDDIMScheduler": {}, "DDIMScheduler": {"clip_sample": False}},
)


def cosmos(**more: Any) -> Any:
    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "mlp_ratio": 1,
        "text_embed_dim": 8,
        "adaln_lora_dim": 4,
        "max_size": (4, 16, 16),
        "rope_scale": (2.0, 1.0, 1.0),
        "concat_padding_mask": False,
        "extra_pos_embed_type": None,
    }
    return tiny("CosmosTransformer3DModel", **sizes | more)


class Safe(torch.nn.Module):
    """A safety checker that finds everything safe."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video

    def to(self, *_: Any) -> Safe:
        return self


COSMOS = lambda **more: {"transformer": cosmos(**more), "vae": wan_vae(), "safety_checker": Safe()}
COSMOS_SAYS = lambda: embeds() | {"height": 32, "width": 32}


def cosmos_vae() -> Any:
    return tiny(
        "AutoencoderKLCosmos",
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        patch_type="haar",
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


EDM = {
    "EDMEulerScheduler": {"sigma_max": 80.0, "sigma_data": 0.5, "final_sigmas_type": "sigma_min"}
}
KARRAS = {"FlowMatchEulerDiscreteScheduler": {"use_karras_sigmas": True}}
# Its samples are up to 80 in float32, from which it takes differences.
EIGHTY = {"schedulers": KARRAS, "guidance": f"cfg({SCALE + 1})", "tolerance": 1e-4}
add("Cosmos2TextToImagePipeline", COSMOS, COSMOS_SAYS, **EIGHTY)
ONE = lambda **more: COSMOS(**more) | {"vae": cosmos_vae()}
add(
    "CosmosTextToWorldPipeline",
    ONE,
    lambda: COSMOS_SAYS() | {"num_frames": 5},
    schedulers=EDM,
    guidance=f"cfg({SCALE + 1})",
)
add(
    "CosmosVideoToWorldPipeline",
    lambda: ONE(in_channels=5),
    lambda: COSMOS_SAYS() | {"image": picture(), "num_frames": 5},
    schedulers=EDM,
    guidance=f"cfg({SCALE + 1})",
)
add(
    "Cosmos2_5_PredictBasePipeline",
    lambda: COSMOS(in_channels=5),
    lambda: COSMOS_SAYS() | {"num_frames": 5},
    schedulers=dict(reversed(SHIFTED.items())),
    guidance=f"cfg({SCALE + 1})",
)


def hunyuan(kind: str = "HunyuanVideoTransformer3DModel", **more: Any) -> dict[str, Any]:
    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "patch_size_t": 1,
        "guidance_embeds": False,
        "text_embed_dim": 8,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (2, 4, 4),
    }
    return {"transformer": tiny(kind, **sizes | more)}


def hunyuan_vae() -> Any:
    return tiny(
        "AutoencoderKLHunyuanVideo",
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    )


HUNYUAN = lambda: embeds(masks="prompt_attention_mask") | pooled() | SIZE
add("HunyuanVideoPipeline", lambda: hunyuan() | {"vae": hunyuan_vae()}, HUNYUAN, scale=TRUE)
add(
    "HunyuanSkyreelsImageToVideoPipeline",
    lambda: hunyuan(in_channels=8) | {"vae": hunyuan_vae()},
    lambda: HUNYUAN() | {"image": picture()},
    scale=TRUE,
)
add(
    "HunyuanVideoImageToVideoPipeline",
    lambda: hunyuan(in_channels=9, image_condition_type="latent_concat") | {"vae": hunyuan_vae()},
    lambda: HUNYUAN() | {"image": picture()},
    scale=TRUE,
)


def kandinsky5(**more: Any) -> dict[str, Any]:
    sizes = {
        "in_visual_dim": 4,
        "in_text_dim": 8,
        "in_text_dim2": 8,
        "time_dim": 8,
        "out_visual_dim": 4,
        "patch_size": (1, 2, 2),
        "model_dim": 16,
        "ff_dim": 16,
        "num_text_blocks": 1,
        "num_visual_blocks": 1,
        "axes_dims": (2, 2, 4),
    }
    return {"transformer": tiny("Kandinsky5Transformer3DModel", **sizes | more)}


def five() -> dict[str, Any]:
    told: dict[str, Any] = {}
    for k, sign in enumerate(("", "negative_")):
        told |= {
            f"{sign}prompt_embeds_qwen": draw(1, 5, 8, seed=k),
            f"{sign}prompt_embeds_clip": draw(1, 8, seed=2 + k),
            f"{sign}prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
        }
    return told | {"height": 64, "width": 64}


add(
    "Kandinsky5T2VPipeline",
    lambda: kandinsky5() | {"vae": hunyuan_vae()},
    lambda: five() | {"num_frames": 5},
)
add("Kandinsky5T2IPipeline", lambda: kandinsky5() | {"vae": kl()}, five)


def mochi() -> Any:
    return tiny(
        "MochiTransformer3DModel",
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        in_channels=4,
        out_channels=None,
        text_embed_dim=8,
        time_embed_dim=4,
        max_sequence_length=5,
    )


MOCHI = lambda: embeds(masks="prompt_attention_mask", kind=torch.bool) | SIZE | {"num_frames": 7}
add(
    "MochiPipeline",
    lambda: {"transformer": mochi()},
    MOCHI,
    schedulers={
        "FlowMatchEulerDiscreteScheduler": {"invert_sigmas": True},
        "FlowMatchLCMScheduler": {},
    },
)


def ltx(num_layers: int = 1) -> Any:
    return tiny(
        "LTXVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=num_layers,
        caption_channels=8,
    )


def ltx_vae() -> Any:
    return tiny(
        "AutoencoderKLLTXVideo",
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=1,
    )


LTX = lambda: embeds(masks="prompt_attention_mask") | {"height": 32, "width": 32, "num_frames": 9}
add(
    "LTXConditionPipeline",
    lambda: {"transformer": ltx(), "vae": ltx_vae()},
    lambda: LTX() | {"image": picture(), "strength": 0.9},
    schedulers={"FlowMatchEulerDiscreteScheduler": {}},
)


def latte() -> Any:
    return tiny(
        "LatteTransformer3DModel",
        sample_size=4,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=8,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        video_length=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )


add(
    "LattePipeline",
    lambda: {"transformer": latte(), "vae": kl()},
    lambda: (
        embeds()
        | {
            "height": 8,
            "width": 8,
            "video_length": 2,
            "negative_prompt": None,
            "mask_feature": False,
        }
    ),
    schedulers=TABLE,
)


def allegro() -> Any:
    return tiny(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=4,
        sample_height=4,
        sample_frames=2,
        caption_channels=8,
    )


def allegro_vae() -> Any:
    return tiny(
        "AutoencoderKLAllegro",
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )


add(
    "AllegroPipeline",
    lambda: {"transformer": allegro(), "vae": allegro_vae()},
    lambda: (
        embeds(masks="prompt_attention_mask")
        | {"height": 32, "width": 32, "num_frames": 8, "negative_prompt": None}
    ),
    schedulers=TABLE,
)


def motion(**more: Any) -> dict[str, Any]:
    blocks = {
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "norm_num_groups": 2,
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "use_motion_mid_block": False,
    }
    return {"unet": tiny("UNetMotionModel", **blocks | more), "vae": kl()}


MOTION = lambda: embeds() | {"height": 16, "width": 16, "num_frames": 3}
LINEAR = {
    "DDIMScheduler": {"clip_sample": False, "beta_schedule": "linear"},
    "EulerDiscreteScheduler": {},
}
add("AnimateDiffPipeline", motion, MOTION, schedulers=LINEAR)
add("AnimateDiffPAGPipeline", motion, lambda: MOTION() | {"pag_scale": 0.0}, schedulers=LINEAR)
add(
    "AnimateDiffVideoToVideoPipeline",
    motion,
    lambda: (
        embeds()
        | {
            "video": [picture(16, seed=k) for k in range(3)],
            "height": 16,
            "width": 16,
            "strength": 1.0,
        }
    ),
    schedulers=LINEAR,
)
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 8 + 24,
}
add("AnimateDiffSDXLPipeline", lambda: motion(**XL), lambda: MOTION() | pooled(), schedulers=LINEAR)


def sana_video() -> Any:
    return tiny(
        "SanaVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        sample_size=8,
        rope_max_seq_len=32,
    )


SANA = {
    "DPMSolverMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "FlowMatchEulerDiscreteScheduler": {},
}
SANA_SAYS = lambda: (
    embeds(masks="prompt_attention_mask")
    | {
        "height": 32,
        "width": 32,
        "frames": 5,
        "use_resolution_binning": False,
        "negative_prompt": None,
    }
)
add(
    "SanaVideoPipeline",
    lambda: {"transformer": sana_video(), "vae": wan_vae()},
    SANA_SAYS,
    schedulers=SANA,
)
add(
    "SanaImageToVideoPipeline",
    lambda: {"transformer": sana_video(), "vae": wan_vae()},
    lambda: SANA_SAYS() | {"image": picture()},
    schedulers=dict(reversed(SANA.items())),
)
