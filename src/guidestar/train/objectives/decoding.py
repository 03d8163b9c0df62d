"""Decoding: the objective of an autoencoder's decoder, once its latents stand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.levels import expand
from ...core.rng import Draw
from ...diffusers.objects import DiffusersNetwork
from ...diffusers.read.vae import decoded, encoded
from ...networks.clip import CLIP
from .objective import Objective
from .reconstruction import pyramid_error


@dataclass(frozen=True, kw_only=True)
class Decoding(Objective):
    """Absolute errors of a picture and of its halves, …, and of its embedding.

    With ``z`` the latents of the picture ``x`` (constants: the encoder does not learn), of unit
    spread, ``x̂`` what is decoded from ``z + s·noise·ε``, ``s`` uniform in [0, 1) for each picture,
    ``P_k`` the mean over squares of ``2^k`` pixels and ``f`` the unit embedding of a clean CLIP:

        loss = Σ_k mean|P_k x̂ − P_k x| + features · (1 − ⟨f(x̂), f(x)⟩),   k = 0 … scales

    Args:
        scales: how often pictures are halved; their side must allow it.
        features: weight of the embeddings' error.
        noise: largest standard deviation of what is added to the latents, so that the decoder
            learns to bear the errors of sampled ones (the draw's "noise" and "spread").
        clip: embeds pictures; needed where ``features`` is not 0.

    References:
        Generating Images with Perceptual Similarity Metrics based on Deep Networks,
        https://arxiv.org/abs/1602.02644 (a feature term in a decoder's loss)
    """

    scales: int = 2
    features: float = 0.0
    noise: float = 0.0
    clip: CLIP | None = None

    def __call__(self, net: DiffusersNetwork, x0: Tensor, target: object, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the autoencoder ``net`` on pictures ``x0 [B, C, H, W]``."""
        with torch.no_grad():
            z = encoded(net, x0)
            if self.noise:
                spread = expand(self.noise * draw.uniform("spread"), z)
                z = z + spread * draw.normal_like("noise", z)
        made = decoded(net, z).to(x0.dtype)
        loss = pyramid_error(made, x0, self.scales)
        if not self.features or self.clip is None:
            return loss
        clip = self.clip.to(x0.device)
        with torch.no_grad():
            wanted = clip.embed_image(x0)
        return loss + self.features * (1 - (clip.embed_image(made) * wanted).sum(1))
