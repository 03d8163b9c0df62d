"""Pipelines of pictures and videos that came later, and of sound."""

from __future__ import annotations

from typing import Any

import torch

import diffusers

from .base import (
    SCALE,
    SHIFTED,
    STOCHASTIC,
    TABLE,
    add,
    draw,
    drawn,
    embeds,
    mask,
    picture,
    tiny,
)
from .images import (
    NOISED,
    RENORMED,
    SANA,
    SANA_SAYS,
    kl,
    listed,
    movq,
    qwen,
    qwen_vae,
    sana,
    z_image,
)
from .stable import kandinsky, unet
from .videos import (
    LINEAR,
    LTX,
    MOTION,
    UNIPC,
    eye,
    film,
    ltx,
    ltx_vae,
    motion,
    tower,
    wan_sizes,
    wan_vae,
)

SIZE = {"height": 32, "width": 32}
MASKED = lambda: embeds(masks="prompt_embeds_mask") | SIZE
TRUE = {"true_cfg_scale": SCALE}

# --- Wan, LTX ---

VIDEO = lambda: embeds() | SIZE | {"num_frames": 5}
WAN = lambda **more: {
    "transformer": tiny(
        "WanTransformer3DModel", **wan_sizes(qk_norm="rms_norm_across_heads", **more)
    ),
    "vae": wan_vae(),
}
FIRST = dict(reversed(SHIFTED.items()))
add("WanPipeline", WAN, VIDEO, schedulers=FIRST)
add(
    "WanVideoToVideoPipeline",
    WAN,
    lambda: embeds() | SIZE | {"video": film(), "strength": 1.0},
    schedulers={"UniPCMultistepScheduler": UNIPC, "DPMSolverMultistepScheduler": UNIPC},
)
add(
    "WanImageToVideoPipeline",
    lambda: WAN(in_channels=12, image_dim=8) | {"image_encoder": tower(), "image_processor": eye()},
    lambda: VIDEO() | {"image": picture()},
    schedulers=FIRST,
)
add("LTXPipeline", lambda: {"transformer": ltx()}, LTX)


# --- HunyuanDiT, HunyuanImage ---


def hunyuan_dit(kind: str = "HunyuanDiT2DModel", **more: Any) -> Any:
    sizes = {
        "sample_size": 8,
        "num_layers": 2,
        "patch_size": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "in_channels": 4,
        "cross_attention_dim": 8,
        "cross_attention_dim_t5": 8,
        "pooled_projection_dim": 8,
        "hidden_size": 16,
        "text_len": 5,
        "text_len_t5": 5,
        "use_style_cond_and_image_meta_size": False,
    }
    return tiny(kind, **sizes | more)


def dit_says() -> dict[str, Any]:
    told = embeds(masks="prompt_attention_mask")
    return (
        told
        | {f"{k}_2": v for k, v in told.items()}
        | {"height": 16, "width": 16, "use_resolution_binning": False}
    )


DIT = lambda **more: (
    {"transformer": hunyuan_dit(), "vae": kl(), "requires_safety_checker": False} | more
)
add("HunyuanDiTPipeline", DIT, dit_says, schedulers=STOCHASTIC)
add("HunyuanDiTPAGPipeline", DIT, lambda: dit_says() | {"pag_scale": 0.0}, schedulers=STOCHASTIC)


def hunyuan_image(**more: Any) -> Any:
    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 8,
        "text_embed_2_dim": 8,
        "rope_axes_dim": (4, 4),
    }
    return tiny("HunyuanImageTransformer2DModel", **sizes | more)


def hunyuan_image_says() -> dict[str, Any]:
    told = MASKED()
    return told | {f"{k}_2": v for k, v in told.items() if "embeds" in k}


def plain_guider() -> Any:
    from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=SCALE)


# --- Krea 2, Ovis, PRX, LongCat, Nucleus ---

