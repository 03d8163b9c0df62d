"""Pipelines whose small text encoders are part of them, and sound from text."""

from __future__ import annotations

from typing import Any

import torch

import diffusers

from .base import (
    SCALE,
    TABLE,
    add,
    draw,
    drawn,
    embeds,
    mask,
    picture,
    pooled,
    tiny,
)
from .images import NOISED, kl, listed, movq, z_image
from .more import (
    ASKED,
    PRIOR,
    SHAPE,
    UNCLIP,
    big_eye,
    big_tower,
    clip_text,
    letters,
    prior,
    shape,
)
from .stable import kandinsky, unet

SIZE = {"height": 32, "width": 32}

# --- Kandinsky 1 ---


def kandinsky1(**more: Any) -> dict[str, Any]:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    torch.manual_seed(0)
    words = MultilingualCLIP(
        MCLIPConfig(
            numDims=8,
            transformerDimensions=8,
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=60,
            pad_token_id=53,
        )
    ).eval()
    kinds = {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"}
    return {
        "unet": kandinsky(**kinds | more),
        "movq": movq(),
        "text_encoder": words,
        "tokenizer": letters(),
    }


IMAGES = lambda: {"image_embeds": draw(1, 8, seed=1), "negative_image_embeds": draw(1, 8, seed=2)}
ONE = lambda: ASKED() | IMAGES() | SIZE | {"output_type": "pt"}
PLAIN = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}
add("KandinskyPipeline", kandinsky1, ONE, schedulers=PLAIN)
add(
    "KandinskyImg2ImgPipeline",
    kandinsky1,
    lambda: ONE() | {"image": picture(), "strength": 1.0},
    schedulers=PLAIN,
)
add(
    "KandinskyInpaintPipeline",
    lambda: kandinsky1(in_channels=9),
    lambda: ONE() | {"image": picture(), "mask_image": torch.ones(32, 32).numpy()},
    schedulers=PLAIN,
)


def both(**more: Any) -> dict[str, Any]:
    first = {f"prior_{k}": v for k, v in PRIOR().items()}
    scheduler = diffusers.UnCLIPScheduler(**UNCLIP["UnCLIPScheduler"])
    return kandinsky1(**more) | first | {"prior_scheduler": scheduler}


BOTH = lambda: (
    ASKED()
    | SIZE
    | {"prior_num_inference_steps": 2, "prior_guidance_scale": SCALE, "output_type": "pt"}
)
add("KandinskyCombinedPipeline", both, BOTH, schedulers=PLAIN)
add(
    "KandinskyImg2ImgCombinedPipeline",
    both,
    lambda: BOTH() | {"image": picture(), "strength": 1.0},
    schedulers=PLAIN,
)
add(
    "KandinskyInpaintCombinedPipeline",
    lambda: both(in_channels=9),
    lambda: BOTH() | {"image": picture(), "mask_image": torch.ones(32, 32).numpy()},
    schedulers=PLAIN,
)

# --- Shap-E, Stable Diffusion's depth, upscaler and unCLIP ---


def shape_tower() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            intermediate_size=8,
            patch_size=112,
        )
    ).eval()


add(
    "ShapEImg2ImgPipeline",
    lambda: {"prior": shape(), "image_encoder": shape_tower(), "image_processor": big_eye()},
    lambda: {"image": picture(16)},
    schedulers=SHAPE,
)
add(
    "StableDiffusionDepth2ImgPipeline",
    lambda: {"unet": unet(in_channels=5), "vae": kl()},
    lambda: embeds() | {"image": picture(16), "depth_map": draw(1, 16, 16), "strength": 1.0},
    schedulers=TABLE,
)
add(
    "StableDiffusionLatentUpscalePipeline",
    lambda: {
        "unet": unet(
            in_channels=8,
            out_channels=5,
            attention_head_dim=8,
            act_fn="gelu",
            norm_num_groups=None,
            time_cond_proj_dim=136,
            conv_in_kernel=1,
            conv_out_kernel=1,
            down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
            up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=2,
            mid_block_type=None,
            resnet_time_scale_shift="scale_shift",
            time_embedding_type="fourier",
            timestep_post_act="gelu",
        ),
        "vae": kl(),
    },
    lambda: embeds() | pooled() | {"image": draw(1, 4, 8, 8)},
    schedulers={
        "EulerDiscreteScheduler": {"prediction_type": "sample"},
    },
)


