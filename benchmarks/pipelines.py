"""Time guided Diffusers pipelines against the pipelines' own guidance, in turn, in one process, on
the same weights.

    make bench                                   (what docs/diffusers.md quotes)
    python benchmarks/pipelines.py --rounds 15
    python benchmarks/pipelines.py --images 1    (a call of one row costs more than half of one of
    two)

Random networks in the shape of SDXL and SD3, smaller; the passes are what takes the time. For each:
`cfg` at equal passes; `cfg` in an interval that guides half of the steps; `cfg + pag` in three
passes against Diffusers' PAG pipeline. Prints ratios of median times, and the largest difference of
the latents relative to their largest number.
"""

from __future__ import annotations

import argparse

import torch
from against_diffusers import in_turn

import guidestar
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

STEPS, SCALE, PAG = 10, 5.0, 3.0


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sdxl(size):
    """Return a pipeline and its PAG twin on the same weights, and the inputs of both."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 4),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=256,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 6 * 32,
    )
    parts = {
        **dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        "unet": unet.eval(),
        "add_watermarker": False,
    }
    inputs = {
        "prompt_embeds": draw(1, 77, 256, seed=1),
        "negative_prompt_embeds": draw(1, 77, 256, seed=2),
    }
    inputs |= {
        "pooled_prompt_embeds": draw(1, 128, seed=3),
        "negative_pooled_prompt_embeds": draw(1, 128, seed=4),
    }
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    make = lambda kind, **more: kind(**parts, scheduler=EulerDiscreteScheduler(**schedule), **more)
    return (
        make(StableDiffusionXLPipeline),
        make(StableDiffusionXLPAGPipeline, pag_applied_layers=["mid"]),
        inputs,
        "pag(3)",
    )


def sd3(size):
    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=size,
        num_layers=8,
        attention_head_dim=64,
        num_attention_heads=6,
        in_channels=16,
        out_channels=16,
        joint_attention_dim=256,
        caption_projection_dim=384,
        pooled_projection_dim=128,
        pos_embed_max_size=size,
        qk_norm="rms_norm",
    )
    with torch.no_grad():
        net.proj_out.weight.normal_(std=0.02)
    parts = {
        **dict.fromkeys(
            (
                "vae",
                "text_encoder",
                "text_encoder_2",
                "text_encoder_3",
                "tokenizer",
                "tokenizer_2",
                "tokenizer_3",
            )
        ),
        "transformer": net.eval(),
    }
    inputs = {
        "prompt_embeds": draw(1, 77, 256, seed=1),
        "negative_prompt_embeds": draw(1, 77, 256, seed=2),
    }
    inputs |= {
        "pooled_prompt_embeds": draw(1, 128, seed=3),
        "negative_pooled_prompt_embeds": draw(1, 128, seed=4),
    }
    make = lambda kind, **more: kind(
        **parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **more
    )
    return (
        make(StableDiffusion3Pipeline),
        make(StableDiffusion3PAGPipeline, pag_applied_layers=["blocks.4"]),
        inputs,
        "pag(3, layers='transformer_blocks.4.attn')",
    )


def halfway(pipe):
    """Return the noise ratio above which half of the steps are."""
    pipe.scheduler.set_timesteps(STEPS)
    sigma = float(pipe.scheduler.sigmas[STEPS // 2])
    return sigma / (1 - sigma) if "Flow" in type(pipe.scheduler).__name__ else sigma


def measure(name, make, size, rounds, images):
    pipe, twin, inputs, pag = make(size)
    for p in (pipe, twin):
        p.set_progress_bar_config(disable=True)
    inputs = {name: t.repeat(images, *[1] * (t.ndim - 1)) for name, t in inputs.items()}
    common = {
        **inputs,
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "output_type": "latent",
        "height": 8 * size,
        "width": 8 * size,
    }

    def own(p=pipe, **more):
        return p(**common, generator=torch.Generator().manual_seed(0), **more).images

    def guided(expression):
        with guidestar.guided(pipe, expression):
            return own()

    half = f"cfg({SCALE}, interval=({halfway(pipe)}, inf))"
    runs = {
        "own cfg": own,
        "cfg": lambda: guided(f"cfg({SCALE})"),
        "half": lambda: guided(half),
        "own pag": lambda: own(twin, pag_scale=PAG),
        "cfg + pag": lambda: guided(f"cfg({SCALE}) + {pag}"),
    }
    times, results = in_turn(list(runs.values()), rounds)
    time, result = dict(zip(runs, times, strict=True)), dict(zip(runs, results, strict=True))
    apart = lambda a, b: float((result[a] - result[b]).abs().max() / result[b].abs().max())
    net = getattr(pipe, "unet", None) or pipe.transformer
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    print(f"{name}: {millions:.1f} M parameters, own cfg {time['own cfg']:.3f} s")
    print(
        f"  cfg({SCALE:g}) at equal passes: {time['cfg'] / time['own cfg']:.3f} of the time, "
        f"difference {apart('cfg', 'own cfg'):.1e}"
    )
    print(f"  the same in half of the steps: {time['half'] / time['own cfg']:.3f} of the time")
    print(
        f"  cfg({SCALE:g}) + pag({PAG:g}): {time['cfg + pag'] / time['own pag']:.3f} of the PAG "
        f"pipeline's time, difference {apart('cfg + pag', 'own pag'):.1e}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=32, help="of the latents")
    parser.add_argument("--images", type=int, default=4, help="of the prompt, in one call")
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.images} "
        f"images, {arguments.rounds} rounds in turn, medians"
    )
    for name, make in (("SDXL-shaped", sdxl), ("SD3-shaped", sd3)):
        measure(name, make, arguments.size, arguments.rounds, arguments.images)


if __name__ == "__main__":
    main()
