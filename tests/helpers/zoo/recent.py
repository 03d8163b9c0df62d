"""Pipelines of 2025 and 2026 with language models as encoders, and those with stages."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.joyimage.image_processor import JoyImageEditImageProcessor

import diffusers

from ..omnigen_texts import read_texts_alone
from .base import (
    SCALE,
    Plain,
    Words,
    add,
    draw,
    embeds,
    mask,
    picture,
    spoken,
    tiny,
)
from .images import CHROMA, CHROMA_SAYS, NOISED, flux, flux2_vae, kl
from .more import LTX2, TRUE, clip_text, frames_control, letters, ltx2
from .stable import unet
from .videos import (
    COSMOS,
    COSMOS_SAYS,
    EIGHTY,
    five,
    hunyuan_vae,
    kandinsky5,
    wan_vae,
)

SIZE = {"height": 32, "width": 32}

# --- Bria Fibo 2, Ideogram 4 ---

BUNDLES = lambda seed: draw(1, 6, 5, 24, seed=seed)
add(
    "BriaFibo2Pipeline",
    lambda: {
        "transformer": tiny(
            "BriaFibo2Transformer2DModel",
            in_channels=4,
            dim=16,
            n_layers=6,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=24,
            injection_layer_ids=(0, 1, 2, 3, 4),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=4,
            gist_min_text_len=4,
            gist_max_text_len=16,
            axes_dims=(4, 2, 2),
            axes_lens=(64, 32, 32),
        ),
        "vae": flux2_vae(),
    },
    lambda: SIZE | {"prompt_embeds": BUNDLES(1), "negative_prompt_embeds": BUNDLES(2)},
    schedulers=NOISED,
)


def ideogram(seed: int = 0) -> Any:
    return tiny(
        "Ideogram4Transformer2DModel",
        seed,
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=16,
        adaln_dim=8,
        llm_features_dim=8,
        mrope_section=(4, 2, 2),
    )


def packed(prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: Any) -> Any:
    """Return the embedding of a prompt, with places for the picture's tokens."""
    text = spoken(str(prompt), 1, max_sequence_length, 8)
    whole = torch.cat([text, torch.zeros(1, grid_h * grid_w, 8)], 1)
    ids = diffusers.Ideogram4Pipeline._prepare_ids(
        [max_sequence_length], grid_h, grid_w, max_sequence_length, device
    )
    return (whole, *ids)


add(
    "Ideogram4Pipeline",
    lambda: {
        "transformer": ideogram(),
        "unconditional_transformer": ideogram(1),
        "vae": flux2_vae(),
    },
    lambda: SIZE | {"prompt": "a fox", "guidance_schedule": None, "max_sequence_length": 5},
    instead={"encode_prompt": packed},
    schedulers=NOISED,
)

# --- Qwen-Image 2.1, GLM-Image ---

add(
    "QwenImage21Pipeline",
    lambda: {
        "transformer": tiny(
            "QwenImage21Transformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=8,
            axes_dims_rope=(4, 6, 6),
        ),
        "processor": Plain(
            apply_chat_template=lambda *_, **__: [[1, 2]], tokenizer=Plain(encode=lambda _: [3])
        ),
    },
    lambda: embeds() | {"height": 64, "width": 64},
    scale=TRUE,
)
add(
    "GlmImagePipeline",
    lambda: {
        "transformer": tiny(
            "GlmImageTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=8,
            time_embed_dim=16,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=16,
        ),
        "vae": kl(),
        "text_encoder": Words(),
    },
    lambda: embeds() | {"height": 16, "width": 16, "prior_token_ids": torch.arange(16)[None]},
    schedulers=NOISED,
)

# --- Joy-Image ---


def joy(kind: str) -> dict[str, Any]:
    net = tiny(
        kind,
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        text_dim=8,
        num_layers=1,
        rope_dim_list=[2, 2, 4],
    )
    return {"transformer": net, "vae": wan_vae()}


def joy_says(prompt: Any, **_: Any) -> Any:
    """Return the embedding of a prompt and its mask."""
    return 10 * spoken(str(prompt), 1, 5, 8), torch.ones(1, 5, dtype=torch.long)


class Small(JoyImageEditImageProcessor):
    """A processor whose pictures are all of one small size."""

    def get_default_height_width(self, *_: Any) -> tuple[int, int]:
        return 32, 32


JOY = {
    "guidance": f"cfg({SCALE}) | rescale(1, space='velocity', along='third')",
}
ASKED = lambda: SIZE | {"prompt": "a fox", "negative_prompt": "mud"}
add(
    "JoyImageEditPipeline",
    lambda: joy("JoyImageEditTransformer3DModel"),
    lambda: ASKED() | {"image": picture()},
    instead={"encode_prompt_multiple_images": joy_says, "vae_image_processor": Small()},
    **JOY,
)
add(
    "JoyImageEditPlusPipeline",
    lambda: joy("JoyImageEditPlusTransformer3DModel"),
    lambda: ASKED() | {"images": [picture(), picture(seed=1)]},
    instead={"encode_prompt_multiple_images": joy_says, "image_processor": Small()},
    **JOY,
)

# --- Kandinsky 5 and 6 ---