def clip_words() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    return CLIPTextModel(CLIPTextConfig(**sizes, **ends, intermediate_size=8, vocab_size=60)).eval()


def unclip(**more: Any) -> dict[str, Any]:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    net = unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    return {
        "unet": net,
        "vae": kl(),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=8),
        "image_noising_scheduler": diffusers.DDPMScheduler(),
        "text_encoder": clip_words(),
        "tokenizer": letters(),
    } | more


add(
    "StableUnCLIPPipeline",
    lambda: unclip(
        prior=prior(),
        prior_text_encoder=clip_text(),
        prior_tokenizer=letters(),
        prior_scheduler=diffusers.DDPMScheduler(
            prediction_type="sample", clip_sample_range=5.0, variance_type="fixed_small_log"
        ),
    ),
    lambda: (
        embeds()
        | {"prompt": "a fox", "negative_prompt_embeds": None, "prompt_embeds": None}
        | {"prior_num_inference_steps": 2, "prior_guidance_scale": SCALE, "height": 16, "width": 16}
    ),
    schedulers=TABLE,
)
add(
    "StableUnCLIPImg2ImgPipeline",
    lambda: unclip(image_encoder=big_tower(), feature_extractor=big_eye()),
    lambda: {"prompt": "a fox", "image": picture(16), "height": 16, "width": 16},
    schedulers=TABLE,
)

# --- Z-Image's further ones ---

NEXT = {"guidance": f"cfg({SCALE + 1})", "schedulers": NOISED}
add(
    "ZImageControlNetInpaintPipeline",
    lambda: {
        "transformer": z_image(),
        "vae": kl(),
        "controlnet": tiny(
            "ZImageControlNetModel",
            control_layers_places=[0],
            control_in_dim=9,
            dim=16,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        ),
    },
    lambda: listed() | {"control_image": picture(), "image": picture(), "mask_image": mask()},
    **NEXT,
)
add(
    "ZImageOmniPipeline",
    lambda: {"transformer": z_image(siglip_feat_dim=8), "vae": kl()},
    lambda: {k: [v] if "embeds" in k else v for k, v in listed().items()},
    **NEXT,
)


def stable_audio3() -> dict[str, Any]:
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder

    torch.manual_seed(0)
    return {
        "transformer": tiny(
            "StableAudio3DiTModel",
            io_channels=4,
            embed_dim=16,
            depth=1,
            num_heads=2,
            cond_token_dim=8,
            global_cond_dim=8,
            local_add_cond_dim=5,
            timestep_features_dim=16,
            ff_mult=2,
            num_memory_tokens=3,
            use_differential_attention=False,
        ),
        "vae": tiny(
            "AutoencoderSAME",
            audio_channels=2,
            patch_size=2,
            encoder_channels=8,
            encoder_c_mults=(2,),
            encoder_strides=(2,),
            encoder_transformer_depths=(1,),
            latent_dim=4,
            use_differential_attention=False,
            dim_heads=4,
            ff_mult=2,
            sampling_rate=16,
        ),
        "duration_embedder": drawn(StableAudio3DurationEmbedder(output_dim=8, fourier_dim=16)),
    }


add(
    "StableAudio3Pipeline",
    stable_audio3,
    lambda: {
        "prompt_embeds": draw(1, 5, 8, seed=1),
        "negative_prompt_embeds": draw(1, 5, 8, seed=2),
        "encoder_attention_mask": torch.ones(1, 5),
        "negative_encoder_attention_mask": torch.ones(1, 5),
        "duration": 1.0,
    },
    schedulers={
        "FlowMatchEulerDiscreteScheduler": {"num_train_timesteps": 1, "shift": 1.0},
    },
)