add(
    "Krea2Pipeline",
    lambda: {
        "transformer": tiny(
            "Krea2Transformer2DModel",
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
            timestep_embed_dim=8,
            text_hidden_dim=8,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        "vae": qwen_vae(),
    },
    lambda: (
        embeds(masks="prompt_embeds_mask", kind=torch.bool)
        | SIZE
        | {
            "prompt_embeds": draw(1, 5, 3, 8, seed=1),
            "negative_prompt_embeds": draw(1, 5, 3, 8, seed=2),
        }
    ),
    guidance=f"cfg({SCALE + 1})",
)
add(
    "OvisImagePipeline",
    lambda: {
        "transformer": tiny(
            "OvisImageTransformer2DModel",
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(4, 6, 6),
        ),
        "vae": kl(),
    },
    lambda: embeds() | SIZE | {"negative_prompt": None},
    schedulers=NOISED,
)


def prx(**more: Any) -> Any:
    sizes = {
        "in_channels": 4,
        "patch_size": 2,
        "context_in_dim": 8,
        "hidden_size": 16,
        "mlp_ratio": 1.0,
        "num_heads": 2,
        "depth": 1,
        "axes_dim": [4, 4],
    }
    return tiny("PRXTransformer2DModel", **sizes | more)


PRX = lambda: (
    embeds()
    | {
        "prompt_attention_mask": torch.ones(1, 5).bool(),
        "negative_prompt_attention_mask": torch.ones(1, 5).bool(),
    }
    | {"prompt": None, "use_resolution_binning": False}
)
add(
    "PRXPipeline",
    lambda: {"transformer": prx(), "vae": kl()},
    lambda: PRX() | SIZE,
    schedulers=NOISED,
)
# --- ControlNets ---


def dc() -> Any:
    return tiny(
        "AutoencoderDC",
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )


def qwen_control(**more: Any) -> Any:
    sizes = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "axes_dims_rope": (4, 6, 6),
    }
    return tiny("QwenImageControlNetModel", **sizes | more)


add(
    "QwenImageControlNetPipeline",
    lambda: {"transformer": qwen(), "vae": qwen_vae(), "controlnet": qwen_control()},
    lambda: MASKED() | {"control_image": picture()},
    scale=TRUE,
    guidance=RENORMED,
    schedulers=NOISED,
)
add(
    "QwenImageControlNetInpaintPipeline",
    lambda: {
        "transformer": qwen(),
        "vae": qwen_vae(),
        "controlnet": qwen_control(extra_condition_channels=4),
    },
    lambda: MASKED() | {"control_image": picture(), "control_mask": mask()},
    scale=TRUE,
    guidance=RENORMED,
    schedulers=NOISED,
)
add(
    "HunyuanDiTControlNetPipeline",
    lambda: DIT(
        controlnet=tiny(
            "HunyuanDiT2DControlNetModel",
            sample_size=8,
            transformer_num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            cross_attention_dim=8,
            cross_attention_dim_t5=8,
            pooled_projection_dim=8,
            hidden_size=16,
            text_len=5,
            text_len_t5=5,
            use_style_cond_and_image_meta_size=False,
        )
    ),
    lambda: dit_says() | {"control_image": picture(16)},
    schedulers=STOCHASTIC,
)
add(
    "PRXPixelPipeline",
    lambda: {"transformer": prx(in_channels=3, bottleneck_size=8, resolution_embeds=False)},
    lambda: PRX() | {"height": 16, "width": 16, "output_type": "pt"},
    schedulers=NOISED,
)
add(
    "LTXImageToVideoPipeline",
    lambda: {"transformer": ltx(), "vae": ltx_vae()},
    lambda: LTX() | {"image": picture()},
)
add(
    "SanaControlNetPipeline",
    lambda: {
        "transformer": sana(),
        "vae": dc(),
        "controlnet": tiny(
            "SanaControlNetModel",
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=8,
            sample_size=8,
        ),
    },
    lambda: SANA_SAYS() | {"height": 32, "width": 32, "control_image": picture()},
    schedulers=SANA,
)


def frames_control() -> Any:
    return tiny(
        "ControlNetModel",
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=8,
        conditioning_embedding_out_channels=(4, 4),
    )


FRAMES = lambda: [picture(16, seed=k) for k in range(3)]
add(
    "AnimateDiffControlNetPipeline",
    lambda: motion() | {"controlnet": frames_control()},
    lambda: MOTION() | {"conditioning_frames": FRAMES()},
    schedulers=LINEAR,
)
add(
    "AnimateDiffVideoToVideoControlNetPipeline",
    lambda: motion() | {"controlnet": frames_control()},
    lambda: (
        embeds()
        | {
            "height": 16,
            "width": 16,
            "video": FRAMES(),
            "conditioning_frames": FRAMES(),
            "strength": 1.0,
        }
    ),
    schedulers=LINEAR,
)

# --- text and image towers of random weights, and a tokenizer of letters ---