add(
    "Kandinsky5I2IPipeline",
    lambda: kandinsky5(visual_cond=True) | {"vae": kl()},
    lambda: five() | {"image": picture(64)},
    instead={"resolutions": [(32, 32)], "vae_scale_factor_spatial": 2},
)
add(
    "Kandinsky5I2VPipeline",
    lambda: kandinsky5() | {"vae": hunyuan_vae()},
    lambda: five() | {"num_frames": 21, "image": picture(64), "height": 32, "width": 32},
)
add(
    "Kandinsky6TI2VAPipeline",
    lambda: {
        "transformer": tiny(
            "Kandinsky6Transformer3DModel",
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=8,
            in_text_dim2=8,
            time_dim=8,
            model_dim=16,
            ff_dim=16,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(2, 2, 4),
            in_audio_dim=4,
            out_audio_dim=4,
        ),
        "vae": hunyuan_vae(),
        "audio_vae": Plain(config=Plain(sample_rate=96), latent_hop_length=2),
        "vocoder": Plain(),
    },
    lambda: (
        embeds()
        | {"pooled_prompt_embeds": draw(1, 8, seed=3)}
        | {"negative_pooled_prompt_embeds": draw(1, 8, seed=4)}
        | {"height": 64, "width": 64, "num_frames": 5}
    ),
)

# --- Visual-Cloze, whose network is given the scale ---


def cloze() -> dict[str, Any]:
    net = flux(in_channels=4 * 4 * 2 + 4 * 4, out_channels=16, guidance_embeds=True)
    return {"transformer": net, "vae": kl(shift_factor=0.1), "resolution": 32}


def cloze_says(layout_prompt: Any, task_prompt: Any, content_prompt: Any, **_: Any) -> Any:
    """Return the embedding of a prompt, its pooled one, and the positions of its tokens."""
    told = f"{layout_prompt}{task_prompt}{content_prompt}"
    return spoken(told, 1, 5, 8), spoken(told, 1, 8), torch.zeros(5, 3)


CLOZE = lambda: {
    "task_prompt": "from depth to colour",
    "content_prompt": "a fox",
    "image": [[picture(), picture(seed=1)], [picture(seed=2), None]],
}
add(
    "VisualClozeGenerationPipeline",
    cloze,
    CLOZE,
    instead={"encode_prompt": cloze_says},
    guidance=None,
    schedulers=NOISED,
)

# --- Cosmos, Chroma, LTX-2 ---

add(
    "Cosmos2VideoToWorldPipeline",
    lambda: COSMOS(in_channels=5),
    lambda: COSMOS_SAYS() | {"image": picture(), "num_frames": 5},
    **EIGHTY,
)


def told_of_no_scale() -> dict[str, Any]:
    """Return Chroma's parts, with the setting that its inpainting reads and its network lacks."""
    parts = CHROMA()
    parts["transformer"].register_to_config(guidance_embeds=False)
    return parts


add(
    "ChromaInpaintPipeline",
    told_of_no_scale,
    lambda: CHROMA_SAYS() | {"image": picture(), "mask_image": mask(), "strength": 1.0},
    schedulers=NOISED,
)
add(
    "LTX2ImageToVideoPipeline",
    ltx2,
    lambda: LTX2() | {"image": picture(), "image_crf": 0},
)

# --- OmniGen, BLIP-Diffusion, Visual-Cloze with its second stage ---


class Spelled:
    """A tokenizer that gives each word a number."""

    model_max_length = 77

    def __call__(self, text: str) -> Plain:
        return Plain(input_ids=[sum(w.encode()) % 60 + 3 for w in text.split()])


def omnigen() -> dict[str, Any]:
    """Return OmniGen's parts."""
    read_texts_alone()
    net = tiny(
        "OmniGenTransformer2DModel",
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=16,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        vocab_size=64,
        pad_token_id=0,
        pos_embed_max_size=16,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
    )
    deep = {
        "block_out_channels": (4,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return {"transformer": net, "vae": kl(**deep), "tokenizer": Spelled()}


add(
    "OmniGenPipeline",
    omnigen,
    lambda: SIZE | {"prompt": "a red fox in the snow"},
    schedulers={
        "FlowMatchEulerDiscreteScheduler": {"invert_sigmas": True, "num_train_timesteps": 1}
    },
)


def blip() -> dict[str, Any]:
    from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import (
        BlipImageProcessor,
    )
    from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import (
        ContextCLIPTextModel,
    )

    torch.manual_seed(0)
    text = ContextCLIPTextModel(clip_text().config).eval()
    return {
        "unet": unet(),
        "vae": kl(),
        "controlnet": frames_control(),
        "text_encoder": text,
        "tokenizer": letters(),
        "qformer": Plain(config=Plain(num_query_tokens=4)),
        "image_processor": BlipImageProcessor(size={"height": 16, "width": 16}),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }


add(
    "BlipDiffusionControlNetPipeline",
    blip,
    lambda: {
        "prompt": ["in the snow"],
        "reference_image": picture(16),
        "condtioning_image": picture(16, seed=1),
        "source_subject_category": ["fox"],
        "target_subject_category": ["dog"],
        "height": 16,
        "width": 16,
        "output_type": "pt",
    },
    instead={"get_query_embeddings": lambda *_: draw(1, 4, 8, seed=5)},
    schedulers={"PNDMScheduler": {"skip_prk_steps": True}, "DDIMScheduler": {"clip_sample": False}},
)


def encoders() -> dict[str, Any]:
    """Return small text encoders of random weights with their tokenizers."""
    from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

    torch.manual_seed(0)
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words += [(chr(ord("a") + k), -3.0) for k in range(26)]
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return {
        "text_encoder": CLIPTextModel(clip_text().config).eval(),
        "tokenizer": letters(),
        "text_encoder_2": T5EncoderModel(T5Config(vocab_size=64, **sizes)).eval(),
        "tokenizer_2": T5TokenizerFast(vocab=words, extra_ids=0, model_max_length=16),
    }


add(
    "VisualClozePipeline",
    lambda: cloze() | encoders(),
    lambda: (
        CLOZE()
        | {"output_type": "pt", "upsampling_height": 32, "upsampling_width": 32}
        | {"max_sequence_length": 16}
    ),
    guidance=None,
    schedulers=NOISED,
)
