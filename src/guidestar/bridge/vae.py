"""A VAE as the decoder of a model of latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Decoder:
    """Turn latents into images by a VAE: ``decode(x·std / scaling + mean + shift)``, clipped to [−1, 1].

    Mean and standard deviation are of each channel, where the VAE tells them (latents_mean, latents_std).
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]``."""
        config, vae = self.vae.config, self.vae.to(x.device)
        mean, std = (x.new_tensor(config.get(k) or default).view(-1, 1, 1) for k, default in (("latents_mean", 0.0), ("latents_std", 1.0)))
        latents = (x * std / config.scaling_factor + mean + (config.get("shift_factor") or 0.0)).to(vae.dtype)
        return vae.decode(latents).sample.clamp(-1, 1).to(x.dtype)