def clip_text(width: int = 8) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    sizes = {
        "hidden_size": width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 60,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    return CLIPTextModelWithProjection(CLIPTextConfig(**sizes)).eval()


def letters() -> Any:
    from transformers import CLIPTokenizer

    plain = [chr(ord("a") + k) for k in range(26)]
    words = [*plain, *(c + "</w>" for c in plain), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: k for k, w in enumerate(words)}, merges=[], model_max_length=77)


def prior(**more: Any) -> Any:
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "embedding_dim": 8,
        "num_embeddings": 77,
    }
    net = tiny("PriorTransformer", **sizes | more)
    net.clip_std.fill_(1.0)
    return net


ASKED = lambda: {"prompt": "a red fox", "negative_prompt": "mud"}
PRIOR = lambda: {
    "prior": prior(),
    "image_encoder": big_tower(),
    "text_encoder": clip_text(),
    "tokenizer": letters(),
    "image_processor": big_eye(),
}
UNCLIP = {
    "UnCLIPScheduler": {
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 5.0,
    }
}
DIRECT = lambda: ASKED() | {"output_type": "pt"}
add("KandinskyV22PriorPipeline", PRIOR, DIRECT, schedulers=UNCLIP)
add("KandinskyPriorPipeline", PRIOR, DIRECT, schedulers=UNCLIP)
add(
    "KandinskyV22PriorEmb2EmbPipeline",
    PRIOR,
    lambda: DIRECT() | {"image": draw(1, 8), "strength": 1.0},
    schedulers=UNCLIP,
)


def combined() -> dict[str, Any]:
    first = {f"prior_{k}": v for k, v in PRIOR().items()}
    scheduler = diffusers.UnCLIPScheduler(**UNCLIP["UnCLIPScheduler"])
    return {
        "unet": kandinsky(),
        "movq": movq(),
        "prior_prior": first.pop("prior_prior"),
        "prior_scheduler": scheduler,
    } | first


BOTH = lambda: (
    ASKED()
    | {"prior_num_inference_steps": 2, "prior_guidance_scale": SCALE, "height": 32, "width": 32}
)
TWO = {"schedulers": {"DDPMScheduler": {"clip_sample": False}}}
add("KandinskyV22CombinedPipeline", combined, BOTH, **TWO)
add(
    "KandinskyV22Img2ImgCombinedPipeline",
    combined,
    lambda: BOTH() | {"image": picture(), "strength": 1.0},
    **TWO,
)
add(
    "KandinskyV22InpaintCombinedPipeline",
    lambda: combined() | {"unet": kandinsky(in_channels=9)},
    lambda: BOTH() | {"image": picture(), "mask_image": mask()},
    **TWO,
)
SHAPE = {
    "HeunDiscreteScheduler": {
        "beta_schedule": "exp",
        "prediction_type": "sample",
        "use_karras_sigmas": True,
    }
}


def shape() -> Any:
    return prior(
        embedding_dim=8,
        num_embeddings=2,
        embedding_proj_dim=8,
        time_embed_dim=8,
        clip_embed_dim=16,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )


add(
    "ShapEPipeline",
    lambda: {"prior": shape(), "text_encoder": clip_text(), "tokenizer": letters()},
    lambda: {"prompt": "a fox"},
    schedulers=SHAPE,
)
add(
    "StableDiffusionImageVariationPipeline",
    lambda: {
        "unet": unet(),
        "vae": kl(),
        "image_encoder": big_tower(),
        "feature_extractor": big_eye(),
        "requires_safety_checker": False,
    },
    lambda: {"image": picture(16), "height": 16, "width": 16},
    schedulers=TABLE,
)
add(
    "LDMTextToImagePipeline",
    lambda: {"unet": unet(), "vqvae": kl(), "bert": bert(), "tokenizer": letters()},
    lambda: {"prompt": "a fox", "height": 16, "width": 16, "output_type": "np"},
    schedulers={"DDIMScheduler": {"clip_sample": False}},
)


def bert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    torch.manual_seed(0)
    return LDMBertModel(
        LDMBertConfig(
            vocab_size=60,
            encoder_layers=1,
            encoder_ffn_dim=8,
            encoder_attention_heads=2,
            head_dim=4,
            d_model=8,
        )
    ).eval()


def big_eye() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=224, size=224)


