"""Latents through a VAE: a model's decoder, also before classifiers of a pipeline's pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...core.levels import Level
from ..objects import Answer, DiffusersNetwork, LatentClassifierModule
from .safetensors_io import read_module

_KNOWN = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AsymmetricAutoencoderKL")
"""Classes whose latents ``[B, C, h, w]`` `decoded` can normalise; others pack theirs, or
normalise them otherwise.
"""


def check_known(vae: object) -> None:
    """Refuse a VAE whose latents would have to be treated in another way.

    Raises:
        ValueError: its class is none of `_KNOWN`.
    """
    kind = type(getattr(vae, "_orig_mod", vae))
    if not {base.__name__ for base in kind.__mro__} & set(_KNOWN):
        raise ValueError(
            f"how the latents of {kind.__name__} are packed and normalised is not known here; "
            f"VAEs that are: {', '.join(_KNOWN)}"
        )


def decoded(vae: DiffusersNetwork, x: Tensor) -> Tensor:
    """Decode latents ``[B, C, h, w]`` into pictures:
    ``decode(x·std / scaling_factor + mean + shift_factor)``.

    Mean and standard deviation are of each channel, where the VAE has them (latents_mean,
    latents_std). A VAE that overflows in float16 (force_upcast) decodes in float32, and is in
    float16 again afterwards.

    Returns:
        Pictures in the type that the VAE decodes in, in [−1, 1] but for what it overshoots.

    Raises:
        ValueError: as `check_known`.
    """
    check_known(vae)
    mean, std = _spread(vae, x)
    with _upcast(vae):
        return vae.decode(
            (x * std / vae.config.scaling_factor + mean).to(vae.dtype), return_dict=False
        )[0]


def encoded(vae: DiffusersNetwork, x: Tensor) -> Tensor:
    """Encode pictures ``[B, C, H, W]`` in [−1, 1] into latents: the inverse of the scaling of
    `decoded`, of the posterior's mean.

    Returns:
        Latents in the type of ``x``.

    Raises:
        ValueError: as `check_known`.
    """
    check_known(vae)
    with _upcast(vae):
        found = vae.encode(x.to(vae.dtype))
    latents = raw_latents(found).to(x.dtype)
    mean, std = _spread(vae, latents)
    return (latents - mean) / std * vae.config.scaling_factor


def raw_latents(found: Answer) -> Tensor:
    """Return the latents in what an autoencoder's ``encode`` returns: of a posterior the mean."""
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mean
    return found.latents if hasattr(found, "latents") else found.latent


def reconstructed(vae: DiffusersNetwork, x: Tensor) -> Tensor:
    """Encode pictures ``[B, C, H, W]`` in [−1, 1], of a posterior by its mean, and decode them, in
    [−1, 1]; errors as of `check_known`.
    """
    return decoded(vae, encoded(vae, x)).clamp(-1, 1).to(x.dtype)


def _spread(vae: DiffusersNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (with the shift) and the standard deviation of each channel of the VAE's
    latents.
    """
    mean, std = (
        x.new_tensor(vae.config.get(k) or default).view(-1, 1, 1)
        for k, default in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    return mean + (vae.config.get("shift_factor") or 0.0), std


@contextmanager
def _upcast(vae: DiffusersNetwork) -> Iterator[None]:
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield
        return
    try:
        nn.Module.to(vae, torch.float32)  # Diffusers' own warns each time
        yield
    finally:
        nn.Module.to(vae, torch.float16)


class ThroughDecoder:
    """A classifier of pictures, applied to the latents of an autoencoder.

    Args:
        vae: decodes them, as `decoded`.
        inner: classifies pictures; all but ``log_prob`` and ``rho_max`` is its own.
    """

    def __init__(self, vae: DiffusersNetwork, inner: object) -> None:
        self.vae, self.inner, self.rho_max = vae, cast(LatentClassifierModule, inner), None

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def log_prob(self, x: Tensor, level: Level, target: Tensor) -> Tensor:
        """Return the classifier's log-probability of the decoded latents ``x``."""
        from torch.utils.checkpoint import checkpoint

        images = checkpoint(decoded, self.vae, x, use_reentrant=False)
        return self.inner.log_prob(images, level, target)


class Decoder:
    """Turn latents into images by a VAE, as `decoded` does, clipped to [−1, 1].

    Raises:
        ValueError: as `check_known`.
    """

    def __init__(self, vae: DiffusersNetwork) -> None:
        check_known(vae)
        self.vae = vae

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]``."""
        nn.Module.to(self.vae, x.device)
        return decoded(self.vae, x).clamp(-1, 1).to(x.dtype)

    def differentiably(self, x: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]``, not clipped, so that a gradient reaches them; what the
        decoder computes on the way is computed again for it, not kept.
        """
        from torch.utils.checkpoint import checkpoint

        nn.Module.to(self.vae, x.device)
        return checkpoint(decoded, self.vae, x, use_reentrant=False).to(x.dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images ``[B, C, H, W]`` in [−1, 1] into latents, as `encoded`."""
        nn.Module.to(self.vae, images.device)
        return encoded(self.vae, images)


def read_decoder(folder: str | Path) -> Decoder:
    """Read a VAE's folder as a decoder.

    Raises:
        ValueError: as `read_module`, or as `check_known`; the file is named.
    """
    vae = read_module(folder)
    try:
        return Decoder(vae)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / 'config.json'}: {error}") from None
