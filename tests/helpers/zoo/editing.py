"""Pipelines that change a picture after an instruction, and those told by a language model."""

from __future__ import annotations

from typing import Any

import torch

from .base import Plain, Words, add, mask, picture, spoken, tiny
from .images import NOISED, RENORMED, kl, qwen, qwen_vae
from .more import MASKED, TRUE
from .videos import wan_vae

SIZE = {"height": 32, "width": 32}
SMALL = {
    "calculate_dimensions": lambda area, ratio: (32, 32, None),
    "VAE_IMAGE_SIZE": 32 * 32,
    "CONDITION_IMAGE_SIZE": 32 * 32,
}
TWO = {**SMALL, "calculate_dimensions": lambda area, ratio: (32, 32)}

# --- Qwen-Image ---

QWEN = lambda **more: lambda: {"transformer": qwen(**more), "vae": qwen_vae()}
SAYS = lambda **more: lambda: MASKED() | {"image": picture()} | more
OWN = {"scale": TRUE, "guidance": RENORMED}
add("QwenImageEditPipeline", QWEN(), SAYS(), instead=SMALL, **OWN)
add("QwenImageEditPlusPipeline", QWEN(), SAYS(), instead=TWO, **OWN)
add(
    "QwenImageEditInpaintPipeline",
    QWEN(),
    lambda: (
        {k: v for k, v in MASKED().items() if k not in SIZE}
        | {"image": picture(), "mask_image": mask(), "strength": 1.0}
    ),
    instead=SMALL,
    schedulers=NOISED,
    **OWN,
)
LAYERED = {
    "patch_size": 2,
    "use_layer3d_rope": True,
    "use_additional_t_cond": True,
}
add(
    "QwenImageLayeredPipeline",
    lambda: QWEN(**LAYERED)() | {"text_encoder": Words()},
    lambda: (
        {k: v for k, v in MASKED().items() if k not in SIZE}
        | {"image": picture(), "layers": 2, "prompt": "a fox"}
    ),
    instead=TWO,
    scale=TRUE,
    output="pt",
)

# --- Bria Fibo ---


def fibo() -> dict[str, Any]:
    net = tiny(
        "BriaFiboTransformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        text_encoder_dim=8,
        axes_dims_rope=[0, 4, 4],
    )
    return {"transformer": net, "vae": wan_vae(), "text_encoder": Words()}


def layered(prompt: Any, **_: Any) -> Any:
    """Return a prompt's embeddings, those of each layer of its encoder, and their mask."""
    one = spoken(str(prompt), 1, 5, 16)
    return one, [one[..., :8], one[..., 8:]], torch.ones(1, 5)


WORDS = lambda: {"prompt": "a fox", "negative_prompt": "mud"}
FIBO = {"instead": {"get_prompt_embeds": layered}, "schedulers": NOISED}
add("BriaFiboPipeline", fibo, lambda: WORDS() | {"height": 64, "width": 64}, **FIBO)
add(
    "BriaFiboEditPipeline",
    fibo,
    lambda: (
        WORDS()
        | {"prompt": '{"edit_instruction": "fox"}', "image": picture(64), "_auto_resize": False}
        | {"height": 64, "width": 64}
    ),
    **FIBO,
)
# --- DreamLite, LongCat, Nucleus, OmniGen ---


def dream() -> dict[str, Any]:
    net = tiny(
        "DreamLiteUNetModel",
        sample_size=8,
        down_block_types=(
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(8, 8),
        cross_attention_dim=8,
        attention_head_dim=4,
        layers_per_block=1,
        norm_num_groups=2,
        transformer_layers_per_block=1,
    )
    vae = tiny(
        "AutoencoderTiny",
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    return {"unet": net, "vae": vae, "text_encoder": Words()}


def both(prompts: Any, **_: Any) -> Any:
    """Return the embeddings of several prompts and their masks."""
    told = [spoken(p + str(k), 1, 5, 8) for k, p in enumerate(prompts)]
    return torch.cat(told), torch.ones(len(prompts), 5, dtype=torch.long)


DREAM = {"instead": {"encode_prompt": both}, "schedulers": NOISED}
add("DreamLitePipeline", dream, lambda: WORDS() | SIZE, **DREAM)
add(
    "DreamLiteMobilePipeline",
    dream,
    lambda: {"prompt": "a fox"} | SIZE,
    scale={},
    guidance=None,
    **DREAM,
)


def longcat() -> dict[str, Any]:
    net = tiny(
        "LongCatImageTransformer2DModel",
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=[4, 6, 6],
    )
    return {"transformer": net, "vae": kl(16)}


PLAIN = {"_encode_prompt": lambda prompt, *_: spoken(str(prompt), 1, 5, 8)}
add(
    "LongCatImagePipeline",
    longcat,
    lambda: WORDS() | SIZE | {"enable_prompt_rewrite": False, "enable_cfg_renorm": False},
    instead=PLAIN,
)
add(
    "LongCatImageEditPipeline",
    lambda: longcat() | {"text_processor": Plain(image_processor=None)},
    lambda: WORDS() | {"image": picture()},
    instead=TWO | PLAIN,
)
add(
    "NucleusMoEImagePipeline",
    lambda: {
        "transformer": tiny(
            "NucleusMoEImageTransformer2DModel",
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=8,
            axes_dims_rope=(4, 6, 6),
            moe_enabled=False,
            capacity_factors=[8.0],
        ),
        "vae": qwen_vae(),
        "processor": Plain(),
    },
    MASKED,
    guidance=RENORMED,
)
