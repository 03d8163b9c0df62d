"""Per-sample statistics over all dimensions but the batch, shaped ``[B, 1, …]``."""

from __future__ import annotations

import torch
from torch import Tensor


def _column(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample."""
    return _column((a * b).flatten(1).sum(1), a)


def norm(a: Tensor) -> Tensor:
    """Return the L2 norm of each sample."""
    return _column(torch.linalg.vector_norm(a.flatten(1), dim=1), a)


def std(a: Tensor) -> Tensor:
    """Return the standard deviation of each sample, with n − 1 as in the papers' code."""
    flat = a.flatten(1)
    return _column(flat.std(1) if flat.shape[1] > 1 else torch.zeros_like(flat[:, 0]), a)


def quantile(a: Tensor, p: float) -> Tensor:
    """Return the p-quantile of each sample."""
    flat = a.flatten(1)
    wide = flat.float() if a.dtype.itemsize < 4 else flat
    return _column(wide.quantile(p, dim=1).to(a.dtype), a)


def safe(divisor: Tensor) -> Tensor:
    """Replace zeros by ones, so that 0/0 becomes 0."""
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)
