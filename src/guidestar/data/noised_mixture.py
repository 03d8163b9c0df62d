"""A Gaussian mixture noised to a level: distances, spreads and log-ratios of its components."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ..core.levels import Level, expand


class NoisedMixture:
    """The components of a mixture, noised to a level, at the points x; all in float64.

    Args:
        x: the points ``[B, d]``.
        level: the level that they are noised to.
        log_weights: ``log π`` ``[N]``.
        means: m ``[N, d]``.
        variances: eigenvalues of Σ ``[N, d]``.
        axes: eigenvectors of Σ, as columns, ``[N, d, d]``.

    Raises:
        ValueError: ``x`` has another shape than ``[B, d]``.
    """

    def __init__(
        self,
        x: Tensor,
        level: Level,
        *,
        log_weights: Tensor,
        means: Tensor,
        variances: Tensor,
        axes: Tensor,
    ) -> None:
        dim = means.shape[1]
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(
                f"a mixture in {dim} dimensions takes x of shape [B, {dim}], not {tuple(x.shape)}"
            )
        self.x, self.level = x, level
        self.log_weights, self.means, self.variances, self.axes = (
            t.to(x.device, torch.float64) for t in (log_weights, means, variances, axes)
        )
        self.z = torch.einsum("bni,nij->bnj", self._from(self.means), self.axes)
        self.spread = self._noised(self.variances, self.z)

    def to_space(self, z: Tensor) -> Tensor:
        """Return vectors ``[B, N, d]``, given along each component's axes, along those of x."""
        return torch.einsum("nij,bnj->bni", self.axes, z)

    def _from(self, points: Tensor) -> Tensor:
        """Return ``x − α·points`` ``[B, N, d]``."""
        wide = self.x.double()[:, None]
        return wide - expand(self.level.alpha, wide) * points

    def _noised(self, variances: Tensor, like: Tensor) -> Tensor:
        """Return ``α²·variances + σ²``."""
        return expand(self.level.alpha**2, like) * variances + expand(self.level.sigma**2, like)

    @cached_property
    def reference(self) -> Tensor:
        """Variance ``v = α²λ̄ + σ²`` of the reference Gaussian, ``[B or 1, 1, 1]``.

        All components are compared with that one Gaussian, ``N(αm̄, vI)``.
        """
        return self._noised(self.variances.mean()[None, None, None], self.z)

    @cached_property
    def log_reference(self) -> Tensor:
        """``log N(x; αm̄, vI)``, ``[B]``."""
        offset = self._from(self.means.mean(0))
        return (
            -(offset**2 / self.reference + torch.log(2 * math.pi * self.reference)).sum((1, 2)) / 2
        )

    @cached_property
    def log_ratios(self) -> Tensor:
        """``log π_n N(x; αm_n, C_n) − log N(x; αm̄, vI)``, ``[B, N]``.

        Near pure noise the components differ by O(α) only. Written relative to one common Gaussian,
        that difference keeps all its digits there (guidance divides it by alpha) and at tiny sigma.
        """
        a, v = expand(self.level.alpha, self.z), self.reference
        away, offset = self.means - self.means.mean(0), self._from(self.means.mean(0))
        excess = (
            a**2 * (self.variances - self.variances.mean()) / v
        )  # C_n's variances are v(1 + excess)
        linear = a * offset * away / v - a**2 * away**2 / (2 * v)
        return self.log_weights + (
            linear + self.z**2 * excess / (2 * self.spread) - torch.log1p(excess) / 2
        ).sum(-1)
