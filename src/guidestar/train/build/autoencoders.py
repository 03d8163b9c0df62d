"""From a recipe to its autoencoder, and to the folder whose latents the other parts learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...core.rng import Draw
from ...data.latents import check_spread, pictures_of
from ...data.source import Source
from ...diffusers.objects import DiffusersNetwork
from ...diffusers.read.safetensors_io import read_module, read_tensors
from ...diffusers.read.vae import raw_latents
from ...diffusers.write import WEIGHTS, write_module
from ...io.documents import JSONObject
from ...networks import from_config as networks
from ..objectives.decoding import Decoding
from ..objectives.objective import Built
from ..objectives.reconstruction import Reconstruction
from ..recipe.parts import AutoencoderPart, DecoderPart
from ..recipe.schema import Recipe
from ..recipe.tables import OWN_VAE
from .limits import copies_of, within_memory

_MOST = 8192
"""Pictures whose latents are measured."""


def vae_folder(recipe: Recipe, out: Path | None) -> Path | None:
    """Return the folder of the autoencoder that ``data.vae`` names; None where it is the recipe's
    own and not trained.
    """
    if recipe.data.vae is None:
        return None
    if recipe.data.vae != OWN_VAE:
        return Path(recipe.data.vae)
    folder = out / "vae" if out else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def build_autoencoder(spec: AutoencoderPart, source: Source) -> Built:
    """Make a fresh autoencoder of pictures, and what trains it.

    Raises:
        ValueError: there are no square pictures, or Diffusers refuses the settings.
    """
    module = fresh_autoencoder(spec, source.shape)
    return Built(
        module=module,
        objective=Reconstruction(scales=spec.scales, kl=spec.kl),
        prepare=lambda targets: {},
    )


def build_decoder(recipe: Recipe, spec: DecoderPart, source: Source, out: Path | None) -> Built:
    """Take the autoencoder whose latents the model learns, of which only the decoder will learn.

    Args:
        recipe: names the autoencoder; a fresh one stands for the recipe's own until it is trained.
        spec: the decoder's part of the recipe.
        source: pictures.
        out: where the recipe's own autoencoder is.

    Raises:
        ValueError: as `build_autoencoder`, or the autoencoder has no decoder by that name.
    """
    folder = vae_folder(recipe, out)
    if folder is not None:
        module = read_module(folder)
    else:
        assert recipe.autoencoder is not None
        module = fresh_autoencoder(recipe.autoencoder, source.shape)
    module.requires_grad_(False)
    for name in ("decoder", "post_quant_conv"):
        part = getattr(module, name, None)
        if part is not None:
            part.requires_grad_(True)
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"decoder: {type(module).__name__} has no part called decoder that could learn"
        )
    objective = Decoding(scales=spec.scales, features=spec.features, noise=spec.noise)
    return Built(module=module, objective=objective, prepare=lambda targets: {})


def fresh_autoencoder(spec: AutoencoderPart, shape: tuple[int, ...]) -> DiffusersNetwork:
    """Make an autoencoder for pictures of ``shape``; errors as of `build_autoencoder`."""
    if len(shape) != 3:
        raise ValueError(f"an autoencoder learns from pictures, not from samples of {list(shape)}")
    settings = {**_SETTINGS[spec.network](spec, shape), **spec.config}

    def make() -> nn.Module:
        return networks.from_diffusers(spec.network, settings)

    return cast("DiffusersNetwork", within_memory(make, copies_of(spec.train)))


def _kl(spec: AutoencoderPart, shape: tuple[int, ...]) -> JSONObject:
    count = len(spec.widths)
    return {
        "in_channels": shape[0],
        "out_channels": shape[0],
        "sample_size": shape[-1],
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "block_out_channels": spec.widths,
        "layers_per_block": spec.layers,
        "norm_num_groups": spec.groups,
        "latent_channels": spec.latent_channels,
        "mid_block_add_attention": False,
        "force_upcast": False,
    }


def _tiny(spec: AutoencoderPart, shape: tuple[int, ...]) -> JSONObject:
    blocks = (spec.layers,) * len(spec.widths)
    return {
        "in_channels": shape[0],
        "out_channels": shape[0],
        "encoder_block_out_channels": spec.widths,
        "decoder_block_out_channels": spec.widths,
        "num_encoder_blocks": blocks,
        "num_decoder_blocks": blocks,
        "latent_channels": spec.latent_channels,
    }


def _dc(spec: AutoencoderPart, shape: tuple[int, ...]) -> JSONObject:
    count = len(spec.widths)
    both: JSONObject = {
        "block_types": "ResBlock",
        "block_out_channels": spec.widths,
        "layers_per_block": (spec.layers,) * count,
        "qkv_multiscales": ((),) * count,
    }
    return {
        "in_channels": shape[0],
        "latent_channels": spec.latent_channels,
        **{f"encoder_{key}": value for key, value in both.items()},
        **{f"decoder_{key}": value for key, value in both.items()},
    }


_SETTINGS = {"AutoencoderKL": _kl, "AutoencoderTiny": _tiny, "AutoencoderDC": _dc}


def latent_shape(spec: AutoencoderPart, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape of a picture's latents: each width but the first halves its sides."""
    side = shape[-1] // 2 ** (len(spec.widths) - 1)
    return spec.latent_channels, side, side


