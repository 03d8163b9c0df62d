"""Gaussian blur over a grid, mirrored at its edges."""

from __future__ import annotations

import torch
from torch import Tensor


def picture_axes(x: Tensor) -> range:
    """Return the dimensions of ``x [b, C, *S]`` that are a picture's: the last two; one of a sound.

    Each frame of a video is a picture of its own. A vector ``[b, D]`` has its one dimension.
    """
    return range(max(x.ndim - 2, min(2, x.ndim - 1)), x.ndim)


def blur(x: Tensor, sigma: float, radius: int, dims: range) -> Tensor:
    """Blur ``x`` along some dimensions, in units of the grid.

    Args:
        x: any tensor.
        sigma: standard deviation of the Gaussian.
        radius: it is sampled at ``−radius … radius``.
        dims: the dimensions.
    """
    for dim in dims:
        x = (x.movedim(dim, -1) @ _matrix(x.shape[dim], sigma, radius, x).mT).movedim(-1, dim)
    return x


def _matrix(size: int, sigma: float, radius: int, like: Tensor) -> Tensor:
    """Return the matrix of the blur of ``size`` points: ``out[i] = Σ_k g_k x[mirror(i + k)]``."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = torch.softmax(-0.5 * (offsets.to(dtype) / sigma).square(), 0)
    period = max(2 * (size - 1), 1)
    at = (torch.arange(size, device=like.device)[:, None] + offsets) % period
    at = torch.where(at >= size, period - at, at)
    return (
        torch.zeros(size, size, device=like.device, dtype=dtype)
        .scatter_add(1, at, weights.expand(size, -1))
        .to(like.dtype)
    )
