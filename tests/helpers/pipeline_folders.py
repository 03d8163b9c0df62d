"""Small random pipelines of Diffusers, built on the spot."""

import string
import warnings

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

import diffusers
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler

LETTERS = string.ascii_lowercase


def clip_tokenizer(length=16):
    vocab = {
        t: i
        for i, t in enumerate(
            [*LETTERS, *(c + "</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
        )
    }
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def clip_text(kind=CLIPTextModel, *, width=8, projection=12, seed=0):
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 54,
        "max_position_embeddings": 16,
    }
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    return spread(kind(CLIPTextConfig(**sizes, **ends, projection_dim=projection)))


def t5_tokenizer():
    vocab = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((c, -3.0) for c in string.ascii_letters),
    ]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def t5_text(width=20, seed=5):
    torch.manual_seed(seed)
    return spread(
        T5EncoderModel(
            T5Config(vocab_size=64, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
        )
    )


def spread(module):
    """Make random weights that matter: those of a fresh network are near zero in many places."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(
                0.3 * torch.randn_like(p) / max(1, p[0].numel()) ** 0.5
                if p.ndim > 1
                else 0.1 * torch.randn_like(p)
            )
    return module.eval()


def vae(channels=4, seed=7, **more):
    torch.manual_seed(seed)
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
    }
    return spread(
        AutoencoderKL(
            **kinds, norm_num_groups=4, latent_channels=channels, scaling_factor=0.6, **more
        )
    )


def ddim(kind="epsilon"):
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=kind,
    )


def unet(cross=8, seed=1, **more):
    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
    }
    sizes = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 8,
        "cross_attention_dim": cross,
    }
    return spread(
        diffusers.UNet2DConditionModel(
            **{"in_channels": 4, "out_channels": 4, **blocks, **sizes, **more}
        )
    )


def sd(kind=diffusers.StableDiffusionPipeline, **parts):
    own = {
        "vae": vae,
        "text_encoder": clip_text,
        "tokenizer": clip_tokenizer,
        "unet": unet,
        "scheduler": ddim,
    }
    parts = {**{name: make() for name, make in own.items() if name not in parts}, **parts}
    if "safety_checker" in kind._optional_components:
        parts.update(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**parts)


def sdxl(zeros=True):
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 12,
    }
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection, width=10, seed=3),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(18, **added),
        scheduler=ddim("v_prediction"),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def sd3(third=True, **scheduler):
    torch.manual_seed(2)
    sizes = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "joint_attention_dim": 20,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 24,
    }
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, pos_embed_max_size=16, **sizes
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=spread(net),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=vae(shift_factor=0.2),
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection, width=10, seed=3),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text() if third else None,
        tokenizer_3=t5_tokenizer() if third else None,
    )


def flux(distilled=True, dynamic=True):
    torch.manual_seed(2)
    sizes = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 20,
        "pooled_projection_dim": 8,
    }
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, guidance_embeds=distilled, axes_dims_rope=(2, 2, 4), **sizes
    )
    return diffusers.FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae=vae(shift_factor=0.2),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=spread(net),
    )


def pixart(sigma=False, sizes=False, channels=4):
    torch.manual_seed(2)
    more = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 20,
        "norm_num_groups": 1,
    }
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=2 * channels,
        use_additional_conditions=sizes,
        **more,
    )
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    return kind(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=vae(),
        transformer=spread(net),
        scheduler=ddim(),
    )


def dit():
    torch.manual_seed(2)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "norm_num_groups": 1,
    }
    net = diffusers.DiTTransformer2DModel(
        in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **sizes
    )
    return diffusers.DiTPipeline(transformer=spread(net), vae=vae(), scheduler=ddim())
