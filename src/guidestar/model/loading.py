"""Load a model, or a whole cascade, from its name or folder."""

from __future__ import annotations

from pathlib import Path

import torch

from .cascade import is_cascade, load_cascade
from .folder import load as load_model
from .model import Model


def load(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    average: str | None = None,
    variant: str | None = None,
    trust: bool = False,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype | str | None = None,
) -> Model:
    """Load a model that ships with guidestar, a pipeline of Diffusers, any folder with a network
    and a scheduler, or a cascade.

    Of pipelines, Stable Diffusion, SDXL, SD3, Flux, PixArt, DiT, DDPM and DDIM are read
    (`guidestar.diffusers.read.pipeline.READABLE`): network, noise levels, text encoders and VAE.
    The folder of a cascade gives a `Cascade`, which samples, plans and repeats as a model does.

    Args:
        name: "fashion-mnist", a path, or the name of a repository on the Hugging Face hub
            ("owner/model"), of which only settings and safetensors are fetched.
        device: where its networks go.
        average: which average of its weights, where its training kept several; by default the
            first.
        variant: another network of the model with defaults of its own, e.g. "4-step", a student
            for four steps (`guidestar.model.variants`); "model:4-step" as ``name`` is the same.
        trust: import and call the code that a folder names for its network; without it, such a
            folder is refused.
        size: height and width in pixels, of a pipeline that takes a prompt.
        dtype: of a pipeline's network and text encoders, as torch's or by name ("bfloat16");
            float32 by default. The VAE stays in float32.

    Raises:
        ValueError: there is no such model, here or on the hub; no such average, variant or
            dtype.
        WeightsError: a file is damaged, or does not fit its network; it is named. Or the networks
            would take more than this machine's memory; the environment variable GUIDESTAR_MEMORY
            (in GB) takes its place.
    """
    if is_cascade(name):
        if any(given is not None for given in (average, variant, size, dtype)):
            raise ValueError(
                f"{name} is a cascade; average=, variant=, size= and dtype= are of its stages, "
                "which load alone"
            )
        return load_cascade(name, trust=trust, device=device)  # type: ignore[return-value]
    return load_model(
        name,
        device=device,
        average=average,
        variant=variant,
        trust=trust,
        size=size,
        dtype=dtype,
    )
