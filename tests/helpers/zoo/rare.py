"""Pipelines of long videos, of edits among references, and of animations."""

from __future__ import annotations

from typing import Any

import torch

from .base import SCALE, SHIFTED, TABLE, Plain, add, draw, embeds, picture, pooled, spoken, tiny
from .images import NOISED, kl
from .more import LTX2, MASKED, SIZE, easy_animate, hunyuan_image, ltx2, plain_guider
from .stable import XL, unet
from .videos import (
    LINEAR,
    LTX,
    MOTION,
    eye,
    film,
    hunyuan,
    hunyuan_vae,
    ltx,
    ltx_vae,
    motion,
    tower,
    wan_sizes,
    wan_vae,
)

# --- Helios ---


def helios() -> dict[str, Any]:
    net = tiny(
        "HeliosTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_dim=(4, 4, 4),
    )
    return {"transformer": net, "vae": wan_vae()}


LONG = lambda: embeds() | {"height": 32, "width": 32, "num_frames": 5}
add(
    "HeliosPipeline",
    helios,
    lambda: LONG() | {"num_latent_frames_per_chunk": 2},
    schedulers={
        "HeliosScheduler": {"stage_range": [0, 1], "stages": 1},
    },
)
add(
    "HeliosPyramidPipeline",
    helios,
    lambda: (
        LONG()
        | {"num_latent_frames_per_chunk": 2, "pyramid_num_inference_steps_list": [2, 2]}
        | {"use_zero_init": False}
    ),
    # By default gamma is 1/3, where the covariance of its noise has no root but by rounding.
    schedulers={"HeliosScheduler": {"stage_range": [0, 0.5, 1], "stages": 2, "gamma": 0.3}},
)

# --- Wan Animate, Framepack, LTX's long ones ---

add(
    "WanAnimatePipeline",
    lambda: {
        "transformer": tiny(
            "WanAnimateTransformer3DModel",
            **wan_sizes(
                qk_norm="rms_norm_across_heads",
                in_channels=12,
                latent_channels=4,
                image_dim=8,
                motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
                motion_encoder_size=16,
                motion_style_dim=8,
                motion_dim=4,
                motion_encoder_dim=8,
                face_encoder_hidden_dim=8,
                face_encoder_num_heads=2,
                inject_face_latents_blocks=1,
            ),
        ),
        "vae": wan_vae(),
        "image_encoder": tower(),
        "image_processor": eye(),
    },
    lambda: (
        embeds()
        | SIZE
        | {"image": picture(), "pose_video": film(), "face_video": film()}
        | {"segment_frame_length": 5, "prev_segment_conditioning_frames": 1}
    ),
    schedulers=SHIFTED,
)
add(
    "HunyuanVideoFramepackPipeline",
    lambda: (
        hunyuan(
            "HunyuanVideoFramepackTransformer3DModel",
            has_image_proj=True,
            image_proj_dim=8,
            has_clean_x_embedder=True,
            patch_size=2,
        )
        | {"vae": hunyuan_vae()}
    ),
    lambda: (
        embeds(masks="prompt_attention_mask")
        | pooled()
        | SIZE
        | {"image": picture(), "num_frames": 5, "latent_window_size": 2}
    ),
    instead={"encode_image": lambda image, device=None, dtype=None: draw(1, 4, 8)},
    scale={"true_cfg_scale": SCALE},
)
add(
    "LTXI2VLongMultiPromptPipeline",
    lambda: {"transformer": ltx(), "vae": ltx_vae()},
    lambda: (
        {k: v for k, v in LTX().items() if "prompt" not in k}
        | {"prompt": "a fox", "num_frames": 17}
    ),
    instead={"encode_prompt": lambda **_: tuple(LTX()[k] for k in LTX_NAMES)},
    schedulers={"FlowMatchEulerDiscreteScheduler": {}, "LTXEulerAncestralRFScheduler": {}},
)
LTX_NAMES = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)
HDR = lambda: {k: v for k, v in LTX2().items() if not k.startswith("audio")}
add("LTX2HDRPipeline", ltx2, HDR)

# --- Hunyuan-Image's refiner, Joy-Image ---

add(
    "HunyuanImageRefinerPipeline",
    lambda: {
        "transformer": hunyuan_image(
            in_channels=8, out_channels=4, patch_size=(1, 1, 1), rope_axes_dim=(2, 2, 4)
        ),
        "vae": tiny(
            "AutoencoderKLHunyuanImageRefiner",
            latent_channels=2,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            temporal_compression_ratio=1,
            scaling_factor=0.5,
        ),
        "guider": plain_guider(),
    },
    lambda: MASKED() | {"image": draw(1, 4, 1, 16, 16)},
    scale={},
)

