"""A small random pipeline of each family, with requests told as embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLTemporalDecoder,
    AutoencoderOobleck,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    KandinskyV22Pipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
)
from helpers.pipelines import SCHEDULE, in_double, quiet, text_unet, vae

WORDS = 5
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 2, "sample_size": 8}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def words(batch: int, seed: int, width: int = 8, size: int = WORDS) -> Tensor:
    """One row a sample, that does not depend on how many there are."""
    return torch.cat([draw(1, size, width, seed=seed + k) for k in range(batch)])


def pooled(batch: int, seed: int, width: int = 8) -> Tensor:
    return torch.cat([draw(1, width, seed=seed + 50 + k) for k in range(batch)])


def both(
    make: Callable[..., Tensor], batch: int, first: int, name: str, **sizes: int
) -> dict[str, Tensor]:
    return {
        name: make(batch, first, **sizes),
        f"negative_{name}": make(batch, 100 + first, **sizes),
    }


@dataclass
class Family:
    """A pipeline, and what it is asked for the samples ``first, first + 1, …``."""

    pipe: Any
    ask: Callable[[int, int], dict[str, Any]]
    scale: str | None = "guidance_scale"
    output: str = "latent"
    result: Callable[[Any], Tensor] = lambda out: out.images
    tolerance: float = 1e-6
    predicts: str = "velocity"
    packed: Any = None
    more: dict[str, Any] = field(default_factory=dict)

    def draw(self, batch: int = 2, first: int = 0, **more: Any) -> Tensor:
        seeds = [torch.Generator().manual_seed(first + k) for k in range(batch)]
        scale = {self.scale: 4.0} if self.scale else {}
        return self.result(
            self.pipe(
                **{
                    **self.ask(batch, first),
                    **scale,
                    "generator": seeds,
                    "num_inference_steps": 3,
                    "output_type": self.output,
                    **self.more,
                    **more,
                }
            )
        )


def ready(net: nn.Module, seed: int) -> Any:
    """Draw all weights: some networks start with zeros."""
    generator = torch.Generator().manual_seed(seed)
    net.eval().double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.15)
    return net


def sdxl() -> Family:
    unet = text_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 24,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
        add_watermarker=False,
        **parts,
    )
    ask = lambda n, k: {
        **both(words, n, k, "prompt_embeds"),
        **both(pooled, n, k, "pooled_prompt_embeds"),
    }
    return Family(pipe, ask, predicts="eps")


def pixart() -> Family:
    net = ready(
        PixArtTransformer2DModel(
            **TRANSFORMER,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            caption_channels=8,
            use_additional_conditions=False,
        ),
        1,
    )
    pipe = PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=net,
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE),
    )

    def ask(n, k):
        masks = {
            "prompt_attention_mask": torch.ones(n, WORDS).long(),
            "negative_prompt_attention_mask": (torch.arange(WORDS) < 3).long().expand(n, WORDS),
        }
        return {
            **both(words, n, k, "prompt_embeds"),
            **masks,
            "negative_prompt": None,
            "height": 16,
            "width": 16,
            "use_resolution_binning": False,
        }

    return Family(pipe, ask, predicts="eps")


def dit() -> Family:
    net = ready(
        DiTTransformer2DModel(
            **TRANSFORMER, in_channels=4, out_channels=8, num_layers=2, num_embeds_ada_norm=1000
        ),
        2,
    )
    pipe = DiTPipeline(
        transformer=net,
        vae=vae(),
        scheduler=in_double(DDIMScheduler(clip_sample=False)),
        id2label={3: "hen", 4: "cock, rooster"},
    )
    return Family(
        pipe,
        lambda n, k: {"class_labels": [3 + k + i for i in range(n)]},
        output="pt",
        predicts="eps",
    )


def ddpm() -> Family:
    torch.manual_seed(3)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    net = (
        UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            **blocks,
        )
        .eval()
        .double()
    )
    return Family(
        DDPMPipeline(net, in_double(DDPMScheduler(clip_sample=False))),
        lambda n, k: {"batch_size": n},
        scale=None,
        output="pt",
        predicts="eps",
    )


def sd3(scheduler=FlowMatchEulerDiscreteScheduler) -> Family:
    text = {
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 8,
    }
    net = ready(
        SD3Transformer2DModel(
            **TRANSFORMER, **text, in_channels=4, out_channels=4, num_layers=3, qk_norm="rms_norm"
        ),
        4,
    )
    parts = dict.fromkeys(
        (
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
            "tokenizer",
            "tokenizer_2",
            "tokenizer_3",
        )
    )
    pipe = StableDiffusion3Pipeline(
        transformer=net, vae=vae(), scheduler=scheduler(shift=3.0), **parts
    )
    return Family(
        pipe,
        lambda n, k: {
            **both(words, n, k, "prompt_embeds"),
            **both(pooled, n, k, "pooled_prompt_embeds"),
            "height": 16,
            "width": 16,
        },
    )


def flux(distilled: bool = False) -> Family:
    text = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4)}
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "patch_size": 1,
        "in_channels": 16,
        "guidance_embeds": distilled,
    }
    net = ready(FluxTransformer2DModel(**sizes, **text, num_layers=1, num_single_layers=2), 5)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(), transformer=net, **parts
    )
    ask = lambda n, k: {
        **both(words, n, k, "prompt_embeds"),
        **both(pooled, n, k, "pooled_prompt_embeds"),
        "height": 16,
        "width": 24,
    }
    return Family(
        pipe,
        ask,
        scale="true_cfg_scale",
        packed=lambda x: FluxPipeline._unpack_latents(x, 16, 24, 2),
    )


def auraflow() -> Family:
    net = ready(
        AuraFlowTransformer2DModel(
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
        6,
    )
    pipe = AuraFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )

    def ask(n, k):
        masks = {
            "prompt_attention_mask": torch.ones(n, WORDS).long(),
            "negative_prompt_attention_mask": torch.ones(n, WORDS).long(),
        }
        return {**both(words, n, k, "prompt_embeds"), **masks, "height": 16, "width": 16}

    return Family(pipe, ask)


def wan() -> Family:
    sizes = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
    }
    net = ready(
        WanTransformer3DModel(
            **sizes,
            text_dim=8,
            freq_dim=16,
            ffn_dim=16,
            num_layers=2,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ),
        7,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=3.0,
    )
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, transformer=net, vae=None, scheduler=scheduler
    )
    return Family(
        pipe,
        lambda n, k: {
            **both(words, n, k, "prompt_embeds"),
            "height": 32,
            "width": 32,
            "num_frames": 5,
        },
        result=lambda out: out.frames,
    )


def ltx() -> Family:
    sizes = {
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
    }
    net = ready(
        LTXVideoTransformer3DModel(
            **sizes, cross_attention_dim=16, num_layers=1, caption_channels=8
        ),
        8,
    )
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=net,
    )

    def ask(n, k):
        masks = {
            "prompt_attention_mask": torch.ones(n, WORDS).long(),
            "negative_prompt_attention_mask": (torch.arange(WORDS) < 3).long().expand(n, WORDS),
        }
        return {
            **both(words, n, k, "prompt_embeds"),
            **masks,
            "height": 64,
            "width": 96,
            "num_frames": 9,
        }

    return Family(
        pipe,
        ask,
        result=lambda out: out.frames,
        packed=lambda x: LTXPipeline._unpack_latents(x, 2, 2, 3),
    )


def svd() -> Family:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(9)
    blocks = {
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    }
    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "in_channels": 8,
        "out_channels": 4,
        "sample_size": 8,
        "cross_attention_dim": 8,
        "num_attention_heads": 2,
    }
    net = (
        UNetSpatioTemporalConditionModel(
            **blocks, **sizes, projection_class_embeddings_input_dim=24, addition_time_embed_dim=8
        )
        .eval()
        .double()
    )
    tower = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8,
            projection_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=224,
            intermediate_size=16,
            patch_size=112,
        )
    )
    coder = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
    )
    scheduler = EulerDiscreteScheduler(
        **SCHEDULE,
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    processor = CLIPImageProcessor(crop_size=224, size=224)
    pipe = StableVideoDiffusionPipeline(
        vae=coder.eval().double(),
        image_encoder=tower.eval().double(),
        unet=net,
        scheduler=scheduler,
        feature_extractor=processor,
    )
    pixels = Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3)
    ask = lambda n, k: {
        "image": [pixels] * n,
        "num_frames": 2,
        "height": 16,
        "width": 16,
        "min_guidance_scale": 4.0,
    }
    return Family(
        pipe,
        ask,
        scale="max_guidance_scale",
        result=lambda out: out.frames,
        predicts="v",
        packed=lambda x: x.transpose(1, 2),
    )


def stable_audio() -> Family:
    sizes = {
        "sample_size": 8,
        "in_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 2,
        "out_channels": 4,
    }
    net = ready(
        StableAudioDiTModel(
            **sizes,
            cross_attention_dim=8,
            cross_attention_input_dim=8,
            global_states_input_dim=16,
            time_proj_dim=8,
        ),
        10,
    )
    coder = AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    torch.manual_seed(11)
    project = StableAudioProjectionModel(
        text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32
    ).double()
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, prediction_type="v_prediction"
    )
    pipe = StableAudioPipeline(
        vae=coder,
        text_encoder=None,
        projection_model=project,
        tokenizer=None,
        transformer=net,
        scheduler=scheduler,
    )
    ask = lambda n, k: {**both(words, n, k, "prompt_embeds"), "audio_end_in_s": 4.0}
    return Family(pipe, ask, result=lambda out: out.audios, predicts="edm")


def kandinsky() -> Family:
    torch.manual_seed(12)
    net = (
        UNet2DConditionModel(
            in_channels=4,
            out_channels=8,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            encoder_hid_dim=8,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=8,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
        )
        .eval()
        .double()
    )
    coder = VQModel(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=2,
        num_vq_embeddings=8,
    )
    pipe = KandinskyV22Pipeline(
        unet=net, scheduler=in_double(DDIMScheduler(**SCHEDULE, clip_sample=False)), movq=coder
    )
    ask = lambda n, k: {
        **{
            name: pooled(n, s)
            for name, s in (("image_embeds", k), ("negative_image_embeds", 100 + k))
        },
        "height": 16,
        "width": 16,
    }
    return Family(pipe, ask, predicts="eps")


MAKE = {
    f.__name__: f
    for f in (sdxl, pixart, dit, ddpm, sd3, flux, auraflow, wan, ltx, svd, stable_audio, kandinsky)
}
MAKE["sd3-heun"] = lambda: sd3(FlowMatchHeunDiscreteScheduler)


def family(name: str) -> Family:
    made = MAKE[name]()
    quiet(made.pipe)
    return made
