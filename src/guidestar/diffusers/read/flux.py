"""Flux's transformer on plain latents: it wants them in packs of 2×2, with the place of each
pack.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pack(x: Tensor) -> Tensor:
    """Pack latents ``[B, C, H, W]`` by 2×2 into tokens ``[B, HW/4, 4C]``, row by row.

    Raises:
        ValueError: a side is odd.
    """
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"Flux packs latents by 2×2, so their sides must be even, not {height}×{width}"
        )
    return (
        x.reshape(batch, channels, height // 2, 2, width // 2, 2)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(batch, height * width // 4, 4 * channels)
    )


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return latents ``[B, C, height, width]`` from their tokens."""
    x = tokens.reshape(len(tokens), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, height, width)


def places(height: int, width: int, like: Tensor) -> Tensor:
    """Return (0, row, column) of each token, ``[HW/4, 3]``."""
    rows, columns = torch.meshgrid(
        torch.arange(height // 2), torch.arange(width // 2), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(like)


def call(net: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    """Call a FluxTransformer2DModel on latents ``[B, C, H, W]``; the time ``t [B]`` is in [0,
    1].
    """
    height, width = x.shape[-2:]
    text = torch.zeros(cond["encoder_hidden_states"].shape[1], 3).to(x)
    out = net(pack(x), timestep=t, img_ids=places(height, width, x), txt_ids=text, **cond).sample
    return unpack(out, height, width)
