"""Time guided Diffusers pipelines whose layout is learnt against their own guidance, in turn, in
one process, on the same weights, at equal passes.

    make bench                                         (what docs/diffusers.md quotes)
    python benchmarks/newer_pipelines.py --rounds 15

Random networks, smaller than those of the models: Chroma's (packed samples, two calls a step),
CogVideoX's (a video, both halves in one call) and Z-Image's (lists). Prints the ratio of median
times and the largest difference of the samples, relative to their largest number.
"""

from __future__ import annotations

import argparse

import torch
from against_diffusers import in_turn

import diffusers
import guidestar

STEPS, SCALE = 8, 5.0


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(kind, **sizes):
    """Make a network of random weights, none of them zero."""
    torch.manual_seed(0)
    net = getattr(diffusers, kind)(**sizes).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.02)
    return net


def pipeline(kind, net, scheduler):
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "image_encoder"))
    made = getattr(diffusers, kind)
    known = made.__init__.__annotations__
    pipe = made(
        **{k: v for k, v in parts.items() if k in known}, transformer=net, scheduler=scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chroma():
    net = network(
        "ChromaTransformer2DModel",
        in_channels=64,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=6,
        joint_attention_dim=256,
        axes_dims_rope=(16, 24, 24),
        approximator_num_channels=64,
        approximator_hidden_dim=256,
        approximator_layers=2,
    )
    masks = torch.ones(1, 64, dtype=torch.bool)
    inputs = {
        "prompt_embeds": draw(1, 64, 256, seed=1),
        "negative_prompt_embeds": draw(1, 64, 256, seed=2),
        "prompt_attention_mask": masks,
        "negative_prompt_attention_mask": masks,
        "height": 256,
        "width": 256,
    }
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return pipeline("ChromaPipeline", net, scheduler), inputs, f"cfg({SCALE})"


def cogvideo():
    net = network(
        "CogVideoXTransformer3DModel",
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        time_embed_dim=128,
        text_embed_dim=256,
        num_layers=8,
        sample_width=32,
        sample_height=32,
        sample_frames=9,
        max_text_seq_length=64,
    )
    inputs = {
        "prompt_embeds": draw(1, 64, 256, seed=1),
        "negative_prompt_embeds": draw(1, 64, 256, seed=2),
        "height": 256,
        "width": 256,
        "num_frames": 9,
    }
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return pipeline("CogVideoXPipeline", net, scheduler), inputs, f"cfg({SCALE})"


def z_image():
    """Its scale counts from 0."""
    net = network(
        "ZImageTransformer2DModel",
        in_channels=16,
        dim=384,
        n_layers=8,
        n_refiner_layers=1,
        n_heads=6,
        n_kv_heads=6,
        cap_feat_dim=256,
        axes_dims=[16, 24, 24],
        axes_lens=[512, 64, 64],
    )
    inputs = {
        "prompt_embeds": [draw(64, 256, seed=1)],
        "negative_prompt_embeds": [draw(64, 256, seed=2)],
        "height": 256,
        "width": 256,
    }
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipeline("ZImagePipeline", net, scheduler), inputs, f"cfg({SCALE + 1})"


def samples(result):
    return result.images if hasattr(result, "images") else result.frames


def measure(name, make, rounds, steps):
    pipe, inputs, ours = make()

    def own():
        return samples(
            pipe(
                **inputs,
                num_inference_steps=steps,
                guidance_scale=SCALE,
                output_type="latent",
                generator=torch.Generator().manual_seed(0),
            )
        )

    def guided():
        with guidestar.guided(pipe, ours):
            return own()

    (plain, time), (wanted, made) = in_turn([own, guided], rounds)
    millions = sum(p.numel() for p in pipe.transformer.parameters()) / 1e6
    apart = float((made - wanted).abs().max() / wanted.abs().max())
    print(
        f"{name}: {millions:.1f} M parameters, own {plain:.3f} s; {ours} {time / plain:.3f} of the "
        f"time, difference {apart:.1e}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.steps} steps, "
        f"{arguments.rounds} rounds in turn, medians"
    )
    for name, make in (("Chroma", chroma), ("CogVideoX", cogvideo), ("Z-Image", z_image)):
        measure(name, make, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