# --- sound, and sparse ControlNets of animations ---


def longcat_audio() -> dict[str, Any]:
    net = tiny(
        "LongCatAudioDiTTransformer",
        dit_dim=16,
        dit_depth=1,
        dit_heads=2,
        dit_text_dim=8,
        latent_dim=4,
        text_conv=False,
    )
    vae = tiny(
        "LongCatAudioDiTVae",
        channels=4,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=4,
        encoder_latent_dim=8,
        downsampling_ratio=2,
        sample_rate=24,
    )
    return {"transformer": net, "vae": vae}


add(
    "LongCatAudioDiTPipeline",
    longcat_audio,
    lambda: {"prompt": "a fox", "negative_prompt": "mud", "audio_duration_s": 1.0},
    instead={
        "encode_prompt": lambda prompt, _: (spoken(str(prompt), 1, 5, 8), torch.tensor([5])),
    },
    schedulers={"FlowMatchEulerDiscreteScheduler": {"invert_sigmas": True}},
)
add(
    "AudioLDM2Pipeline",
    lambda: {
        "unet": tiny(
            "AudioLDM2UNet2DConditionModel",
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            sample_size=8,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=(8, 8),
        ),
        "vae": kl(in_channels=1, out_channels=1),
        "text_encoder_2": Plain(config=Plain(model_type="t5"), dtype=torch.float32),
        "language_model": Plain(dtype=torch.float32),
        "vocoder": Plain(
            config=Plain(upsample_rates=[2, 2], sampling_rate=16, model_in_dim=8),
        ),
    },
    lambda: {
        "prompt_embeds": draw(1, 5, 8, seed=1),
        "negative_prompt_embeds": draw(1, 5, 8, seed=2),
        "generated_prompt_embeds": draw(1, 5, 8, seed=3),
        "negative_generated_prompt_embeds": draw(1, 5, 8, seed=4),
        "attention_mask": torch.ones(1, 5, dtype=torch.long),
        "negative_attention_mask": torch.ones(1, 5, dtype=torch.long),
        "audio_length_in_s": 4.0,
    },
    schedulers=TABLE,
)
add(
    "AnimateDiffSparseControlNetPipeline",
    lambda: (
        motion()
        | {
            "controlnet": tiny(
                "SparseControlNetModel",
                block_out_channels=(8, 8),
                layers_per_block=1,
                norm_num_groups=2,
                down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
                attention_head_dim=4,
                cross_attention_dim=8,
                conditioning_embedding_out_channels=(4, 4),
                conditioning_channels=3,
                use_simplified_condition_embedding=False,
            )
        }
    ),
    lambda: MOTION() | {"conditioning_frames": [picture(16)], "controlnet_frame_indices": [0]},
    schedulers=LINEAR,
)

# --- EasyAnimate's further ones, and Qwen-Image 2.1 ---

EASY_NAMES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_attention_mask",
)
EASY = lambda: embeds(masks="prompt_attention_mask") | SIZE | {"num_frames": 5}
add(
    "EasyAnimateControlPipeline",
    lambda: easy_animate(in_channels=12),
    lambda: EASY() | {"control_video": draw(1, 3, 5, 32, 32).sigmoid()},
    instead={"encode_prompt": lambda **_: tuple(EASY()[k] for k in EASY_NAMES)},
    schedulers=NOISED,
)
add(
    "EasyAnimateInpaintPipeline",
    lambda: easy_animate(in_channels=9, resize_inpaint_mask_directly=True),
    lambda: (
        EASY()
        | {"video": draw(1, 3, 5, 32, 32).sigmoid(), "strength": 1.0}
        | {"mask_video": torch.full((1, 1, 5, 32, 32), 255.0)}
    ),
    schedulers=NOISED,
)

# --- Kolors ---

KOLORS = lambda: {"unet": unet(**XL), "vae": kl()}
KOLORS_SAYS = lambda: embeds() | pooled()
OWN = {"schedulers": TABLE, "needs": "sentencepiece"}
AT = {"height": 16, "width": 16}
add("KolorsPipeline", KOLORS, lambda: KOLORS_SAYS() | AT, **OWN)
add("KolorsPAGPipeline", KOLORS, lambda: KOLORS_SAYS() | AT | {"pag_scale": 0.0}, **OWN)
add(
    "KolorsImg2ImgPipeline",
    KOLORS,
    lambda: KOLORS_SAYS() | {"image": picture(16), "strength": 1.0},
    instead={"encode_prompt": lambda *_, **__: tuple(KOLORS_SAYS().values())},
    **OWN,
)
