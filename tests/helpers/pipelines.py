"""Small random Stable Diffusion pipelines in float64, and what their runs are compared with."""

from __future__ import annotations

from functools import cache

import torch
from PIL import Image

from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from helpers import pipeline_folders as made

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 4
REQUEST = {
    "prompt": ["cat", "a dog"],
    "negative_prompt": ["", "mud"],
    "num_inference_steps": STEPS,
    "output_type": "latent",
    "guidance_scale": 5.0,
}


@cache
def clip_text():
    """A text encoder of letters; all pipelines of the tests share it."""
    return made.clip_text().double()


def vae(channels: int = 4):
    return made.vae(channels).double()


def text_unet(seed: int = 1, inputs: int = 4, **more):
    return made.unet(seed=seed, in_channels=inputs, **more).double()


def in_double(scheduler):
    """Let a scheduler with a table of ᾱ compute in float64, with the numbers of its own table."""
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


def stable_diffusion(kind=StableDiffusionPipeline, scheduler=None, more=None, **unet):
    scheduler = scheduler or in_double(
        DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    )
    return quiet(
        made.sd(
            kind,
            vae=vae(),
            text_encoder=clip_text(),
            unet=text_unet(**unet),
            scheduler=scheduler,
            **(more or {}),
        )
    )


def without_zeros(net):
    """Draw the weights that start at zero."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2)
    return net


def controlled():
    """A pipeline with a ControlNet, and the pictures it is told for two samples."""
    torch.manual_seed(6)
    sizes = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
    }
    net = (
        ControlNetModel(
            **sizes,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            conditioning_embedding_out_channels=(4, 8),
        )
        .double()
        .eval()
    )
    pipe = stable_diffusion(
        StableDiffusionControlNetPipeline, more={"controlnet": without_zeros(net)}
    )
    return pipe, {
        "image": [Image.frombytes("RGB", (8, 8), bytes(range(k, 192 + k))) for k in (0, 9)],
        "height": 8,
        "width": 8,
    }


def image_prompted(pipe):
    """Give a pipeline an IP-Adapter; return what its network is told of images: of no image, and of
    that of all samples.
    """
    generator = torch.Generator().manual_seed(3)
    weight = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    names = [n for n in pipe.unet.attn_processors if "attn2" in n]
    keys = {
        f"{2 * i + 1}.to_{x}_ip.weight": weight(16, 8) for i, _ in enumerate(names) for x in "kv"
    }
    image = {
        "proj.weight": weight(32, 6),
        "proj.bias": weight(32),
        "norm.weight": weight(8),
        "norm.bias": weight(8),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": keys}])
    pipe.unet.double()
    return {
        "ip_adapter_image_embeds": [
            torch.cat([torch.zeros(1, 1, 6, dtype=torch.float64), weight(1, 1, 6)])
        ]
    }


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int):
    return [torch.Generator().manual_seed(s) for s in seeds]


def drawn(pipe, **more):
    return pipe(**{**REQUEST, "generator": seeded(3, 4), **more}).images


def close(a, b, tolerance=1e-6):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def told(pipe):
    """The conditions of the request: negative rows, then prompts."""
    prompts, negative = pipe.encode_prompt(
        REQUEST["prompt"], "cpu", 1, True, REQUEST["negative_prompt"]
    )
    return torch.cat([negative, prompts])


def alpha_sigma(scheduler, i, t):
    """α and σ of the scheduler's own x at call i of the network, from its own numbers."""
    if "DDIM" in type(scheduler).__name__:
        return float(scheduler.alphas_cumprod[t]) ** 0.5, (
            1 - float(scheduler.alphas_cumprod[t])
        ) ** 0.5
    sigma = float(scheduler.sigmas[i])
    scaled = type(scheduler).__name__.startswith(("Euler", "Heun"))
    return (1.0, sigma) if scaled else (1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5)


@torch.no_grad()
def walked(pipe, guide, x):
    """Walk with the pipeline's scheduler, guided by ``guide(i, c, u, x, alpha, sigma) -> x0``, all
    of them written out.
    """
    scheduler, v = pipe.scheduler, pipe.scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(STEPS)
    x, embeds = x * scheduler.init_noise_sigma, told(pipe)
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t)
        out = pipe.unet(torch.cat([seen, seen]), t, encoder_hidden_states=embeds).sample
        alpha, sigma = alpha_sigma(scheduler, i, t)
        n = (alpha**2 + sigma**2) ** 0.5
        a, s = alpha / n, sigma / n
        u, c = ((a * x / n - s * o) if v else (x - sigma * o) / alpha for o in out.chunk(2))
        x0 = guide(i, c, u, x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        x = scheduler.step(a * eps - s * x0 if v else eps, t, x).prev_sample
    return x
