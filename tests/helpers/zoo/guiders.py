"""Pipelines that carry a guider of Diffusers, and one that is guided by keyword alone."""

from __future__ import annotations

from typing import Any

import torch

from .base import FLOW, add, draw, embeds, picture, tiny
from .more import ltx2, plain_guider
from .videos import SIZE, wan_vae

# --- HunyuanVideo 1.5 ---


def hunyuan15() -> dict[str, Any]:
    net = tiny(
        "HunyuanVideo15Transformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=8,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
    )
    vae = tiny(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    return {"transformer": net, "vae": vae, "guider": plain_guider()}


def two_texts() -> dict[str, Any]:
    told = embeds(masks="prompt_embeds_mask")
    return told | {f"{name}_2": value for name, value in told.items()}


add(
    "HunyuanVideo15Pipeline",
    hunyuan15,
    lambda: two_texts() | {"height": 16, "width": 16, "num_frames": 5},
    scale={},
)
add(
    "HunyuanVideo15ImageToVideoPipeline",
    hunyuan15,
    lambda: two_texts() | {"image": picture(16), "num_frames": 5},
    instead={"encode_image": lambda image, batch_size, device, dtype: draw(batch_size, 6, 12)},
    scale={},
)

# --- Motif ---


def motif(**more: Any) -> dict[str, Any]:
    net = tiny(
        "MotifVideoTransformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_decoder_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        **more,
    )
    return {"transformer": net, "vae": wan_vae(), "guider": plain_guider()}


MOTIF = lambda: embeds(masks="prompt_attention_mask") | SIZE
add("MotifVideoPipeline", motif, MOTIF, scale={})
add(
    "MotifVideoImage2VideoPipeline",
    motif,
    lambda: MOTIF() | {"prompt": None, "image": picture()},
    scale={},
)

# --- SANA-WM ---


def sana_wm() -> dict[str, Any]:
    vae = ltx2()["vae"]
    net = tiny(
        "SanaWMTransformer3DModel",
        in_channels=4,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=6 * vae.temporal_compression_ratio,
        caption_channels=8,
    )
    return {"transformer": net, "vae": vae}


def camera() -> dict[str, Any]:
    """Return poses that go forward, and the lens."""
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[:, 2, 3] = torch.arange(5) * 0.1
    return {"c2w": poses.numpy(), "intrinsics": [20.0, 20.0, 8.0, 8.0]}


def four_sides(told: dict[str, Any]) -> dict[str, Any]:
    return {k: v[:, None] if k.endswith("embeds") else v for k, v in told.items()}


add(
    "SanaWMPipeline",
    sana_wm,
    lambda: (
        four_sides(embeds(masks="prompt_attention_mask"))
        | camera()
        | {"image": picture(16), "prompt": "", "height": 16, "width": 16, "num_frames": 5}
    ),
    schedulers={name: FLOW[name] for name in ("FlowMatchEulerDiscreteScheduler",)},
)
