"""Read and write a model as a folder, in Diffusers' layout, so that Diffusers' classes read it too.

guidestar.json               shape, further networks, defaults, measured figures
guidance.toml                the guidance, to read and change
model_index.json             the pipeline of Diffusers that can sample it, where there is one
README.md                    its card
unet/ or transformer/        the network
scheduler/                   the schedule, and what the network predicts
condition/                   the encoder of its conditions
text_encoder/, tokenizer/    CLIP's, where a caption is the only condition
weak/, …                     further networks, each with its conditions
averages/                    the network with other averages of its weights
variants/                    further networks with cards of their own (`variants`)
classifier/, judge/          classifiers; a judge may be a whole CLIP
clip/, clean_clip/           image towers of CLIP, whose text tower is text_encoder/
vae/                         AutoencoderKL, of a model of latents

A network that the user's code makes ("module:callable") is in network/, and is only built with
``trust=True``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.levels import Flow
from ..diffusers import guidance_file as recipe
from ..diffusers.guidance_file import Defaults
from ..diffusers.read.building import one_budget
from ..diffusers.read.pipeline import read_pipeline, readable_of
from ..networks.cpu_fastpath import lean
from .folder_reading import UnknownAverageError, read_decode, read_own
from .locating import find_folder, split_variant
from .manifest import NAME
from .model import Model
from .variants import UnknownVariantError, variant_folder


class WeightsError(RuntimeError):
    """A model's folder is damaged: a file is missing, unreadable, or does not fit its network."""


if TYPE_CHECKING:
    pass

CASCADE = "cascade.json"
"""The file that makes a folder a cascade's."""
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
DTYPES |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return torch's dtype of a name.

    Raises:
        ValueError: there is none, or it is not a floating point one.
    """
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in DTYPES.values():
        raise ValueError(
            f"dtype must be a floating point one, not {str(dtype)!r}; give one of "
            f"{', '.join(DTYPES)}, or torch's of that name"
        )
    return found


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
    """Load one model. Arguments and errors as in `guidestar.model.loading.load`.

    Raises:
        ValueError: the folder is a cascade's.
    """
    name, variant = split_variant(name, variant)
    folder = find_folder(name)
    if (folder / CASCADE).is_file():
        raise ValueError(
            f"{folder} is a cascade, and this needs one model; give the folder of a stage in it"
        )
    ours = (folder / NAME).is_file()
    if ours and (size is not None or dtype not in (None, "float32", torch.float32)):
        raise ValueError(
            f"{name} is a model of guidestar's own, which has one size and is loaded in float32; "
            "leave size= and dtype= out (they are for pipelines of Diffusers)"
        )
    if average is not None and not ours:
        raise ValueError(
            f"{folder} is not a model of guidestar's own, so it keeps no averages of its weights; "
            "leave average= out"
        )
    home = folder
    if variant is not None:
        if average is not None:
            raise ValueError(f"the variant {variant!r} keeps no averages; leave average= out")
        home, name = variant_folder(folder, variant), f"{name}:{variant}"
    kind = dtype_of(dtype)
    with one_budget():
        model = _read(folder, home, str(name), average, trust, size, kind or torch.float32)
    for denoiser in (model.denoiser, *(d for d, _ in model.nets.values())):
        if isinstance(denoiser, nn.Module):
            lean(denoiser)
    return model.to(device)


def _read(
    folder: Path,
    home: Path,
    name: str,
    average: str | None,
    trust: bool,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
) -> Model:
    ours = (folder / NAME).is_file()
    try:
        model = (
            read_own(folder, home, name, average, trust)
            if ours
            else _read_foreign(folder, name, size, dtype)
        )
        model.defaults |= recipe.settings(home)
        return model
    except (UnknownAverageError, UnknownVariantError):
        raise
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _read_foreign(
    folder: Path, name: str, size: tuple[int, int] | None, dtype: torch.dtype
) -> Model:
    family, parts = readable_of(folder), read_pipeline(folder, size=size, dtype=dtype)
    if parts.shape is None:
        raise ValueError(
            f"{folder}: its network leaves the size of a sample open (no sample_size in "
            "config.json)"
        )
    conditional = parts.encoder is not None and parts.encoder.null(1) is not None
    usual = family.guidance if family else "cfg(3)"
    defaults = Defaults(guidance=usual) if conditional else Defaults()
    if isinstance(parts.schedule, Flow):
        defaults["grid"] = "uniform"  # bent by the flow's shift, as the pipelines space their steps
    decode = read_decode(folder, {"shape": parts.shape})
    return Model(
        name=name,
        denoiser=parts.denoiser,
        schedule=parts.schedule,
        shape=parts.shape,
        encoder=parts.encoder,
        decode=decode,
        defaults=defaults,
    )