@torch.no_grad()
def measured_spread(vae: DiffusersNetwork, source: Source) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of the latents ``[C]``, float64, over up
    to `_MOST` pictures.

    Raises:
        ValueError: a channel has no spread.
    """
    pictures = pictures_of(source)
    rows = torch.linspace(0, (pictures.size or 1) - 1, min(_MOST, pictures.size or 1))
    found = [
        raw_latents(vae.encode(pictures.batch(part, Draw(part))[0]))
        for part in map(Tensor.tolist, rows.round().long().split(32))
    ]
    latents = torch.cat(found)
    check_spread(latents)
    flat = latents.double().transpose(0, 1).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)


def state_spread(vae: DiffusersNetwork, spec: AutoencoderPart, mean: Tensor, std: Tensor) -> None:
    """Write the latents' mean and spread into the autoencoder's config, as Diffusers has them.

    By channel: ``latents_mean``, ``latents_std``, and a ``scaling_factor`` of 1. As a scalar:
    ``scaling_factor = 1/√(mean over channels of std² + mean²)``, with which all numbers together
    have a mean square of 1.
    """
    if spec.by_channel:
        settings: JSONObject = {
            "scaling_factor": 1.0,
            "latents_mean": [round(v, 6) for v in mean.tolist()],
            "latents_std": [round(v, 6) for v in std.tolist()],
        }
    else:
        settings = {"scaling_factor": float((std.square() + mean.square()).mean().rsqrt())}
    vae.register_to_config(**settings)


def write_autoencoder(recipe: Recipe, trained: DiffusersNetwork, source: Source, out: Path) -> Path:
    """Write the trained autoencoder with its latents' spread as ``out/vae``, unless it is there.

    Raises:
        ValueError: its latents have no spread.
        OSError: it cannot be written.
    """
    assert recipe.autoencoder is not None
    folder = out / "vae"
    if not _holds(folder, trained.state_dict()):
        state_spread(trained, recipe.autoencoder, *measured_spread(trained, source))
        (folder / "config.json").unlink(missing_ok=True)  # which is what says it is whole
        write_module(trained, folder, torch.float32)
    return folder


def _holds(folder: Path, weights: Mapping[str, Tensor]) -> bool:
    """Tell whether a folder holds these weights."""
    if not (folder / "config.json").is_file():
        return False
    found = read_tensors(folder / WEIGHTS)
    return found.keys() == weights.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in weights.items()
    )