add(
    "HunyuanImagePipeline",
    lambda: {
        "transformer": hunyuan_image(),
        "vae": tiny(
            "AutoencoderKLHunyuanImage",
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=8,
            scaling_factor=0.5,
        ),
        "guider": plain_guider(),
        "ocr_guider": plain_guider(),
    },
    hunyuan_image_says,
    scale={},
)
add(
    "SanaSprintImg2ImgPipeline",
    lambda: {"transformer": sana(guidance_embeds=True), "vae": dc()},
    lambda: (
        {k: v for k, v in SANA_SAYS().items() if "negative" not in k}
        | {"height": 32, "width": 32, "image": picture(), "strength": 0.9}
    ),
    schedulers={"SCMScheduler": {}},
    guidance=None,
)
add(
    "ZImageControlNetPipeline",
    lambda: {"transformer": z_image(), "vae": kl(), "controlnet": z_control()},
    lambda: listed() | {"control_image": picture()},
    guidance=f"cfg({SCALE + 1})",
    schedulers=NOISED,
)


def z_control() -> Any:
    return tiny(
        "ZImageControlNetModel",
        control_layers_places=[0],
        control_in_dim=4,
        dim=16,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )


# --- Stable Cascade ---


def cascade(**more: Any) -> Any:
    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "timestep_ratio_embedding_dim": 8,
        "conditioning_dim": 8,
        "block_out_channels": (8,),
        "num_attention_heads": (2,),
        "down_num_layers_per_block": (1,),
        "up_num_layers_per_block": (1,),
        "down_blocks_repeat_mappers": (1,),
        "up_blocks_repeat_mappers": (1,),
        "block_types_per_layer": (
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        "clip_text_pooled_in_channels": 8,
        "clip_seq": 2,
        "dropout": (0.0,),
    }
    return tiny("StableCascadeUNet", **sizes | more)


CASCADE = lambda: (
    embeds()
    | {
        "prompt_embeds_pooled": draw(1, 1, 8, seed=3),
        "negative_prompt_embeds_pooled": draw(1, 1, 8, seed=4),
    }
)
WUERSTCHEN = {"DDPMWuerstchenScheduler": {}}
add(
    "StableCascadePriorPipeline",
    lambda: {
        "prior": cascade(clip_text_in_channels=8, clip_image_in_channels=8, switch_level=(False,)),
        "text_encoder": clip_text(),
    },
    lambda: CASCADE() | {"height": 128, "width": 128, "output_type": "pt"},
    schedulers=WUERSTCHEN,
)
add(
    "StableCascadeDecoderPipeline",
    lambda: {"decoder": cascade(effnet_in_channels=4)},
    lambda: CASCADE() | {"image_embeddings": draw(1, 4, 2, 2, seed=5), "output_type": "latent"},
    schedulers=WUERSTCHEN,
)

# --- sound, and Stable Video ---


def stable_audio() -> dict[str, Any]:
    from diffusers import StableAudioProjectionModel

    torch.manual_seed(0)
    project = StableAudioProjectionModel(
        text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32
    )
    return {
        "transformer": tiny(
            "StableAudioDiTModel",
            sample_size=8,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            out_channels=4,
            cross_attention_dim=8,
            cross_attention_input_dim=8,
            global_states_input_dim=16,
            time_proj_dim=8,
        ),
        "projection_model": drawn(project),
        "vae": tiny(
            "AutoencoderOobleck",
            encoder_hidden_size=4,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4,
        ),
    }


add(
    "StableCascadeCombinedPipeline",
    lambda: {
        "decoder": cascade(effnet_in_channels=4),
        "prior_prior": cascade(
            clip_text_in_channels=8, clip_image_in_channels=8, switch_level=(False,)
        ),
        "text_encoder": clip_text(),
        "tokenizer": letters(),
        "prior_text_encoder": clip_text(),
        "prior_tokenizer": letters(),
        "prior_scheduler": diffusers.DDPMWuerstchenScheduler(),
    },
    lambda: CASCADE() | {"height": 128, "width": 128, "prior_num_inference_steps": 2},
    scale={"prior_guidance_scale": SCALE, "decoder_guidance_scale": SCALE},
    schedulers=WUERSTCHEN,
)
add(
    "StableAudioPipeline",
    stable_audio,
    lambda: embeds() | {"audio_end_in_s": 4.0},
    schedulers={
        "EDMDPMSolverMultistepScheduler": {
            "sigma_min": 0.3,
            "sigma_max": 500,
            "sigma_data": 1.0,
            "prediction_type": "v_prediction",
        }
    },
)


def svd() -> dict[str, Any]:
    return {
        "unet": tiny(
            "UNetSpatioTemporalConditionModel",
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            block_out_channels=(32, 32),
            layers_per_block=1,
            in_channels=8,
            out_channels=4,
            sample_size=8,
            cross_attention_dim=8,
            num_attention_heads=2,
            projection_class_embeddings_input_dim=24,
            addition_time_embed_dim=8,
        ),
        "vae": tiny(
            "AutoencoderKLTemporalDecoder",
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
        ),
        "image_encoder": tower(),
        "feature_extractor": eye(),
    }


add(
    "StableVideoDiffusionPipeline",
    lambda: svd() | {"image_encoder": big_tower()},
    lambda: {
        "image": picture(16),
        "num_frames": 2,
        "height": 16,
        "width": 16,
        "min_guidance_scale": SCALE,
    },
    scale={"max_guidance_scale": SCALE},
    schedulers={
        "EulerDiscreteScheduler": {
            "prediction_type": "v_prediction",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
            "sigma_max": 700.0,
            "sigma_min": 0.002,
            "interpolation_type": "linear",
        }
    },
)


def big_tower() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8,
            projection_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            intermediate_size=8,
            patch_size=112,
        )
    ).eval()


# --- LTX-2 ---


def ltx2(**more: Any) -> dict[str, Any]:
    net = tiny(
        "LTX2VideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=8,
        rope_double_precision=False,
        **more,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    torch.manual_seed(0)
    connect = LTX2TextConnectors(
        caption_channels=8,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=8,
        rope_theta=10000.0,
        rope_double_precision=False,
        causal_temporal_positioning=False,
    )
    vae = tiny(
        "AutoencoderKLLTX2Video",
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(4,),
        decoder_block_out_channels=(4,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    audio = tiny(
        "AutoencoderKLLTX2Audio",
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        dropout=0.0,
        mid_block_add_attention=False,
        sample_rate=16000,
        mel_hop_length=160,
        is_causal=True,
        mel_bins=8,
    )
    return {"transformer": net, "connectors": drawn(connect.eval()), "vae": vae, "audio_vae": audio}


LTX2 = lambda: (
    embeds(16, masks="prompt_attention_mask")
    | {
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "frame_rate": 25.0,
        "audio_guidance_scale": SCALE,
        "stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_stg_scale": 0.0,
        "audio_modality_scale": 1.0,
        "guidance_rescale": 0.0,
        "audio_guidance_rescale": 0.0,
    }
)
add("LTX2Pipeline", ltx2, LTX2)
add("LTX2ConditionPipeline", ltx2, LTX2)
add("LTX2InContextPipeline", ltx2, LTX2)


# --- EasyAnimate, ERNIE-Image ---


def easy_animate(**more: Any) -> dict[str, Any]:
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 4,
        "text_embed_dim": 8,
        "num_layers": 1,
        "mmdit_layers": 1,
        "sample_width": 8,
        "sample_height": 8,
        "patch_size": 2,
    }
    return {
        "transformer": tiny("EasyAnimateTransformer3DModel", **sizes | more),
        "vae": tiny(
            "AutoencoderKLMagvit",
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            down_block_types=(
                "SpatialDownBlock3D",
                "SpatialTemporalDownBlock3D",
                "SpatialTemporalDownBlock3D",
                "SpatialTemporalDownBlock3D",
            ),
            up_block_types=(
                "SpatialUpBlock3D",
                "SpatialTemporalUpBlock3D",
                "SpatialTemporalUpBlock3D",
                "SpatialTemporalUpBlock3D",
            ),
            layers_per_block=1,
            norm_num_groups=2,
            spatial_group_norm=False,
        ),
    }


add(
    "EasyAnimatePipeline",
    easy_animate,
    lambda: embeds(masks="prompt_attention_mask") | SIZE | {"num_frames": 5},
    schedulers=NOISED,
)
add(
    "ErnieImagePipeline",
    lambda: {
        "transformer": tiny(
            "ErnieImageTransformer2DModel",
            hidden_size=16,
            num_attention_heads=1,
            num_layers=1,
            ffn_hidden_size=16,
            in_channels=16,
            out_channels=16,
            text_in_dim=8,
            rope_axes_dim=(4, 6, 6),
        ),
    },
    lambda: (
        {
            "prompt_embeds": [draw(5, 8, seed=1)],
            "negative_prompt_embeds": [draw(5, 8, seed=2)],
            "use_pe": False,
        }
        | SIZE
    ),
    schedulers=NOISED,
)
